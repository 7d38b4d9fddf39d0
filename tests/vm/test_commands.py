"""Commands beyond read and write, as Linux sends them, and their effect on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from lab import MIB, Daemon, Guest, Rig, allocated, content

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK = "/dev/nvme0n1"
PAGE = 4096


@pytest.fixture(scope="class")
def daemon(shared_rig: Rig) -> Daemon:
    return shared_rig.serve(options=["--serial", "COMMANDS"])


@pytest.fixture(scope="class")
def guest(shared_rig: Rig, daemon: Daemon) -> Iterator[Guest]:
    guest = shared_rig.boot(daemon)
    yield guest
    guest.power_off()


def fill(guest: Guest, offset: int, size: int) -> None:
    """Random data on the disk, both in MiB."""
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M seek={offset} count={size} oflag=direct")


@pytest.mark.xdist_group("commands")
class TestDiscardAndZeroes:
    def test_a_discarded_range_leaves_the_hosts_disk_and_reads_zero(
        self, guest: Guest, daemon: Daemon
    ) -> None:
        fill(guest, 16, 16)
        before = allocated(daemon.image)
        guest.sh(f"blkdiscard -o {20 * MIB} -l {8 * MIB} {DISK}")
        assert allocated(daemon.image) <= before - 8 * MIB
        assert content(daemon.image, 20 * MIB, 8 * MIB) == bytes(8 * MIB)
        assert any(content(daemon.image, 20 * MIB - PAGE, PAGE))
        assert any(content(daemon.image, 28 * MIB, PAGE))
        guest.sh(
            f"dd if={DISK} bs=1M skip=20 count=8 iflag=direct status=none"
            f" | cmp -n {8 * MIB} - /dev/zero"
        )

    def test_write_zeroes_clears_exactly_its_range(self, guest: Guest, daemon: Daemon) -> None:
        assert int(guest.sh("cat /sys/block/nvme0n1/queue/write_zeroes_max_bytes")) > 0
        fill(guest, 40, 4)
        start, length = 41 * MIB + 512, 1 * MIB + 1024  # no page ends where these do
        guest.sh(f"blkdiscard -z -o {start} -l {length} {DISK}")
        assert content(daemon.image, start, length) == bytes(length)
        assert any(content(daemon.image, start - 512, 512))
        assert any(content(daemon.image, start + length, 512))

    def test_fstrim_gives_the_space_of_deleted_files_back(
        self, guest: Guest, daemon: Daemon
    ) -> None:
        guest.sh(f"""
            blkdiscard {DISK}
            mkfs.ext4 -q {DISK}
            mount {DISK} /mnt
            dd if=/dev/urandom of=/mnt/file bs=1M count=32 conv=fsync
        """)
        full = allocated(daemon.image)
        guest.sh("rm /mnt/file; sync; fstrim /mnt; umount /mnt")
        assert allocated(daemon.image) <= full - 28 * MIB  # the journal grew meanwhile
        guest.sh(f"fsck.ext4 -f -n {DISK}")

    def test_what_was_synced_is_in_the_image(self, guest: Guest, daemon: Daemon) -> None:
        assert guest.sh("cat /sys/block/nvme0n1/queue/write_cache") == "write back\n"
        guest.sh(f"echo flushed and safe | dd of={DISK} bs=512 seek=2048 conv=sync,fsync")
        assert content(daemon.image, MIB, 16) == b"flushed and safe"

    def test_a_write_with_force_unit_access_is_in_the_image(
        self, guest: Guest, daemon: Daemon
    ) -> None:
        assert guest.sh("cat /sys/block/nvme0n1/queue/fua") == "1\n"
        guest.sh(
            f"echo written through! | dd of={DISK} bs=512 seek=4096 conv=sync oflag=direct,dsync"
        )
        assert content(daemon.image, 2 * MIB, 16) == b"written through!"
