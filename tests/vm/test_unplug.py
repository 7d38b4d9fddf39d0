"""The host wants its controller back.

QEMU 11.1.3 takes no requests of a vfio-user server (its vfio-pci has `x-req` for that, its
vfio-user-pci does not), so QEMU has to be asked.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from lab import checksum, vfio_user
from lab.daemon import PROGRAM

if TYPE_CHECKING:
    from lab import Rig

DISK = "/dev/nvme0n1"
PORT: dict[str, object] = {"driver": "pcie-root-port", "id": "rp1", "chassis": 1, "slot": 1}


def test_a_disk_that_is_unplugged_is_given_back_and_serves_the_next_guest(rig: Rig) -> None:
    """QEMU 11.1.3 itself aborts once it has closed the connection; a newer one may live on."""
    daemon = rig.serve()
    controller = vfio_user(daemon.socket, bus="rp1", id="controller")
    guest = rig.start(devices=[PORT, controller]).wait_ready()
    guest.wait_for_path(DISK)
    asked = subprocess.run(
        [PROGRAM, "unplug", str(daemon.socket)], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2
    assert "takes no requests" in asked.stderr

    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=4M")
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=8 conv=fsync")
    seen = guest.checksum(DISK)
    guest.qmp("device_del", id="controller")
    daemon.wait_for_log("disconnected")
    guest.close()
    assert checksum(daemon.image) == seen

    following = rig.boot(daemon)
    assert following.checksum(DISK) == seen
    following.power_off()
