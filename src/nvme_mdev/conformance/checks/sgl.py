"""Scatter Gather Lists (Base 4.3.2) in I/O commands over PCIe."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import Psdt, SglDescriptor, SglType
from nvme_mdev.spec.nvme_identify_controller import Sgls
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.conformance.subject import Subject
    from nvme_mdev.host.memory import DmaBuffer
    from nvme_mdev.spec.nvme_commands import SQE

GROUP = Group("sgl")

_NEED = (needs.has_sgls, needs.writable)
_DESCRIPTOR = 16
_BYTES = 8192
"""Bytes of the transfers here."""


def _descriptor(kind: int, address: int, length: int) -> bytes:
    return bytes(SglDescriptor(address=address, length=length, identifier=kind << 4))


def _data(buffer: DmaBuffer, offset: int, length: int) -> bytes:
    return _descriptor(SglType.DATA_BLOCK, buffer.iova + offset, length)


def _read(subject: Subject, descriptor: bytes, size: int = _BYTES) -> SQE:
    """A Read of ``size`` bytes from block 0 on, with the SGL descriptor in the command."""
    blocks = size // subject.block_size
    if blocks == 0 or blocks > subject.namespace.blocks:
        raise NotApplicable(f"no transfer can have {size} bytes")
    sqe = commands.read(subject.nsid, 0, blocks)
    sqe.flags = Psdt.SGL << 6
    sqe.prp1 = int.from_bytes(descriptor[:8], "little")
    sqe.prp2 = int.from_bytes(descriptor[8:], "little")
    return sqe


def _segment(subject: Subject, entries: Sequence[bytes], *, last: bool = True) -> bytes:
    """A segment in host memory with these descriptors; the descriptor that points to it."""
    page = subject.host.memory.allocate(len(entries) * _DESCRIPTOR)
    page.write(b"".join(entries))
    kind = SglType.LAST_SEGMENT if last else SglType.SEGMENT
    return _descriptor(kind, page.iova, len(entries) * _DESCRIPTOR)


def _fill(subject: Subject) -> bytes:
    data = random.Random(6).randbytes(_BYTES)  # noqa: S311 (test data)
    blocks = _BYTES // subject.block_size
    if blocks == 0 or blocks > subject.namespace.blocks:
        raise NotApplicable(f"no transfer can have {_BYTES} bytes")
    subject.queue.write(subject.nsid, 0, data)
    return data


@GROUP.check("Base 4.3.2", needs=_NEED, destructive=True)
def a_data_block_in_the_command(subject: Subject) -> None:
    """One data block descriptor, in the command itself, describes a contiguous buffer."""
    data = _fill(subject)
    buffer = subject.host.memory.allocate(2 * _BYTES)
    for offset in (0, 4, 512, 4092):
        succeeds(subject.queue, _read(subject, _data(buffer, offset, _BYTES)))
        equal(buffer.read(offset, _BYTES), data, f"a buffer at offset {offset}")


@GROUP.check("Base 4.3.2", needs=_NEED, destructive=True)
def a_data_block_that_is_written(subject: Subject) -> None:
    """A Write takes its data from where the SGL says."""
    data = random.Random(7).randbytes(_BYTES)  # noqa: S311
    buffer = subject.host.memory.allocate(2 * _BYTES)
    buffer.write(data, 100)
    sqe = commands.write(subject.nsid, 0, 1)
    read = _read(subject, _data(buffer, 100, _BYTES))
    for field in ("flags", "prp1", "prp2", "cdw12"):
        setattr(sqe, field, getattr(read, field))
    succeeds(subject.queue, sqe)
    equal(subject.queue.read(subject.nsid, 0, _BYTES // subject.block_size), data, "the data")


@GROUP.check("Base 4.3.2", needs=_NEED, destructive=True)
def a_last_segment_of_data_blocks(subject: Subject) -> None:
    """Data blocks of any length in a last segment are filled one after the other."""
    data = _fill(subject)
    buffer = subject.host.memory.allocate(4 * _BYTES)
    lengths = [4, 508, 4096, 12, 1000, 2572]
    entries, wanted, at = [], [], 0
    for number, length in enumerate(lengths):
        entries.append(_data(buffer, number * 5000, length))
        wanted.append((number * 5000, data[at : at + length]))
        at += length
    succeeds(subject.queue, _read(subject, _segment(subject, entries)))
    for offset, part in wanted:
        equal(buffer.read(offset, len(part)), part, f"the data at {offset}")


@GROUP.check("Base 4.3.2", needs=_NEED, destructive=True)
def segments_are_a_chain(subject: Subject) -> None:
    """A segment's last descriptor names the next segment, the last of all a last segment."""
    data = _fill(subject)
    buffer = subject.host.memory.allocate(_BYTES)
    quarter = _BYTES // 4
    parts = [_data(buffer, number * quarter, quarter) for number in range(4)]
    third = _segment(subject, parts[3:])
    second = _segment(subject, [*parts[1:3], third], last=False)
    succeeds(subject.queue, _read(subject, _segment(subject, [parts[0], second], last=False)))
    equal(buffer.read(), data, "the data")


@GROUP.check("Base 4.3.2", needs=(needs.sgls(Sgls.BIT_BUCKET), needs.writable), destructive=True)
def a_bit_bucket_takes_data_nowhere(subject: Subject) -> None:
    """A bit bucket in a Read swallows its length of data."""
    data, size = _fill(subject), _BYTES // 4
    buffer = subject.host.memory.allocate(_BYTES)
    bucket = _descriptor(SglType.BIT_BUCKET, 0, size)
    entries = [_data(buffer, 0, size), bucket, _data(buffer, 4096, 2 * size)]
    succeeds(subject.queue, _read(subject, _segment(subject, entries)))
    equal(buffer.read(0, size), data[:size], "the data before the bucket")
    equal(buffer.read(4096, 2 * size), data[2 * size :], "the data behind it")


@GROUP.check("Base 4.3.2", "Base 4.2.3.1", needs=needs.has_sgls)
def an_sgl_that_is_too_short_is_refused(subject: Subject) -> None:
    """An SGL with room for less than the transfer is Data SGL Length Invalid."""
    buffer = subject.host.memory.allocate(_BYTES)
    short = _data(buffer, 0, _BYTES - 512)
    sqe = _read(subject, short)
    refused(subject.queue, sqe, GenericStatus.DATA_SGL_LENGTH_INVALID)
    sqe = _read(subject, _segment(subject, [short]))
    refused(subject.queue, sqe, GenericStatus.DATA_SGL_LENGTH_INVALID)


@GROUP.check("Base 4.3.2", "Base 5.1.13.2.1", needs=needs.has_sgls)
def a_longer_sgl_is_as_sgls_says(subject: Subject) -> None:
    """An SGL longer than the transfer works with SGLS.LONGER, and is refused without."""
    buffer = subject.host.memory.allocate(2 * _BYTES)
    sqe = _read(subject, _data(buffer, 0, 2 * _BYTES))
    if subject.controller.sgls & Sgls.LONGER:
        succeeds(subject.queue, sqe)
        require(not any(buffer.read(_BYTES)), "data behind the transfer's end")
    else:
        refused(subject.queue, sqe, GenericStatus.DATA_SGL_LENGTH_INVALID)


@GROUP.check("Base 4.3.2", "Base 4.2.3.1", needs=needs.has_sgls)
def a_type_that_is_not_there_is_refused(subject: Subject) -> None:
    """A reserved descriptor type is SGL Descriptor Type Invalid."""
    buffer = subject.host.memory.allocate(_BYTES)
    for kind in (0x6, 0x9, 0xE):
        bad = _descriptor(kind, buffer.iova, _BYTES)
        for descriptor in (bad, _segment(subject, [bad])):
            sqe = _read(subject, descriptor)
            refused(subject.queue, sqe, GenericStatus.SGL_TYPE_INVALID)


@GROUP.check("Base 4.3.2", "Base 4.2.3.1", needs=needs.has_sgls)
def a_segment_is_whole_descriptors(subject: Subject) -> None:
    """A segment whose length is 0 or no multiple of 16 is Invalid SGL Segment Descriptor."""
    page = subject.host.memory.allocate(4096)
    page.write(_data(page, 0, _BYTES))
    for length in (0, 8, 17):
        sqe = _read(subject, _descriptor(SglType.LAST_SEGMENT, page.iova, length))
        refused(
            subject.queue,
            sqe,
            GenericStatus.INVALID_SGL_SEGMENT,
            GenericStatus.INVALID_SGL_COUNT,
            GenericStatus.DATA_SGL_LENGTH_INVALID,
        )


@GROUP.check("Base 4.3.2", "Base 4.2.3.1", needs=needs.has_sgls)
def a_last_segment_has_no_successor(subject: Subject) -> None:
    """A segment descriptor in a last segment, or within a segment, is refused."""
    buffer = subject.host.memory.allocate(_BYTES)
    data = _data(buffer, 0, _BYTES)
    inner = _segment(subject, [data])
    for descriptor in (
        _segment(subject, [inner]),
        _segment(subject, [inner, data], last=False),
    ):
        refused(
            subject.queue,
            _read(subject, descriptor),
            GenericStatus.INVALID_SGL_SEGMENT,
            GenericStatus.INVALID_SGL_COUNT,
            GenericStatus.SGL_TYPE_INVALID,
        )


@GROUP.check("Base 4.3.2", needs=needs.has_sgls)
def an_sgl_out_of_memory_hurts_nobody(subject: Subject) -> None:
    """Data blocks and segments where there is no host memory fail, and nothing else."""
    nowhere = 0x7FFF_FFFF_0000
    for kind, length in ((SglType.DATA_BLOCK, _BYTES), (SglType.LAST_SEGMENT, 32)):
        sqe = _read(subject, _descriptor(kind, nowhere, length))
        require(not subject.queue.execute(sqe, check=False).completion.ok, "it succeeded")
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 4.3.2", needs=needs.has_sgls)
def a_chain_that_is_a_ring_ends(subject: Subject) -> None:
    """A segment that names itself does not hang the controller."""
    page = subject.host.memory.allocate(4096)
    buffer = subject.host.memory.allocate(4096)
    own = _descriptor(SglType.SEGMENT, page.iova, 2 * _DESCRIPTOR)
    page.write(_data(buffer, 0, 0) + own)
    subject.queue.execute(_read(subject, own), check=False)
    succeeds(subject.queue, commands.flush(subject.nsid))
