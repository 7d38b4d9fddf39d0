"""Other guests: the newest kernel, 32-bit x86, arm64 with pages of two sizes."""

from __future__ import annotations

import re

import pytest
from lab import MIB, Rig, checksum

DISK = "/dev/nvme0n1"
KIB = 1 << 10

# The release of the kernel, the machine, and the size of its pages.
GUESTS = {
    "7": ("7.", "x86_64", 4 * KIB),
    "686": ("6.1.", "i686", 4 * KIB),
    "arm64": ("6.12.", "aarch64", 4 * KIB),
    "arm64-16k": ("6.12.", "aarch64", 16 * KIB),
}


@pytest.mark.parametrize("kernel", GUESTS)
def test_another_kind_of_guest_boots_verifies_resets_and_powers_off(rig: Rig, kernel: str) -> None:
    series, processor, page_size = GUESTS[kernel]
    daemon = rig.serve()
    guest = rig.boot(daemon, kernel=kernel, append="iomem=relaxed")
    assert guest.release.startswith(series)
    assert guest.sh("uname -m") == f"{processor}\n"
    assert int(guest.sh("awk '/^KernelPageSize/ {print $2; exit}' /proc/self/smaps")) == (
        page_size // KIB
    )
    # The driver's pages, in CC.MPS, have 4 KiB whatever the kernel's have.
    registers = guest.sh("nvme show-regs /dev/nvme0 --human-readable")
    assert re.search(r"Memory Page Size +\(MPS\) *: 4096 bytes", registers)
    assert int(guest.sh(f"blockdev --getsize64 {DISK}")) == 128 * MIB
    guest.fio(
        DISK,
        "--rw=randrw --bsrange=512-128k --iodepth=16 --size=16M --numjobs=2",
        "--offset_increment=32M",
    )
    guest.fio(DISK, "--rw=randwrite --bsrange=64k-1M --iodepth=4 --size=16M --iomem_align=512")
    guest.sh(f"""
        mkfs.ext4 -q {DISK}
        mount {DISK} /mnt
        cp -r /programs/usr/sbin /mnt
        umount /mnt
        fsck.ext4 -f -n {DISK}
    """)
    guest.reset().wait_for_path(DISK)
    guest.sh(f"mount {DISK} /mnt; diff -r /programs/usr/sbin /mnt/sbin; umount /mnt")
    seen = guest.checksum(DISK)
    guest.power_off()
    assert checksum(daemon.image) == seen
