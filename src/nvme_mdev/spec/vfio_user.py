"""vfio-user on the wire: QEMU ``docs/interop/vfio-user.rst``, version 0.1 of the protocol.

The bodies follow ``<linux/vfio.h>``. All integers have the host's byte order, which on every
machine that we support is little-endian. Sizes are bytes.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint16, c_uint32, c_uint64

VERSION_MAJOR = 0
"""The protocol's major version; another one is another protocol (section *VFIO_USER_VERSION*)."""
VERSION_MINOR = 1
"""The highest minor version we speak; lower ones are included."""

HEADER_SIZE = 16
"""Bytes of :class:`Header`, at the start of every message."""

DEFAULT_MAX_MSG_FDS = 1
"""What a peer accepts per message that does not say ``max_msg_fds``."""
DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20
"""What a peer accepts per transfer that does not say ``max_data_xfer_size`` (bytes)."""
DEFAULT_MAX_DMA_MAPS = 65535
"""DMA windows of a peer that does not say ``max_dma_maps``."""
DEFAULT_PGSIZES = 4096
"""Page sizes, or'ed together, of a peer that does not say ``pgsizes`` (bytes)."""


class Command(enum.IntEnum):
    """Message commands (section *Commands*)."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    """Of older revisions; its number is not used again."""
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class MessageType(enum.IntEnum):
    """Bits 3:0 of the header's flags."""

    COMMAND = 0
    REPLY = 1


class HeaderFlags(enum.IntFlag):
    """The header's flags without the message type."""

    NO_REPLY = 1 << 4
    ERROR = 1 << 5


HEADER_TYPE_MASK = 0xF
"""Where :class:`MessageType` is in the header's flags."""
HEADER_FLAGS_MASK = int(HEADER_TYPE_MASK | HeaderFlags.NO_REPLY | HeaderFlags.ERROR)
"""Every flag bit that has a meaning. A plain number, as the other masks: ``~`` of an IntFlag
leaves out the bits without a name."""


class Header(ctypes.LittleEndianStructure):
    """Section *Header*."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("message_id", c_uint16),
        ("command", c_uint16),
        ("message_size", c_uint32),  # header included
        ("flags", c_uint32),
        ("error", c_uint32),  # errno, with HeaderFlags.ERROR in a reply
    )
    message_id: int
    command: int
    message_size: int
    flags: int
    error: int


class Version(ctypes.LittleEndianStructure):
    """VFIO_USER_VERSION; NUL-terminated JSON follows, or nothing."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("major", c_uint16), ("minor", c_uint16))
    major: int
    minor: int


class DmaMapFlags(enum.IntFlag):
    """``flags`` of VFIO_USER_DMA_MAP: what the device may do with the memory."""

    READ = 1 << 0
    WRITE = 1 << 1


DMA_MAP_FLAGS_MASK = int(DmaMapFlags.READ | DmaMapFlags.WRITE)
"""Every flag of :class:`DmaMapFlags`."""


class DmaMap(ctypes.LittleEndianStructure):
    """VFIO_USER_DMA_MAP; at most one fd comes with it."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("offset", c_uint64),  # in the fd
        ("address", c_uint64),
        ("size", c_uint64),
    )
    argsz: int
    flags: int
    offset: int
    address: int
    size: int


class DmaUnmapFlags(enum.IntFlag):
    """``flags`` of VFIO_USER_DMA_UNMAP (``<linux/vfio.h>``)."""

    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1
    """Everything; address and size are 0."""


class DmaUnmap(ctypes.LittleEndianStructure):
    """VFIO_USER_DMA_UNMAP, request and reply."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("address", c_uint64),
        ("size", c_uint64),
    )
    argsz: int
    flags: int
    address: int
    size: int


class DeviceFlags(enum.IntFlag):
    """``flags`` of VFIO_USER_DEVICE_GET_INFO."""

    RESET = 1 << 0
    PCI = 1 << 1


class DeviceInfo(ctypes.LittleEndianStructure):
    """VFIO_USER_DEVICE_GET_INFO, request and reply (``struct vfio_device_info``)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
    )
    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


class RegionInfoFlags(enum.IntFlag):
    """``flags`` of VFIO_USER_DEVICE_GET_REGION_INFO."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class RegionInfo(ctypes.LittleEndianStructure):
    """VFIO_USER_DEVICE_GET_REGION_INFO, request and reply; capabilities may follow the reply."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),  # of the first capability, from this structure's start
        ("size", c_uint64),
        ("offset", c_uint64),  # in the fd
    )
    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int


class RegionCapId(enum.IntEnum):
    """Capabilities of a region (``VFIO_REGION_INFO_CAP_*``)."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class CapHeader(ctypes.LittleEndianStructure):
    """Head of a region's capability (``struct vfio_info_cap_header``)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("id", c_uint16),
        ("version", c_uint16),
        ("next", c_uint32),  # from the RegionInfo's start; 0 ends the list
    )
    id: int
    version: int
    next: int


class SparseMmapCap(ctypes.LittleEndianStructure):
    """The sparse-mmap capability with its head; ``nr_areas`` :class:`SparseMmapArea` follow."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("header", CapHeader),
        ("nr_areas", c_uint32),
        ("reserved", c_uint32),
    )
    header: CapHeader
    nr_areas: int
    reserved: int


class SparseMmapArea(ctypes.LittleEndianStructure):
    """A part of a region that can be mapped (``struct vfio_region_sparse_mmap_area``)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("offset", c_uint64), ("size", c_uint64))
    offset: int
    size: int


class RegionIoFds(ctypes.LittleEndianStructure):
    """VFIO_USER_DEVICE_GET_REGION_IO_FDS, request and reply; sub-regions follow the reply."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    )
    argsz: int
    flags: int
    index: int
    count: int


class IrqInfoFlags(enum.IntFlag):
    """``flags`` of VFIO_USER_DEVICE_GET_IRQ_INFO."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqInfo(ctypes.LittleEndianStructure):
    """VFIO_USER_DEVICE_GET_IRQ_INFO, request and reply (``struct vfio_irq_info``)."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    )
    argsz: int
    flags: int
    index: int
    count: int


class IrqSetFlags(enum.IntFlag):
    """``flags`` of VFIO_USER_DEVICE_SET_IRQS: exactly one DATA and one ACTION."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


IRQ_SET_DATA_MASK = int(IrqSetFlags.DATA_NONE | IrqSetFlags.DATA_BOOL | IrqSetFlags.DATA_EVENTFD)
"""The DATA flags of :class:`IrqSetFlags`."""
IRQ_SET_ACTION_MASK = int(
    IrqSetFlags.ACTION_MASK | IrqSetFlags.ACTION_UNMASK | IrqSetFlags.ACTION_TRIGGER
)
"""The ACTION flags of :class:`IrqSetFlags`."""


class IrqSet(ctypes.LittleEndianStructure):
    """VFIO_USER_DEVICE_SET_IRQS; with DATA_BOOL ``count`` bytes follow, with EVENTFD come fds."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )
    argsz: int
    flags: int
    index: int
    start: int
    count: int


class RegionAccess(ctypes.LittleEndianStructure):
    """VFIO_USER_REGION_READ and _WRITE; data follows a write's request and a read's reply."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("offset", c_uint64), ("region", c_uint32), ("count", c_uint32))
    offset: int
    region: int
    count: int


class DmaAccess(ctypes.LittleEndianStructure):
    """VFIO_USER_DMA_READ and _WRITE, from server to client."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("address", c_uint64), ("count", c_uint64))
    address: int
    count: int


class PciRegion(enum.IntEnum):
    """Region indexes of a PCI device (``VFIO_PCI_*_REGION_INDEX``)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


NUM_PCI_REGIONS = 9
"""``VFIO_PCI_NUM_REGIONS``."""


class PciIrq(enum.IntEnum):
    """Interrupt types of a PCI device (``VFIO_PCI_*_IRQ_INDEX``)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4
    """The device asks its user to give it back."""


NUM_PCI_IRQS = 5
"""``VFIO_PCI_NUM_IRQS``."""
