"""A machine with NVMe drives of its own: QEMU's emulated ones, behind an emulated IOMMU.

Inside it nvme-mdev and its host driver run as they would on a real host, on the kernel's NVMe
driver and on vfio-pci. There is no such hardware to be had for a test otherwise.

=========  ==============================================================================
drive      what it is for
=========  ==============================================================================
``main``   namespace 1 with three partitions, namespace 2 with blocks of 4096 bytes
``spare``  to be bound to vfio-pci
``lost``   to be taken away while it is used
``twin``   and ``other``: two functions that the IOMMU cannot tell apart
``timed``  to be measured, only where asked for: it has a service time
=========  ==============================================================================

Beside them it has an NVDIMM, only where asked for; the script of `nvdimm.py` makes it a disk.

All are QEMU's own but ``timed``, which is a controller of ours on the real machine; after a suspend
to RAM its memory was seen not to be mapped again. The kernel's driver has two poll queues for each
(nvme.poll_queues=2).

No kernel of Debian's has iommufd so far. Whoever has VFIO's modules with it, made for the lab's
kernel, names their folder in ``NVME_MDEV_VFIO_MODULES``: the machine loads these instead.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import nvdimm, program_disk
from .daemon import Daemon
from .machines import vfio_user

if TYPE_CHECKING:
    from .guest import Guest
    from .rig import Rig

MIB = 1 << 20
FILL = 0xA5
"""What every byte of the main drive is at first, but for its partition table."""
PARTITIONS = {1: (1, 40), 2: (48, 24), 3: (80, 24)}
"""By number: first MiB and size in MiB; between them nobody has any business."""
MAIN_SIZE = 112 * MIB
_SIZES = {
    "main": MAIN_SIZE,
    "small": 16 * MIB,
    "spare": 64 * MIB,
    "lost": 16 * MIB,
    "twin": MIB,
    "other": MIB,
}
"""Of the images, in bytes."""
TIMED_TARGET = "null:1G,latency=6400ns"
"""As long as the Optane drive of NVME MDEV's figures took for a command."""
_TIMED_OPTIONS = ("--serial", "timed")
_APPEND = "intel_iommu=on nvme.poll_queues=2 no_console_suspend"
_VFIO = "load vfio_pci vfio_iommu_type1"
#: Of a folder with modules of one's own; what is missing there is not loaded.
_OWN_VFIO = f"""insmod /modules/irqbypass.ko
for name in iommufd vfio vfio_iommu_type1 vfio-pci-core vfio-pci; do
    module={program_disk.MOUNT}/modules/$name.ko
    test ! -e $module || insmod $module
done"""
# Each page that is mapped behind the emulated IOMMU is a message to the daemon of ``timed``.
_LARGE_PAGES = "echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_SECTORS_PER_MIB = 2048
_READY = 240
"""Seconds for a daemon inside an emulated machine to start, while others use the real one."""


@dataclass
class Machine:
    """A booted machine with the drives above."""

    guest: Guest
    main: Path
    """The image of the main drive's namespace 1."""
    sockets: int = 0
    behind: dict[str, str] = field(default_factory=dict)
    """PCI addresses of the drives that vfio-pci has."""

    def controller(self, drive: str) -> str:
        """The kernel's name of a drive's controller, ``nvme0``."""
        return self.guest.sh(f"grep -lx '{drive} *' /sys/class/nvme/*/serial | cut -d/ -f5").strip()

    def address(self, drive: str) -> str:
        """Its PCI address."""
        return self.guest.sh(f"cat /sys/class/nvme/{self.controller(drive)}/address").strip()

    def behind_vfio(self, drive: str) -> str:
        """Bind a drive to vfio-pci, unless it is; its PCI address."""
        if drive not in self.behind:
            address, pci = self.address(drive), "/sys/bus/pci"
            self.guest.sh(
                f"echo vfio-pci >{pci}/devices/{address}/driver_override\n"
                f"echo {address} >{pci}/devices/{address}/driver/unbind\n"
                f"echo {address} >{pci}/drivers_probe"
            )
            self.behind[drive] = address
        return self.behind[drive]

    def serve(self, *targets: str, options: str = "--no-keeper") -> str:
        """Start a daemon in the machine; the path of its socket. It is not waited for."""
        self.sockets += 1
        socket = f"/run/{self.sockets}.sock"
        self.guest.sh(
            f"cd /run; nvme-mdev serve {' '.join(targets)} --socket {socket} {options}"
            f" >{socket}.log 2>&1 & echo $! >{socket}.pid"
        )
        return socket

    def wait(self, *sockets: str) -> None:
        """Wait until daemons are ready."""
        for socket in sockets:
            self.guest.sh(
                f"for i in $(seq {_READY}); do\n"
                f"grep -q ready {socket}.log && exit 0\n"
                f"kill -0 $(cat {socket}.pid) 2>/dev/null || break; sleep 1\n"
                f"done; cat {socket}.log; exit 1",
                timeout=2 * _READY,
            )

    def stop(self, socket: str) -> None:
        """End a daemon, and wait until it has let go of everything."""
        self.guest.sh(
            f"kill $(cat {socket}.pid); while kill -0 $(cat {socket}.pid) 2>/dev/null;"
            " do sleep 0.2; done"
        )

    def processes(self, socket: str) -> list[int]:
        """Process IDs of a daemon's: the keeper's and the serving one's, or of the only one."""
        pid = f"$(cat {socket}.pid)"
        return [
            int(word)
            for word in self.guest.sh(f"echo {pid}; cat /proc/{pid}/task/*/children").split()
        ]

    def kill(self, socket: str) -> None:
        """Kill all processes of a daemon at once, and wait until they are gone."""
        pids = " ".join(map(str, self.processes(socket)))
        self.guest.sh(
            f"kill -9 {pids}\n"
            f"for pid in {pids}; do while kill -0 $pid 2>/dev/null; do sleep 0.2; done; done"
        )

    def log(self, socket: str) -> str:
        """What a daemon said."""
        return self.guest.sh(f"cat {socket}.log")

    def partition(self, number: int) -> bytes:
        """What the image has of a partition of the main drive now."""
        start, size = PARTITIONS[number]
        with self.main.open("rb") as image:
            return os.pread(image.fileno(), size * MIB, start * MIB)

    def untouched(self) -> bool:
        """Whether every byte outside of the partitions is as it was."""
        data = self.main.read_bytes()
        end = 1
        for start, size in PARTITIONS.values():
            if data[end * MIB : start * MIB] != bytes([FILL]) * ((start - end) * MIB):
                return False
            end = start + size
        rest = data[end * MIB :]
        return data[:MIB] == _first_mebibyte() and rest == bytes([FILL]) * len(rest)


def _first_mebibyte() -> bytes:
    """A master boot record, then the fill."""
    entries = b"".join(
        struct.pack("<4xB3xII", 0x83, start * _SECTORS_PER_MIB, size * _SECTORS_PER_MIB)
        for start, size in PARTITIONS.values()
    )
    table = bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"
    return table.ljust(MIB, bytes([FILL]))


@dataclass
class Hardware:
    """What QEMU is told of the machine."""

    blocks: list[str]
    """For ``-blockdev``."""
    devices: list[dict[str, object]]
    """For ``-device``."""
    append: str = _APPEND
    """For the kernel."""
    memory_mib: int = 2048
    arguments: list[str] = field(default_factory=list)
    """What else."""


def timed_drive(directory: Path) -> Daemon:
    """The daemon whose controller is the drive ``timed``."""
    socket, log = directory / "timed.sock", directory / "timed.log"
    return Daemon(socket, [TIMED_TARGET], _TIMED_OPTIONS, log)


def make(directory: Path, timed: Daemon | None = None, *, persistent: bool = False) -> Hardware:
    """Make the images of the machine in a folder, where none of them is yet."""
    own_modules = os.environ.get("NVME_MDEV_VFIO_MODULES")
    images = {name: directory / f"{name}.img" for name in (*_SIZES, "program")}
    for name, size in _SIZES.items():
        with images[name].open("xb") as image:
            image.truncate(size)
    images["main"].write_bytes(_first_mebibyte() + bytes([FILL]) * (MAIN_SIZE - MIB))
    program_disk.make(images["program"], Path(own_modules) if own_modules else None)
    made = Hardware([_block(name, image) for name, image in images.items()], _devices(timed))
    if persistent:
        made.arguments += nvdimm.make(directory / "nvdimm.img")
        made.devices.append(nvdimm.DEVICE)
    return made


def _devices(timed: Daemon | None) -> list[dict[str, object]]:
    """The drives, and what they are behind."""
    return [
        {"driver": "intel-iommu", "intremap": "on", "caching-mode": True},
        *(
            {"driver": "pcie-root-port", "id": f"{name}-port", "chassis": n, "slot": n}
            for n, name in enumerate(("main", "spare", "lost", "twin", "timed"), 1)
        ),
        {"driver": "nvme", "id": "main-drive", "serial": "main", "bus": "main-port"},
        {"driver": "nvme-ns", "drive": "main", "bus": "main-drive", "nsid": 1},
        {
            "driver": "nvme-ns",
            "drive": "small",
            "bus": "main-drive",
            "nsid": 2,
            "logical_block_size": 4096,
            "physical_block_size": 4096,
        },
        *(_drive(name, id=f"{name}-drive", bus=f"{name}-port") for name in ("spare", "lost")),
        *(
            _drive(name, bus="twin-port", addr=f"0.{function}", multifunction=True)
            for function, name in enumerate(("twin", "other"))
        ),
        *([vfio_user(timed.socket, bus="timed-port")] if timed else []),
        {"driver": "virtio-blk-pci", "drive": "program"},
    ]


def _drive(name: str, **properties: object) -> dict[str, object]:
    """One whose only namespace is the image of that name."""
    return {"driver": "nvme", "serial": name, "drive": name, **properties}


def setup() -> str:
    """The script that makes `nvme-mdev` and VFIO ready in the machine."""
    own_modules = os.environ.get("NVME_MDEV_VFIO_MODULES")
    vfio = _OWN_VFIO if own_modules else _VFIO
    return f"{program_disk.setup('/dev/vdb')}\n{vfio}\n{_LARGE_PAGES}"


def boot(
    rig: Rig, kernel: str = "6.12", *, timed: bool = False, persistent: bool = False
) -> Machine:
    """Boot the machine, with nvme-mdev in it, and with the drive of that name, and an NVDIMM."""
    drive = rig.serve(TIMED_TARGET, options=_TIMED_OPTIONS) if timed else None
    hardware = make(rig.directory, drive, persistent=persistent)
    guest = rig.start(
        devices=hardware.devices,
        blocks=hardware.blocks,
        arguments=hardware.arguments,
        memory_mib=hardware.memory_mib,
        append=hardware.append,
        kernel=kernel,
    ).wait_ready()
    guest.allow(r"Ignoring bogus Namespace Identifiers$")
    guest.sh(setup())
    return Machine(guest, rig.directory / "main.img")


def _block(name: str, image: Path) -> str:
    """A block node of QEMU's for a raw image, such as `-blockdev` takes it."""
    read_only = "on" if name == "program" else "off"
    return (
        f"driver=raw,node-name={name},read-only={read_only},"
        f"file.driver=file,file.filename={image},file.locking=off"
    )
