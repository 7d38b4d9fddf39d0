"""What a relay works out for itself: which data a command has, and which pages are in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.host import commands
from nvme_mdev.service.relay.files import GRANULE_SHIFT, PulledCommand, RelayFiles
from nvme_mdev.service.relay.queues import RelayedQueue
from nvme_mdev.service.relay.shadow import MOST_IDLE, Shadow
from nvme_mdev.service.relay.transfers import Transfer, describe, length_of
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
LISTS = 0x10_0000_0000


def transfer(
    sqe: SQE, length: int, memory: dict[int, bytes] | None = None, *, admin: bool = False
) -> Transfer:
    """Describe a command whose lists are in `memory`."""

    async def fetch(iova: int, size: int) -> bytes:
        for start, data in (memory or {}).items():
            if start <= iova and iova + size <= start + len(data):
                return data[iova - start :][:size]
        raise AssertionError(f"{size} bytes at {iova:#x} are no list")

    return asyncio.run(
        describe(sqe, length, admin=admin, page_size=PAGE, limit=1 << 20, fetch=fetch)
    )


def entries(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


@given(offset=st.integers(0, PAGE - 4), length=st.integers(1, 2000 * 1024), at=st.integers(0, 511))
def test_prps_of_any_offset_and_length_are_the_pages_that_the_lists_name(
    offset: int, length: int, at: int
) -> None:
    length = min(length, 1 << 20)
    sqe = commands.write(1, 0, 1)
    sqe.prp1 = 0x1000_0000 + offset
    count = -(-(offset + length) // PAGE)
    pages = [0x2000_0000 + 2 * PAGE * i for i in range(count - 1)]
    expected = [(sqe.prp1, min(length, PAGE - offset))]
    left = length - expected[0][1]
    for page in pages:
        expected.append((page, min(left, PAGE)))
        left -= min(left, PAGE)
    memory: dict[int, bytes] = {}
    if len(pages) == 1:
        sqe.prp2 = pages[0]
    elif pages:
        sqe.prp2 = where = LISTS + 8 * at
        rest, slots = pages, 512 - at
        while len(rest) > slots:
            following = (where & ~(PAGE - 1)) + 4 * PAGE
            memory[where] = entries(*rest[: slots - 1], following)
            rest, where, slots = rest[slots - 1 :], following, 512
        memory[where] = entries(*rest)
    found = transfer(sqe, length, memory)
    assert found.ranges == expected
    assert (found.pulls, found.pushes) == (True, False)


def sgl(address: int, size: int, kind: int) -> bytes:
    return address.to_bytes(8, "little") + size.to_bytes(4, "little") + bytes([0, 0, 0, kind << 4])


def with_sgl(sqe: SQE, descriptor: bytes) -> SQE:
    sqe.flags |= 1 << 6
    sqe.prp1 = int.from_bytes(descriptor[:8], "little")
    sqe.prp2 = int.from_bytes(descriptor[8:], "little")
    return sqe


def test_sgl_segments_are_followed_and_buckets_take_what_is_read() -> None:
    last = sgl(0x9000, 100, 0) + sgl(0xA000, 5000, 0)
    first = sgl(0x7001, 300, 0) + sgl(0, 112, 1) + sgl(LISTS + 4096, len(last), 3)
    memory = {LISTS: first, LISTS + 4096: last}
    pointer = sgl(LISTS, len(first), 2)
    read = transfer(with_sgl(commands.read(1, 0, 1), pointer), 1024, memory)
    assert read.ranges == [(0x7001, 300), (0x9000, 100), (0xA000, 512)]
    assert (read.pulls, read.pushes, read.exact) == (False, True, True)
    write = transfer(with_sgl(commands.write(1, 0, 1), pointer), 1024, memory)
    assert write.ranges == [(0x7001, 300), (0x9000, 100), (0xA000, 624)]


def test_lists_without_an_end_are_given_up() -> None:
    sqe = commands.write(1, 0, 1)
    sqe.prp2 = LISTS + PAGE - 8
    transfer(sqe, 1 << 20, {LISTS + PAGE - 8: entries(LISTS + PAGE - 8)})
    loop = sgl(LISTS, 16, 2)
    assert transfer(with_sgl(commands.write(1, 0, 1), loop), 512, {LISTS: loop}).ranges == []


def test_what_has_no_data_moves_none() -> None:
    for sqe in (commands.flush(1), commands.write_zeroes(1, 0, 8), commands.verify(1, 0, 8)):
        assert length_of(sqe, admin=False, block_size=512) == 0
    abort = commands.abort(1, 2)
    assert length_of(abort, admin=True, block_size=0) == 0
    assert transfer(commands.write(1, 0, 1), 0).ranges == []
    # A namespace that there is not, more than a command may move, and an SGL of an admin command.
    assert length_of(commands.write(7, 0, 8), admin=False, block_size=0) == 0
    assert transfer(commands.write(1, 0, 1), 2 << 20).ranges == []
    assert transfer(with_sgl(commands.identify(1), sgl(0, 4096, 0)), 4096, admin=True).ranges == []


def test_lengths_are_those_of_the_specifications() -> None:
    assert length_of(commands.read(1, 0, 8), admin=False, block_size=4096) == 8 * 4096
    assert length_of(commands.dataset_management(1, 3, 4), admin=False, block_size=512) == 48
    assert length_of(commands.copy(1, 0, 3), admin=False, block_size=512) == 96
    assert length_of(commands.get_log_page(1, 8192), admin=True, block_size=0) == 8192
    assert length_of(commands.identify(1), admin=True, block_size=0) == 4096


def test_the_list_of_a_queue_in_scattered_pages_is_brought() -> None:
    sqe = SQE(opc=AdminOpcode.CREATE_IO_CQ, prp1=LISTS + PAGE - 16, cdw10=1023 << 16 | 1)
    memory = {
        LISTS + PAGE - 16: entries(0x1000, LISTS + 2 * PAGE),
        LISTS + 2 * PAGE: entries(0x5000, 0x9000, 0xC000),
    }
    assert transfer(sqe, 0, memory, admin=True).ranges == []


def test_entries_of_a_queue_are_found_across_pages_and_the_end() -> None:
    queue = RelayedQueue(1, 100, 64, [0x1000, 0x8000], PAGE)
    assert queue.pieces(0, 64) == [(0x1000, 4096)]
    assert queue.pieces(62, 4) == [(0x1000 + 62 * 64, 128), (0x8000, 128)]
    assert queue.pieces(98, 4) == [(0x8000 + 34 * 64, 128), (0x1000, 128)]
    assert queue.between(98, 2) == 4
    together = RelayedQueue(1, 100, 64, [0x1000, 0x2000], PAGE)
    assert together.pieces(62, 4) == [(0x1000 + 62 * 64, 256)]


@pytest.fixture
def files() -> Iterator[RelayFiles]:
    made = RelayFiles(None)
    yield made
    made.close()


def test_the_shadow_has_what_was_written_wherever_the_guest_has_its_memory(
    files: RelayFiles,
) -> None:
    shadow = Shadow(files)
    at = (1 << 63) + (5 << GRANULE_SHIFT) - 4096
    assert len(shadow.place(at, 8192)) == 1
    other = shadow.place(1 << GRANULE_SHIFT, 2 << GRANULE_SHIFT)
    assert sum(piece.size for piece in other) == 2 << GRANULE_SHIFT
    shadow.write(at + 4000, b"across the border" * 10)
    assert shadow.read(at + 4000, 170) == b"across the border" * 10
    # The next process finds it there.
    assert Shadow(files).read(at + 4000, 170) == b"across the border" * 10


def test_pages_without_users_are_given_back(files: RelayFiles) -> None:
    shadow = Shadow(files)
    size = (MOST_IDLE + 1) * PAGE
    shadow.place(0, size + PAGE)
    kept = shadow.hold([(size, PAGE)])
    shadow.write(size, b"kept")
    pages = shadow.hold([(100, 8), (0, size)])
    shadow.write(0, b"gone")
    shadow.release(pages[1:])
    assert shadow.read(0, 4) == b"gone"  # somebody has the first page still
    shadow.write(PAGE, b"gone")
    pages = shadow.hold([(0, size)]) + pages[:1]
    shadow.release(pages)
    assert shadow.read(0, 4) == bytes(4)
    assert shadow.read(PAGE, 4) == bytes(4)
    assert shadow.read(size, 4) == b"kept"
    shadow.release(kept)


def test_commands_are_written_down_until_they_are_forgotten(files: RelayFiles) -> None:
    noted = [PulledCommand(n, n % 3, bytes([n & 0xFF]) * 64) for n in (0, 5, 1023)]
    for command in noted:
        files.note(command)
    assert list(files.commands()) == noted
    files.forget(5)
    assert list(files.commands()) == [noted[0], noted[2]]
