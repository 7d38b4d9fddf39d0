"""Feature identifiers and the layout of their values.

NVM Express Base Specification 2.1 section 5.1.25, NVM Command Set Specification 1.1 section 4.1.3,
NVMe over PCIe Transport Specification 1.1 section 4.2. A value is command dword 11 of Set Features
and dword 0 of Get Features' completion.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint64
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Fid(enum.IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    LBA_RANGE_TYPE = 0x03
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    AUTONOMOUS_POWER_STATE = 0x0C
    HOST_MEMORY_BUFFER = 0x0D
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_THERMAL_MANAGEMENT = 0x10
    NON_OPERATIONAL_POWER_STATE = 0x11
    READ_RECOVERY_LEVEL = 0x12
    PREDICTABLE_LATENCY_CONFIG = 0x13
    PREDICTABLE_LATENCY_WINDOW = 0x14
    HOST_BEHAVIOR_SUPPORT = 0x16
    SANITIZE_CONFIG = 0x17
    ENDURANCE_GROUP_EVENT_CONFIG = 0x18
    IO_COMMAND_SET_PROFILE = 0x19
    SPINUP_CONTROL = 0x1A
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83
    NAMESPACE_WRITE_PROTECTION = 0x84


class Select(enum.IntEnum):
    """SEL of Get Features: cdw10 bits 10:8 (Base 5.1.11)."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    SUPPORTED_CAPABILITIES = 3


class FeatureCapability(enum.IntFlag):
    """Dword 0 of Get Features with :attr:`Select.SUPPORTED_CAPABILITIES`."""

    SAVEABLE = 1 << 0
    NAMESPACE_SPECIFIC = 1 << 1
    CHANGEABLE = 1 << 2


@dataclass(frozen=True, slots=True)
class Arbitration:
    """FID 01h (Base 5.1.25.1.1)."""

    ab: int
    """Arbitration Burst: at most 2**ab commands at a time, 7 for no limit."""
    lpw: int = 0
    """Low Priority Weight, 0's based, as the two after it."""
    mpw: int = 0
    hpw: int = 0

    def pack(self) -> int:
        """The feature's value."""
        return (
            self.ab & 0x7
            | (self.lpw & 0xFF) << 8
            | (self.mpw & 0xFF) << 16
            | (self.hpw & 0xFF) << 24
        )

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a value."""
        return cls(
            ab=value & 0x7, lpw=value >> 8 & 0xFF, mpw=value >> 16 & 0xFF, hpw=value >> 24 & 0xFF
        )


ARBITRATION_MASK = 0xFFFF_FF07
"""The bits of Arbitration that are not reserved."""

POWER_MANAGEMENT_PS_MASK = 0x1F
"""PS, power state: bits 4:0 of Power Management (FID 02h)."""
POWER_MANAGEMENT_WH_SHIFT = 5
"""Where WH, the workload hint, is in Power Management: bits 7:5."""


class TemperatureThresholdType(enum.IntEnum):
    """THSEL: bits 21:20 of Temperature Threshold."""

    OVER = 0
    UNDER = 1


TEMPERATURE_ALL_SENSORS = 0xF
"""TMPSEL that means every sensor (Set Features only)."""


@dataclass(frozen=True, slots=True)
class TemperatureThreshold:
    """FID 04h (Base 5.1.25.1.3)."""

    tmpth: int
    """Threshold in kelvin."""
    tmpsel: int = 0
    """0 composite temperature, 1 … 8 a sensor, :data:`TEMPERATURE_ALL_SENSORS`."""
    thsel: int = TemperatureThresholdType.OVER

    def pack(self) -> int:
        """The feature's value."""
        return self.tmpth & 0xFFFF | (self.tmpsel & 0xF) << 16 | (self.thsel & 0x3) << 20

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a value."""
        return cls(tmpth=value & 0xFFFF, tmpsel=value >> 16 & 0xF, thsel=value >> 20 & 0x3)


ERROR_RECOVERY_TLER_MASK = 0xFFFF
"""TLER, Time Limited Error Recovery, in units of 100 ms: bits 15:0 of Error Recovery (FID 05h)."""
ERROR_RECOVERY_DULBE = 1 << 16
"""DULBE, Deallocated or Unwritten Logical Block Error Enable."""

VOLATILE_WRITE_CACHE_WCE = 1 << 0
"""WCE, Volatile Write Cache Enable (FID 06h)."""


@dataclass(frozen=True, slots=True)
class NumberOfQueues:
    """FID 07h, both 0's based and without the admin queues (Base 5.1.25.2.1).

    In Set Features they are NSQR and NCQR, what is wanted; in a completion NSQA and NCQA, what
    was given.
    """

    nsq: int
    ncq: int

    INVALID = 0xFFFF
    """65,536 queues: Invalid Field in Command."""

    def pack(self) -> int:
        """The feature's value."""
        return self.nsq & 0xFFFF | (self.ncq & 0xFFFF) << 16

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a value."""
        return cls(nsq=value & 0xFFFF, ncq=value >> 16 & 0xFFFF)


@dataclass(frozen=True, slots=True)
class InterruptCoalescing:
    """FID 08h (PCIe Transport 4.2.1)."""

    thr: int
    """Aggregation Threshold: completions, 0's based."""
    time: int
    """Aggregation Time in units of 100 µs; 0 is no delay."""

    def pack(self) -> int:
        """The feature's value."""
        return self.thr & 0xFF | (self.time & 0xFF) << 8

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a value."""
        return cls(thr=value & 0xFF, time=value >> 8 & 0xFF)


@dataclass(frozen=True, slots=True)
class InterruptVectorConfiguration:
    """FID 09h (PCIe Transport 4.2.2)."""

    iv: int
    """Interrupt Vector."""
    cd: bool
    """Coalescing Disable."""

    def pack(self) -> int:
        """The feature's value."""
        return self.iv & 0xFFFF | int(self.cd) << 16

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a value."""
        return cls(iv=value & 0xFFFF, cd=bool(value >> 16 & 1))


WRITE_ATOMICITY_DN = 1 << 0
"""DN, Disable Normal: only AWUPF holds (FID 0Ah)."""


class AsyncEventConfig(enum.IntFlag):
    """FID 0Bh, Asynchronous Event Configuration (Base 5.1.25.1.5)."""

    SMART_SPARE = 1 << 0
    SMART_TEMPERATURE = 1 << 1
    SMART_RELIABILITY = 1 << 2
    SMART_READ_ONLY = 1 << 3
    SMART_VOLATILE_BACKUP = 1 << 4
    SMART_PMR = 1 << 5
    NSAN = 1 << 8
    """Attached Namespace Attribute Notices."""
    FAN = 1 << 9
    """Firmware Activation Notices."""
    TLN = 1 << 10
    """Telemetry Log Notices."""
    ANACN = 1 << 11
    PLEALCN = 1 << 12
    LSIAN = 1 << 13
    EGEALCN = 1 << 14
    NNSSHDN = 1 << 15
    TTHRY = 1 << 16
    ANSAN = 1 << 19


ASYNC_EVENT_SMART_MASK = 0xFF
"""The bits that say which critical warnings are reported."""


class Timestamp(ctypes.LittleEndianStructure):
    """FID 0Eh, data structure of 8 bytes (Base 5.1.25.1.7)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("timestamp", c_uint8 * 6),  # ms since 1970, little-endian
        ("attributes", c_uint8),  # origin 3:1, synch 0
        ("reserved", c_uint8),
    )
    timestamp: ctypes.Array[c_uint8]
    attributes: int


TIMESTAMP_ORIGIN_SHIFT = 1
"""Where the origin is in the attributes: 0 a reset, :data:`TIMESTAMP_ORIGIN_SET`."""
TIMESTAMP_ORIGIN_SET = 1
"""The timestamp was set with Set Features."""


class HostBehaviorSupport(ctypes.LittleEndianStructure):
    """FID 16h, data structure of 512 bytes (Base 5.1.25.1.14)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("acre", c_uint8),  # advanced command retry enable
        ("etdas", c_uint8),  # extended telemetry data area 4
        ("lbafee", c_uint8),  # LBA format extension enable
        ("hdisns", c_uint8),
        ("cdfe", c_uint16),  # copy descriptor formats enable
        ("reserved", c_uint8 * 506),
    )
    acre: int
    etdas: int
    lbafee: int
    hdisns: int
    cdfe: int


class AutonomousPowerStateEntry(ctypes.LittleEndianStructure):
    """FID 0Ch, one of the 32 entries of its 256 bytes (Base 5.1.25.1.6)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("value", c_uint64),)  # ITPS 7:3, ITPT 31:8 in ms
    value: int


class WriteProtectionState(enum.IntEnum):
    """WPS: bits 2:0 of Namespace Write Protection Config (FID 84h, Base 5.1.25.1.31)."""

    NONE = 0
    PROTECTED = 1
    UNTIL_POWER_CYCLE = 2
    PERMANENT = 3


WRITE_PROTECTION_STATE_MASK = 0x7
"""The bits of WPS."""

IO_COMMAND_SET_COMBINATION_MASK = 0x1FF
"""IOCSCI, index into the list of combinations: bits 8:0 of I/O Command Set Profile (FID 19h)."""

HOST_IDENTIFIER_EXHID = 1 << 0
"""EXHID of Host Identifier (FID 81h): the identifier has 128 bits."""
