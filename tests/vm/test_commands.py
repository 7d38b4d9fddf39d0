"""Commands beyond read and write, as Linux and nvme-cli send them, and their effect on the host."""

from __future__ import annotations

import re
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
    guest.allow("using deprecated NVME_IOCTL_IO_CMD")
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


NVME_CLI = {
    "id-ctrl /dev/nvme0": r"sn +: COMMANDS",
    "id-ns /dev/nvme0n1": rf"nsze +: {128 * MIB // 512:#x}",
    "ns-descs /dev/nvme0n1": r"uuid +: (?!0{8})",
    "list-ns /dev/nvme0": r"\[ +0\]:0x1",
    "list": r"/dev/nvme0n1 .* COMMANDS ",
    "smart-log /dev/nvme0": r"critical_warning\s+: 0\n",
    "error-log /dev/nvme0": r"error_count\s+: 0",
    "fw-log /dev/nvme0": r"afi +: 0x1",
    "effects-log /dev/nvme0 --csi=0": r"IOCS1 +\[Write +\] 0000000[13]",
    "supported-log-pages /dev/nvme0": r"LID 0x2 ",
    "get-feature /dev/nvme0 --feature-id=1 --human-readable": r"Arbitration",
    "get-feature /dev/nvme0 --feature-id=4 --human-readable": r"Temperature Threshold",
    "get-feature /dev/nvme0 --feature-id=6 --human-readable": r"WCE\): Enabled",
    "get-feature /dev/nvme0 --feature-id=7 --human-readable": r"NCQA\): [1-9]",
    "get-feature /dev/nvme0 --feature-id=8 --human-readable": r"Interrupt Coalescing",
    "flush /dev/nvme0 --namespace-id=1": r"success",
    "read /dev/nvme0n1 --start-block=0 --block-count=7 --data-size=4096": r"read: Success",
}


@pytest.mark.xdist_group("commands")
class TestNvmeCli:
    @pytest.mark.parametrize("command", NVME_CLI)
    def test_nvme_cli_is_answered(self, guest: Guest, command: str) -> None:
        assert re.search(NVME_CLI[command], guest.sh(f"nvme {command}"))

    def test_compare_tells_equal_from_different(self, guest: Guest) -> None:
        guest.sh(f"""
            dd if=/dev/urandom of=/tmp/data bs=4k count=1
            dd if=/tmp/data of={DISK} bs=4k count=1 oflag=direct
        """)
        compare = "nvme compare /dev/nvme0n1 --start-block=0 --block-count=7 --data-size=4096"
        assert guest.run(f"{compare} --data=/tmp/data").status == 0
        guest.sh("dd if=/dev/zero of=/tmp/other bs=4k count=1")
        assert "Compare Failure" in guest.run(f"{compare} --data=/tmp/other").output

    def test_a_read_past_the_end_fails_and_is_in_the_error_log(self, guest: Guest) -> None:
        past = f"nvme read /dev/nvme0n1 --start-block={128 * MIB // 512} --data-size=512"
        assert "LBA Out of Range" in guest.run(past).output
        newest = guest.sh("nvme error-log /dev/nvme0 --log-entries=1")
        assert re.search(rf"lba\s+: {128 * MIB // 512:#x}", newest)
        assert re.search(r"nsid\s+: 0x1\b", newest)

    def test_a_controller_reset_under_load_loses_nothing(self, guest: Guest) -> None:
        guest.allow("resetting controller")
        guest.sh(f"""
            fio --name=load --filename={DISK} --ioengine=libaio --direct=1 --rw=randrw --bs=4k \
                --iodepth=32 --size=32M --loops=3 --verify=crc32c --verify_fatal=1 \
                >/tmp/fio.log 2>&1 &
            for reset in 1 2 3; do sleep 0.3; nvme reset /dev/nvme0; done
            wait $! || {{ cat /tmp/fio.log; exit 1; }}
        """)
