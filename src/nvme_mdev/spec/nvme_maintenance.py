"""Format NVM, Sanitize and Device Self-test: fields of the commands, and their log pages.

NVM Express Base Specification 2.1 sections 5.1.10 (Format NVM), 5.1.22 (Sanitize), 5.1.5 (Device
Self-test), 5.1.12.1.7 and 5.1.12.1.33 (log pages).
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

# Format NVM: cdw10 LBAFU 13:12, SES 11:9, PIL 8, PI 7:5, MSET 4, LBAFL 3:0.


class Ses(enum.IntEnum):
    """Secure Erase Settings."""

    NONE = 0
    USER_DATA = 1
    CRYPTOGRAPHIC = 2


FORMAT_LBAFL_MASK = 0xF
FORMAT_PI_SHIFT = 5
FORMAT_SES_SHIFT = 9
FORMAT_LBAFU_SHIFT = 12

FPI_SUPPORTED = 1 << 7
"""FPI of Identify Namespace: the percentage that remains is told in bits 6:0."""


# Sanitize: cdw10 NDAS 9, OIPBP 8, OWPASS 7:4, AUSE 3, SANACT 2:0; cdw11 OVRPAT.


class SanitizeAction(enum.IntEnum):
    """SANACT."""

    EXIT_FAILURE_MODE = 1
    BLOCK_ERASE = 2
    OVERWRITE = 3
    CRYPTO_ERASE = 4


SANITIZE_AUSE = 1 << 3
"""Allow Unrestricted Sanitize Exit."""
SANITIZE_OWPASS_SHIFT = 4
"""Overwrite Pass Count, 4 bits; 0 means 16."""
SANITIZE_OIPBP = 1 << 8
"""Overwrite Invert Pattern Between Passes."""
SANITIZE_NDAS = 1 << 9
"""No-Deallocate After Sanitize."""


class Sanicap(enum.IntFlag):
    """Sanitize Capabilities of Identify Controller."""

    CES = 1 << 0
    """Crypto Erase."""
    BES = 1 << 1
    """Block Erase."""
    OWS = 1 << 2
    """Overwrite."""
    NDI = 1 << 29
    """No-Deallocate Inhibited."""
    NODMMAS_NOT_MODIFIED = 1 << 30
    """The medium is not modified any more after a sanitize operation."""


class SanitizeState(enum.IntEnum):
    """SOS: bits 2:0 of SSTAT."""

    NEVER = 0
    COMPLETED = 1
    IN_PROGRESS = 2
    FAILED = 3
    COMPLETED_DEALLOCATED = 4
    """Completed, with deallocation though No-Deallocate After Sanitize was set."""


SANITIZE_PASSES_SHIFT = 3
"""Completed overwrite passes: bits 7:3 of SSTAT."""
SANITIZE_GDE = 1 << 8
"""Global Data Erased: bit 8 of SSTAT."""
SANITIZE_NO_PROGRESS = 0xFFFF
"""SPROG when nothing is in progress."""
SANITIZE_NO_TIME = 0xFFFF_FFFF
"""No time is estimated."""


class SanitizeLog(ctypes.LittleEndianStructure):
    """Sanitize Status, 512 bytes (LID 81h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("sprog", c_uint16),  # of 65536
        ("sstat", c_uint16),
        ("scdw10", c_uint32),  # cdw10 of the most recent Sanitize
        ("eto", c_uint32),  # estimated times, s: overwrite, block erase, crypto erase
        ("etbe", c_uint32),
        ("etce", c_uint32),
        ("etond", c_uint32),  # ... with No-Deallocate After Sanitize
        ("etbend", c_uint32),
        ("etcend", c_uint32),
        ("reserved32", c_uint8 * 480),
    )
    sprog: int
    sstat: int
    scdw10: int
    eto: int
    etbe: int
    etce: int
    etond: int
    etbend: int
    etcend: int


class SelfTestCode(enum.IntEnum):
    """STC: cdw10 bits 3:0 of Device Self-test, and what runs at the moment."""

    NONE = 0
    SHORT = 1
    EXTENDED = 2
    ABORT = 0xF


class SelfTestResult(enum.IntEnum):
    """Result of a self-test."""

    PASSED = 0
    ABORTED_BY_COMMAND = 1
    ABORTED_BY_RESET = 2
    ABORTED_BY_REMOVAL = 3
    ABORTED_BY_FORMAT = 4
    FATAL_ERROR = 5
    FAILED_UNKNOWN = 6
    FAILED = 7
    """A segment failed, which the entry names."""
    ABORTED = 8
    ABORTED_BY_SANITIZE = 9
    NOT_USED = 0xF


class SelfTestValid(enum.IntFlag):
    """Valid Diagnostic Information."""

    NSID = 1 << 0
    FLBA = 1 << 1
    SCT = 1 << 2
    SC = 1 << 3


class SelfTestEntry(ctypes.LittleEndianStructure):
    """Self-test Result, 28 bytes."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("status", c_uint8),  # SelfTestCode in 7:4, SelfTestResult in 3:0
        ("segment", c_uint8),
        ("valid", c_uint8),  # SelfTestValid
        ("reserved3", c_uint8),
        ("poh", c_uint64),  # power on hours
        ("nsid", c_uint32),
        ("flba", c_uint64),  # failing LBA
        ("sct", c_uint8),
        ("sc", c_uint8),
        ("vs", c_uint16),
    )
    status: int
    segment: int
    valid: int
    poh: int
    nsid: int
    flba: int
    sct: int
    sc: int


SELF_TEST_ENTRIES = 20
"""Results that are kept, the newest first."""


class SelfTestLog(ctypes.LittleEndianStructure):
    """Device Self-test, 564 bytes (LID 06h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("current", c_uint8),  # SelfTestCode of what runs
        ("completion", c_uint8),  # %, of what runs
        ("reserved2", c_uint8 * 2),
        ("results", SelfTestEntry * SELF_TEST_ENTRIES),
    )
    current: int
    completion: int
    results: ctypes.Array[SelfTestEntry]


DSTO_ONE_AT_A_TIME = 1 << 0
"""DSTO of Identify Controller: one self-test in the NVM subsystem at a time."""
