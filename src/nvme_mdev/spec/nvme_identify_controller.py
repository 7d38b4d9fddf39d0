"""What Identify Controller returns (CNS 01h), also for the NVM command set (CNS 06h).

NVM Express Base Specification 2.1 section 5.1.13, NVM Command Set Specification 1.1 section 4.1.5.
Field names are the specification's acronyms; 16-byte integers are little-endian byte arrays
(:func:`.nvme_identify.u128`), strings are ASCII padded with blanks
(:func:`.nvme_identify.ascii_field`).
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_char, c_uint8, c_uint16, c_uint32, c_uint64


class Cmic(enum.IntFlag):
    """Controller Multi-Path I/O and Namespace Sharing Capabilities."""

    MULTI_PORT = 1 << 0
    MULTI_CTRL = 1 << 1
    SRIOV = 1 << 2
    ANA = 1 << 3


class Oaes(enum.IntFlag):
    """Optional Asynchronous Events Supported."""

    NSAN = 1 << 8
    """Attached Namespace Attribute Notices."""
    FAN = 1 << 9
    """Firmware Activation Notices."""
    ANACN = 1 << 11
    PLEALCN = 1 << 12
    LSIAN = 1 << 13
    EGEALCN = 1 << 14
    NNSSHDN = 1 << 15
    """Normal NVM Subsystem Shutdown."""
    TTHRY = 1 << 16
    ANSAN = 1 << 19
    """Allocated Namespace Attribute Notices."""


class Ctratt(enum.IntFlag):
    """Controller Attributes."""

    HIDS = 1 << 0
    """128-bit Host Identifier."""
    NOPSPM = 1 << 1
    NSETS = 1 << 2
    RRLVLS = 1 << 3
    EGS = 1 << 4
    PLM = 1 << 5
    TBKAS = 1 << 6
    """Traffic Based Keep Alive."""
    NG = 1 << 7
    SQA = 1 << 8
    ULIST = 1 << 9
    MDS = 1 << 10
    FCM = 1 << 11
    VCM = 1 << 12
    DEG = 1 << 13
    DNVMS = 1 << 14
    ELBAS = 1 << 15
    """Extended LBA Formats."""
    MEM = 1 << 16
    HMBR = 1 << 17
    RHII = 1 << 18
    FDPS = 1 << 19


class CntrlType(enum.IntEnum):
    """Controller Type."""

    NOT_REPORTED = 0
    IO = 1
    DISCOVERY = 2
    ADMINISTRATIVE = 3


class Oacs(enum.IntFlag):
    """Optional Admin Command Support."""

    SSRS = 1 << 0
    """Security Send and Receive."""
    FNVMS = 1 << 1
    """Format NVM."""
    FWDS = 1 << 2
    """Firmware Commit and Image Download."""
    NMS = 1 << 3
    """Namespace Management."""
    DSTS = 1 << 4
    """Device Self-test."""
    DIRS = 1 << 5
    """Directives."""
    NSRS = 1 << 6
    """NVMe-MI Send and Receive."""
    VMS = 1 << 7
    """Virtualization Management."""
    DBCS = 1 << 8
    """Doorbell Buffer Config."""
    GLSS = 1 << 9
    """Get LBA Status."""
    CFLS = 1 << 10
    """Command and Feature Lockdown."""


class Frmw(enum.IntFlag):
    """Firmware Updates; the number of slots is in bits 3:1 (:data:`FRMW_SLOTS_SHIFT`)."""

    FFSRO = 1 << 0
    """First Firmware Slot Read Only."""
    FAWR = 1 << 4
    """Firmware Activation Without Reset."""
    SMUD = 1 << 5


FRMW_SLOTS_SHIFT = 1
"""Where the number of firmware slots is in FRMW."""


class Lpa(enum.IntFlag):
    """Log Page Attributes."""

    SMARTS = 1 << 0
    """SMART log per namespace."""
    CSES = 1 << 1
    """Commands Supported and Effects log."""
    LPEDS = 1 << 2
    """Extended data: NUMDU and offsets."""
    TS = 1 << 3
    """Telemetry."""
    PES = 1 << 4
    """Persistent Event log."""
    MLPS = 1 << 5
    """Supported Log Pages, Feature Identifiers Effects, and more."""
    DA4S = 1 << 6


class Oncs(enum.IntFlag):
    """Optional NVM Command Support."""

    NVMCMPS = 1 << 0
    """Compare."""
    NVMWUSV = 1 << 1
    """Write Uncorrectable."""
    NVMDSMSV = 1 << 2
    """Dataset Management."""
    NVMWZSV = 1 << 3
    """Write Zeroes."""
    SSFS = 1 << 4
    """Save and Select fields of the Features commands."""
    RESERVS = 1 << 5
    """Reservations."""
    TSS = 1 << 6
    """Timestamp."""
    NVMVFYS = 1 << 7
    """Verify."""
    NVMCPYS = 1 << 8
    """Copy."""
    NVMCSA = 1 << 9
    NVMAFC = 1 << 10
    MAXWZD = 1 << 11
    NSZS = 1 << 12


class Fuses(enum.IntFlag):
    """Fused Operation Support."""

    FCWS = 1 << 0
    """Compare and Write."""


class Fna(enum.IntFlag):
    """Format NVM Attributes."""

    FNS = 1 << 0
    SENS = 1 << 1
    CES = 1 << 2
    FNVMBS = 1 << 3


class Nwpc(enum.IntFlag):
    """Namespace Write Protection Capabilities."""

    NWPS = 1 << 0
    """No Write Protect and Write Protect."""
    WPUPC = 1 << 1
    """Write Protect Until Power Cycle."""
    PWPS = 1 << 2
    """Permanent Write Protect."""


class Vwc(enum.IntFlag):
    """Volatile Write Cache."""

    VWCP = 1 << 0
    """A volatile write cache is present."""
    FB_NOT_ALL = 2 << 1
    """Flush with NSID FFFFFFFFh is refused."""
    FB_ALL = 3 << 1
    """Flush with NSID FFFFFFFFh flushes every namespace."""


class Sgls(enum.IntFlag):
    """SGL Support; bits 1:0 are SGLS_NONE, BYTE_ALIGNED or DWORD_ALIGNED."""

    BYTE_ALIGNED = 1
    DWORD_ALIGNED = 2
    ALIGNMENT = 3
    """Bits 1:0."""
    KEYED = 1 << 2
    BIT_BUCKET = 1 << 16
    MBA = 1 << 17
    LONGER = 1 << 18
    MPTR_SGL = 1 << 19
    OFFSET = 1 << 20
    TRANSPORT = 1 << 21


class PowerStateDescriptor(ctypes.LittleEndianStructure):
    """Power State Descriptor, 32 bytes (Base, figure *Power State Descriptor*)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("mp", c_uint16),  # maximum power, 10 mW (100 µW with MXPS)
        ("reserved2", c_uint8),
        ("flags", c_uint8),  # MXPS 0, NOPS 1
        ("enlat", c_uint32),  # entry latency, µs
        ("exlat", c_uint32),  # exit latency, µs
        ("rrt", c_uint8),  # relative read throughput
        ("rrl", c_uint8),  # relative read latency
        ("rwt", c_uint8),  # relative write throughput
        ("rwl", c_uint8),  # relative write latency
        ("idlp", c_uint16),  # idle power
        ("ips", c_uint8),  # idle power scale, bits 7:6
        ("reserved19", c_uint8),
        ("actp", c_uint16),  # active power
        ("aps", c_uint8),  # active power scale 7:6, workload 2:0
        ("reserved23", c_uint8 * 9),
    )
    mp: int
    flags: int
    enlat: int
    exlat: int
    rrt: int
    rrl: int
    rwt: int
    rwl: int
    idlp: int
    ips: int
    actp: int
    aps: int


class IdentifyController(ctypes.LittleEndianStructure):
    """Identify Controller, 4096 bytes (CNS 01h, Base 5.1.13.2.1)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("vid", c_uint16),  # PCI vendor
        ("ssvid", c_uint16),  # PCI subsystem vendor
        ("sn", c_char * 20),  # serial number
        ("mn", c_char * 40),  # model number
        ("fr", c_char * 8),  # firmware revision
        ("rab", c_uint8),  # recommended arbitration burst, power of two
        ("ieee", c_uint8 * 3),  # OUI, least significant byte first
        ("cmic", c_uint8),  # Cmic
        ("mdts", c_uint8),  # maximum data transfer: CAP.MPSMIN pages, power of two; 0 no limit
        ("cntlid", c_uint16),
        ("ver", c_uint32),  # as VS
        ("rtd3r", c_uint32),  # RTD3 resume latency, µs
        ("rtd3e", c_uint32),  # RTD3 entry latency, µs
        ("oaes", c_uint32),  # Oaes
        ("ctratt", c_uint32),  # Ctratt
        ("rrls", c_uint16),
        ("bpcap", c_uint8),
        ("reserved103", c_uint8),
        ("nssl", c_uint32),  # NVM subsystem shutdown latency, µs
        ("reserved108", c_uint8 * 2),
        ("plsi", c_uint8),
        ("cntrltype", c_uint8),  # CntrlType
        ("fguid", c_uint8 * 16),
        ("crdt1", c_uint16),  # command retry delay, 100 ms
        ("crdt2", c_uint16),
        ("crdt3", c_uint16),
        ("crcap", c_uint8),
        ("ciu", c_uint8),
        ("cirn", c_uint8 * 8),
        ("reserved144", c_uint8 * 109),
        ("nvmsr", c_uint8),
        ("vwci", c_uint8),
        ("mec", c_uint8),
        ("oacs", c_uint16),  # Oacs
        ("acl", c_uint8),  # abort command limit, 0's based
        ("aerl", c_uint8),  # asynchronous event request limit, 0's based
        ("frmw", c_uint8),  # Frmw
        ("lpa", c_uint8),  # Lpa
        ("elpe", c_uint8),  # error log page entries, 0's based
        ("npss", c_uint8),  # number of power states, 0's based
        ("avscc", c_uint8),
        ("apsta", c_uint8),
        ("wctemp", c_uint16),  # warning composite temperature, K
        ("cctemp", c_uint16),  # critical composite temperature, K
        ("mtfa", c_uint16),  # 100 ms
        ("hmpre", c_uint32),  # 4 KiB
        ("hmmin", c_uint32),  # 4 KiB
        ("tnvmcap", c_uint8 * 16),  # bytes
        ("unvmcap", c_uint8 * 16),  # bytes
        ("rpmbs", c_uint32),
        ("edstt", c_uint16),
        ("dsto", c_uint8),
        ("fwug", c_uint8),  # 4 KiB
        ("kas", c_uint16),  # keep alive granularity, 100 ms; 0 not supported
        ("hctma", c_uint16),
        ("mntmt", c_uint16),  # K
        ("mxtmt", c_uint16),  # K
        ("sanicap", c_uint32),
        ("hmminds", c_uint32),
        ("hmmaxd", c_uint16),
        ("nsetidmax", c_uint16),
        ("endgidmax", c_uint16),
        ("anatt", c_uint8),
        ("anacap", c_uint8),
        ("anagrpmax", c_uint32),
        ("nanagrpid", c_uint32),
        ("pels", c_uint32),
        ("domainid", c_uint16),
        ("kpioc", c_uint8),
        ("reserved359", c_uint8),
        ("mptfawr", c_uint16),
        ("reserved362", c_uint8 * 6),
        ("megcap", c_uint8 * 16),
        ("tmpthha", c_uint8),
        ("reserved385", c_uint8),
        ("cqt", c_uint16),
        ("reserved388", c_uint8 * 124),
        ("sqes", c_uint8),  # SQE size, powers of two: required 3:0, maximum 7:4
        ("cqes", c_uint8),  # CQE size, likewise
        ("maxcmd", c_uint16),
        ("nn", c_uint32),  # number of namespaces: the highest NSID
        ("oncs", c_uint16),  # Oncs
        ("fuses", c_uint16),  # Fuses
        ("fna", c_uint8),  # Fna
        ("vwc", c_uint8),  # Vwc
        ("awun", c_uint16),  # atomic write unit normal, logical blocks, 0's based
        ("awupf", c_uint16),  # atomic write unit power fail, logical blocks, 0's based
        ("icsvscc", c_uint8),
        ("nwpc", c_uint8),
        ("acwu", c_uint16),  # atomic compare & write unit, logical blocks, 0's based
        ("cdfs", c_uint16),
        ("sgls", c_uint32),  # Sgls
        ("mnan", c_uint32),  # maximum number of allowed namespaces
        ("maxdna", c_uint8 * 16),
        ("maxcna", c_uint32),
        ("oaqd", c_uint32),
        ("reserved568", c_uint8 * 200),
        ("subnqn", c_char * 256),  # NUL-terminated UTF-8
        ("reserved1024", c_uint8 * 768),
        ("ioccsz", c_uint32),  # fabrics, as the fields up to 2048
        ("iorcsz", c_uint32),
        ("icdoff", c_uint16),
        ("fcatt", c_uint8),
        ("msdbd", c_uint8),
        ("ofcs", c_uint16),
        ("dctype", c_uint8),
        ("reserved1807", c_uint8 * 241),
        ("psd", PowerStateDescriptor * 32),
        ("vs", c_uint8 * 1024),
    )
    vid: int
    ssvid: int
    sn: bytes
    mn: bytes
    fr: bytes
    rab: int
    ieee: ctypes.Array[c_uint8]
    cmic: int
    mdts: int
    cntlid: int
    ver: int
    rtd3r: int
    rtd3e: int
    oaes: int
    ctratt: int
    rrls: int
    bpcap: int
    nssl: int
    plsi: int
    cntrltype: int
    fguid: ctypes.Array[c_uint8]
    crdt1: int
    crdt2: int
    crdt3: int
    crcap: int
    ciu: int
    cirn: ctypes.Array[c_uint8]
    nvmsr: int
    vwci: int
    mec: int
    oacs: int
    acl: int
    aerl: int
    frmw: int
    lpa: int
    elpe: int
    npss: int
    avscc: int
    apsta: int
    wctemp: int
    cctemp: int
    mtfa: int
    hmpre: int
    hmmin: int
    tnvmcap: ctypes.Array[c_uint8]
    unvmcap: ctypes.Array[c_uint8]
    rpmbs: int
    edstt: int
    dsto: int
    fwug: int
    kas: int
    hctma: int
    mntmt: int
    mxtmt: int
    sanicap: int
    hmminds: int
    hmmaxd: int
    nsetidmax: int
    endgidmax: int
    anatt: int
    anacap: int
    anagrpmax: int
    nanagrpid: int
    pels: int
    domainid: int
    kpioc: int
    mptfawr: int
    megcap: ctypes.Array[c_uint8]
    tmpthha: int
    cqt: int
    sqes: int
    cqes: int
    maxcmd: int
    nn: int
    oncs: int
    fuses: int
    fna: int
    vwc: int
    awun: int
    awupf: int
    icsvscc: int
    nwpc: int
    acwu: int
    cdfs: int
    sgls: int
    mnan: int
    maxdna: ctypes.Array[c_uint8]
    maxcna: int
    oaqd: int
    subnqn: bytes
    ioccsz: int
    iorcsz: int
    icdoff: int
    fcatt: int
    msdbd: int
    ofcs: int
    dctype: int
    psd: ctypes.Array[PowerStateDescriptor]
    vs: ctypes.Array[c_uint8]


class IdentifyControllerNvm(ctypes.LittleEndianStructure):
    """Identify Controller of the NVM command set, 4096 bytes (CNS 06h, CSI 00h)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("vsl", c_uint8),  # verify size limit, as MDTS
        ("wzsl", c_uint8),  # write zeroes size limit, as MDTS
        ("wusl", c_uint8),  # write uncorrectable size limit, as MDTS
        ("dmrl", c_uint8),  # dataset management ranges limit
        ("dmrsl", c_uint32),  # dataset management range size limit, logical blocks
        ("dmsl", c_uint64),  # dataset management size limit, logical blocks
        ("kpiocap", c_uint8),
        ("wzdsl", c_uint8),  # write zeroes with deallocate size limit, as MDTS
        ("aocs", c_uint16),
        ("ver", c_uint32),
        ("lbamqf", c_uint8),
        ("reserved25", c_uint8 * 4071),
    )
    vsl: int
    wzsl: int
    wusl: int
    dmrl: int
    dmrsl: int
    dmsl: int
    kpiocap: int
    wzdsl: int
    aocs: int
    ver: int
    lbamqf: int
