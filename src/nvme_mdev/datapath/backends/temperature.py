"""The temperature of what a file or block device lies on, where the kernel has a sensor for it.

NVMe drives and, with the module drivetemp, SATA disks have one (Documentation/hwmon). A volume of
several disks is as warm as the warmest of them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SENSORS = (
    "device/hwmon*/temp1_input",
    "device/hwmon/hwmon*/temp1_input",
    # With native multipath a namespace's device is the subsystem, its controllers are below.
    "device/nvme*/hwmon*/temp1_input",
)
_ZERO_CELSIUS_MK = 273_150
"""In thousandths of a kelvin, as hwmon tells thousandths of a degree."""
_MAX_DEPTH = 8
"""Volumes upon volumes; deeper than anybody stacks them."""


def temperature(path: str, sysfs: Path = Path("/sys")) -> int | None:
    """Kelvin, rounded; None where no sensor tells. May wait for the drive."""
    found = []
    with contextlib.suppress(OSError):
        status = Path(path).stat()
        device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
        for disk in _disks(sysfs / f"dev/block/{os.major(device)}:{os.minor(device)}", _MAX_DEPTH):
            found += [value for value in map(_read, _sensors(disk)) if value is not None]
    return max(found, default=None)


def _disks(node: Path, depth: int) -> Iterator[Path]:
    """The whole disks below a block device: those of a partition, a volume, a loop device."""
    if not node.exists() or depth == 0:
        return
    device = node.resolve()
    if (device / "partition").exists():
        device = device.parent
    slaves = [*device.glob("slaves/*")]
    for slave in slaves:
        yield from _disks(slave, depth - 1)
    if not slaves:
        yield device


def _sensors(disk: Path) -> Iterator[Path]:
    for pattern in _SENSORS:
        yield from disk.glob(pattern)


def _read(sensor: Path) -> int | None:
    try:
        millidegrees = int(sensor.read_text())
    except (OSError, ValueError):
        return None
    return round((millidegrees + _ZERO_CELSIUS_MK) / 1000)
