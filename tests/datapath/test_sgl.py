"""SGLs become the segments that a plain Python model says, and nothing outside guest memory."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.datapath import sgl
from nvme_mdev.datapath.backends.memory import MemoryBackend

from .guest import COMPARE, DSM, IOVA, PAGE, READ, WRITE, Guest
from .test_prp import BASE, PAGES, Ram

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA, BUCKET, SEGMENT, LAST = 0x00, 0x10, 0x20, 0x30
DNR = 0x4000
TRANSFER_ERROR = 0x004 | DNR
SEGMENT_INVALID = 0x00D | DNR
COUNT_INVALID = 0x00E | DNR
LENGTH_INVALID = 0x00F | DNR
TYPE_INVALID = 0x011 | DNR
LISTS = BASE + (PAGES - 64) * PAGE
"""Lists are written to the last pages."""
SGL = 0x40


@pytest.fixture(scope="module")
def ram() -> Iterator[Ram]:
    made = Ram()
    yield made
    made.close()


def descriptor(kind: int, address: int, length: int) -> bytes:
    return struct.pack("<QI3xB", address, length, kind)


class Piece(NamedTuple):
    kind: int
    address: int
    length: int


def lay_out(ram: Ram, pieces: list[Piece], splits: list[int]) -> bytes:
    """Put descriptors into segments of the given lengths; the command's descriptor."""
    segments: list[list[Piece]] = []
    rest = list(pieces)
    for count in splits:
        segments.append(rest[:count])
        rest = rest[count:]
    segments.append(rest)
    segments = [segment for segment in segments if segment]
    at = LISTS
    places = []
    for index, segment in enumerate(segments):
        places.append(at)
        at += 16 * (len(segment) + (index + 1 < len(segments)))
    following = b""
    for index in range(len(segments) - 1, -1, -1):
        data = b"".join(descriptor(*piece) for piece in segments[index]) + following
        where = places[index] - BASE
        ram.bytes[where : where + len(data)] = data
        kind = LAST if index + 1 == len(segments) else SEGMENT
        following = descriptor(kind, places[index], len(data))
    return following


def model(pieces: list[Piece], length: int, *, writable: bool) -> list[tuple[int | None, int]]:
    """What a list names, as (IOVA or None, bytes), without neighbours merged."""
    expected: list[tuple[int | None, int]] = []
    for piece in pieces:
        if piece.kind == BUCKET and not writable:
            continue
        part = min(piece.length, length)
        if part:
            expected.append((None if piece.kind == BUCKET else piece.address, part))
        length -= part
    assert length == 0
    return expected


def merged(segments: list[tuple[int | None, int]]) -> list[tuple[int | None, int]]:
    result: list[tuple[int | None, int]] = []
    for address, size in segments:
        if result:
            last, last_size = result[-1]
            if last is None and address is None:
                result[-1] = (None, last_size + size)
                continue
            if last is not None and last + last_size == address:
                result[-1] = (last, last_size + size)
                continue
        result.append((address, size))
    return result


PIECES = st.lists(
    st.builds(
        Piece,
        st.sampled_from([DATA, DATA, DATA, BUCKET]),
        st.integers(BASE, BASE + (PAGES - 128) * PAGE),
        st.integers(0, 3 * PAGE),
    ),
    min_size=1,
    max_size=40,
)


@given(
    pieces=PIECES,
    splits=st.lists(st.integers(1, 12), max_size=8),
    writable=st.booleans(),
    cut=st.integers(0, 5000),
)
def test_a_list_is_what_the_model_says(
    ram: Ram, pieces: list[Piece], splits: list[int], writable: bool, cut: int
) -> None:
    total = sum(p.length for p in pieces if p.kind == DATA or writable)
    length = max(total - cut, 1)
    status, segments = sgl.segments(
        ram.memory, lay_out(ram, pieces, splits), length, writable=writable
    )
    if total == 0:
        assert status == LENGTH_INVALID
        return
    assert status == 0
    assert merged(segments) == merged(model(pieces, length, writable=writable))


@given(pieces=PIECES, splits=st.lists(st.integers(1, 12), max_size=8), more=st.integers(1, 9999))
def test_a_list_that_is_too_short_is_refused(
    ram: Ram, pieces: list[Piece], splits: list[int], more: int
) -> None:
    length = sum(p.length for p in pieces) + more
    status, _ = sgl.segments(ram.memory, lay_out(ram, pieces, splits), length, writable=True)
    assert status == LENGTH_INVALID


@given(
    seed=st.integers(0), first=st.binary(min_size=16, max_size=16), length=st.integers(1, 1 << 20)
)
def test_noise_stays_inside_guest_memory(ram: Ram, seed: int, first: bytes, length: int) -> None:
    where = LISTS - BASE
    ram.bytes[where : where + PAGE] = random.Random(seed).randbytes(PAGE)
    for start in (first, descriptor(LAST, LISTS, PAGE), descriptor(SEGMENT, LISTS, 16)):
        status, segments = sgl.segments(ram.memory, start, length, writable=True)
        assert status in (
            0,
            TRANSFER_ERROR,
            SEGMENT_INVALID,
            COUNT_INVALID,
            LENGTH_INVALID,
            TYPE_INVALID,
        )
        for address, size in segments:
            assert address is None or BASE <= address <= BASE + PAGES * PAGE - size


def put(ram: Ram, *descriptors: bytes) -> None:
    data = b"".join(descriptors)
    ram.bytes[LISTS - BASE : LISTS - BASE + len(data)] = data


BLOCK = descriptor(DATA, BASE, 512)
OUTSIDE = BASE + PAGES * PAGE
BAD = {
    "keyed data block": ([], descriptor(0x40, BASE, 512), TYPE_INVALID),
    "transport data block": ([], descriptor(0x50, BASE, 512), TYPE_INVALID),
    "vendor type": ([], descriptor(0xF0, BASE, 512), TYPE_INVALID),
    "an offset for an address": ([], descriptor(DATA | 1, 0, 512), TYPE_INVALID),
    "a type unknown in a list": (
        [descriptor(0x60, BASE, 512)],
        descriptor(LAST, LISTS, 16),
        TYPE_INVALID,
    ),
    "no descriptor in the last segment": ([], descriptor(LAST, LISTS, 0), SEGMENT_INVALID),
    "no descriptor in a segment": ([], descriptor(SEGMENT, LISTS, 0), SEGMENT_INVALID),
    "half a descriptor": ([BLOCK, BLOCK], descriptor(LAST, LISTS, 24), SEGMENT_INVALID),
    "an unaligned segment": ([BLOCK], descriptor(LAST, LISTS + 4, 16), SEGMENT_INVALID),
    "a segment after the last": (
        [descriptor(SEGMENT, LISTS + 32, 16)],
        descriptor(LAST, LISTS, 16),
        SEGMENT_INVALID,
    ),
    "a last segment after the last": (
        [descriptor(LAST, LISTS + 32, 16)],
        descriptor(LAST, LISTS, 16),
        SEGMENT_INVALID,
    ),
    "a segment that is not the last descriptor": (
        [descriptor(SEGMENT, LISTS + 32, 16), BLOCK],
        descriptor(SEGMENT, LISTS, 32),
        COUNT_INVALID,
    ),
    "a chain that leads to itself": (
        [descriptor(SEGMENT, LISTS, 16)],
        descriptor(SEGMENT, LISTS, 16),
        COUNT_INVALID,
    ),
    "a chain without a last segment": (
        [descriptor(DATA, BASE, 100)],
        descriptor(SEGMENT, LISTS, 16),
        LENGTH_INVALID,
    ),
    "a segment outside": ([], descriptor(LAST, OUTSIDE, 16), TRANSFER_ERROR),
    "a segment at the end of the address space": (
        [],
        descriptor(LAST, 2**64 - 8, 16),
        TRANSFER_ERROR,
    ),
    "data outside": ([], descriptor(DATA, OUTSIDE - 256, 512), TRANSFER_ERROR),
    "data that wraps": ([], descriptor(DATA, 2**64 - 256, 512), TRANSFER_ERROR),
    "too little data": ([], descriptor(DATA, BASE, 511), LENGTH_INVALID),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_list_gets_its_status(ram: Ram, case: str) -> None:
    listed, first, status = BAD[case]
    put(ram, *listed)
    assert sgl.segments(ram.memory, first, 512, writable=True) == (status, [])


def test_more_pieces_than_there_is_room_for(ram: Ram) -> None:
    put(ram, *[descriptor(DATA, BASE + n * 64, 1) for n in range(65)])
    first = descriptor(LAST, LISTS, 65 * 16)
    assert sgl.segments(ram.memory, first, 65, capacity=64, writable=True)[0] == COUNT_INVALID
    assert sgl.segments(ram.memory, first, 64, capacity=64, writable=True)[0] == 0


def test_a_bit_bucket_counts_only_for_what_the_guest_gets(ram: Ram) -> None:
    put(ram, descriptor(BUCKET, 0, 512), BLOCK)
    first = descriptor(LAST, LISTS, 32)
    assert sgl.segments(ram.memory, first, 1024, writable=True) == (0, [(None, 512), (BASE, 512)])
    assert sgl.segments(ram.memory, first, 512, writable=False) == (0, [(BASE, 512)])
    assert sgl.segments(ram.memory, first, 1024, writable=False)[0] == LENGTH_INVALID


def test_a_bucket_larger_than_the_command_is_cut(ram: Ram) -> None:
    status, segments = sgl.segments(
        ram.memory, descriptor(BUCKET, 0, 0xFFFFFFFF), 1 << 20, writable=True
    )
    assert status == 0
    assert sum(size for _, size in segments) == 1 << 20


# -- in commands ------------------------------------------------------------------------------


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(MemoryBackend(8 << 20)) as made:
        yield made


def with_sgl(command: bytes, first: bytes) -> bytes:
    """The command with an SGL for its data."""
    sqe = bytearray(command)
    sqe[1] |= SGL
    sqe[24:40] = first
    return bytes(sqe)


def test_commands_move_their_data_through_an_sgl(guest: Guest) -> None:
    queue = guest.queue()
    source, target, lists = guest.allocate(4), guest.allocate(4), guest.allocate(1)
    data = random.Random(1).randbytes(8192)
    guest.poke(source + 3, data)
    pieces = [(0, 1000), (1000, 1), (1001, 4099), (5100, 3092)]
    guest.poke(lists, b"".join(descriptor(DATA, source + 3 + at, size) for at, size in pieces))
    first = descriptor(LAST, lists, 16 * len(pieces))
    assert queue.run(with_sgl(queue.command(WRITE, slba=5, blocks=16), first)).status == 0
    assert queue.run(with_sgl(queue.command(COMPARE, slba=5, blocks=16), first)).status == 0
    whole = descriptor(DATA, target + 7, 8192)
    assert queue.run(with_sgl(queue.command(READ, slba=5, blocks=16), whole)).status == 0
    assert guest.peek(target + 7, 8192) == data


def test_a_bit_bucket_leaves_guest_memory_alone(guest: Guest) -> None:
    queue = guest.queue()
    page, target, lists = guest.allocate(1), guest.allocate(1), guest.allocate(1)
    guest.poke(page, bytes(range(256)) * 16)
    assert queue.io(WRITE, page, PAGE, slba=0).status == 0
    guest.poke(lists, descriptor(BUCKET, 0, 1024) + descriptor(DATA, target, 512))
    guest.poke(lists + 32, descriptor(BUCKET, 0, 2560))
    read = with_sgl(queue.command(READ, blocks=8), descriptor(LAST, lists, 48))
    assert queue.run(read).status == 0
    assert guest.peek(target, 1024) == (bytes(range(256)) * 16)[1024:1536] + bytes(512)


def test_ranges_come_through_an_sgl_too(guest: Guest) -> None:
    queue = guest.queue()
    ranges, lists = guest.allocate(1), guest.allocate(1)
    guest.poke(ranges + 1, struct.pack("<IIQIIQ", 0, 8, 0, 0, 1, 1 << 40))
    guest.poke(lists, descriptor(DATA, ranges + 1, 5) + descriptor(DATA, ranges + 6, 27))
    dsm = queue.command(DSM, cdw10=1, cdw11=4)
    status = queue.run(with_sgl(dsm, descriptor(LAST, lists, 32))).status
    assert status == 0x080 | DNR, "the second range was read"


def test_the_error_log_names_the_sgl(guest: Guest) -> None:
    queue = guest.queue()
    read = with_sgl(queue.command(READ, blocks=8), descriptor(DATA, IOVA, 100))
    assert queue.run(read).status == LENGTH_INVALID
    location = struct.unpack("<H", bytes(guest.state.error_log[14:16]))[0]
    assert location == 24
