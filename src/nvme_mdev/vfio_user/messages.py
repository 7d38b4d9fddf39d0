"""The bodies of vfio-user messages, to typed values and back.

QEMU ``docs/interop/vfio-user.rst``, *Protocol Specification*. Everything that comes from a peer is
checked here as far as a message alone tells: lengths, counts, reserved bits, JSON. What depends on
the session (is the command legal now?) is in :mod:`.session`, what depends on the device (is there
such a region?) in :mod:`.client_session`.
"""

from __future__ import annotations

import ctypes
import errno
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import Command

from .framing import MAX_DATA_XFER_SIZE, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

MAX_DMA_MAPS = 131072
"""DMA windows at a time: 100,000 single pages of a virtual IOMMU, and some."""
MAX_VERSION_JSON = 16 << 10
"""Bytes of JSON that a VERSION message may carry; QEMU sends about 200."""

_U64_END = 1 << 64

S = TypeVar("S", bound=ctypes.LittleEndianStructure)


def _structure(kind: type[S], body: bytes) -> S:
    """The structure at the start of a body; what follows is the caller's to judge."""
    if len(body) < ctypes.sizeof(kind):
        raise RemoteProtocolError(
            f"{kind.__name__} of {len(body)} bytes instead of {ctypes.sizeof(kind)}"
        )
    return kind.from_buffer_copy(body)


def _check_argsz(argsz: int, kind: type[ctypes.LittleEndianStructure]) -> None:
    """Refuse an ``argsz`` that does not even cover the fixed part."""
    if argsz < ctypes.sizeof(kind):
        raise RemoteProtocolError(f"argsz {argsz} is less than {ctypes.sizeof(kind)}")


def _check_range(address: int, size: int) -> None:
    if size == 0:
        raise RemoteProtocolError("range of 0 bytes")
    if address + size > _U64_END:
        raise RemoteProtocolError(f"range {address:#x} + {size:#x} exceeds 64 bits")


# --- VERSION ---


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The ``capabilities`` of VERSION's JSON; None is what the peer did not say."""

    max_msg_fds: int | None = None
    max_data_xfer_size: int | None = None
    max_dma_maps: int | None = None
    pgsizes: int | None = None
    twin_socket: bool | None = None
    """Whether ``twin_socket.supported`` is true."""
    write_multiple: bool | None = None

    _NUMBERS: ClassVar = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes")

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Self:
        """Check and take what we know; what we do not know (``migration``) is left out."""
        for name in cls._NUMBERS:
            number = value.get(name, 0)
            if type(number) is not int or not 0 <= number < _U64_END:
                raise RemoteProtocolError(f"capability {name} is not a number")
        multiple = value.get("write_multiple", False)
        if type(multiple) is not bool:
            raise RemoteProtocolError("capability write_multiple is not a boolean")
        twin = value.get("twin_socket", {})
        if not isinstance(twin, dict) or type(twin.get("supported", False)) is not bool:
            raise RemoteProtocolError("capability twin_socket is malformed")
        known = {name: value[name] for name in (*cls._NUMBERS, "write_multiple") if name in value}
        if "twin_socket" in value:
            known["twin_socket"] = twin.get("supported", False)
        return cls(**known)  # type: ignore[arg-type]  # checked just above

    def to_json(self) -> dict[str, object]:
        """What goes into the JSON: everything that is not None."""
        known: dict[str, object] = {
            name: getattr(self, name)
            for name in (*self._NUMBERS, "write_multiple")
            if getattr(self, name) is not None
        }
        if self.twin_socket is not None:
            known["twin_socket"] = {"supported": self.twin_socket}
        return known


@dataclass(frozen=True, slots=True)
class Version:
    """VERSION, request and reply."""

    command: ClassVar = Command.VERSION
    major: int
    minor: int
    capabilities: Capabilities | None = None
    """None when there is no JSON at all, as SPDK's driver does it."""

    def pack(self) -> bytes:
        """The body."""
        body = bytes(wire.Version(self.major, self.minor))
        if self.capabilities is None:
            return body
        text = json.dumps({"capabilities": self.capabilities.to_json()}, separators=(",", ":"))
        return body + text.encode() + b"\0"

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` for bad JSON or what is not NUL-terminated."""
        raw = _structure(wire.Version, body)
        data = body[ctypes.sizeof(raw) :]
        if not data:
            return cls(raw.major, raw.minor)
        if len(data) > MAX_VERSION_JSON:
            raise RemoteProtocolError(f"{len(data)} bytes of version data")
        if data[-1]:
            raise RemoteProtocolError("version data is not NUL-terminated")
        try:
            value = json.loads(data[: data.index(0)])
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError("version data is not JSON") from error
        capabilities = value.get("capabilities", {}) if isinstance(value, dict) else None
        if not isinstance(capabilities, dict):
            raise RemoteProtocolError("version data has no capabilities object")
        return cls(raw.major, raw.minor, Capabilities.from_json(capabilities))


# --- DMA ---


@dataclass(frozen=True, slots=True)
class DmaMap:
    """DMA_MAP's request; the reply has no body."""

    command: ClassVar = Command.DMA_MAP
    flags: int
    offset: int
    address: int
    size: int

    def pack(self) -> bytes:
        """The body."""
        raw = wire.DmaMap(0, self.flags, self.offset, self.address, self.size)
        raw.argsz = ctypes.sizeof(raw)
        return bytes(raw)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` for unknown flags or a range that wraps."""
        raw = _structure(wire.DmaMap, body)
        _check_argsz(raw.argsz, wire.DmaMap)
        if raw.flags & ~wire.DMA_MAP_FLAGS_MASK:
            raise RemoteProtocolError(f"unknown flags {raw.flags:#x}")
        _check_range(raw.address, raw.size)
        # The end of a file offset: mmap takes 63 bits.
        if raw.offset + raw.size > _U64_END >> 1:
            raise RemoteProtocolError(f"offset {raw.offset:#x} + {raw.size:#x} exceeds 63 bits")
        return cls(raw.flags, raw.offset, raw.address, raw.size)


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """DMA_UNMAP, request and reply."""

    command: ClassVar = Command.DMA_UNMAP
    flags: int
    address: int
    size: int

    def pack(self) -> bytes:
        """The body."""
        raw = wire.DmaUnmap(0, self.flags, self.address, self.size)
        raw.argsz = ctypes.sizeof(raw)
        return bytes(raw)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError`; ENOTSUP for a dirty bitmap (no migration)."""
        raw = _structure(wire.DmaUnmap, body)
        _check_argsz(raw.argsz, wire.DmaUnmap)
        if raw.flags & wire.DmaUnmapFlags.GET_DIRTY_BITMAP:
            raise RemoteProtocolError("dirty page tracking", errno=errno.ENOTSUP)
        if raw.flags not in (0, wire.DmaUnmapFlags.ALL):
            raise RemoteProtocolError(f"unknown flags {raw.flags:#x}")
        if not raw.flags:
            _check_range(raw.address, raw.size)
        elif raw.address or raw.size:
            raise RemoteProtocolError("unmap all with an address or a size")
        return cls(raw.flags, raw.address, raw.size)


# --- information ---


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """DEVICE_GET_INFO, request and reply."""

    command: ClassVar = Command.DEVICE_GET_INFO
    argsz: int = ctypes.sizeof(wire.DeviceInfo)
    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.DeviceInfo(self.argsz, self.flags, self.num_regions, self.num_irqs))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError`."""
        raw = _structure(wire.DeviceInfo, body)
        _check_argsz(raw.argsz, wire.DeviceInfo)
        return cls(raw.argsz, raw.flags, raw.num_regions, raw.num_irqs)


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """DEVICE_GET_REGION_INFO, request and reply."""

    command: ClassVar = Command.DEVICE_GET_REGION_INFO
    index: int
    argsz: int = ctypes.sizeof(wire.RegionInfo)
    flags: int = 0
    size: int = 0
    offset: int = 0
    areas: tuple[tuple[int, int], ...] | None = None
    """The sparse-mmap capability's (offset, size) pairs; None without the capability."""

    @property
    def needed(self) -> int:
        """Bytes of the whole reply: what ``argsz`` has to be."""
        needed = ctypes.sizeof(wire.RegionInfo)
        if self.areas is not None:
            area = ctypes.sizeof(wire.SparseMmapArea)
            needed += ctypes.sizeof(wire.SparseMmapCap) + area * len(self.areas)
        return needed

    def pack(self) -> bytes:
        """The body, with the capability chain and the CAPS flag when there are areas."""
        raw = wire.RegionInfo(self.argsz, self.flags, self.index, 0, self.size, self.offset)
        if self.areas is None:
            return bytes(raw)
        raw.flags |= wire.RegionInfoFlags.CAPS
        raw.cap_offset = ctypes.sizeof(raw)
        head = wire.CapHeader(wire.RegionCapId.SPARSE_MMAP, 1, 0)
        areas = b"".join(bytes(wire.SparseMmapArea(*area)) for area in self.areas)
        return bytes(raw) + bytes(wire.SparseMmapCap(head, len(self.areas), 0)) + areas

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Take a reply; capabilities other than sparse mmap are skipped.

        Raises :class:`RemoteProtocolError` also when the chain leaves the body or runs in circles.
        """
        raw = _structure(wire.RegionInfo, body)
        _check_argsz(raw.argsz, wire.RegionInfo)
        flags = raw.flags & ~int(wire.RegionInfoFlags.CAPS)
        areas = _sparse_areas(body, raw.cap_offset) if raw.flags != flags else None
        return cls(raw.index, raw.argsz, flags, raw.size, raw.offset, areas)

    @classmethod
    def unpack_request(cls, body: bytes) -> Self:
        """Take a request, of which only ``argsz`` and ``index`` mean something."""
        raw = _structure(wire.RegionInfo, body)
        _check_argsz(raw.argsz, wire.RegionInfo)
        return cls(raw.index, raw.argsz)


def _sparse_areas(body: bytes, offset: int) -> tuple[tuple[int, int], ...] | None:
    """Walk a region's capability chain for the sparse-mmap capability."""
    position = ctypes.sizeof(wire.RegionInfo) - 1
    while offset:
        if offset <= position:
            raise RemoteProtocolError("the capability chain runs backwards")
        position = offset
        head = _structure(wire.CapHeader, body[position:])
        if head.id == wire.RegionCapId.SPARSE_MMAP:
            cap = _structure(wire.SparseMmapCap, body[position:])
            start = position + ctypes.sizeof(cap)
            step = ctypes.sizeof(wire.SparseMmapArea)
            if cap.nr_areas > (len(body) - start) // step:
                raise RemoteProtocolError(f"{cap.nr_areas} sparse areas do not fit")
            raws = (wire.SparseMmapArea * cap.nr_areas).from_buffer_copy(body, start)
            return tuple((raw.offset, raw.size) for raw in raws)
        offset = head.next
    return None


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """DEVICE_GET_REGION_IO_FDS, request and reply; we offer no sub-regions and ask for none."""

    command: ClassVar = Command.DEVICE_GET_REGION_IO_FDS
    index: int
    argsz: int = ctypes.sizeof(wire.RegionIoFds)
    flags: int = 0
    count: int = 0

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.RegionIoFds(self.argsz, self.flags, self.index, self.count))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError`."""
        raw = _structure(wire.RegionIoFds, body)
        _check_argsz(raw.argsz, wire.RegionIoFds)
        if raw.flags:
            raise RemoteProtocolError(f"unknown flags {raw.flags:#x}")
        return cls(raw.index, raw.argsz, raw.flags, raw.count)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """DEVICE_GET_IRQ_INFO, request and reply."""

    command: ClassVar = Command.DEVICE_GET_IRQ_INFO
    index: int
    argsz: int = ctypes.sizeof(wire.IrqInfo)
    flags: int = 0
    count: int = 0

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.IrqInfo(self.argsz, self.flags, self.index, self.count))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError`."""
        raw = _structure(wire.IrqInfo, body)
        _check_argsz(raw.argsz, wire.IrqInfo)
        return cls(raw.index, raw.argsz, raw.flags, raw.count)


# --- interrupts ---


def _is_one_flag(flags: int) -> bool:
    return flags != 0 and flags & (flags - 1) == 0


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """DEVICE_SET_IRQS's request; the reply has no body."""

    command: ClassVar = Command.DEVICE_SET_IRQS
    flags: int
    index: int
    start: int
    count: int
    bools: tuple[bool, ...] = ()
    """With DATA_BOOL, ``count`` of them."""

    def pack(self) -> bytes:
        """The body."""
        raw = wire.IrqSet(0, self.flags, self.index, self.start, self.count)
        raw.argsz = ctypes.sizeof(raw) + len(self.bools)
        return bytes(raw) + bytes(self.bools)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` unless one DATA, one ACTION and their data are there.

        A count of 0 is only legal as "disable everything": DATA_NONE, ACTION_TRIGGER, start 0.
        """
        raw = _structure(wire.IrqSet, body)
        _check_argsz(raw.argsz, wire.IrqSet)
        data = raw.flags & wire.IRQ_SET_DATA_MASK
        action = raw.flags & wire.IRQ_SET_ACTION_MASK
        if raw.flags != data | action or not _is_one_flag(data) or not _is_one_flag(action):
            raise RemoteProtocolError(f"flags {raw.flags:#x} are not one DATA and one ACTION")
        disable = wire.IrqSetFlags.DATA_NONE | wire.IrqSetFlags.ACTION_TRIGGER
        if raw.count == 0 and (raw.flags != disable or raw.start != 0):
            raise RemoteProtocolError("count 0 with something else than 'disable all'")
        bools: tuple[bool, ...] = ()
        if data == wire.IrqSetFlags.DATA_BOOL:
            size = ctypes.sizeof(raw) + raw.count
            if len(body) != size or raw.argsz < size:
                raise RemoteProtocolError(f"{len(body)} bytes (argsz {raw.argsz}), not {size}")
            bools = tuple(value != 0 for value in body[ctypes.sizeof(raw) :])
        return cls(raw.flags, raw.index, raw.start, raw.count, bools)


# --- region access ---


def _region_access(body: bytes) -> wire.RegionAccess:
    raw = _structure(wire.RegionAccess, body)
    if not 0 < raw.count <= MAX_DATA_XFER_SIZE:
        raise RemoteProtocolError(f"access of {raw.count} bytes")
    return raw


@dataclass(frozen=True, slots=True)
class RegionRead:
    """REGION_READ's request, and REGION_WRITE's reply."""

    command: ClassVar = Command.REGION_READ
    offset: int
    region: int
    count: int

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.RegionAccess(self.offset, self.region, self.count))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` for a count of 0 or above 1 MiB."""
        raw = _region_access(body)
        return cls(raw.offset, raw.region, raw.count)


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """REGION_WRITE's request, and REGION_READ's reply."""

    command: ClassVar = Command.REGION_WRITE
    offset: int
    region: int
    data: bytes

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.RegionAccess(self.offset, self.region, len(self.data))) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` unless exactly ``count`` bytes of data follow."""
        raw = _region_access(body)
        data = body[ctypes.sizeof(raw) :]
        if len(data) != raw.count:
            raise RemoteProtocolError(f"{len(data)} bytes of data instead of {raw.count}")
        return cls(raw.offset, raw.region, data)


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """DMA_READ's request, and DMA_WRITE's reply; from server to client."""

    command: ClassVar = Command.DMA_READ
    address: int
    count: int

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.DmaAccess(self.address, self.count))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` for a count of 0 or above 1 MiB."""
        raw = _structure(wire.DmaAccess, body)
        if not 0 < raw.count <= MAX_DATA_XFER_SIZE:
            raise RemoteProtocolError(f"access of {raw.count} bytes")
        return cls(raw.address, raw.count)


@dataclass(frozen=True, slots=True)
class DmaWrite:
    """DMA_WRITE's request, and DMA_READ's reply."""

    command: ClassVar = Command.DMA_WRITE
    address: int
    data: bytes

    def pack(self) -> bytes:
        """The body."""
        return bytes(wire.DmaAccess(self.address, len(self.data))) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` unless exactly ``count`` bytes of data follow."""
        access = DmaAccess.unpack(body)
        data = body[ctypes.sizeof(wire.DmaAccess) :]
        if len(data) != access.count:
            raise RemoteProtocolError(f"{len(data)} bytes of data instead of {access.count}")
        return cls(access.address, data)


@dataclass(frozen=True, slots=True)
class DeviceReset:
    """DEVICE_RESET's request; neither it nor the reply has a body."""

    command: ClassVar = Command.DEVICE_RESET

    def pack(self) -> bytes:
        """The body: none."""
        return b""

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises :class:`RemoteProtocolError` when there is a body."""
        if body:
            raise RemoteProtocolError(f"reset with {len(body)} bytes")
        return cls()


Request = (
    Version
    | DmaMap
    | DmaUnmap
    | DeviceInfo
    | RegionInfo
    | RegionIoFds
    | IrqInfo
    | SetIrqs
    | RegionRead
    | RegionWrite
    | DeviceReset
)
"""Everything that a client can ask for."""

_REQUESTS: Mapping[Command, Callable[[bytes], Request]] = {
    Command.VERSION: Version.unpack,
    Command.DMA_MAP: DmaMap.unpack,
    Command.DMA_UNMAP: DmaUnmap.unpack,
    Command.DEVICE_GET_INFO: DeviceInfo.unpack,
    Command.DEVICE_GET_REGION_INFO: RegionInfo.unpack_request,
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds.unpack,
    Command.DEVICE_GET_IRQ_INFO: IrqInfo.unpack,
    Command.DEVICE_SET_IRQS: SetIrqs.unpack,
    Command.REGION_READ: RegionRead.unpack,
    Command.REGION_WRITE: RegionWrite.unpack,
    Command.DEVICE_RESET: DeviceReset.unpack,
}


def decode_request(command: Command, body: bytes) -> Request:
    """A request from its body.

    Raises :class:`RemoteProtocolError`, with ENOTSUP for a command that no client sends to us
    (:data:`.session.RULES` refuses those before).
    """
    unpack = _REQUESTS.get(command)
    if unpack is None:
        raise RemoteProtocolError(f"{command.name} is not supported", errno=errno.ENOTSUP)
    return unpack(body)
