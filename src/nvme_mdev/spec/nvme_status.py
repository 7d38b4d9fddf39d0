"""Completion status: NVM Express Base Specification 2.1 section 4.2.3.

The *status field* is 15 bits: SC in 7:0, SCT in 10:8, CRD in 12:11, M (More) in 13, DNR (Do Not
Retry) in 14. In the CQE it stands in bits 31:17 of dword 3, above the phase tag.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Sct(enum.IntEnum):
    """Status Code Type."""

    GENERIC = 0
    COMMAND_SPECIFIC = 1
    MEDIA = 2
    """Media and Data Integrity Errors."""
    PATH = 3
    VENDOR = 7


class GenericStatus(enum.IntEnum):
    """Status codes of SCT 0h (Base 4.2.3.1, NVM Command Set 3.1)."""

    SUCCESS = 0x00
    INVALID_OPCODE = 0x01
    INVALID_FIELD = 0x02
    COMMAND_ID_CONFLICT = 0x03
    DATA_TRANSFER_ERROR = 0x04
    POWER_LOSS = 0x05
    INTERNAL_ERROR = 0x06
    ABORT_REQUESTED = 0x07
    ABORT_SQ_DELETION = 0x08
    ABORT_FAILED_FUSED = 0x09
    ABORT_MISSING_FUSED = 0x0A
    INVALID_NAMESPACE_OR_FORMAT = 0x0B
    COMMAND_SEQUENCE_ERROR = 0x0C
    INVALID_SGL_SEGMENT = 0x0D
    INVALID_SGL_COUNT = 0x0E
    DATA_SGL_LENGTH_INVALID = 0x0F
    METADATA_SGL_LENGTH_INVALID = 0x10
    SGL_TYPE_INVALID = 0x11
    INVALID_CMB_USE = 0x12
    INVALID_PRP_OFFSET = 0x13
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x14
    OPERATION_DENIED = 0x15
    SGL_OFFSET_INVALID = 0x16
    HOST_ID_INCONSISTENT = 0x18
    KEEP_ALIVE_EXPIRED = 0x19
    KEEP_ALIVE_INVALID = 0x1A
    ABORT_PREEMPT = 0x1B
    SANITIZE_FAILED = 0x1C
    SANITIZE_IN_PROGRESS = 0x1D
    SGL_GRANULARITY_INVALID = 0x1E
    COMMAND_NOT_SUPPORTED_IN_CMB = 0x1F
    NAMESPACE_WRITE_PROTECTED = 0x20
    COMMAND_INTERRUPTED = 0x21
    TRANSIENT_TRANSPORT_ERROR = 0x22
    PROHIBITED_BY_LOCKDOWN = 0x23
    ADMIN_MEDIA_NOT_READY = 0x24
    HOST_ID_NOT_INITIALIZED = 0x27
    LBA_OUT_OF_RANGE = 0x80
    CAPACITY_EXCEEDED = 0x81
    NAMESPACE_NOT_READY = 0x82
    RESERVATION_CONFLICT = 0x83
    FORMAT_IN_PROGRESS = 0x84


class CommandStatus(enum.IntEnum):
    """Status codes of SCT 1h (Base 4.2.3.2, NVM Command Set 3.1)."""

    COMPLETION_QUEUE_INVALID = 0x00
    INVALID_QUEUE_ID = 0x01
    INVALID_QUEUE_SIZE = 0x02
    ABORT_LIMIT_EXCEEDED = 0x03
    AER_LIMIT_EXCEEDED = 0x05
    INVALID_FIRMWARE_SLOT = 0x06
    INVALID_FIRMWARE_IMAGE = 0x07
    INVALID_INTERRUPT_VECTOR = 0x08
    INVALID_LOG_PAGE = 0x09
    INVALID_FORMAT = 0x0A
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0B
    INVALID_QUEUE_DELETION = 0x0C
    FEATURE_NOT_SAVEABLE = 0x0D
    FEATURE_NOT_CHANGEABLE = 0x0E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0F
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10
    FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11
    FIRMWARE_NEEDS_MAX_TIME = 0x12
    FIRMWARE_PROHIBITED = 0x13
    OVERLAPPING_RANGE = 0x14
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x15
    NAMESPACE_ID_UNAVAILABLE = 0x16
    NAMESPACE_ALREADY_ATTACHED = 0x18
    NAMESPACE_IS_PRIVATE = 0x19
    NAMESPACE_NOT_ATTACHED = 0x1A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x1B
    CONTROLLER_LIST_INVALID = 0x1C
    SELF_TEST_IN_PROGRESS = 0x1D
    BOOT_PARTITION_WRITE_PROHIBITED = 0x1E
    INVALID_CONTROLLER_ID = 0x1F
    INVALID_SECONDARY_STATE = 0x20
    INVALID_CONTROLLER_RESOURCES = 0x21
    INVALID_RESOURCE_ID = 0x22
    SANITIZE_PROHIBITED_PMR = 0x23
    INVALID_ANA_GROUP = 0x24
    ANA_ATTACH_FAILED = 0x25
    INSUFFICIENT_CAPACITY = 0x26
    NAMESPACE_ATTACHMENT_LIMIT = 0x27
    LOCKDOWN_NOT_SUPPORTED = 0x28
    IOCS_NOT_SUPPORTED = 0x29
    IOCS_NOT_ENABLED = 0x2A
    IOCS_COMBINATION_REJECTED = 0x2B
    INVALID_IOCS = 0x2C
    ID_UNAVAILABLE = 0x2D
    CONFLICTING_ATTRIBUTES = 0x80
    INVALID_PROTECTION_INFO = 0x81
    READ_ONLY_RANGE = 0x82
    """Attempted Write to Read Only Range."""
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x83


class MediaStatus(enum.IntEnum):
    """Status codes of SCT 2h (Base 4.2.3.3, NVM Command Set 3.1)."""

    WRITE_FAULT = 0x80
    UNRECOVERED_READ = 0x81
    GUARD_CHECK = 0x82
    APPTAG_CHECK = 0x83
    REFTAG_CHECK = 0x84
    COMPARE_FAILURE = 0x85
    ACCESS_DENIED = 0x86
    DEALLOCATED_OR_UNWRITTEN = 0x87
    STORAGE_TAG_CHECK = 0x88


class PathStatus(enum.IntEnum):
    """Status codes of SCT 3h (Base 4.2.3.4)."""

    INTERNAL_PATH_ERROR = 0x00
    ANA_PERSISTENT_LOSS = 0x01
    ANA_INACCESSIBLE = 0x02
    ANA_TRANSITION = 0x03
    CONTROLLER_PATHING_ERROR = 0x60
    HOST_PATHING_ERROR = 0x70
    ABORTED_BY_HOST = 0x71


StatusCode = GenericStatus | CommandStatus | MediaStatus | PathStatus

_SCT: dict[type[StatusCode], Sct] = {
    GenericStatus: Sct.GENERIC,
    CommandStatus: Sct.COMMAND_SPECIFIC,
    MediaStatus: Sct.MEDIA,
    PathStatus: Sct.PATH,
}

STATUS_MASK = 0x7FFF
"""The 15 bits of the status field."""
STATUS_MORE = 1 << 13
"""M: there is more in the error log (in the status field)."""
STATUS_DNR = 1 << 14
"""DNR: the same command would fail again (in the status field)."""


@dataclass(frozen=True, slots=True)
class Status:
    """A status field, taken apart."""

    sc: int = 0
    """Status Code."""
    sct: int = Sct.GENERIC
    """Status Code Type."""
    dnr: bool = False
    """Do Not Retry."""
    more: bool = False
    """More information is in the error log page."""
    crd: int = 0
    """Command Retry Delay: 0 for none, n for CRDTn."""

    @classmethod
    def of(cls, code: StatusCode, *, dnr: bool = False, more: bool = False, crd: int = 0) -> Self:
        """A status by its code's name; the type follows from it."""
        return cls(sc=int(code), sct=_SCT[type(code)], dnr=dnr, more=more, crd=crd)

    @classmethod
    def unpack(cls, field: int) -> Self:
        """Take a 15-bit status field apart."""
        return cls(
            sc=field & 0xFF,
            sct=field >> 8 & 0x7,
            crd=field >> 11 & 0x3,
            more=bool(field & STATUS_MORE),
            dnr=bool(field & STATUS_DNR),
        )

    def pack(self) -> int:
        """The 15-bit status field, without phase tag."""
        return (
            self.sc & 0xFF
            | (self.sct & 0x7) << 8
            | (self.crd & 0x3) << 11
            | (STATUS_MORE if self.more else 0)
            | (STATUS_DNR if self.dnr else 0)
        )

    @property
    def success(self) -> bool:
        """Whether the command succeeded."""
        return self.sc == GenericStatus.SUCCESS and self.sct == Sct.GENERIC

    @property
    def code(self) -> StatusCode | None:
        """The named code, None when it has no name here (vendor specific, reserved)."""
        for enumeration, sct in _SCT.items():
            if sct == self.sct:
                try:
                    return enumeration(self.sc)
                except ValueError:
                    return None
        return None

    def __str__(self) -> str:
        """The name if there is one, and the numbers."""
        code = self.code
        name = code.name if code is not None else "UNKNOWN"
        flags = (" DNR" if self.dnr else "") + (" M" if self.more else "")
        return f"{name} (SCT {self.sct:x}h, SC {self.sc:02x}h){flags}"


def status_field(code: StatusCode, *, dnr: bool = False, more: bool = False) -> int:
    """The 15-bit status field for a code: what a completion carries."""
    return Status.of(code, dnr=dnr, more=more).pack()
