"""Physical Region Pages: offsets, lists, chains (Base 4.3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.host.memory import build_prps, page_entries
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.conformance.subject import Subject
    from nvme_mdev.host.memory import DmaBuffer
    from nvme_mdev.spec.nvme_commands import SQE

GROUP = Group("prp")

_PAGE = 4096


def _blocks(subject: Subject, size: int) -> int:
    """As many blocks as ``size`` bytes; NotApplicable when no transfer can have so many."""
    blocks = size // subject.block_size
    limit = subject.host.max_transfer or size
    if blocks == 0 or blocks > subject.namespace.blocks or size > limit:
        raise NotApplicable(f"no transfer can have {size} bytes")
    return blocks


def _sqe(subject: Subject, size: int, entries: Sequence[int], *, list_offset: int = 0) -> SQE:
    """A Read of ``size`` bytes through these PRP entries."""
    sqe = commands.read(subject.nsid, 0, _blocks(subject, size))
    prps = build_prps(subject.host.memory, entries, list_offset=list_offset)
    sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
    return sqe


def _wanted(subject: Subject, size: int) -> bytes:
    return subject.queue.read(subject.nsid, 0, _blocks(subject, size))


def _fill(subject: Subject, size: int) -> None:
    """Something to tell the pages apart by."""
    data = b"".join(number.to_bytes(4, "little") for number in range(1, size // 4 + 1))
    _blocks(subject, size)
    subject.queue.write(subject.nsid, 0, data)


def _scattered(subject: Subject, pages: int) -> list[DmaBuffer]:
    """Pages in another order than their addresses', none beside its successor."""
    memory = subject.host.memory
    found = [memory.allocate(_PAGE) for _ in range(2 * pages)]
    return found[::2][::-1]


def _joined(buffers: list[DmaBuffer], size: int) -> bytes:
    return b"".join(buffer.read() for buffer in buffers)[:size]


@GROUP.check("Base 4.3.1", needs=needs.writable, destructive=True)
def two_entries_are_two_pages(subject: Subject) -> None:
    """With two pages PRP2 is the second page, wherever it is."""
    size = 2 * _PAGE
    _fill(subject, size)
    buffers = _scattered(subject, 2)
    succeeds(subject.queue, _sqe(subject, size, [one.iova for one in buffers]))
    equal(_joined(buffers, size), _wanted(subject, size), "two pages")


@GROUP.check("Base 4.3.1", needs=needs.writable, destructive=True)
def an_offset_in_prp1_ends_at_its_page(subject: Subject) -> None:
    """With an offset in PRP1 the first part ends at the page's end, PRP2 has the rest."""
    size = _PAGE
    _fill(subject, size)
    for offset in (4, 512, 2048, _PAGE - 4):
        first, second = _scattered(subject, 2)
        sqe = _sqe(subject, size, [first.iova + offset, second.iova])
        succeeds(subject.queue, sqe)
        found = first.read(offset) + second.read(0, offset)
        equal(found, _wanted(subject, size), f"a page from offset {offset} on")
        equal(second.read(offset), bytes(_PAGE - offset), "what lies behind it")


@GROUP.check("Base 4.3.1", needs=needs.writable, destructive=True)
def a_list_of_scattered_pages(subject: Subject) -> None:
    """With more than two pages PRP2 points to a list of the others."""
    size = 16 * _PAGE
    _fill(subject, size)
    buffers = _scattered(subject, 16)
    succeeds(subject.queue, _sqe(subject, size, [one.iova for one in buffers]))
    equal(_joined(buffers, size), _wanted(subject, size), "16 pages")


@GROUP.check("Base 4.3.1", needs=needs.writable, destructive=True)
def a_list_may_begin_within_a_page(subject: Subject) -> None:
    """A list that begins within its page goes on in the next page that its last entry names."""
    size = 8 * _PAGE
    _fill(subject, size)
    for slots in (7, 2, 3):
        buffers = _scattered(subject, 8)
        entries = [one.iova for one in buffers]
        sqe = _sqe(subject, size, entries, list_offset=_PAGE - 8 * slots)
        succeeds(subject.queue, sqe)
        equal(_joined(buffers, size), _wanted(subject, size), f"a list with {slots} slots left")


@GROUP.check("Base 4.3.1", needs=needs.writable, destructive=True)
def an_offset_and_a_list(subject: Subject) -> None:
    """An offset in PRP1 together with a list."""
    size = 4 * _PAGE
    _fill(subject, size)
    buffer = subject.host.memory.allocate(size + _PAGE)
    sqe = _sqe(subject, size, page_entries(buffer.iova + 516, size))
    succeeds(subject.queue, sqe)
    equal(buffer.read(516, size), _wanted(subject, size), "the data")
    equal(buffer.read(0, 516), bytes(516), "what lies before it")


@GROUP.check("Base 4.3.1", needs=needs.writable, destructive=True)
def the_last_entry_of_a_full_list_page_is_data(subject: Subject) -> None:
    """A list that just fills its page needs no next page: its last entry is data."""
    size = 9 * _PAGE
    _fill(subject, size)
    buffers = _scattered(subject, 9)
    entries = [one.iova for one in buffers]
    succeeds(subject.queue, _sqe(subject, size, entries, list_offset=_PAGE - 8 * 8))
    equal(_joined(buffers, size), _wanted(subject, size), "9 pages")


@GROUP.check("Base 4.3.1")
def an_offset_in_a_list_entry_is_refused(subject: Subject) -> None:
    """An entry other than the first with an offset is PRP Offset Invalid."""
    for position in (1, 2, 3):
        entries = [one.iova for one in _scattered(subject, 4)]
        entries[position] += 512
        sqe = _sqe(subject, 4 * _PAGE, entries)
        refused(subject.queue, sqe, GenericStatus.INVALID_PRP_OFFSET)


@GROUP.check("Base 4.3.1")
def an_offset_in_prp2_as_a_page_is_refused(subject: Subject) -> None:
    """PRP2 as the second page with an offset is PRP Offset Invalid."""
    first, second = _scattered(subject, 2)
    sqe = _sqe(subject, 2 * _PAGE, [first.iova, second.iova + 1024])
    refused(subject.queue, sqe, GenericStatus.INVALID_PRP_OFFSET)


@GROUP.check("Base 4.3.1")
def a_list_is_aligned_to_its_entries(subject: Subject) -> None:
    """PRP2 as a list with bits 2:0 set is PRP Offset Invalid."""
    sqe = _sqe(subject, 4 * _PAGE, [one.iova for one in _scattered(subject, 4)])
    sqe.prp2 += 4
    refused(subject.queue, sqe, GenericStatus.INVALID_PRP_OFFSET)


@GROUP.check("Base 4.3.1")
def nothing_is_written_behind_the_data(subject: Subject) -> None:
    """A transfer of less than a page leaves the rest of the page as it is."""
    size = subject.block_size
    if size >= _PAGE:
        raise NotApplicable("a block fills a page")
    buffer = subject.host.memory.allocate(_PAGE)
    buffer.write(b"\xa5" * _PAGE)
    succeeds(subject.queue, _sqe(subject, size, [buffer.iova + 256]))
    equal(buffer.read(0, 256), b"\xa5" * 256, "what lies before the data")
    equal(buffer.read(256 + size), b"\xa5" * (_PAGE - 256 - size), "what lies behind the data")


@GROUP.check("Base 4.2.3.1")
def data_out_of_memory_fails(subject: Subject) -> None:
    """PRP entries where there is no host memory fail the command, and nothing else."""
    good = subject.host.memory.allocate(4 * _PAGE).iova
    nowhere = 0x7FFF_FFFF_0000
    for entries in (
        [nowhere, good],
        [good, nowhere],
        [good, good + _PAGE, nowhere, good],
        [0xFFFF_FFFF_FFFF_F000, good],
    ):
        size = len(entries) * _PAGE
        sqe = _sqe(subject, size, entries)
        completion = subject.queue.execute(sqe, check=False).completion
        require(not completion.ok, "a command without memory succeeded")
    sqe = _sqe(subject, 4 * _PAGE, page_entries(good, 4 * _PAGE))
    sqe.prp2 = nowhere
    require(not subject.queue.execute(sqe, check=False).completion.ok, "a list without memory")
    succeeds(subject.queue, _sqe(subject, 2 * _PAGE, [good, good + _PAGE]))


@GROUP.check("Base 4.3.1")
def a_list_that_names_itself_ends(subject: Subject) -> None:
    """A PRP list whose last entry points to itself does not hang the controller."""
    memory = subject.host.memory
    page = memory.allocate(_PAGE)
    data = memory.allocate(_PAGE)
    entries = [data.iova] * 511 + [page.iova]
    page.write(b"".join(one.to_bytes(8, "little") for one in entries))
    size = min(subject.host.max_transfer or (1 << 20), 1 << 20)
    sqe = commands.read(subject.nsid, 0, _blocks(subject, size))
    sqe.prp1, sqe.prp2 = data.iova, page.iova + _PAGE - 16
    subject.queue.execute(sqe, check=False)
    succeeds(subject.queue, commands.flush(subject.nsid))
