"""Submission and completion queue entries, opcodes, and the fields of commands.

NVM Express Base Specification 2.1 sections 4.1 (SQE), 4.2 (CQE), 4.3 (PRP, SGL), 5 (admin
commands), NVM Command Set Specification 1.1 section 3. Sizes are bytes; ``cdwN`` is command dword
N, and a function or structure here says which bits of it mean what.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

NSID_NONE = 0
"""No namespace."""
NSID_ALL = 0xFFFF_FFFF
"""The broadcast namespace identifier (Base 3.2.1)."""
MAX_NSID = 0xFFFF_FFFE
"""The highest identifier that a namespace can have."""

SQE_SIZE = 64
"""Bytes of a submission queue entry."""
CQE_SIZE = 16
"""Bytes of a completion queue entry."""
PRP_SIZE = 8
"""Bytes of a PRP entry."""


class AdminOpcode(enum.IntEnum):
    """Admin command opcodes (Base 5, figure *Opcodes for Admin Commands*)."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_IMAGE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    VIRTUALIZATION_MANAGEMENT = 0x1C
    NVME_MI_SEND = 0x1D
    NVME_MI_RECEIVE = 0x1E
    CAPACITY_MANAGEMENT = 0x20
    LOCKDOWN = 0x24
    DOORBELL_BUFFER_CONFIG = 0x7C
    FABRICS = 0x7F
    FORMAT_NVM = 0x80
    SECURITY_SEND = 0x81
    SECURITY_RECEIVE = 0x82
    SANITIZE = 0x84
    GET_LBA_STATUS = 0x86


class NvmOpcode(enum.IntEnum):
    """I/O command opcodes of the NVM command set (NVM Command Set 3.2)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    IO_MANAGEMENT_RECEIVE = 0x12
    RESERVATION_RELEASE = 0x15
    CANCEL = 0x18
    COPY = 0x19
    IO_MANAGEMENT_SEND = 0x1D


RESERVATION_OPCODES = (
    NvmOpcode.RESERVATION_REGISTER,
    NvmOpcode.RESERVATION_REPORT,
    NvmOpcode.RESERVATION_ACQUIRE,
    NvmOpcode.RESERVATION_RELEASE,
)


class Fuse(enum.IntEnum):
    """Fused Operation: bits 1:0 of an SQE's byte 1."""

    NONE = 0
    FIRST = 1
    SECOND = 2


class Psdt(enum.IntEnum):
    """PRP or SGL for Data Transfer: bits 7:6 of an SQE's byte 1."""

    PRP = 0
    SGL = 1
    """SGL; MPTR is the address of a contiguous buffer."""
    SGL_MPTR_SGL = 2
    """SGL; MPTR is the address of an SGL segment."""


class SQE(ctypes.LittleEndianStructure):
    """Submission queue entry, common command format, 64 bytes (Base 4.1.1)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("opc", c_uint8),
        ("flags", c_uint8),  # Fuse in 1:0, Psdt in 7:6
        ("cid", c_uint16),
        ("nsid", c_uint32),
        ("cdw2", c_uint32),
        ("cdw3", c_uint32),
        ("mptr", c_uint64),
        ("prp1", c_uint64),  # with prp2 the DPTR
        ("prp2", c_uint64),
        ("cdw10", c_uint32),
        ("cdw11", c_uint32),
        ("cdw12", c_uint32),
        ("cdw13", c_uint32),
        ("cdw14", c_uint32),
        ("cdw15", c_uint32),
    )
    opc: int
    flags: int
    cid: int
    nsid: int
    cdw2: int
    cdw3: int
    mptr: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int


class CQE(ctypes.LittleEndianStructure):
    """Completion queue entry, 16 bytes (Base 4.2.1)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("dw0", c_uint32),  # command specific
        ("dw1", c_uint32),  # command specific
        ("sqhd", c_uint16),  # SQ head pointer
        ("sqid", c_uint16),
        ("cid", c_uint16),
        ("status", c_uint16),  # phase tag in bit 0, the status field in 15:1
    )
    dw0: int
    dw1: int
    sqhd: int
    sqid: int
    cid: int
    status: int


class SglType(enum.IntEnum):
    """SGL descriptor types: bits 7:4 of a descriptor's last byte (Base 4.3.2)."""

    DATA_BLOCK = 0x0
    BIT_BUCKET = 0x1
    SEGMENT = 0x2
    LAST_SEGMENT = 0x3
    KEYED_DATA_BLOCK = 0x4
    TRANSPORT_DATA_BLOCK = 0x5


class SglDescriptor(ctypes.LittleEndianStructure):
    """SGL descriptor, 16 bytes (Base 4.3.2)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("address", c_uint64),
        ("length", c_uint32),
        ("reserved", c_uint8 * 3),
        ("identifier", c_uint8),  # SglType in 7:4, subtype in 3:0
    )
    address: int
    length: int
    reserved: ctypes.Array[c_uint8]
    identifier: int


# --- queues (PCIe Transport 3.3.1) ---


class QueueFlags(enum.IntFlag):
    """cdw11 of Create I/O SQ and Create I/O CQ, bits 15:0."""

    PC = 1 << 0
    """Physically Contiguous."""
    IEN = 1 << 1
    """Interrupts Enabled (CQ)."""


class QueuePriority(enum.IntEnum):
    """QPRIO: cdw11 bits 2:1 of Create I/O SQ."""

    URGENT = 0
    HIGH = 1
    MEDIUM = 2
    LOW = 3


# Create I/O SQ: cdw10 QSIZE 31:16 (0's based), QID 15:0; cdw11 CQID 31:16, QPRIO 2:1, PC 0.
# Create I/O CQ: cdw10 QSIZE 31:16 (0's based), QID 15:0; cdw11 IV 31:16, IEN 1, PC 0.
# Delete I/O SQ, CQ: cdw10 QID 15:0. Abort: cdw10 CID 31:16, SQID 15:0.

ABORT_NOT_ABORTED = 1 << 0
"""Dword 0 of Abort's completion: the command was not aborted (Base 5.1.1)."""


# --- Get Log Page, Identify, Features: cdw10 and cdw11 ---

# Get Log Page: cdw10 NUMDL 31:16, RAE 15, LSP 14:8, LID 7:0; cdw11 LSI 31:16, NUMDU 15:0;
#   cdw12/13 LPOL/LPOU; cdw14 CSI 31:24, OT 23, UUID index 6:0 (Base 5.1.12).
# Identify: cdw10 CNTID 31:16, CNS 7:0; cdw11 CSI 31:24, CNS specific identifier 15:0;
#   cdw14 UUID index 6:0 (Base 5.1.13).
# Get Features: cdw10 SEL 10:8, FID 7:0 (Base 5.1.11). Set Features: cdw10 SV 31, FID 7:0;
#   cdw11 and on, the value (Base 5.1.25).

SET_FEATURES_SV = 1 << 31
"""cdw10 of Set Features: save the value."""
GET_FEATURES_SEL_SHIFT = 8
"""Where SEL is in cdw10 of Get Features: bits 10:8."""
GET_LOG_PAGE_RAE = 1 << 15
"""cdw10 of Get Log Page: Retain Asynchronous Event."""
GET_LOG_PAGE_OT = 1 << 23
"""cdw14 of Get Log Page: the offset is an index, not bytes."""


class Csi(enum.IntEnum):
    """Command Set Identifier (Base, figure *I/O Command Set Identifiers*)."""

    NVM = 0x00
    KV = 0x01
    ZNS = 0x02


# --- I/O commands of the NVM command set ---

# Read, Write, Compare, Write Zeroes: cdw10/11 SLBA; cdw12 NLB 15:0 (0's based) and the flags
#   below; cdw13 DSM hints (Read, Write).


class RwControl(enum.IntFlag):
    """cdw12 above NLB of Read, Write, Compare, Write Zeroes, Verify (NVM Command Set 3.3)."""

    STC = 1 << 24
    """Storage Tag Check."""
    DEAC = 1 << 25
    """Deallocate (Write Zeroes)."""
    PRCHK_REFTAG = 1 << 26
    PRCHK_APPTAG = 1 << 27
    PRCHK_GUARD = 1 << 28
    PRACT = 1 << 29
    """Protection Information Action."""
    FUA = 1 << 30
    """Force Unit Access."""
    LR = 1 << 31
    """Limited Retry."""


RW_NLB_MASK = 0xFFFF
"""NLB, 0's based: cdw12 bits 15:0 of the commands that name a range of blocks."""


class DsmAttribute(enum.IntFlag):
    """cdw11 of Dataset Management (NVM Command Set 3.3.3)."""

    IDR = 1 << 0
    """Integral Dataset for Read."""
    IDW = 1 << 1
    """Integral Dataset for Write."""
    AD = 1 << 2
    """Deallocate."""


DSM_NR_MASK = 0xFF
"""NR, number of ranges, 0's based: cdw10 bits 7:0 of Dataset Management."""
DSM_MAX_RANGES = 256
"""The most ranges that a Dataset Management command names."""


class DsmRange(ctypes.LittleEndianStructure):
    """A range of Dataset Management, 16 bytes (NVM Command Set 3.3.3)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("cattr", c_uint32),  # context attributes
        ("nlb", c_uint32),  # logical blocks, not 0's based
        ("slba", c_uint64),
    )
    cattr: int
    nlb: int
    slba: int


# --- asynchronous events (Base 5.1.2) ---


class AsyncEventType(enum.IntEnum):
    """Asynchronous Event Type: dword 0 bits 2:0 of an AER's completion."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
    IMMEDIATE = 3
    IO_COMMAND_SET = 6
    VENDOR = 7


class ErrorEventInfo(enum.IntEnum):
    """Asynchronous Event Information of :attr:`AsyncEventType.ERROR`."""

    INVALID_DOORBELL_REGISTER = 0
    """Write to a doorbell of a queue that is not there."""
    INVALID_DOORBELL_VALUE = 1
    DIAGNOSTIC_FAILURE = 2
    PERSISTENT_INTERNAL_ERROR = 3
    TRANSIENT_INTERNAL_ERROR = 4
    FIRMWARE_IMAGE_LOAD_ERROR = 5


class SmartEventInfo(enum.IntEnum):
    """Asynchronous Event Information of :attr:`AsyncEventType.SMART`."""

    RELIABILITY = 0
    TEMPERATURE_THRESHOLD = 1
    SPARE_BELOW_THRESHOLD = 2


class NoticeEventInfo(enum.IntEnum):
    """Asynchronous Event Information of :attr:`AsyncEventType.NOTICE`."""

    NS_ATTRIBUTE_CHANGED = 0x00
    """The attached namespaces or an Identify Namespace changed; log page 04h."""
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_CHANGED = 0x02
    ANA_CHANGED = 0x03
    PREDICTABLE_LATENCY_CHANGED = 0x04
    LBA_STATUS = 0x05
    ENDURANCE_GROUP_CHANGED = 0x06
    REACHABILITY_GROUP_CHANGED = 0x07
    REACHABILITY_ASSOCIATION_CHANGED = 0x08
    ALLOCATED_NS_ATTRIBUTE_CHANGED = 0x09


class IoEventInfo(enum.IntEnum):
    """Asynchronous Event Information of :attr:`AsyncEventType.IO_COMMAND_SET`."""

    RESERVATION_LOG_AVAILABLE = 0
    SANITIZE_COMPLETED = 1
    SANITIZE_COMPLETED_DEALLOCATED = 2


class ImmediateEventInfo(enum.IntEnum):
    """Asynchronous Event Information of :attr:`AsyncEventType.IMMEDIATE`."""

    NORMAL_SUBSYSTEM_SHUTDOWN = 0
    TEMPERATURE_THRESHOLD_HYSTERESIS = 1


def async_event_result(event_type: int, info: int, log_page: int) -> int:
    """Dword 0 of an AER's completion: type 2:0, information 15:8, log page 23:16."""
    return event_type & 0x7 | (info & 0xFF) << 8 | (log_page & 0xFF) << 16
