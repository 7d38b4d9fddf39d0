"""Parents: NVMe controllers of the host's kernel, and the namespaces and partitions they have.

A parent is named by its character device (``/dev/nvme0``) or its PCI address (``0000:44:00.0``),
what is in it as in NVME MDEV's sysfs: ``n1`` is namespace 1, ``n1p3`` partition 3 of it. The
numbers that the kernel gives block devices are not NSIDs, and with multipathing not those of the
controller either, so they are looked up in sysfs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nvme_mdev.errors import UserError

SYSFS = Path("/sys")

_PCI_ADDRESS = r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]"
_CONTROLLER = re.compile(rf"/dev/nvme\d+|{_PCI_ADDRESS}", re.ASCII)
_PART = re.compile(rf"({_CONTROLLER.pattern})/n([1-9]\d*)(?:p([1-9]\d*))?", re.ASCII)
_PATH_OF_A_NAMESPACE = re.compile(r"(nvme\d+)c\d+(n\d+)", re.ASCII)
"""A namespace as seen through one of several controllers; the block device lacks the middle."""


@dataclass(frozen=True, slots=True)
class Part:
    """A namespace of a parent, or a partition of one."""

    parent: str
    nsid: int
    partition: int | None

    @classmethod
    def parse(cls, text: str) -> Part | None:
        """``PARENT/nN`` or ``PARENT/nNpM``; None for anything else."""
        match = _PART.fullmatch(text)
        if match is None:
            return None
        parent, nsid, partition = match.groups()
        return cls(parent, int(nsid), int(partition) if partition else None)

    def block_device(self, sysfs: Path = SYSFS) -> Path:
        """The kernel's block device of it; UserError: there is none now."""
        controller = controller_path(self.parent, sysfs)
        found = {nsid: name for name, nsid in _namespaces(controller)}
        if self.nsid not in found:
            there = ", ".join(f"n{nsid}" for nsid in sorted(found)) or "none"
            raise UserError(f"{self.parent} has no namespace n{self.nsid}: there are {there}")
        disk = found[self.nsid]
        name = disk if self.partition is None else f"{disk}p{self.partition}"
        if not (sysfs / "class/block" / name).exists():
            there = ", ".join(_partitions(disk, sysfs)) or "none"
            raise UserError(
                f"{self.parent}/n{self.nsid} has no partition p{self.partition}: there are {there}"
            )
        return Path("/dev") / name


def is_controller(text: str) -> bool:
    """It names a parent, and nothing in it."""
    return _CONTROLLER.fullmatch(text) is not None


def controller_path(parent: str, sysfs: Path = SYSFS) -> Path:
    """The directory of a controller of the kernel's in sysfs; UserError: it is none."""
    if parent.startswith("/dev/"):
        controller = sysfs / "class/nvme" / parent.removeprefix("/dev/")
        if controller.exists():
            return controller
        raise UserError(f"{parent}: there is no such NVMe controller: see `nvme list`, or ls /dev")
    function = sysfs / "bus/pci/devices" / parent.lower()
    if not function.exists():
        raise UserError(f"{parent}: there is no such PCI function: see `lspci -D`")
    controllers = sorted((function / "nvme").glob("nvme*"))
    if controllers:
        return controllers[0]
    driver = (function / "driver").resolve().name if (function / "driver").exists() else None
    raise UserError(
        f"{parent} is not an NVMe controller that the kernel's nvme driver runs"
        f" ({f'its driver is {driver}' if driver else 'it has no driver'})"
    )


def _namespaces(controller: Path) -> list[tuple[str, int]]:
    """Name of the block device and NSID of each namespace."""
    found = []
    for path in sorted(controller.glob("nvme*n*")):
        try:
            nsid = int((path / "nsid").read_text())
        except (OSError, ValueError):
            continue
        multipath = _PATH_OF_A_NAMESPACE.fullmatch(path.name)
        found.append(("".join(multipath.groups()) if multipath else path.name, nsid))
    return found


def _partitions(disk: str, sysfs: Path) -> list[str]:
    return sorted(
        path.name.removeprefix(disk)
        for path in (sysfs / "class/block" / disk).glob(f"{disk}p*")
        if (path / "partition").exists()
    )
