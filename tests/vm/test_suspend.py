"""A guest that goes to sleep, to RAM: its driver shuts the controller down and finds it again.

Nobody powers it off: QEMU's machine does not after a suspend (docs/facts.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from test_memory import DISK, IOMMUS

if TYPE_CHECKING:
    from lab import Rig

LONG = 120.0
"""Seconds that an emulated machine may take for it."""
INTEL: dict[str, Any] = {
    "devices": [IOMMUS["intel"].device],
    "append": IOMMUS["intel"].append,
    "arguments": IOMMUS["intel"].arguments,
}


@pytest.mark.parametrize("machine", [{}, INTEL], ids=["plain", "intel-iommu"])
def test_a_guest_that_suspends_itself_under_io_finds_its_disk_again(
    rig: Rig, machine: dict[str, Any]
) -> None:
    daemon = rig.serve()
    guest = rig.boot(daemon, **machine)
    guest.sh(
        f"(fio --name=load --filename={DISK} --direct=1 --ioengine=libaio --rw=randwrite --bs=4k"
        " --iodepth=8 --size=4M --verify=crc32c --verify_fatal=1 --time_based --runtime=15"
        " >/run/load.log 2>&1; echo $? >/run/load.status) >/dev/null 2>&1 &"
    )
    guest.suspend(LONG)
    guest.wait_for_path("/run/load.status", LONG)
    guest.sh("cat /run/load.log; grep -qx 0 /run/load.status")
    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=2M")
