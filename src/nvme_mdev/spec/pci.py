"""PCI configuration space and capabilities.

PCI Express Base Specification 5.0 sections 7.5 (configuration space, power management and PCI
Express capabilities) and 7.7 (MSI-X). Field names are the registers' names in lower case; offsets
and sizes are bytes.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint32

CONFIG_SIZE = 4096
"""Bytes of a PCI Express function's configuration space."""
CONFIG_PCI_SIZE = 256
"""Bytes of its PCI-compatible part; the rest is the extended configuration space."""
HEADER_SIZE = 64
"""Bytes of the type 0 header."""
NUM_BARS = 6
"""Base address registers of a type 0 header."""


class ConfigOffset(enum.IntEnum):
    """Where the registers of a type 0 header are (7.5.1.1, 7.5.1.2)."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION_ID = 0x08
    CLASS_CODE = 0x09
    CACHE_LINE_SIZE = 0x0C
    LATENCY_TIMER = 0x0D
    HEADER_TYPE = 0x0E
    BIST = 0x0F
    BAR0 = 0x10
    BAR1 = 0x14
    BAR2 = 0x18
    BAR3 = 0x1C
    BAR4 = 0x20
    BAR5 = 0x24
    CARDBUS_CIS = 0x28
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    EXPANSION_ROM = 0x30
    CAPABILITIES = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D
    MIN_GNT = 0x3E
    MAX_LAT = 0x3F


class Command(enum.IntFlag):
    """Command register (7.5.1.1.3)."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    SPECIAL = 1 << 3
    INVALIDATE = 1 << 4
    VGA_PALETTE = 1 << 5
    PARITY = 1 << 6
    SERR = 1 << 8
    FAST_BACK = 1 << 9
    INTX_DISABLE = 1 << 10


class Status(enum.IntFlag):
    """Status register (7.5.1.1.4)."""

    IMMEDIATE_READINESS = 1 << 0
    INTERRUPT = 1 << 3
    CAP_LIST = 1 << 4
    PARITY = 1 << 8
    SIG_TARGET_ABORT = 1 << 11
    REC_TARGET_ABORT = 1 << 12
    REC_MASTER_ABORT = 1 << 13
    SIG_SYSTEM_ERROR = 1 << 14
    DETECTED_PARITY = 1 << 15


STATUS_RW1C = int(
    Status.PARITY
    | Status.SIG_TARGET_ABORT
    | Status.REC_TARGET_ABORT
    | Status.REC_MASTER_ABORT
    | Status.SIG_SYSTEM_ERROR
    | Status.DETECTED_PARITY
)
"""The bits of the status register that are cleared by writing 1."""

CLASS_STORAGE = 0x01
"""Base class: mass storage."""
SUBCLASS_NVM = 0x08
"""Subclass: non-volatile memory."""
PROG_IF_NVME = 0x02
"""Programming interface: NVM Express I/O controller."""
CLASS_NVME = CLASS_STORAGE << 16 | SUBCLASS_NVM << 8 | PROG_IF_NVME
"""The class code 010802h as one number."""


class BarFlags(enum.IntFlag):
    """Low bits of a BAR (7.5.1.2.1)."""

    IO = 1 << 0
    MEM_64 = 1 << 2
    """64 bits: the next BAR is the upper half."""
    PREFETCH = 1 << 3


BAR_MEM_MASK = 0xFFFF_FFF0
"""The address bits of a memory BAR's (lower) half."""


class InterruptPin(enum.IntEnum):
    """Interrupt pin register."""

    NONE = 0
    INTA = 1
    INTB = 2
    INTC = 3
    INTD = 4


class ConfigHeader(ctypes.LittleEndianStructure):
    """Type 0 configuration space header, 64 bytes (7.5.1.2)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("vendor_id", c_uint16),
        ("device_id", c_uint16),
        ("command", c_uint16),  # Command
        ("status", c_uint16),  # Status
        ("revision_id", c_uint8),
        ("class_code", c_uint8 * 3),  # programming interface, subclass, base class
        ("cache_line_size", c_uint8),
        ("latency_timer", c_uint8),
        ("header_type", c_uint8),  # type 6:0, multi-function 7
        ("bist", c_uint8),
        ("bar", c_uint32 * NUM_BARS),
        ("cardbus_cis", c_uint32),
        ("subsystem_vendor_id", c_uint16),
        ("subsystem_id", c_uint16),
        ("expansion_rom", c_uint32),
        ("capabilities", c_uint8),  # offset of the first capability
        ("reserved", c_uint8 * 7),
        ("interrupt_line", c_uint8),
        ("interrupt_pin", c_uint8),  # InterruptPin
        ("min_gnt", c_uint8),
        ("max_lat", c_uint8),
    )
    vendor_id: int
    device_id: int
    command: int
    status: int
    revision_id: int
    class_code: ctypes.Array[c_uint8]
    cache_line_size: int
    latency_timer: int
    header_type: int
    bist: int
    bar: ctypes.Array[c_uint32]
    cardbus_cis: int
    subsystem_vendor_id: int
    subsystem_id: int
    expansion_rom: int
    capabilities: int
    reserved: ctypes.Array[c_uint8]
    interrupt_line: int
    interrupt_pin: int
    min_gnt: int
    max_lat: int


class CapId(enum.IntEnum):
    """Capability identifiers (PCI Code and ID Assignment Specification)."""

    PM = 0x01
    MSI = 0x05
    VENDOR = 0x09
    EXP = 0x10
    MSIX = 0x11


class ExtCapId(enum.IntEnum):
    """Extended capability identifiers."""

    AER = 0x0001
    DSN = 0x0003
    ARI = 0x000E
    SRIOV = 0x0010


class CapHeader(ctypes.LittleEndianStructure):
    """Head of a capability, 2 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("id", c_uint8),  # CapId
        ("next", c_uint8),  # offset in configuration space, 0 ends the list
    )
    id: int
    next: int


class ExtCapHeader(ctypes.LittleEndianStructure):
    """Head of an extended capability, 4 bytes (7.6.3)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("id", c_uint16),  # ExtCapId
        ("version_next", c_uint16),  # version 3:0, next 15:4
    )
    id: int
    version_next: int


# --- power management (7.5.2) ---


class PmCap(ctypes.LittleEndianStructure):
    """Power Management capability, 8 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("header", CapHeader),
        ("pmc", c_uint16),  # version 2:0, PME support 15:11
        ("pmcsr", c_uint16),  # PmcsrFlags
        ("pmcsr_bse", c_uint8),
        ("data", c_uint8),
    )
    header: CapHeader
    pmc: int
    pmcsr: int
    pmcsr_bse: int
    data: int


PMC_VERSION = 3
"""Bits 2:0 of PMC: PCI Power Management 1.2."""


class PmcsrFlags(enum.IntFlag):
    """Power Management Control/Status; the power state is in bits 1:0."""

    NO_SOFT_RESET = 1 << 3
    """Going from D3hot to D0 does not reset the function."""
    PME_ENABLE = 1 << 8
    PME_STATUS = 1 << 15


PMCSR_STATE_MASK = 0x3
"""The power state in PMCSR: 0 is D0, 3 is D3hot."""
PM_STATE_D0 = 0
"""Fully on."""
PM_STATE_D3HOT = 3
"""Off, configuration space accessible."""


# --- MSI (7.7.1) ---


class MsiCap(ctypes.LittleEndianStructure):
    """MSI capability with 64-bit address, without masks, 14 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("header", CapHeader),
        ("mc", c_uint16),  # MsiControl; MMC 3:1, MME 6:4
        ("address_low", c_uint32),
        ("address_high", c_uint32),
        ("data", c_uint16),
    )
    header: CapHeader
    mc: int
    address_low: int
    address_high: int
    data: int


class MsiControl(enum.IntFlag):
    """Single bits of Message Control of MSI."""

    ENABLE = 1 << 0
    ADDRESS_64 = 1 << 7


MSI_MMC_SHIFT = 1
"""Multiple Message Capable: vectors asked for, as a power of two."""
MSI_MME_SHIFT = 4
"""Multiple Message Enable: vectors given, as a power of two."""
MSI_MME_MASK = 0x7 << MSI_MME_SHIFT
MSI_MAX_VECTORS = 32
"""The most vectors of MSI."""

# --- MSI-X (7.7.2) ---


class MsixCap(ctypes.LittleEndianStructure):
    """MSI-X capability, 12 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("header", CapHeader),
        ("mxc", c_uint16),  # MsixControl; table size 10:0, 0's based
        ("mtab", c_uint32),  # table: BAR 2:0, offset 31:3
        ("mpba", c_uint32),  # pending bits: BAR 2:0, offset 31:3
    )
    header: CapHeader
    mxc: int
    mtab: int
    mpba: int


class MsixControl(enum.IntFlag):
    """Message Control of MSI-X, above the table size."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


MSIX_TABLE_SIZE_MASK = 0x7FF
"""Table size in MXC, 0's based."""
MSIX_BIR_MASK = 0x7
"""Which BAR, in MTAB and MPBA."""
MSIX_MAX_VECTORS = 2048
"""The most vectors that a function can have."""


class MsixTableEntry(ctypes.LittleEndianStructure):
    """An entry of the MSI-X table, 16 bytes (7.7.2.5 to 7.7.2.8)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("address_low", c_uint32),
        ("address_high", c_uint32),
        ("data", c_uint32),
        ("vector_control", c_uint32),  # mask 0
    )
    address_low: int
    address_high: int
    data: int
    vector_control: int


MSIX_VECTOR_MASKED = 1 << 0
"""Mask bit of an entry's vector control."""


# --- PCI Express (7.5.3) ---


class ExpCap(ctypes.LittleEndianStructure):
    """PCI Express capability, version 2, 60 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("header", CapHeader),
        ("pxcap", c_uint16),  # version 3:0, device/port type 7:4, interrupt message 13:9
        ("pxdcap", c_uint32),  # ExpDeviceCap
        ("pxdc", c_uint16),  # ExpDeviceControl
        ("pxds", c_uint16),  # ExpDeviceStatus
        ("pxlcap", c_uint32),
        ("pxlc", c_uint16),
        ("pxls", c_uint16),
        ("slot_cap", c_uint32),
        ("slot_control", c_uint16),
        ("slot_status", c_uint16),
        ("root_control", c_uint16),
        ("root_cap", c_uint16),
        ("root_status", c_uint32),
        ("pxdcap2", c_uint32),  # ExpDeviceCap2
        ("pxdc2", c_uint16),
        ("pxds2", c_uint16),
        ("pxlcap2", c_uint32),
        ("pxlc2", c_uint16),
        ("pxls2", c_uint16),
        ("slot_cap2", c_uint32),
        ("slot_control2", c_uint16),
        ("slot_status2", c_uint16),
    )
    header: CapHeader
    pxcap: int
    pxdcap: int
    pxdc: int
    pxds: int
    pxlcap: int
    pxlc: int
    pxls: int
    slot_cap: int
    slot_control: int
    slot_status: int
    root_control: int
    root_cap: int
    root_status: int
    pxdcap2: int
    pxdc2: int
    pxds2: int
    pxlcap2: int
    pxlc2: int
    pxls2: int
    slot_cap2: int
    slot_control2: int
    slot_status2: int


EXP_CAP_VERSION = 2
"""Bits 3:0 of PXCAP."""
EXP_TYPE_SHIFT = 4
"""Where :class:`ExpType` is in PXCAP."""


class ExpType(enum.IntEnum):
    """Device/port type: bits 7:4 of PXCAP."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    RC_INTEGRATED_ENDPOINT = 9


class ExpDeviceCap(enum.IntFlag):
    """Device Capabilities; maximum payload in 2:0, L0s latency 8:6, L1 latency 11:9."""

    EXTENDED_TAG = 1 << 5
    ROLE_BASED_ERROR = 1 << 15
    FLR = 1 << 28
    """Function Level Reset."""


class ExpDeviceControl(enum.IntFlag):
    """Device Control; maximum payload in 7:5, maximum read request in 14:12."""

    CORRECTABLE_ERROR = 1 << 0
    NON_FATAL_ERROR = 1 << 1
    FATAL_ERROR = 1 << 2
    UNSUPPORTED_REQUEST = 1 << 3
    RELAXED_ORDERING = 1 << 4
    EXTENDED_TAG = 1 << 8
    PHANTOM = 1 << 9
    AUX_POWER = 1 << 10
    NO_SNOOP = 1 << 11
    INITIATE_FLR = 1 << 15
    """Writing 1 resets the function; it reads as 0."""


EXP_MAX_PAYLOAD_SHIFT = 5
"""Where the maximum payload (128 << n bytes) is in Device Control."""
EXP_MAX_READ_REQUEST_SHIFT = 12
"""Where the maximum read request (128 << n bytes) is in Device Control."""


class ExpDeviceStatus(enum.IntFlag):
    """Device Status; bits 3:0 are cleared by writing 1."""

    CORRECTABLE_ERROR = 1 << 0
    NON_FATAL_ERROR = 1 << 1
    FATAL_ERROR = 1 << 2
    UNSUPPORTED_REQUEST = 1 << 3
    AUX_POWER = 1 << 4
    TRANSACTIONS_PENDING = 1 << 5


class ExpDeviceCap2(enum.IntFlag):
    """Device Capabilities 2."""

    COMPLETION_TIMEOUT_DISABLE = 1 << 4


class ExpLinkSpeed(enum.IntEnum):
    """Bits 3:0 of Link Capabilities and Link Status; the width is in bits 9:4."""

    GT_2_5 = 1
    GT_5 = 2
    GT_8 = 3
    GT_16 = 4


EXP_LINK_WIDTH_SHIFT = 4
"""Where the link width (lanes) is in Link Capabilities and Link Status."""
