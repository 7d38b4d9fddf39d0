"""Controller registers and doorbells.

NVM Express Base Specification 2.1 section 3.1.4 (properties), NVMe over PCIe Transport
Specification 1.1 section 3.1 (INTMS, INTMC, doorbells). Offsets and sizes are bytes; a field's
name is the specification's acronym.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Register(enum.IntEnum):
    """Offsets in BAR0 (Base 3.1.4, figure *Property Definition*)."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CMBLOC = 0x38
    CMBSZ = 0x3C
    BPINFO = 0x40
    BPRSEL = 0x44
    BPMBL = 0x48
    CMBMSC = 0x50
    CMBSTS = 0x58
    CMBEBS = 0x5C
    CMBSWTP = 0x60
    NSSD = 0x64
    CRTO = 0x68
    PMRCAP = 0xE00
    PMRCTL = 0xE04
    PMRSTS = 0xE08
    PMREBS = 0xE0C
    PMRSWTP = 0xE10
    PMRMSCL = 0xE14
    PMRMSCU = 0xE18


REGISTER_SIZE: dict[Register, int] = {
    register: 8
    if register in (Register.CAP, Register.ASQ, Register.ACQ, Register.BPMBL, Register.CMBMSC)
    else 4
    for register in Register
}
"""Bytes of each register; what lies between two registers is reserved and reads as 0."""

REGISTERS_SIZE = 0x1000
"""Bytes of BAR0 before the doorbells."""

NSSR_NSSRC = 0x4E564D65
"""The value that resets the NVM subsystem when written to NSSR: "NVMe" (Base 3.1.4.7)."""

ADMIN_SQES = 6
"""Admin SQ entry size as a power of two; fixed (Base 3.1.4.9)."""
ADMIN_CQES = 4
"""Admin CQ entry size as a power of two; fixed (Base 3.1.4.10)."""
MAX_ADMIN_QUEUE_ENTRIES = 4096
"""The largest admin queue (AQA is 12 bits, 0's based)."""
MAX_IO_QUEUE_ENTRIES = 65536
"""The largest I/O queue (MQES is 16 bits, 0's based)."""


class CapBit(enum.IntFlag):
    """Single bits of CAP (Base 3.1.4.1)."""

    CQR = 1 << 16
    """Contiguous Queues Required."""
    AMS_WRR = 1 << 17
    """Weighted Round Robin with Urgent."""
    AMS_VS = 1 << 18
    NSSRS = 1 << 36
    """NVM Subsystem Reset Supported."""
    CSS_NCSS = 1 << 37
    """NVM Command Set."""
    CSS_IOCSS = 1 << 43
    """I/O command sets through CC.CSS = 110b."""
    CSS_NOIOCSS = 1 << 44
    """No I/O command set."""
    BPS = 1 << 45
    PMRS = 1 << 56
    CMBS = 1 << 57
    NSSS = 1 << 58
    CRWMS = 1 << 59
    """Controller Ready With Media Support."""
    CRIMS = 1 << 60
    """Controller Ready Independent of Media Support."""
    NSSES = 1 << 61


@dataclass(frozen=True, slots=True)
class Cap:
    """CAP, Controller Capabilities, 64 bits (Base 3.1.4.1)."""

    mqes: int
    """Maximum Queue Entries Supported, 0's based."""
    to: int
    """Timeout: the longest wait for CSTS.RDY, in units of 500 ms."""
    dstrd: int = 0
    """Doorbell Stride: doorbells are 4 << dstrd bytes apart."""
    mpsmin: int = 0
    """Memory Page Size Minimum: 4096 << mpsmin bytes."""
    mpsmax: int = 0
    """Memory Page Size Maximum: 4096 << mpsmax bytes."""
    cps: int = 0
    """Controller Power Scope."""
    bits: int = CapBit.CQR | CapBit.CSS_NCSS
    """The single bits, or'ed together: :class:`CapBit`."""

    def pack(self) -> int:
        """The register's value."""
        return (
            self.mqes & 0xFFFF
            | (self.to & 0xFF) << 24
            | (self.dstrd & 0xF) << 32
            | (self.cps & 0x3) << 46
            | (self.mpsmin & 0xF) << 48
            | (self.mpsmax & 0xF) << 52
            | int(self.bits)
        )

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a register's value."""
        known = 0
        for bit in CapBit:
            known |= bit
        return cls(
            mqes=value & 0xFFFF,
            to=value >> 24 & 0xFF,
            dstrd=value >> 32 & 0xF,
            mpsmin=value >> 48 & 0xF,
            mpsmax=value >> 52 & 0xF,
            cps=value >> 46 & 0x3,
            bits=CapBit(value & known),
        )


def version(major: int, minor: int, tertiary: int = 0) -> int:
    """VS, and VER of Identify Controller (Base 3.1.4.2)."""
    return major << 16 | minor << 8 | tertiary


class Shn(enum.IntEnum):
    """CC.SHN, Shutdown Notification."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class Shst(enum.IntEnum):
    """CSTS.SHST, Shutdown Status."""

    NORMAL = 0
    """No shutdown has been requested."""
    OCCURRING = 1
    COMPLETE = 2


class Css(enum.IntEnum):
    """CC.CSS, I/O Command Set Selected."""

    NVM = 0
    IOCS = 6
    """All supported I/O command sets."""
    ADMIN_ONLY = 7


class Ams(enum.IntEnum):
    """CC.AMS, Arbitration Mechanism Selected."""

    RR = 0
    WRRU = 1
    VS = 7


@dataclass(frozen=True, slots=True)
class Cc:
    """CC, Controller Configuration, 32 bits (Base 3.1.4.5)."""

    en: bool = False
    css: int = Css.NVM
    mps: int = 0
    """Memory Page Size: 4096 << mps bytes."""
    ams: int = Ams.RR
    shn: int = Shn.NONE
    iosqes: int = 0
    """I/O SQ entry size as a power of two."""
    iocqes: int = 0
    """I/O CQ entry size as a power of two."""
    crime: bool = False
    """Controller Ready Independent of Media Enable."""

    @property
    def page_size(self) -> int:
        """Memory page size in bytes."""
        return 4096 << self.mps

    def pack(self) -> int:
        """The register's value."""
        return (
            int(self.en)
            | (self.css & 0x7) << 4
            | (self.mps & 0xF) << 7
            | (self.ams & 0x7) << 11
            | (self.shn & 0x3) << 14
            | (self.iosqes & 0xF) << 16
            | (self.iocqes & 0xF) << 20
            | int(self.crime) << 24
        )

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a register's value; reserved bits are dropped."""
        return cls(
            en=bool(value & 1),
            css=value >> 4 & 0x7,
            mps=value >> 7 & 0xF,
            ams=value >> 11 & 0x7,
            shn=value >> 14 & 0x3,
            iosqes=value >> 16 & 0xF,
            iocqes=value >> 20 & 0xF,
            crime=bool(value >> 24 & 1),
        )


class CstsBit(enum.IntFlag):
    """Single bits of CSTS (Base 3.1.4.6)."""

    RDY = 1 << 0
    CFS = 1 << 1
    """Controller Fatal Status."""
    NSSRO = 1 << 4
    """NVM Subsystem Reset Occurred; cleared by writing 1."""
    PP = 1 << 5
    """Processing Paused."""
    ST = 1 << 6
    """Shutdown Type: of the NVM subsystem."""


CSTS_SHST_SHIFT = 2
"""Where :class:`Shst` is in CSTS."""
CSTS_SHST_MASK = 0x3 << CSTS_SHST_SHIFT
"""The bits of CSTS.SHST."""


@dataclass(frozen=True, slots=True)
class Csts:
    """CSTS, Controller Status, 32 bits (Base 3.1.4.6)."""

    rdy: bool = False
    cfs: bool = False
    shst: int = Shst.NORMAL
    nssro: bool = False
    pp: bool = False
    st: bool = False

    def pack(self) -> int:
        """The register's value."""
        return (
            int(self.rdy)
            | int(self.cfs) << 1
            | (self.shst & 0x3) << CSTS_SHST_SHIFT
            | int(self.nssro) << 4
            | int(self.pp) << 5
            | int(self.st) << 6
        )

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a register's value."""
        return cls(
            rdy=bool(value & CstsBit.RDY),
            cfs=bool(value & CstsBit.CFS),
            shst=(value & CSTS_SHST_MASK) >> CSTS_SHST_SHIFT,
            nssro=bool(value & CstsBit.NSSRO),
            pp=bool(value & CstsBit.PP),
            st=bool(value & CstsBit.ST),
        )


@dataclass(frozen=True, slots=True)
class Aqa:
    """AQA, Admin Queue Attributes, 32 bits (Base 3.1.4.8)."""

    asqs: int
    """Admin SQ size in entries, 0's based."""
    acqs: int
    """Admin CQ size in entries, 0's based."""

    def pack(self) -> int:
        """The register's value."""
        return self.asqs & 0xFFF | (self.acqs & 0xFFF) << 16

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a register's value."""
        return cls(asqs=value & 0xFFF, acqs=value >> 16 & 0xFFF)


QUEUE_BASE_MASK = ~0xFFF & 0xFFFF_FFFF_FFFF_FFFF
"""The bits of ASQ and ACQ that hold the address; the others are reserved."""


@dataclass(frozen=True, slots=True)
class Crto:
    """CRTO, Controller Ready Timeouts, 32 bits (Base 3.1.4.21), in units of 500 ms."""

    crwmt: int
    """Controller Ready With Media Timeout."""
    crimt: int = 0
    """Controller Ready Independent of Media Timeout."""

    def pack(self) -> int:
        """The register's value."""
        return self.crwmt & 0xFFFF | (self.crimt & 0xFFFF) << 16

    @classmethod
    def unpack(cls, value: int) -> Self:
        """The fields of a register's value."""
        return cls(crwmt=value & 0xFFFF, crimt=value >> 16 & 0xFFFF)


DOORBELL_BASE = 0x1000
"""Where the doorbells begin in BAR0 (PCIe Transport 3.1.2)."""


def sq_tail_doorbell(qid: int, dstrd: int = 0) -> int:
    """Offset in BAR0 of SQ ``qid``'s tail doorbell (SQyTDBL, PCIe Transport 3.1.2.1)."""
    return DOORBELL_BASE + (2 * qid) * (4 << dstrd)


def cq_head_doorbell(qid: int, dstrd: int = 0) -> int:
    """Offset in BAR0 of CQ ``qid``'s head doorbell (CQyHDBL, PCIe Transport 3.1.2.2)."""
    return DOORBELL_BASE + (2 * qid + 1) * (4 << dstrd)


def doorbell_at(offset: int, dstrd: int = 0) -> tuple[int, bool] | None:
    """Which doorbell is at an offset in BAR0: (queue id, is a CQ head), None between two."""
    stride = 4 << dstrd
    if offset < DOORBELL_BASE or (offset - DOORBELL_BASE) % stride:
        return None
    index = (offset - DOORBELL_BASE) // stride
    return index // 2, bool(index % 2)
