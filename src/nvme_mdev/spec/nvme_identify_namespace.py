"""What Identify Namespace returns (CNS 00h), also for one command set (CNS 05h) or any (CNS 08h).

NVM Express Base Specification 2.1 section 5.1.13, NVM Command Set Specification 1.1 section 4.1.5.
Field names are the specification's acronyms.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64


class Nsfeat(enum.IntFlag):
    """Namespace Features."""

    THINP = 1 << 0
    """Thin provisioning."""
    NSABP = 1 << 1
    """NAWUN, NAWUPF and NACWU are valid."""
    DAE = 1 << 2
    """Deallocated or Unwritten Logical Block Error."""
    UIDREUSE = 1 << 3
    """NGUID and EUI64 are never reused."""
    OPTPERF = 1 << 4
    """NPWG, NPWA, NPDG, NPDA and NOWS are valid (bits 5:4 = 01b)."""
    MAM = 1 << 6
    """Multiple Atomicity Mode."""
    OPTRPERF = 1 << 7


class Nmic(enum.IntFlag):
    """Namespace Multi-path I/O and Namespace Sharing Capabilities."""

    SHRNS = 1 << 0
    """The namespace may be attached to more than one controller."""


class Dlfeat(enum.IntFlag):
    """Deallocate Logical Block Features; what a deallocated block reads as is in bits 2:0."""

    READS_ZEROES = 1
    READS_ONES = 2
    DEALLOCATE_WRITE_ZEROES = 1 << 3
    """Write Zeroes takes the Deallocate bit."""
    GUARD_CRC = 1 << 4


class Nsattr(enum.IntFlag):
    """Namespace Attributes."""

    CWP = 1 << 0
    """Currently Write Protected."""


class LbaFormat(ctypes.LittleEndianStructure):
    """LBA Format, 4 bytes (NVM Command Set, figure *LBA Format Data Structure*)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("ms", c_uint16),  # metadata bytes
        ("lbads", c_uint8),  # logical block size, power of two (9: 512, 12: 4096)
        ("rp", c_uint8),  # relative performance 1:0, 0 is best
    )
    ms: int
    lbads: int
    rp: int


class IdentifyNamespace(ctypes.LittleEndianStructure):
    """Identify Namespace, 4096 bytes (CNS 00h, NVM Command Set 4.1.5.1)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("nsze", c_uint64),  # size, logical blocks
        ("ncap", c_uint64),  # capacity, logical blocks
        ("nuse", c_uint64),  # utilization, logical blocks
        ("nsfeat", c_uint8),  # Nsfeat
        ("nlbaf", c_uint8),  # number of LBA formats, 0's based
        ("flbas", c_uint8),  # format in use: 3:0 and 6:5; extended metadata 4
        ("mc", c_uint8),
        ("dpc", c_uint8),
        ("dps", c_uint8),
        ("nmic", c_uint8),  # Nmic
        ("rescap", c_uint8),
        ("fpi", c_uint8),
        ("dlfeat", c_uint8),  # Dlfeat
        ("nawun", c_uint16),  # logical blocks, 0's based, as the five after it
        ("nawupf", c_uint16),
        ("nacwu", c_uint16),
        ("nabsn", c_uint16),
        ("nabo", c_uint16),  # logical blocks
        ("nabspf", c_uint16),
        ("noiob", c_uint16),  # optimal I/O boundary, logical blocks
        ("nvmcap", c_uint8 * 16),  # bytes
        ("npwg", c_uint16),  # preferred write granularity, logical blocks, 0's based
        ("npwa", c_uint16),  # preferred write alignment, likewise
        ("npdg", c_uint16),  # preferred deallocate granularity, likewise
        ("npda", c_uint16),  # preferred deallocate alignment, likewise
        ("nows", c_uint16),  # optimal write size, likewise
        ("mssrl", c_uint16),  # copy: maximum single source range, logical blocks
        ("mcl", c_uint32),  # copy: maximum length, logical blocks
        ("msrc", c_uint8),  # copy: maximum source ranges, 0's based
        ("kpios", c_uint8),
        ("nulbaf", c_uint8),
        ("reserved83", c_uint8),
        ("kpiodaag", c_uint32),
        ("reserved88", c_uint8 * 4),
        ("anagrpid", c_uint32),
        ("reserved96", c_uint8 * 3),
        ("nsattr", c_uint8),  # Nsattr
        ("nvmsetid", c_uint16),
        ("endgid", c_uint16),
        ("nguid", c_uint8 * 16),  # big-endian, as its text
        ("eui64", c_uint8 * 8),  # big-endian, as its text
        ("lbaf", LbaFormat * 64),
        ("vs", c_uint8 * 3712),
    )
    nsze: int
    ncap: int
    nuse: int
    nsfeat: int
    nlbaf: int
    flbas: int
    mc: int
    dpc: int
    dps: int
    nmic: int
    rescap: int
    fpi: int
    dlfeat: int
    nawun: int
    nawupf: int
    nacwu: int
    nabsn: int
    nabo: int
    nabspf: int
    noiob: int
    nvmcap: ctypes.Array[c_uint8]
    npwg: int
    npwa: int
    npdg: int
    npda: int
    nows: int
    mssrl: int
    mcl: int
    msrc: int
    kpios: int
    nulbaf: int
    kpiodaag: int
    anagrpid: int
    nsattr: int
    nvmsetid: int
    endgid: int
    nguid: ctypes.Array[c_uint8]
    eui64: ctypes.Array[c_uint8]
    lbaf: ctypes.Array[LbaFormat]
    vs: ctypes.Array[c_uint8]

    @property
    def format_index(self) -> int:
        """Which of ``lbaf`` is in use (FLBAS, bits 3:0 and 6:5)."""
        return self.flbas & 0xF | (self.flbas >> 5 & 0x3) << 4


class IdentifyNamespaceNvm(ctypes.LittleEndianStructure):
    """Identify Namespace of the NVM command set, 4096 bytes (CNS 05h, CSI 00h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("lbstm", c_uint64),  # logical block storage tag mask
        ("pic", c_uint8),
        ("pifa", c_uint8),
        ("reserved10", c_uint8 * 2),
        ("elbaf", c_uint32 * 64),  # extended LBA formats
        ("npdgl", c_uint32),  # preferred deallocate granularity large, logical blocks
        ("nprg", c_uint32),
        ("npra", c_uint32),
        ("nors", c_uint32),
        ("npdal", c_uint32),
        ("lbapss", c_uint32),
        ("tlbaag", c_uint32),
        ("reserved296", c_uint8 * 3800),
    )
    lbstm: int
    pic: int
    pifa: int
    elbaf: ctypes.Array[c_uint32]
    npdgl: int
    nprg: int
    npra: int
    nors: int
    npdal: int
    lbapss: int
    tlbaag: int


class Nstat(enum.IntFlag):
    """Namespace Status (CNS 08h)."""

    NRDY = 1 << 0
    """Ready."""


class IndependentNsfeat(enum.IntFlag):
    """Common Namespace Features (CNS 08h)."""

    UIDREUSE = 1 << 3
    RMEDIA = 1 << 4
    """Rotational media."""
    VWCNP = 1 << 5
    """Volatile Write Cache Not Present for this namespace."""


class IdentifyNamespaceIndependent(ctypes.LittleEndianStructure):
    """I/O Command Set Independent Identify Namespace, 4096 bytes (CNS 08h, Base 5.1.13.2.8)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("nsfeat", c_uint8),  # IndependentNsfeat
        ("nmic", c_uint8),  # Nmic
        ("rescap", c_uint8),
        ("fpi", c_uint8),
        ("anagrpid", c_uint32),
        ("nsattr", c_uint8),  # Nsattr
        ("reserved9", c_uint8),
        ("nvmsetid", c_uint16),
        ("endgid", c_uint16),
        ("nstat", c_uint8),  # Nstat
        ("reserved15", c_uint8 * 4081),
    )
    nsfeat: int
    nmic: int
    rescap: int
    fpi: int
    anagrpid: int
    nsattr: int
    nvmsetid: int
    endgid: int
    nstat: int
