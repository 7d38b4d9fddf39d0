"""Reservations: what their commands, features, log page and report are made of.

NVM Express Base Specification 2.1, sections 7.5 to 7.8 (the commands), 8.1.22 (how they work),
5.1.12.1.32 (the log page), 5.1.25.1.29 and 5.1.25.1.30 (the features). Sizes are bytes.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

# Reservation Register: cdw10 CPTPL 31:30, IEKEY 3, RREGA 2:0; data CRKEY, NRKEY (Base 7.6).
# Reservation Acquire: cdw10 RTYPE 15:8, IEKEY 3, RACQA 2:0; data CRKEY, PRKEY (Base 7.5).
# Reservation Release: cdw10 RTYPE 15:8, IEKEY 3, RRELA 2:0; data CRKEY (Base 7.7).
# Reservation Report: cdw10 NUMD, 0's based; cdw11 EDS 0 (Base 7.8).

RESERVATION_IEKEY = 1 << 3
"""cdw10: Ignore Existing Key."""
RESERVATION_ACTION_MASK = 0x7
RESERVATION_TYPE_SHIFT = 8
CPTPL_SHIFT = 30
REPORT_EDS = 1 << 0
"""cdw11 of Reservation Report: the structures with host identifiers of 128 bits."""
KEY_SIZE = 8
"""Bytes of a reservation key."""


class RegisterAction(enum.IntEnum):
    """RREGA of Reservation Register."""

    REGISTER = 0
    UNREGISTER = 1
    REPLACE = 2


class AcquireAction(enum.IntEnum):
    """RACQA of Reservation Acquire."""

    ACQUIRE = 0
    PREEMPT = 1
    PREEMPT_AND_ABORT = 2


class ReleaseAction(enum.IntEnum):
    """RRELA of Reservation Release."""

    RELEASE = 0
    CLEAR = 1


class Cptpl(enum.IntEnum):
    """Change Persist Through Power Loss State, of Reservation Register."""

    NO_CHANGE = 0
    CLEAR = 2
    SET = 3


class ReservationType(enum.IntEnum):
    """RTYPE (Base, figure *Reservation Type Encoding*)."""

    NONE = 0
    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6


class Rescap(enum.IntFlag):
    """Reservation Capabilities of a namespace."""

    PTPLS = 1 << 0
    """Persist Through Power Loss."""
    WRITE_EXCLUSIVE = 1 << 1
    EXCLUSIVE_ACCESS = 1 << 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 1 << 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 1 << 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 1 << 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 1 << 6
    IEKEY_1_3 = 1 << 7
    """Ignore Existing Key is as revision 1.3 and later define it."""


class ReservationNotice(enum.IntEnum):
    """RNLPT: what a Reservation Notification log page tells; also its bit in feature 82h."""

    EMPTY = 0
    REGISTRATION_PREEMPTED = 1
    RESERVATION_RELEASED = 2
    RESERVATION_PREEMPTED = 3


NOTIFICATION_MASK = (
    1 << ReservationNotice.REGISTRATION_PREEMPTED
    | 1 << ReservationNotice.RESERVATION_RELEASED
    | 1 << ReservationNotice.RESERVATION_PREEMPTED
)
"""The bits of Reservation Notification Mask (FID 82h) that are not reserved."""
PERSISTENCE_PTPL = 1 << 0
"""The bit of Reservation Persistence (FID 83h)."""

NO_CONTROLLER = 0xFFFF
"""CNTLID in a report of a registrant that is associated with no controller."""


class ReservationNotificationLog(ctypes.LittleEndianStructure):
    """Reservation Notification, 64 bytes (LID 80h, Base 5.1.12.1.32)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("lpc", c_uint64),  # log page count, 0: there is none
        ("rnlpt", c_uint8),  # ReservationNotice
        ("nalp", c_uint8),  # how many more there are, 255 for more
        ("reserved10", c_uint8 * 2),
        ("nsid", c_uint32),
        ("reserved16", c_uint8 * 48),
    )
    lpc: int
    rnlpt: int
    nalp: int
    nsid: int


class ReservationStatus(ctypes.LittleEndianStructure):
    """How a report begins, 24 bytes (Base 7.8)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("gen", c_uint32),  # counts changes
        ("rtype", c_uint8),  # ReservationType
        ("regstrnt", c_uint16),  # structures that follow
        ("reserved7", c_uint8 * 2),
        ("ptpls", c_uint8),
        ("reserved10", c_uint8 * 14),
    )
    gen: int
    rtype: int
    regstrnt: int
    ptpls: int


EXTENDED_STATUS_SIZE = 64
"""Bytes of the beginning of a report with identifiers of 128 bits."""


class Registrant(ctypes.LittleEndianStructure):
    """Registrant in a report, with a host identifier of 64 bits, 24 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("cntlid", c_uint16),
        ("rcsts", c_uint8),  # bit 0: it holds the reservation
        ("reserved3", c_uint8 * 5),
        ("hostid", c_uint8 * 8),
        ("rkey", c_uint64),
    )
    cntlid: int
    rcsts: int
    hostid: ctypes.Array[c_uint8]
    rkey: int


class ExtendedRegistrant(ctypes.LittleEndianStructure):
    """Registrant in a report, with a host identifier of 128 bits, 64 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("cntlid", c_uint16),
        ("rcsts", c_uint8),  # bit 0: it holds the reservation
        ("reserved3", c_uint8 * 5),
        ("rkey", c_uint64),
        ("hostid", c_uint8 * 16),
        ("reserved32", c_uint8 * 32),
    )
    cntlid: int
    rcsts: int
    rkey: int
    hostid: ctypes.Array[c_uint8]
