"""What NVMe leaves to the vendor, as this project uses it."""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint32, c_uint64

PATH_COUNTERS_LID = 0xC0
"""Log page of the data path's counters; C0h to FFh are vendor specific (Base 5.1.12)."""
PATH_COUNTERS_MAGIC = 0x5644_4D4E
"""``NMDV``: other products use the page for something else."""
PATH_COUNTERS_VERSION = 2


class PathCounter(ctypes.LittleEndianStructure):
    """How often something was done, and the time-stamp counter cycles spent on those timed."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("count", c_uint64), ("timed", c_uint64), ("cycles", c_uint64))

    count: int
    timed: int
    cycles: int


class PathCountersLog(ctypes.LittleEndianStructure):
    """The three counters of NVME MDEV, since the controller was made (512 bytes)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("magic", c_uint32),
        ("version", c_uint32),
        ("tsc_hz", c_uint64),  # rate of the time-stamp counter
        ("translated", PathCounter),
        ("completed", PathCounter),
        ("interrupts", PathCounter),
        ("reserved88", c_uint8 * 424),
    )

    magic: int
    version: int
    tsc_hz: int
    translated: PathCounter
    completed: PathCounter
    interrupts: PathCounter
