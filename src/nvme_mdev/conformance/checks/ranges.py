"""Write Zeroes, Dataset Management, Copy, Verify, Write Uncorrectable (NVM 3.3)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import SQE, DsmAttribute, NvmOpcode
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_identify_controller import IdentifyControllerNvm, Oncs
from nvme_mdev.spec.nvme_identify_namespace import Dlfeat
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.conformance.subject import Subject

GROUP = Group("ranges")

_WRITE_ZEROES = (needs.oncs(Oncs.NVMWZSV), needs.writable)
_DSM = (needs.oncs(Oncs.NVMDSMSV), needs.writable)
_COPY = (needs.oncs(Oncs.NVMCPYS), needs.writable)
_UNCORRECTABLE = (needs.oncs(Oncs.NVMWUSV), needs.writable)
_BLOCKS = 64
"""Blocks at the start of the namespace that these checks write."""


def _fill(subject: Subject, blocks: int = _BLOCKS, seed: int = 4) -> bytearray:
    if subject.namespace.blocks < blocks:
        raise NotApplicable("the namespace is too small")
    data = random.Random(seed).randbytes(blocks * subject.block_size)  # noqa: S311
    subject.queue.write(subject.nsid, 0, data)
    return bytearray(data)


def _read(subject: Subject, slba: int, blocks: int) -> bytes:
    return subject.queue.read(subject.nsid, slba, blocks)


def _limits(subject: Subject) -> IdentifyControllerNvm:
    sqe = commands.identify(Cns.IOCS_CONTROLLER)
    reply = subject.host.admin(sqe, receive=4096, check=False)
    return IdentifyControllerNvm.from_buffer_copy(
        reply.data if reply.completion.ok else bytes(4096)
    )


# -- Write Zeroes ----------------------------------------------------------------------------


@GROUP.check("NVM 3.3.8", needs=_WRITE_ZEROES, destructive=True)
def write_zeroes_writes_zeroes(subject: Subject) -> None:
    """Blocks of a Write Zeroes read as zero, and their neighbours are as they were."""
    data, size = _fill(subject), subject.block_size
    ways: list[dict[str, bool]] = [{}, {"fua": True}]
    if subject.namespace.identify.dlfeat & Dlfeat.DEALLOCATE_WRITE_ZEROES:
        ways.append({"deallocate": True})
    for control in ways:
        subject.queue.write(subject.nsid, 0, bytes(data))
        subject.queue.write_zeroes(subject.nsid, 3, 5, **control)
        wanted = data[: 3 * size] + bytes(5 * size) + data[8 * size :]
        equal(_read(subject, 0, _BLOCKS), bytes(wanted), f"the blocks after {control or 'it'}")


@GROUP.check("NVM 3.3.8", needs=needs.oncs(Oncs.NVMWZSV))
def write_zeroes_beyond_the_end_is_refused(subject: Subject) -> None:
    """Write Zeroes of a range beyond the end is LBA Out of Range."""
    blocks = subject.namespace.blocks
    for slba, count in ((blocks, 1), (blocks - 1, 2), (2**64 - 1, 2)):
        sqe = commands.write_zeroes(subject.nsid, slba, count)
        refused(subject.queue, sqe, GenericStatus.LBA_OUT_OF_RANGE)


@GROUP.check("NVM 3.3.8", "NVM 4.1.5.3", needs=_WRITE_ZEROES, destructive=True)
def write_zeroes_is_not_limited_by_mdts(subject: Subject) -> None:
    """Write Zeroes takes as many blocks as its own limit, WZSL, allows; 0 is no limit."""
    limit = _limits(subject).wzsl
    blocks = min(65536, subject.namespace.blocks)
    if limit:
        blocks = min(blocks, (subject.host.page_size << limit) // subject.block_size)
    subject.queue.write_zeroes(subject.nsid, 0, blocks)
    for slba in (0, blocks // 2, blocks - 1):
        require(not any(_read(subject, slba, 1)), f"block {slba} is not zero")


# -- Dataset Management ----------------------------------------------------------------------


@GROUP.check("NVM 3.3.3", needs=_DSM, destructive=True)
def deallocated_blocks_read_as_dlfeat_says(subject: Subject) -> None:
    """Deallocated blocks read as zeroes or ones where DLFEAT says so; others are unchanged."""
    data, size = _fill(subject), subject.block_size
    subject.queue.deallocate(subject.nsid, [(8, 8), (32, 16)])
    found = _read(subject, 0, _BLOCKS)
    kind = subject.namespace.identify.dlfeat & 7
    for slba in range(_BLOCKS):
        block = found[slba * size : (slba + 1) * size]
        if 8 <= slba < 16 or 32 <= slba < 48:
            fill = {Dlfeat.READS_ZEROES: b"\0", Dlfeat.READS_ONES: b"\xff"}.get(Dlfeat(kind))
            before = bytes(data[slba * size : (slba + 1) * size])
            allowed = {fill * size} if fill else {bytes(size), b"\xff" * size, before}
            # Deallocating is advice: a block may stay as it is.
            require(block in allowed | {before}, f"block {slba} reads as neither")
            equal(_read(subject, slba, 1), block, f"block {slba}, read twice")
        else:
            equal(block, bytes(data[slba * size : (slba + 1) * size]), f"block {slba}")


@GROUP.check("NVM 3.3.3", needs=_DSM, destructive=True)
def deallocated_blocks_can_be_written(subject: Subject) -> None:
    """A deallocated block can be written and read."""
    data = _fill(subject, 8)
    subject.queue.deallocate(subject.nsid, [(0, 8)])
    subject.queue.write(subject.nsid, 0, bytes(data))
    equal(_read(subject, 0, 8), bytes(data), "the blocks")


@GROUP.check("NVM 3.3.3", needs=_DSM)
def hints_change_nothing(subject: Subject) -> None:
    """Integral dataset attributes succeed, and the data stays."""
    before = _read(subject, 0, 1)
    for attributes in (0, DsmAttribute.IDR, DsmAttribute.IDW, DsmAttribute.IDR | DsmAttribute.IDW):
        subject.queue.dataset_management(subject.nsid, [(0, 1)], attributes)
    equal(_read(subject, 0, 1), before, "block 0")


@GROUP.check("NVM 3.3.3", needs=_DSM, destructive=True)
def as_many_ranges_as_there_can_be(subject: Subject) -> None:
    """256 ranges, or as many as DMRL allows, are taken in one command."""
    count = _limits(subject).dmrl or 256
    _fill(subject)
    ranges = [(number % _BLOCKS, 1) for number in range(count)]
    subject.queue.deallocate(subject.nsid, ranges)


@GROUP.check("NVM 3.3.3", needs=_DSM)
def a_range_of_no_blocks_is_nothing(subject: Subject) -> None:
    """A range with length 0 succeeds, and the data stays."""
    before = _read(subject, 0, 1)
    subject.queue.deallocate(subject.nsid, [(0, 0)])
    equal(_read(subject, 0, 1), before, "block 0")


@GROUP.check("NVM 3.3.3", needs=needs.oncs(Oncs.NVMDSMSV))
def ranges_beyond_the_end_are_refused(subject: Subject) -> None:
    """A range beyond the end of the namespace is LBA Out of Range."""
    blocks = subject.namespace.blocks
    for slba, count in ((blocks, 1), (blocks - 1, 2), (2**64 - 1, 2), (0, 0xFFFF_FFFF)):
        if slba + count <= blocks:
            continue
        refused(
            subject.queue,
            commands.dataset_management(subject.nsid, 1, DsmAttribute.AD),
            GenericStatus.LBA_OUT_OF_RANGE,
            send=commands.pack_ranges([(slba, count)]),
        )


# -- Verify ----------------------------------------------------------------------------------


def _verify(subject: Subject, slba: int, blocks: int) -> SQE:
    sqe = commands.read(subject.nsid, slba, blocks)
    sqe.opc = NvmOpcode.VERIFY
    return sqe


@GROUP.check("NVM 3.3.5", needs=needs.oncs(Oncs.NVMVFYS))
def verify_of_good_blocks_succeeds(subject: Subject) -> None:
    """Verify of blocks that can be read succeeds, and transfers nothing."""
    blocks = min(_BLOCKS, subject.namespace.blocks)
    succeeds(subject.queue, _verify(subject, 0, blocks))
    succeeds(subject.queue, _verify(subject, subject.namespace.blocks - 1, 1))


@GROUP.check("NVM 3.3.5", needs=needs.oncs(Oncs.NVMVFYS))
def verify_beyond_the_end_is_refused(subject: Subject) -> None:
    """Verify of a range beyond the end is LBA Out of Range."""
    blocks = subject.namespace.blocks
    for slba, count in ((blocks, 1), (blocks - 1, 2), (2**64 - 1, 2)):
        refused(subject.queue, _verify(subject, slba, count), GenericStatus.LBA_OUT_OF_RANGE)


# -- Write Uncorrectable ---------------------------------------------------------------------


def _uncorrectable(subject: Subject, slba: int, blocks: int) -> SQE:
    sqe = commands.read(subject.nsid, slba, blocks)
    sqe.opc = NvmOpcode.WRITE_UNCORRECTABLE
    return sqe


@GROUP.check("NVM 3.3.7", needs=_UNCORRECTABLE, destructive=True)
def uncorrectable_blocks_cannot_be_read(subject: Subject) -> None:
    """A Read of a block that was made uncorrectable is Unrecovered Read Error."""
    data, size = _fill(subject, 8), subject.block_size
    succeeds(subject.queue, _uncorrectable(subject, 3, 2))
    try:
        for slba, count in ((3, 1), (4, 1), (0, 8)):
            refused(
                subject.queue,
                commands.read(subject.nsid, slba, count),
                MediaStatus.UNRECOVERED_READ,
                receive=count * size,
            )
        equal(_read(subject, 0, 3), bytes(data[: 3 * size]), "the blocks before")
        equal(_read(subject, 5, 3), bytes(data[5 * size :]), "the blocks behind")
    finally:
        subject.queue.write(subject.nsid, 0, bytes(data))
    equal(_read(subject, 0, 8), bytes(data), "the blocks, written again")


@GROUP.check("NVM 3.3.7", needs=_UNCORRECTABLE, destructive=True)
def uncorrectable_blocks_outlive_a_reset(subject: Subject) -> None:
    """Blocks stay uncorrectable through a Controller Reset, until they are written."""
    succeeds(subject.queue, _uncorrectable(subject, 0, 1))
    subject.host.enable()
    size = subject.block_size
    sqe = commands.read(subject.nsid, 0, 1)
    refused(subject.queue, sqe, MediaStatus.UNRECOVERED_READ, receive=size)
    subject.queue.write(subject.nsid, 0, bytes(size))
    equal(_read(subject, 0, 1), bytes(size), "block 0")


@GROUP.check(
    "NVM 3.3.5", "NVM 3.3.7", needs=(needs.oncs(Oncs.NVMVFYS), *_UNCORRECTABLE), destructive=True
)
def verify_finds_uncorrectable_blocks(subject: Subject) -> None:
    """Verify of a block that was made uncorrectable is Unrecovered Read Error."""
    data = _fill(subject, 8)
    succeeds(subject.queue, _uncorrectable(subject, 5, 1))
    try:
        refused(subject.queue, _verify(subject, 0, 8), MediaStatus.UNRECOVERED_READ)
        succeeds(subject.queue, _verify(subject, 0, 5))
    finally:
        subject.queue.write(subject.nsid, 0, bytes(data))


@GROUP.check("NVM 3.3.7", needs=needs.oncs(Oncs.NVMWUSV))
def uncorrectable_beyond_the_end_is_refused(subject: Subject) -> None:
    """Write Uncorrectable of a range beyond the end is LBA Out of Range."""
    for slba in (subject.namespace.blocks, 2**64 - 1):
        sqe = _uncorrectable(subject, slba, 1)
        refused(subject.queue, sqe, GenericStatus.LBA_OUT_OF_RANGE)


# -- Copy ------------------------------------------------------------------------------------


def _copy(subject: Subject, sdlba: int, ranges: int, *, descriptor_format: int = 0) -> SQE:
    return SQE(
        opc=NvmOpcode.COPY,
        nsid=subject.nsid,
        cdw10=sdlba & 0xFFFF_FFFF,
        cdw11=sdlba >> 32,
        cdw12=ranges - 1 | descriptor_format << 8,
    )


def _descriptors(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Source range entries of format 0h, 32 bytes each."""
    return b"".join(
        bytes(8) + slba.to_bytes(8, "little") + (blocks - 1).to_bytes(2, "little") + bytes(14)
        for slba, blocks in ranges
    )


@GROUP.check("NVM 3.3.2", needs=_COPY, destructive=True)
def copy_joins_its_ranges(subject: Subject) -> None:
    """Copy writes its source ranges, one after the other, from SDLBA on."""
    data, size = _fill(subject), subject.block_size
    most = subject.namespace.identify
    ranges = [(2, 3), (10, 1), (5, 2)][: most.msrc + 1]
    blocks = sum(count for _, count in ranges)
    if blocks > most.mcl or max(count for _, count in ranges) > most.mssrl:
        raise NotApplicable("MCL or MSSRL is too small")
    succeeds(subject.queue, _copy(subject, 40, len(ranges)), send=_descriptors(ranges))
    wanted = b"".join(bytes(data[at * size : (at + n) * size]) for at, n in ranges)
    equal(_read(subject, 40, blocks), wanted, "the destination")
    equal(_read(subject, 0, 40), bytes(data[: 40 * size]), "the source")


@GROUP.check("NVM 3.3.2", needs=_COPY, destructive=True)
def copy_has_limits(subject: Subject) -> None:
    """More ranges than MSRC, or blocks than MSSRL or MCL, are Command Size Limit Exceeded."""
    most = subject.namespace.identify
    if most.msrc < 0xFF:
        ranges = [(0, 1)] * (most.msrc + 2)
        refused(
            subject.queue,
            _copy(subject, 0, len(ranges)),
            CommandStatus.COMMAND_SIZE_LIMIT_EXCEEDED,
            send=_descriptors(ranges),
        )
    if most.mssrl < min(0x10000, subject.namespace.blocks):
        refused(
            subject.queue,
            _copy(subject, 0, 1),
            CommandStatus.COMMAND_SIZE_LIMIT_EXCEEDED,
            send=_descriptors([(0, most.mssrl + 1)]),
        )


@GROUP.check("NVM 3.3.2", needs=needs.oncs(Oncs.NVMCPYS))
def copy_beyond_the_end_is_refused(subject: Subject) -> None:
    """A source or destination range beyond the end is LBA Out of Range."""
    blocks = subject.namespace.blocks
    for destination, source in ((blocks, 0), (0, blocks), (2**64 - 1, 0), (0, 2**64 - 1)):
        refused(
            subject.queue,
            _copy(subject, destination, 1),
            GenericStatus.LBA_OUT_OF_RANGE,
            send=_descriptors([(source, 1)]),
        )


@GROUP.check("NVM 3.3.2", needs=_COPY, destructive=True)
def a_copy_that_failed_says_how_far_it_came(subject: Subject) -> None:
    """Dword 0 of a Copy that failed is its first range not copied, 0 if nothing was written."""
    if not subject.namespace.identify.msrc:
        raise NotApplicable("MSRC is 0: one range")
    _fill(subject)
    before, source = _read(subject, 40, 1), _read(subject, 2, 1)
    completion = refused(
        subject.queue,
        _copy(subject, 40, 2),
        GenericStatus.LBA_OUT_OF_RANGE,
        send=_descriptors([(2, 1), (subject.namespace.blocks, 1)]),
    )
    after = _read(subject, 40, 1)
    require(after in {before, source}, "the destination is neither as it was nor the source")
    equal(completion.result, int(after == source), "dword 0")


@GROUP.check("NVM 3.3.2", needs=needs.oncs(Oncs.NVMCPYS))
def copy_formats_are_those_of_ocfs(subject: Subject) -> None:
    """A descriptor format that Identify Controller does not have is Invalid Field in Command."""
    supported = subject.controller.cdfs
    for number in range(16):
        if not supported >> number & 1:
            refused(
                subject.queue,
                _copy(subject, 0, 1, descriptor_format=number),
                GenericStatus.INVALID_FIELD,
                send=_descriptors([(1, 1)]),
            )
            return
    raise NotApplicable("every format is supported")
