"""What an NVMe controller below says it can do with a namespace, for the guest to be told the same.

Direct mode puts a guest's commands on a real controller's queues, so that the guest is offered what
that controller offers, and nothing else: LBA format, transfer size, optional commands, volatile
cache, optimal sizes, what is atomic. Alignments are counted from a namespace's first block; a
partition that does not begin on one of them has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.spec.nvme_identify_controller import Oncs, Sgls, Vwc
from nvme_mdev.spec.nvme_identify_namespace import Dlfeat, Nsattr, Nsfeat
from nvme_mdev.units import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvme_mdev.spec.nvme_identify_controller import IdentifyController, IdentifyControllerNvm
    from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace

#: A page of PRP list holds 512 entries, and the first page of data is not in it.
MAX_TRANSFER = 2 << 20
_PAGE_SIZE = 4096
_BLOCK_SIZES = (512, 4096)


@dataclass(frozen=True, slots=True)
class Atomicity:
    """What a drive writes whole or not at all (NVM Command Set 1.1, section 2.1.4).

    Blocks, 0's based, as Identify Namespace has them: 0 of a boundary is none.
    """

    normal: int
    """NAWUN."""
    power_fail: int
    """NAWUPF."""
    boundary: int = 0
    """NABSN: no write across such a boundary is atomic."""
    boundary_power_fail: int = 0
    """NABSPF."""
    offset: int = 0
    """NABO: the first block that is on a boundary."""


@dataclass(frozen=True, slots=True)
class CopyLimits:
    """Of a Copy command, in blocks."""

    range_blocks: int
    """MSSRL: of a source range."""
    blocks: int
    """MCL: of all together."""
    ranges: int
    """MSRC + 1: source ranges."""


class CommandLimits(NamedTuple):
    """Of commands that MDTS does not limit (CNS 06h); 0: no limit."""

    verify: int = 0
    """VSL, as an exponent of two, in pages of 4 KiB."""
    write_zeroes: int = 0
    """WZSL, likewise."""
    write_zeroes_deallocated: int = 0
    """WZDSL, likewise: with Deallocate."""
    write_uncorrectable: int = 0
    """WUSL, likewise."""
    ranges: int = 0
    """DMRL: ranges of a Dataset Management command."""
    range_blocks: int = 0
    """DMRSL: blocks of one of them."""
    blocks: int = 0
    """DMSL: blocks of all together."""

    @classmethod
    def of(cls, data: IdentifyControllerNvm) -> CommandLimits:
        """As a controller tells them."""
        return cls(data.vsl, data.wzsl, data.wzdsl, data.wusl, data.dmrl, data.dmrsl, data.dmsl)

    @classmethod
    def least(cls, limits: Iterable[CommandLimits]) -> CommandLimits:
        """What all of several namespaces take; of none, anything."""
        columns = zip(NO_LIMITS, *limits, strict=True)
        return cls(*(min(filter(None, column), default=0) for column in columns))


NO_LIMITS = CommandLimits()


@dataclass(frozen=True, slots=True)
class DriveNamespace:
    """A namespace of a controller below, or a range of its blocks."""

    name: str
    """As the user wrote it."""
    identity: str
    """The same at each start."""
    nsid: int
    block_size: int
    """Bytes, 512 or 4096."""
    start: int
    """First block that is served."""
    blocks: int
    """How many are."""
    max_transfer: int
    """Bytes of one command."""
    read_only: bool = False
    volatile_cache: bool = False
    can_compare: bool = False
    can_write_zeroes: bool = False
    can_deallocate: bool = False
    can_verify: bool = False
    can_write_uncorrectable: bool = False
    copy_limits: CopyLimits | None = None
    """None: it cannot copy."""
    command_limits: CommandLimits = NO_LIMITS
    deallocate_zeroes: bool = False
    optimal_io_boundary: int = 0
    """Blocks, as the two below; 0: no preference."""
    preferred_write: int = 0
    preferred_deallocate: int = 0
    atomicity: Atomicity | None = None
    """None: a block, and no more."""
    sgls: int = 0
    """How it takes SGLs (`Sgls`); 0: it does not."""


def block_size_of(namespace: IdentifyNamespace) -> int:
    """Bytes of a logical block; ValueError: a format that cannot be served."""
    current = namespace.lbaf[namespace.format_index]
    # Any byte can be there, and 2^255 is no number to read.
    size = 1 << current.lbads if current.lbads < 32 else 0
    if size not in _BLOCK_SIZES or current.ms:
        what = f"{size} bytes" if size else f"2^{current.lbads} bytes"
        what += f" and {current.ms} of metadata" if current.ms else ""
        raise ValueError(
            f"its blocks have {what}: format it with 512 or 4096 bytes and no metadata"
        )
    return size


def blocks_of(namespace: IdentifyNamespace) -> int:
    """Its logical blocks; ValueError: more than can be counted in bytes, or `block_size_of`'s."""
    if namespace.nsze * block_size_of(namespace) > MAX_SIZE:
        raise ValueError(f"it has {namespace.nsze} blocks: no medium is as large as that")
    return namespace.nsze


def max_transfer_of(controller: IdentifyController) -> int:
    """Bytes of one command: MDTS in pages of 4 KiB, as far as a page of PRP list reaches."""
    return min(_PAGE_SIZE << controller.mdts, MAX_TRANSFER) if controller.mdts else MAX_TRANSFER


def describe(
    controller: IdentifyController,
    namespace: IdentifyNamespace,
    *,
    name: str,
    identity: str,
    nsid: int,
    start: int = 0,
    blocks: int | None = None,
    read_only: bool = False,
    limits: CommandLimits = NO_LIMITS,
) -> DriveNamespace:
    """What is offered of blocks ``start`` ... of a namespace; ValueError: it cannot be served.

    ``blocks`` None: all to its end. ``limits``: what the controller tells of them.
    """
    size = block_size_of(namespace)
    rest = max(blocks_of(namespace) - start, 0)
    count = rest if blocks is None else blocks
    if not 0 < count <= rest:
        raise ValueError(f"it has {namespace.nsze} blocks: offset and length do not lie within")
    preferences = bool(namespace.nsfeat & Nsfeat.OPTPERF)
    return DriveNamespace(
        name=name,
        identity=identity,
        nsid=nsid,
        block_size=size,
        start=start,
        blocks=count,
        max_transfer=max_transfer_of(controller),
        read_only=read_only or bool(namespace.nsattr & Nsattr.CWP),
        volatile_cache=bool(controller.vwc & Vwc.VWCP),
        can_compare=bool(controller.oncs & Oncs.NVMCMPS),
        can_write_zeroes=bool(controller.oncs & Oncs.NVMWZSV),
        can_deallocate=bool(controller.oncs & Oncs.NVMDSMSV),
        can_verify=bool(controller.oncs & Oncs.NVMVFYS),
        can_write_uncorrectable=bool(controller.oncs & Oncs.NVMWUSV),
        copy_limits=_copy_limits(controller, namespace),
        command_limits=limits,
        deallocate_zeroes=namespace.dlfeat & 0x7 == Dlfeat.READS_ZEROES,
        optimal_io_boundary=_aligned(namespace.noiob, start),
        preferred_write=_aligned(namespace.npwg + 1, start) if preferences else 0,
        preferred_deallocate=_aligned(namespace.npdg + 1, start) if preferences else 0,
        atomicity=atomicity_of(controller, namespace, start),
        sgls=_sgls(controller),
    )


def _sgls(controller: IdentifyController) -> int:
    """What we can pass on: descriptors with an address."""
    if controller.sgls & Sgls.ALIGNMENT not in (Sgls.BYTE_ALIGNED, Sgls.DWORD_ALIGNED):
        return 0
    return controller.sgls & (Sgls.ALIGNMENT | Sgls.BIT_BUCKET)


def _copy_limits(controller: IdentifyController, namespace: IdentifyNamespace) -> CopyLimits | None:
    """With descriptor format 0h, which every drive that copies has."""
    if not controller.oncs & Oncs.NVMCPYS or not namespace.mssrl or not namespace.mcl:
        return None
    return CopyLimits(namespace.mssrl, namespace.mcl, namespace.msrc + 1)


def atomicity_of(
    controller: IdentifyController, namespace: IdentifyNamespace, start: int
) -> Atomicity | None:
    """What is atomic of blocks that are counted from ``start`` on; None: a block, and no more.

    The offset of the boundaries moves with the first block. Two kinds of boundaries have one
    offset: where it cannot be right for both, nothing is promised.
    """
    own = bool(namespace.nsfeat & Nsfeat.NSABP)
    normal = (own and namespace.nawun) or controller.awun
    power_fail = (own and namespace.nawupf) or controller.awupf
    if not normal and not power_fail:
        return None
    sizes = [boundary + 1 for boundary in (namespace.nabsn, namespace.nabspf) if boundary]
    first = namespace.nabo - start
    offset = first % min(sizes) if sizes else 0
    if any((first - offset) % size for size in sizes):
        return None
    return Atomicity(normal, power_fail, namespace.nabsn, namespace.nabspf, offset)


def _aligned(granularity: int, start: int) -> int:
    """A granularity that still holds when blocks are counted from ``start`` on, else 0."""
    return granularity if granularity and start % granularity == 0 else 0
