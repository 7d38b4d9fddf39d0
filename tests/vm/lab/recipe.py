"""What the lab is made of: Debian suites, packages, kernels, and the programs of the guest.

Changing a line here changes the hash of the stages that depend on it (see `prepare`), so the next
`python -m lab prepare` builds those again and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ARCHITECTURE: Final = "x86_64-linux-gnu"
SUITE: Final = "trixie"
BACKPORTS: Final = "trixie-backports"  # the first Debian suite whose QEMU has vfio-user-pci
KERNEL_SUITES: Final = ("bookworm",)  # further suites that the kernels below come from

BACKPORTED_PACKAGES: Final = ("qemu-system-x86",)
PACKAGES: Final = (
    "busybox-static",
    "dash",
    "diffutils",
    "coreutils",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "fio",
    "kmod",
    "mtools",
    "nvme-cli",
    "ovmf",
    "pciutils",
    "systemd-boot-efi",
    "util-linux",
)


@dataclass(frozen=True)
class Kernel:
    """A Debian kernel, the newest package whose version starts with `series`."""

    name: str
    series: str
    metapackage: str = "linux-image-amd64"


KERNELS: Final = (Kernel("6.1", "6.1."), Kernel("6.12", "6.12."))

# Loaded by the guest's init in this order, each after what it depends on. "?" marks what some
# kernels have built in or no longer have: the checksums that ext4 and t10-pi ask the crypto API for
# by name, which no dependency mentions.
MODULES: Final = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic?",
    "crct10dif_generic?",
    "ext4",
    "nvme",
)

# The guest's programs beside busybox, on a read-only disk of their own: fio alone brings 60 MB of
# libraries, too much for an initramfs that is unpacked at each boot.
GUEST_PROGRAMS: Final = (
    "/usr/bin/cmp",
    "/usr/bin/dash",
    "/usr/bin/dd",
    "/usr/bin/fallocate",
    "/usr/bin/fio",
    "/usr/bin/lspci",
    "/usr/bin/md5sum",
    "/usr/bin/taskset",
    "/usr/sbin/blkdiscard",
    "/usr/sbin/blockdev",
    "/usr/sbin/dumpe2fs",
    "/usr/sbin/e2fsck",
    "/usr/sbin/fsck.ext4",
    "/usr/sbin/fstrim",
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/nvme",
)
