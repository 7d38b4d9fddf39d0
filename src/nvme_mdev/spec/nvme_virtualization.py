"""What Identify returns of primary and secondary controllers (Base 5.1.13.2.14, 5.1.13.2.15).

NVM Express Base Specification 2.1. A controller without secondary ones has no flexible resources.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32


class PrimaryControllerCapabilities(ctypes.LittleEndianStructure):
    """Primary Controller Capabilities, 4096 bytes (CNS 14h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("cntlid", c_uint16),
        ("portid", c_uint16),
        ("crt", c_uint8),  # resource types: queues 0, interrupts 1
        ("reserved5", c_uint8 * 27),
        ("vqfrt", c_uint32),  # queue resources, as those up to vqgran
        ("vqrfa", c_uint32),
        ("vqrfap", c_uint16),
        ("vqprt", c_uint16),
        ("vqfrsm", c_uint16),
        ("vqgran", c_uint16),
        ("reserved48", c_uint8 * 16),
        ("vifrt", c_uint32),  # interrupt resources, as those up to vigran
        ("virfa", c_uint32),
        ("virfap", c_uint16),
        ("viprt", c_uint16),
        ("vifrsm", c_uint16),
        ("vigran", c_uint16),
        ("reserved80", c_uint8 * 4016),
    )
    cntlid: int
    portid: int
    crt: int


class SecondaryControllerEntry(ctypes.LittleEndianStructure):
    """A secondary controller, 32 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("scid", c_uint16),
        ("pcid", c_uint16),
        ("scs", c_uint8),  # online 0
        ("reserved5", c_uint8 * 3),
        ("vfn", c_uint16),
        ("nvq", c_uint16),
        ("nvi", c_uint16),
        ("reserved14", c_uint8 * 18),
    )


class SecondaryControllerList(ctypes.LittleEndianStructure):
    """Secondary Controller List, 4096 bytes (CNS 15h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("numids", c_uint8),
        ("reserved1", c_uint8 * 31),
        ("entry", SecondaryControllerEntry * 127),
    )
    numids: int
