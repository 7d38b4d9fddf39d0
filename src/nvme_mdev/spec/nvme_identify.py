"""What Identify can be asked for, and the lists that it returns.

NVM Express Base Specification 2.1 section 5.1.13. The large structures are in files of their own:
:mod:`.nvme_identify_controller`, :mod:`.nvme_identify_namespace`.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

IDENTIFY_SIZE = 4096
"""Bytes of every Identify data structure."""


class Cns(enum.IntEnum):
    """Controller or Namespace Structure: which data structure is wanted (Base 5.1.13.1)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NSID_LIST = 0x02
    NS_ID_DESCRIPTORS = 0x03
    NVM_SET_LIST = 0x04
    IOCS_NAMESPACE = 0x05
    """I/O command set specific Identify Namespace."""
    IOCS_CONTROLLER = 0x06
    """I/O command set specific Identify Controller."""
    IOCS_ACTIVE_NSID_LIST = 0x07
    IOCS_INDEPENDENT_NAMESPACE = 0x08
    NAMESPACE_USER_FORMAT = 0x09
    IOCS_NAMESPACE_USER_FORMAT = 0x0A
    ALLOCATED_NSID_LIST = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NS_CONTROLLER_LIST = 0x12
    CONTROLLER_LIST = 0x13
    PRIMARY_CONTROLLER_CAPS = 0x14
    SECONDARY_CONTROLLER_LIST = 0x15
    NS_GRANULARITY_LIST = 0x16
    UUID_LIST = 0x17
    DOMAIN_LIST = 0x18
    ENDURANCE_GROUP_LIST = 0x19
    IOCS_ALLOCATED_NSID_LIST = 0x1A
    IOCS_ALLOCATED_NAMESPACE = 0x1B
    IO_COMMAND_SETS = 0x1C


def ascii_field(text: str, size: int) -> bytes:
    """``text`` as a string field of ``size`` bytes: cut off or padded with blanks (Base 1.4.2).

    Raises ``UnicodeEncodeError`` for what is not ASCII.
    """
    return text.encode("ascii")[:size].ljust(size)


def u128(value: int) -> bytes:
    """A 16-byte integer field. Raises ``OverflowError`` outside of 0 … 2**128 - 1."""
    return value.to_bytes(16, "little")


class Nidt(enum.IntEnum):
    """Namespace Identifier Type (CNS 03h)."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4


NIDT_LENGTH: dict[Nidt, int] = {Nidt.EUI64: 8, Nidt.NGUID: 16, Nidt.UUID: 16, Nidt.CSI: 1}
"""Bytes of each identifier (NIDL)."""


class NsIdDescriptor(ctypes.LittleEndianStructure):
    """Head of a Namespace Identification Descriptor, 4 bytes; NID follows (Base 5.1.13.2.3)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("nidt", c_uint8),
        ("nidl", c_uint8),
        ("reserved", c_uint16),
    )
    nidt: int
    nidl: int


NSID_LIST_ENTRIES = 1024
"""Identifiers in a namespace list; unused ones are 0 (Base 4.4.2)."""


class NsidList(ctypes.LittleEndianStructure):
    """Namespace List, 4096 bytes, ascending (CNS 02h, 07h, 10h, 1Ah; Base 4.4.2)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("nsid", c_uint32 * NSID_LIST_ENTRIES),)
    nsid: ctypes.Array[c_uint32]


class ControllerList(ctypes.LittleEndianStructure):
    """Controller List, 4096 bytes, ascending (CNS 12h, 13h; Base 4.4.1)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("numids", c_uint16), ("cntlid", c_uint16 * 2047))
    numids: int
    cntlid: ctypes.Array[c_uint16]


class IoCommandSetVectors(ctypes.LittleEndianStructure):
    """I/O Command Set data structure, 4096 bytes (CNS 1Ch): a bit for each CSI, per combination."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("vector", c_uint64 * 512),)
    vector: ctypes.Array[c_uint64]
