"""Read, Write, Compare, Flush: data, LBA ranges, NSIDs, flags (NVM 3.3; Base 7.2, 3.2.1)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import NSID_ALL, SQE, NvmOpcode, RwControl
from nvme_mdev.spec.nvme_identify_controller import Oncs, Vwc
from nvme_mdev.spec.nvme_status import GenericStatus, MediaStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("read_write")

_MOST = 1 << 20
"""Bytes of the largest transfer tried where MDTS allows more."""
_OF_ONE_NAMESPACE = {
    NvmOpcode.READ: Oncs(0),
    NvmOpcode.WRITE: Oncs(0),
    NvmOpcode.COMPARE: Oncs.NVMCMPS,
    NvmOpcode.WRITE_ZEROES: Oncs.NVMWZSV,
    NvmOpcode.VERIFY: Oncs.NVMVFYS,
    NvmOpcode.RESERVATION_REPORT: Oncs.RESERVS,
}
"""I/O commands that no NSID of all namespaces is for, and what ONCS says of them."""


def _pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 (test data)


def _largest(subject: Subject) -> int:
    """Blocks of the largest transfer that is tried."""
    limit = min(subject.host.max_transfer or _MOST, _MOST, 65536 * subject.block_size)
    return int(min(limit // subject.block_size, subject.namespace.blocks))


@GROUP.check("NVM 3.3.4")
def the_first_and_the_last_block_can_be_read(subject: Subject) -> None:
    """Blocks 0 and NSZE - 1 can be read."""
    for slba in (0, subject.namespace.blocks - 1):
        succeeds(subject.queue, commands.read(subject.nsid, slba, 1), receive=subject.block_size)


@GROUP.check("NVM 3.3.4")
def a_read_beyond_the_end_is_refused(subject: Subject) -> None:
    """A range that is not wholly within the namespace is LBA Out of Range."""
    blocks = subject.namespace.blocks
    for slba, count in ((blocks, 1), (blocks - 1, 2), (blocks + 1, 1), (2**64 - 1, 1)):
        sqe = commands.read(subject.nsid, slba, count)
        size = count * subject.block_size
        refused(subject.queue, sqe, GenericStatus.LBA_OUT_OF_RANGE, receive=size)


@GROUP.check("NVM 3.3.4")
def a_range_that_wraps_is_refused(subject: Subject) -> None:
    """A range whose end is beyond 2^64 is LBA Out of Range."""
    for slba in (2**64 - 1, 2**64 - 8):
        sqe = commands.read(subject.nsid, slba, 8)
        refused(subject.queue, sqe, GenericStatus.LBA_OUT_OF_RANGE, receive=8 * subject.block_size)


@GROUP.check("NVM 3.3.4", "NVM 3.3.6", needs=needs.writable, destructive=True)
def what_is_written_is_read(subject: Subject) -> None:
    """Read returns what Write wrote: one block, several, and as many as a transfer may have."""
    subject.attach(memory_size=8 << 20)
    queue, nsid = subject.queue, subject.nsid
    for blocks in sorted({1, 2, 7, min(64, _largest(subject)), _largest(subject)}):
        for slba in {0, subject.namespace.blocks - blocks}:
            data = _pattern(blocks * subject.block_size, slba ^ blocks)
            queue.write(nsid, slba, data)
            equal(queue.read(nsid, slba, blocks), data, f"{blocks} blocks at {slba}")


@GROUP.check("NVM 3.3.6", needs=needs.writable, destructive=True)
def a_refused_write_changes_nothing(subject: Subject) -> None:
    """A Write that crosses the end of the namespace leaves its last block as it was."""
    last = subject.namespace.blocks - 1
    data = _pattern(subject.block_size)
    subject.queue.write(subject.nsid, last, data)
    sqe = commands.write(subject.nsid, last, 2)
    refused(subject.queue, sqe, GenericStatus.LBA_OUT_OF_RANGE, send=bytes(2 * subject.block_size))
    equal(subject.queue.read(subject.nsid, last, 1), data, "the last block")


@GROUP.check("NVM 3.3.6", needs=needs.writable, destructive=True)
def writes_do_not_touch_their_neighbours(subject: Subject) -> None:
    """A Write changes the blocks of its range and no others."""
    queue, nsid, size = subject.queue, subject.nsid, subject.block_size
    if subject.namespace.blocks < 16:
        raise NotApplicable("the namespace is too small")
    before = bytearray(_pattern(16 * size))
    queue.write(nsid, 0, before)
    for slba, count in ((3, 1), (5, 4), (15, 1)):
        data = _pattern(count * size, slba)
        queue.write(nsid, slba, data)
        before[slba * size : (slba + count) * size] = data
    equal(queue.read(nsid, 0, 16), bytes(before), "16 blocks")


@GROUP.check("NVM 3.3.6", needs=needs.write_protected)
def a_protected_namespace_is_not_written(subject: Subject) -> None:
    """A Write to a write protected namespace is Namespace is Write Protected."""
    refused(
        subject.queue,
        commands.write(subject.nsid, 0, 1),
        GenericStatus.NAMESPACE_WRITE_PROTECTED,
        send=bytes(subject.block_size),
    )


@GROUP.check("Base 5.1.13.2.1", needs=needs.transfer_limit)
def more_than_mdts_is_refused(subject: Subject) -> None:
    """A transfer above MDTS is Invalid Field in Command."""
    blocks = subject.host.max_transfer // subject.block_size + 1
    if blocks > min(65536, subject.namespace.blocks):
        raise NotApplicable("the namespace is smaller than MDTS")
    sqe = commands.read(subject.nsid, 0, blocks)
    sqe.prp1 = sqe.prp2 = subject.host.memory.allocate(4096).iova
    refused(subject.queue, sqe, GenericStatus.INVALID_FIELD)


_IO_WITH_NSID = (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.FLUSH)


def _nsid_refused(subject: Subject, nsid: int, *codes: GenericStatus) -> None:
    buffer = subject.host.memory.allocate(max(4096, subject.block_size))
    for opcode in _IO_WITH_NSID:
        sqe = SQE(opc=opcode, nsid=nsid, prp1=buffer.iova)
        refused(subject.queue, sqe, *codes)


@GROUP.check("Base 3.2.1.2", "Base 4.1.1")
def an_invalid_nsid_is_refused(subject: Subject) -> None:
    """NSID 0 and an NSID above NN are Invalid Namespace or Format."""
    for nsid in (0, subject.invalid_nsid(), NSID_ALL - 1):
        _nsid_refused(subject, nsid, GenericStatus.INVALID_NAMESPACE_OR_FORMAT)


@GROUP.check("Base 3.2.1.4", "Base 4.1.1")
def an_inactive_nsid_is_refused(subject: Subject) -> None:
    """A valid NSID without a namespace is Invalid Field in Command."""
    _nsid_refused(subject, subject.inactive_nsid(), GenericStatus.INVALID_FIELD)


@GROUP.check("Base 4.1.1")
def all_namespaces_cannot_be_read(subject: Subject) -> None:
    """NSID FFFFFFFFh is Invalid Field in Command where a command needs one namespace."""
    buffer = subject.host.memory.allocate(max(4096, subject.block_size))
    for opcode, bit in _OF_ONE_NAMESPACE.items():
        if bit & subject.controller.oncs == bit:
            sqe = SQE(opc=opcode, nsid=NSID_ALL, prp1=buffer.iova)
            refused(subject.queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("NVM 3.3.4", "NVM 3.3.6", needs=needs.writable, destructive=True)
def force_unit_access_and_limited_retry_are_taken(subject: Subject) -> None:
    """Read and Write with FUA, Limited Retry and access hints do what they do without."""
    queue, nsid = subject.queue, subject.nsid
    data = _pattern(subject.block_size, 9)
    for control in (RwControl.FUA, RwControl.LR, RwControl.FUA | RwControl.LR):
        sqe = commands.write(nsid, 1, 1)
        sqe.cdw12 |= control
        sqe.cdw13 = 0x55
        succeeds(queue, sqe, send=data)
        sqe = commands.read(nsid, 1, 1)
        sqe.cdw12 |= control
        sqe.cdw13 = 0x55
        equal(succeeds(queue, sqe, receive=len(data)).data, data, "the block")


@GROUP.check("NVM 3.3.4", needs=needs.writable, destructive=True)
def many_at_a_time_keep_their_data_apart(subject: Subject) -> None:
    """Many Writes, then many Reads at a time each move their own data."""
    queue, nsid, size = subject.queue, subject.nsid, subject.block_size
    count = min(48, subject.namespace.blocks)
    buffers = [subject.host.memory.allocate(max(size, 4096)) for _ in range(count)]
    data = [_pattern(size, number) for number in range(count)]
    for make in (commands.write, commands.read):
        for number, buffer in enumerate(buffers):
            buffer.write(data[number] if make is commands.write else bytes(size))
        cids = []
        for number, buffer in enumerate(buffers):
            sqe = make(nsid, number, 1)
            sqe.prp1 = buffer.iova
            sqe.prp2 = buffer.iova + 4096 if size > 4096 else 0
            cids.append(queue.start(sqe))
        for cid in cids:
            require(queue.finish(cid).ok, f"a {make.__name__} failed")
    for number, buffer in enumerate(buffers):
        equal(buffer.read(0, size), data[number], f"block {number}")


@GROUP.check("NVM 3.3.1", needs=(needs.oncs(Oncs.NVMCMPS), needs.writable), destructive=True)
def compare_succeeds_on_the_same_data(subject: Subject) -> None:
    """Compare succeeds when the blocks hold the data."""
    blocks = min(8, subject.namespace.blocks)
    data = _pattern(blocks * subject.block_size, 3)
    subject.queue.write(subject.nsid, 0, data)
    succeeds(subject.queue, commands.compare(subject.nsid, 0, blocks), send=data)


@GROUP.check("NVM 3.3.1", needs=(needs.oncs(Oncs.NVMCMPS), needs.writable), destructive=True)
def compare_fails_on_other_data(subject: Subject) -> None:
    """Compare is Compare Failure when a single byte differs, the first, one within, the last."""
    blocks = min(8, subject.namespace.blocks)
    data = _pattern(blocks * subject.block_size, 3)
    subject.queue.write(subject.nsid, 0, data)
    for at in (0, len(data) // 2 + 1, len(data) - 1):
        other = bytearray(data)
        other[at] ^= 1
        sqe = commands.compare(subject.nsid, 0, blocks)
        refused(subject.queue, sqe, MediaStatus.COMPARE_FAILURE, send=bytes(other))


@GROUP.check("NVM 3.3.1", needs=needs.oncs(Oncs.NVMCMPS))
def compare_beyond_the_end_is_refused(subject: Subject) -> None:
    """Compare of a range beyond the end is LBA Out of Range."""
    for slba in (subject.namespace.blocks, 2**64 - 1):
        refused(
            subject.queue,
            commands.compare(subject.nsid, slba, 1),
            GenericStatus.LBA_OUT_OF_RANGE,
            send=bytes(subject.block_size),
        )


@GROUP.check("Base 7.2")
def flush_of_a_namespace_succeeds(subject: Subject) -> None:
    """Flush succeeds for an active namespace."""
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 7.2", "Base 5.1.13.2.1")
def flush_of_all_namespaces_is_as_vwc_says(subject: Subject) -> None:
    """Flush with NSID FFFFFFFFh succeeds with VWC.FB 11b and is refused with 10b."""
    behavior = subject.controller.vwc & Vwc.FB_ALL
    sqe = commands.flush(NSID_ALL)
    if behavior == Vwc.FB_ALL:
        succeeds(subject.queue, sqe)
    elif behavior == Vwc.FB_NOT_ALL:
        codes = GenericStatus.INVALID_NAMESPACE_OR_FORMAT, GenericStatus.INVALID_FIELD
        refused(subject.queue, sqe, *codes)
    else:
        raise NotApplicable("VWC.FB does not say")


@GROUP.check("Base 3.4.2", needs=needs.not_fused)
def fused_commands_need_support(subject: Subject) -> None:
    """FUSE other than 00b is refused by a controller without fused operations."""
    for fuse in (1, 2):
        sqe = commands.read(subject.nsid, 0, 1)
        sqe.flags = fuse
        sqe.prp1 = subject.host.memory.allocate(max(4096, subject.block_size)).iova
        codes = GenericStatus.INVALID_FIELD, GenericStatus.ABORT_MISSING_FUSED
        refused(subject.queue, sqe, *codes)


@GROUP.check("Base 4.1.1")
def reserved_transfer_types_are_refused(subject: Subject) -> None:
    """PSDT 11b and FUSE 11b, which are reserved, are Invalid Field in Command."""
    for flags in (0b1100_0000, 0b0000_0011):
        sqe = commands.read(subject.nsid, 0, 1)
        sqe.flags = flags
        sqe.prp1 = subject.host.memory.allocate(max(4096, subject.block_size)).iova
        refused(subject.queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 4.1.1", needs=needs.lacks_sgls)
def sgls_need_support(subject: Subject) -> None:
    """PSDT 01b is Invalid Field in Command where SGLS is 0."""
    sqe = commands.read(subject.nsid, 0, 1)
    sqe.flags = 0b0100_0000
    refused(subject.queue, sqe, GenericStatus.INVALID_FIELD)
