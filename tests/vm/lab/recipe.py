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


# Further packages for the lab, unpacked beside the chroot.
TOOLS: Final = (
    "dbench",
    "grub-efi-amd64-bin",
    "kexec-tools",
    f"qemu-system-arm/{BACKPORTS}",
    f"qemu-utils/{BACKPORTS}",
    "stress-ng",
    "xfsprogs",
)


@dataclass(frozen=True)
class Kernel:
    """A Debian kernel, the newest package whose version starts with `series`."""

    name: str
    series: str
    metapackage: str = "linux-image-amd64"
    architecture: str = "amd64"
    suites: tuple[str, ...] = (SUITE, BACKPORTS, *KERNEL_SUITES)


KERNELS: Final = (
    Kernel("6.1", "6.1."),
    Kernel("6.12", "6.12."),
    Kernel("7", "7."),
    Kernel("686", "6.1.", "linux-image-686-pae", "i386", ("bookworm",)),
    Kernel("arm64", "6.12.", "linux-image-arm64", "arm64"),
    Kernel("arm64-16k", "6.12.", "linux-image-arm64-16k", "arm64"),
)

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

# In the initramfs, too, but loaded when a test asks for it: by `load NAME` in a script, or by
# lab.modules=NAME,NAME on the kernel's command line.
MODULES_ON_DEMAND: Final = (
    "nd_pmem",
    "nfit?",
    "ublk_drv?",
    "vfio_iommu_type1",
    "vfio_pci",
    "virtio_iommu?",
    "virtio_mem?",
    "xfs",
)


@dataclass(frozen=True)
class Userland:
    """What the guests of an architecture run: from the chroot, or from packages of their own."""

    architecture: str
    packages: tuple[str, ...] = ()
    suite: str = SUITE
    programs: tuple[str, ...] = ()  # beside GUEST_PROGRAMS


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
    "/usr/sbin/resize2fs",
)
PACKAGES_OF_GUEST_PROGRAMS: Final = (
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "e2fsprogs",
    "fio",
    "nvme-cli",
    "pciutils",
    "util-linux",
)

USERLANDS: Final = (
    Userland(
        "amd64",
        programs=(
            "/usr/bin/dbench",
            "/usr/bin/qemu-img",
            "/usr/bin/qemu-io",
            "/usr/bin/stress-ng",
            "/usr/sbin/kexec",
            "/usr/sbin/mkfs.xfs",
            "/usr/sbin/xfs_repair",
            "/usr/share/dbench/client.txt",  # what dbench replays
        ),
    ),
    # Bookworm is the last suite that has a kernel for it, and its packages go with that.
    Userland("i386", PACKAGES_OF_GUEST_PROGRAMS, "bookworm"),
    Userland("arm64", PACKAGES_OF_GUEST_PROGRAMS),
)
