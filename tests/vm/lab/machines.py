"""The emulated machines of the lab: QEMU's command line for a kernel of each architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .recipe import KERNELS

if TYPE_CHECKING:
    from pathlib import Path

    from .prepare import Lab


@dataclass(frozen=True)
class Platform:
    """A kind of machine: the QEMU that emulates it, and what its kernels call its serial port."""

    qemu: str
    options: tuple[str, ...]
    console: str
    debug_port: bool = False  # whether firmware writes to the PC's port 0x402


PC = Platform("qemu-system-x86_64", ("-machine", "q35"), "ttyS0", debug_port=True)
# The pointer authentication of QEMU's own is fast to emulate, the architecture's is not.
VIRT = Platform(
    "qemu-system-aarch64",
    ("-machine", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on"),
    "ttyAMA0",
)
PLATFORMS = {"amd64": PC, "i386": PC, "arm64": VIRT}
ARCHITECTURES = {kernel.name: kernel.architecture for kernel in KERNELS}


def architecture(kernel: str | None) -> str:
    """The architecture of one of the lab's kernels; what boots from a disk here is amd64."""
    return "amd64" if kernel is None else ARCHITECTURES[kernel]


def platform(kernel: str | None) -> Platform:
    """The machine for one of the lab's kernels."""
    return PLATFORMS[architecture(kernel)]


def machine(lab: Lab, kernel: str | None, memory_mib: int, smp: int) -> list[str]:
    """QEMU and an emulated machine whose memory a vfio-user server can map."""
    chosen = platform(kernel)
    memory = f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"
    return [
        *lab.qemu(chosen.qemu),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-accel", "tcg,thread=multi", *chosen.options, "-machine", "memory-backend=memory"),
        *("-m", f"{memory_mib}M", "-smp", str(smp), "-object", memory),
    ]


def programs_disk(lab: Lab, kernel: str | None) -> list[str]:
    """The disk with the programs of the lab's guests; any number of them read it at once."""
    programs = lab.programs[architecture(kernel)]
    image = f"driver=file,filename={programs},read-only=on,locking=off,node-name=image"
    return [
        *("-blockdev", image, "-blockdev", "driver=raw,file=image,read-only=on,node-name=programs"),
        *("-device", "virtio-blk-pci,drive=programs"),
    ]


def kernel_arguments(kernel: str | None) -> str:
    """What each of the lab's kernels is told.

    Not to look for soft lockups: an emulated processor stands still whenever the host is busy.
    """
    return f"console={platform(kernel).console} panic=-1 loglevel=7 nosoftlockup"


def direct_boot(lab: Lab, kernel: str, append: str) -> list[str]:
    """One of the lab's kernels, loaded by QEMU."""
    return [
        *("-kernel", str(lab.kernels[kernel]), "-initrd", str(lab.initramfs[kernel])),
        *("-append", f"{kernel_arguments(kernel)} {append}"),
    ]


def vfio_user(path: Path, **properties: object) -> dict[str, object]:
    """The QEMU device that is a client of the vfio-user socket at `path`."""
    socket_address = {"type": "unix", "path": str(path)}
    return {"driver": "vfio-user-pci", "socket": socket_address, **properties}
