"""Log pages: NVM Express Base Specification 2.1 section 5.1.12.1."""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_char, c_uint8, c_uint16, c_uint32, c_uint64


class LogPage(enum.IntEnum):
    """Log page identifiers."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_EFFECTS = 0x05
    DEVICE_SELF_TEST = 0x06
    TELEMETRY_HOST = 0x07
    TELEMETRY_CONTROLLER = 0x08
    ENDURANCE_GROUP = 0x09
    PREDICTABLE_LATENCY_NVM_SET = 0x0A
    PREDICTABLE_LATENCY_AGGREGATE = 0x0B
    ANA = 0x0C
    PERSISTENT_EVENT = 0x0D
    LBA_STATUS = 0x0E
    ENDURANCE_GROUP_AGGREGATE = 0x0F
    MEDIA_UNIT_STATUS = 0x10
    SUPPORTED_CAPACITY_CONFIGURATION = 0x11
    FEATURE_EFFECTS = 0x12
    """Feature Identifiers Supported and Effects."""
    NVME_MI_EFFECTS = 0x13
    COMMAND_AND_FEATURE_LOCKDOWN = 0x14
    BOOT_PARTITION = 0x15
    ROTATIONAL_MEDIA = 0x16
    RESERVATION_NOTIFICATION = 0x80
    SANITIZE_STATUS = 0x81


class ErrorLogEntry(ctypes.LittleEndianStructure):
    """Error Information Log Entry, 64 bytes, newest first (LID 01h, Base 5.1.12.1.2)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("errcnt", c_uint64),  # counts up from 1 for the life of the controller; 0: no entry
        ("sqid", c_uint16),  # FFFFh: no particular command
        ("cmdid", c_uint16),  # FFFFh: no particular command
        ("sts", c_uint16),  # status field in 15:1, phase tag in 0, as in the CQE
        ("peloc", c_uint16),  # parameter error location: byte 7:0, bit 10:8; FFFFh: none
        ("lba", c_uint64),  # first block with the error
        ("nsid", c_uint32),
        ("vsia", c_uint8),  # vendor specific log page with more, 0: none
        ("trtype", c_uint8),  # 0: not for a transport error
        ("csi", c_uint8),
        ("opc", c_uint8),
        ("csinfo", c_uint64),  # command specific
        ("ttsi", c_uint16),  # transport specific
        ("reserved42", c_uint8 * 21),
        ("lpver", c_uint8),
    )
    errcnt: int
    sqid: int
    cmdid: int
    sts: int
    peloc: int
    lba: int
    nsid: int
    vsia: int
    trtype: int
    csi: int
    opc: int
    csinfo: int
    ttsi: int
    lpver: int


PELOC_NONE = 0xFFFF
"""PELOC when no particular parameter is at fault."""


class CriticalWarning(enum.IntFlag):
    """Byte 0 of the SMART log."""

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY = 1 << 2
    READ_ONLY = 1 << 3
    VOLATILE_BACKUP = 1 << 4
    PMR = 1 << 5


class SmartLog(ctypes.LittleEndianStructure):
    """SMART / Health Information, 512 bytes (LID 02h, Base 5.1.12.1.3)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("cw", c_uint8),  # CriticalWarning
        ("ctemp", c_uint16),  # composite temperature, K
        ("avsp", c_uint8),  # available spare, %
        ("avspt", c_uint8),  # available spare threshold, %
        ("pused", c_uint8),  # percentage used
        ("egcws", c_uint8),
        ("reserved7", c_uint8 * 25),
        ("dur", c_uint8 * 16),  # data units read, thousands of 512 bytes, rounded up
        ("duw", c_uint8 * 16),  # data units written, likewise
        ("hrc", c_uint8 * 16),  # host read commands
        ("hwc", c_uint8 * 16),  # host write commands
        ("cbt", c_uint8 * 16),  # controller busy time, minutes
        ("pwrc", c_uint8 * 16),  # power cycles
        ("poh", c_uint8 * 16),  # power on hours
        ("upl", c_uint8 * 16),  # unexpected power losses (unsafe shutdowns)
        ("mdie", c_uint8 * 16),  # media and data integrity errors
        ("neile", c_uint8 * 16),  # error information log entries
        ("wctt", c_uint32),  # warning temperature time, minutes
        ("cctt", c_uint32),  # critical temperature time, minutes
        ("tsen", c_uint16 * 8),  # temperature sensors 1 … 8, K
        ("tmt1tc", c_uint32),
        ("tmt2tc", c_uint32),
        ("tttmt1", c_uint32),  # s
        ("tttmt2", c_uint32),  # s
        ("reserved232", c_uint8 * 280),
    )
    cw: int
    ctemp: int
    avsp: int
    avspt: int
    pused: int
    egcws: int
    dur: ctypes.Array[c_uint8]
    duw: ctypes.Array[c_uint8]
    hrc: ctypes.Array[c_uint8]
    hwc: ctypes.Array[c_uint8]
    cbt: ctypes.Array[c_uint8]
    pwrc: ctypes.Array[c_uint8]
    poh: ctypes.Array[c_uint8]
    upl: ctypes.Array[c_uint8]
    mdie: ctypes.Array[c_uint8]
    neile: ctypes.Array[c_uint8]
    wctt: int
    cctt: int
    tsen: ctypes.Array[c_uint16]
    tmt1tc: int
    tmt2tc: int
    tttmt1: int
    tttmt2: int


SMART_DATA_UNIT = 512 * 1000
"""Bytes of a data unit in the SMART log."""


class FirmwareSlot(ctypes.Structure):
    """A slot's revision; 8 bytes of ASCII, all zero when the slot is empty."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("revision", c_char * 8),)
    revision: bytes


class FirmwareSlotLog(ctypes.LittleEndianStructure):
    """Firmware Slot Information, 512 bytes (LID 03h, Base 5.1.12.1.4)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("afi", c_uint8),  # active slot 2:0, slot at the next reset 6:4
        ("reserved1", c_uint8 * 7),
        ("frs", FirmwareSlot * 7),  # slots 1 … 7
        ("reserved64", c_uint8 * 448),
    )
    afi: int
    frs: ctypes.Array[FirmwareSlot]


class ChangedNamespacesLog(ctypes.LittleEndianStructure):
    """Changed Attached Namespace List, 4096 bytes, ascending (LID 04h, Base 5.1.12.1.5).

    With more than 1024 changes entry 0 is FFFFFFFFh and the others are 0.
    """

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("nsid", c_uint32 * 1024),)
    nsid: ctypes.Array[c_uint32]


class CommandEffect(enum.IntFlag):
    """Commands Supported and Effects data structure, 4 bytes (Base 5.1.12.1.6)."""

    CSUPP = 1 << 0
    """Command supported."""
    LBCC = 1 << 1
    """Logical Block Content Change."""
    NCC = 1 << 2
    """Namespace Capability Change."""
    NIC = 1 << 3
    """Namespace Inventory Change."""
    CCC = 1 << 4
    """Controller Capability Change."""
    CSE_SAME_NS = 1 << 16
    """CSE 001b: only when no other command to the namespace is outstanding."""
    CSE_ALL = 2 << 16
    """CSE 010b: only when no other command is outstanding."""
    USS = 1 << 19
    """UUID Selection Supported."""


class CommandsEffectsLog(ctypes.LittleEndianStructure):
    """Commands Supported and Effects, 4096 bytes (LID 05h); an entry for each opcode."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("acs", c_uint32 * 256),  # admin commands, CommandEffect
        ("iocs", c_uint32 * 256),  # I/O commands of the command set asked for
        ("reserved2048", c_uint8 * 2048),
    )
    acs: ctypes.Array[c_uint32]
    iocs: ctypes.Array[c_uint32]


class LogPageSupport(enum.IntFlag):
    """LID Supported and Effects data structure, 4 bytes (Base 5.1.12.1.1)."""

    LSUPP = 1 << 0
    """Log page supported."""
    IOS = 1 << 1
    """Index Offset supported."""


class SupportedLogPages(ctypes.LittleEndianStructure):
    """Supported Log Pages, 1024 bytes (LID 00h); an entry for each log page."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("lids", c_uint32 * 256),)
    lids: ctypes.Array[c_uint32]


class FeatureEffect(enum.IntFlag):
    """FID Supported and Effects data structure, 4 bytes (Base 5.1.12.1.18)."""

    FSUPP = 1 << 0
    """Feature supported."""
    UDCC = 1 << 1
    """User Data Content Change."""
    NCC = 1 << 2
    NIC = 1 << 3
    CCC = 1 << 4
    USS = 1 << 19
    SCOPE_NAMESPACE = 1 << 20
    SCOPE_CONTROLLER = 1 << 21


class FeatureEffectsLog(ctypes.LittleEndianStructure):
    """Feature Identifiers Supported and Effects, 1024 bytes (LID 12h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("fids", c_uint32 * 256),)
    fids: ctypes.Array[c_uint32]
