"""What a controller can be made of: several namespaces, 4 KiB blocks, read-only, RAM, in one guest.

The guest has four controllers, each of a daemon of its own. Another guest has a high NSID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import MIB, Daemon, Guest, Rig, checksum, vfio_user
from lab.daemon import control

SECOND_SIZE = 48 * MIB
HIGH_NSID = 4_000_000_000
READ_ONLY_CONTENT = b"do not change me".ljust(512)


@dataclass(frozen=True)
class Controllers:
    """The guest and its controllers' daemons, whose serial numbers are their names here."""

    guest: Guest
    several: Daemon
    large_blocks: Daemon
    read_only: Daemon
    memory: Daemon


@pytest.fixture(scope="class")
def controllers(shared_rig: Rig) -> Controllers:
    rig = shared_rig
    protected = rig.image(name="protected")
    with protected.open("r+b") as image:
        image.write(READ_ONLY_CONTENT)
    first, second = rig.image(64 * MIB, "first"), rig.image(SECOND_SIZE, "second")
    daemons = [
        rig.serve(first, second, "memory:16M", options=["--serial", "several"]),
        rig.serve(options=["--serial", "large", "--block-size", "4096"]),
        rig.serve(protected, options=["--serial", "protected", "--read-only"]),
        rig.serve("memory:64M", options=["--serial", "memory"]),
    ]
    return Controllers(rig.boot(*daemons), *daemons)


@pytest.mark.xdist_group("namespaces")
class TestNamespaces:
    def test_each_target_is_a_namespace_of_its_size(self, controllers: Controllers) -> None:
        guest = controllers.guest
        for nsid, size in enumerate((64 * MIB, SECOND_SIZE, 16 * MIB), 1):
            disk = guest.disk("several", nsid)
            assert int(guest.sh(f"blockdev --getsize64 {disk}")) == size

    def test_namespaces_are_distinct_and_written_apart(self, controllers: Controllers) -> None:
        guest = controllers.guest
        disks = [guest.disk("several", nsid) for nsid in (1, 2, 3)]
        for disk in disks:
            guest.sh(f"dd if=/dev/urandom of={disk} bs=1M count=16 oflag=direct")
        sums = [guest.checksum(disk) for disk in disks]
        assert len(set(sums)) == 3
        images = [Path(target) for target in controllers.several.targets[:2]]
        assert [checksum(image) for image in images] == sums[:2]
        names = [disk.removeprefix("/dev/") for disk in disks]
        for attribute in ("uuid", "nguid", "wwid"):
            values = [guest.sh(f"cat /sys/block/{name}/{attribute}") for name in names]
            assert len(set(values)) == 3, attribute

    def test_blocks_of_4096_bytes_hold_a_file_system(self, controllers: Controllers) -> None:
        guest = controllers.guest
        disk = guest.disk("large")
        assert guest.sh(f"blockdev --getss {disk}") == "4096\n"
        guest.fio(disk, "--rw=randrw --bsrange=4k-128k --iodepth=16 --size=32M")
        guest.sh(
            f"mkfs.ext4 -q {disk}; mount {disk} /mnt; cp -r /programs/usr/sbin /mnt; umount /mnt"
        )
        guest.sh(f"fsck.ext4 -f -n {disk}")
        assert guest.checksum(disk) == checksum(controllers.large_blocks.image)

    def test_a_read_only_disk_is_read_and_never_written(self, controllers: Controllers) -> None:
        guest = controllers.guest
        disk = guest.disk("protected")
        before = checksum(controllers.read_only.image)
        assert guest.sh(f"blockdev --getro {disk}") == "1\n"
        assert guest.sh(f"dd if={disk} bs=16 count=1 status=none") == "do not change me"
        assert guest.run(f"dd if=/dev/zero of={disk} bs=512 count=1 oflag=direct").status != 0
        # Past the guest's block layer, which knows that the disk is read-only.
        guest.sh("dd if=/dev/zero of=/tmp/zero bs=512 count=1")
        write = f"nvme write {disk} --start-block=0 --data-size=512 --data=/tmp/zero"
        assert guest.run(write).status != 0
        assert checksum(controllers.read_only.image) == before

    def test_a_disk_in_memory_works_like_any_other(self, controllers: Controllers) -> None:
        guest = controllers.guest
        guest.fio(guest.disk("memory"), "--rw=randrw --bsrange=512-128k --iodepth=16 --size=32M")

    def test_all_four_are_loaded_at_once(self, controllers: Controllers) -> None:
        guest = controllers.guest
        disks = [guest.disk("several"), guest.disk("large"), guest.disk("memory")]
        guest.fio(
            disks[0] + ":" + disks[1] + ":" + disks[2],
            "--rw=randrw --bs=4k --iodepth=16 --size=24M",
        )
        guest.sh(f"dd if={guest.disk('protected')} of=/dev/null bs=1M iflag=direct")


def test_a_disk_has_any_nsid(rig: Rig) -> None:
    """The controller comes when the firmware is done: that would ask it for every NSID up to NN."""
    port: dict[str, object] = {"driver": "pcie-root-port", "id": "rp1", "chassis": 1, "slot": 1}
    daemon = rig.serve(options=["--serial", "high", "--max-nsid", str(HIGH_NSID)])
    image = rig.image(32 * MIB, "high")
    guest = rig.start(devices=[port]).wait_ready()
    guest.allow("rescanning namespaces")
    guest.qmp("device_add", **vfio_user(daemon.socket, bus="rp1", id="controller"))
    guest.disk("high", 1)
    control(daemon, "namespace", "add", image, "--nsid", HIGH_NSID)
    # What Linux shows in sysfs is signed.
    disk = guest.disk("high", HIGH_NSID - (1 << 32))
    assert int(guest.sh(f"blockdev --getsize64 {disk}")) == 32 * MIB
    guest.fio(disk, "--rw=randrw --bsrange=512-128k --iodepth=16 --size=16M")
    assert guest.checksum(disk) == checksum(image)
    assert f"{HIGH_NSID:#x}" in guest.sh(f"nvme list-ns {disk}")
    control(daemon, "namespace", "remove", HIGH_NSID)
    guest.sh(f"for i in $(seq 300); do test -e {disk} || exit 0; sleep 0.1; done; exit 1")
