"""PRPs become the segments that a plain Python model says, and nothing outside guest memory."""

from __future__ import annotations

import mmap
import os
import random
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.datapath import prp
from nvme_mdev.datapath.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
PAGES = 1200
BASE = 0x40000000
OFFSET_INVALID = 0x4013
TRANSFER_ERROR = 0x4004


class Ram:
    """Guest memory at BASE, with page frames handed out in a shuffled order."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, PAGES * PAGE)
        self.bytes = mmap.mmap(self.fd, PAGES * PAGE)
        self.memory = GuestMemory()
        self.memory.map(BASE, PAGES * PAGE, self.fd, 0, readable=True, writable=True)

    def close(self) -> None:
        self.memory.clear()
        self.bytes.close()
        os.close(self.fd)

    def put_entry(self, iova: int, value: int) -> None:
        struct.pack_into("<Q", self.bytes, iova - BASE, value)


@pytest.fixture(scope="module")
def ram() -> Iterator[Ram]:
    made = Ram()
    yield made
    made.close()


def build(
    ram: Ram, frames: list[int], offset: int, length: int, list_offset: int
) -> tuple[int, int]:
    """PRP1 and PRP2 that describe `length` bytes in these frames, the first at `offset`.

    Lists live in the frames from the end of memory downwards and start at `list_offset`.
    """
    prp1 = BASE + frames[0] * PAGE + offset
    covered = PAGE - offset
    entries = []
    for frame in frames[1:]:
        if covered >= length:
            break
        entries.append(BASE + frame * PAGE)
        covered += PAGE
    if not entries:
        return prp1, 0
    if len(entries) == 1:
        return prp1, entries[0]
    list_page = PAGES - 1
    at = first = BASE + list_page * PAGE + list_offset
    for index, entry in enumerate(entries):
        last_in_page = at % PAGE == PAGE - 8
        if last_in_page and index < len(entries) - 1:
            list_page -= 1
            ram.put_entry(at, BASE + list_page * PAGE)
            at = BASE + list_page * PAGE
        ram.put_entry(at, entry)
        at += 8
    return prp1, first


def model(frames: list[int], offset: int, length: int) -> list[int]:
    """Every byte's place, page by page: (IOVA, size) without merging, as IOVA ranges."""
    pieces = []
    for frame in frames:
        if length == 0:
            break
        size = min(PAGE - offset, length)
        pieces.append((BASE + frame * PAGE + offset, size))
        length -= size
        offset = 0
    return pieces


def merge(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for iova, size in pieces:
        if merged and sum(merged[-1]) == iova:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((iova, size))
    return merged


@given(
    frames=st.permutations(range(560)),
    offset=st.integers(0, PAGE // 4 - 1).map(lambda n: n * 4),
    length=st.integers(1, 2 << 20),
    list_offset=st.one_of(st.just(0), st.integers(0, 511).map(lambda n: n * 8)),
)
def test_the_walk_agrees_with_the_model(
    ram: Ram, frames: list[int], offset: int, length: int, list_offset: int
) -> None:
    prp1, prp2 = build(ram, frames, offset, length, list_offset)
    status, segments = prp.segments(ram.memory, prp1, prp2, length, writable=True)
    assert status == 0
    assert segments == merge(model(frames, offset, length))


@given(
    prp1=st.integers(0, 2**64 - 1),
    prp2=st.integers(0, 2**64 - 1),
    length=st.integers(1, 1 << 20),
)
def test_no_prps_lead_outside_guest_memory(ram: Ram, prp1: int, prp2: int, length: int) -> None:
    status, segments = prp.segments(ram.memory, prp1, prp2, length, writable=True)
    for iova, size in segments:
        assert iova >= BASE
        assert iova + size <= BASE + PAGES * PAGE
    assert status in (0, OFFSET_INVALID, TRANSFER_ERROR)
    assert status == 0 or not segments


@given(seed=st.integers(0), length=st.integers(2 * PAGE + 1, 1 << 20))
def test_a_list_of_noise_is_refused(ram: Ram, seed: int, length: int) -> None:
    where = (PAGES - 1) * PAGE
    ram.bytes[where : where + PAGE] = b"\x01" + random.Random(seed).randbytes(PAGE - 1)
    status, segments = prp.segments(ram.memory, BASE, BASE + where, length, writable=True)
    assert status in (OFFSET_INVALID, TRANSFER_ERROR)
    assert segments == []


def test_a_list_that_points_to_itself_ends(ram: Ram) -> None:
    where = BASE + (PAGES - 1) * PAGE
    for entry in range(0, PAGE, 8):
        ram.put_entry(where + entry, where)
    status, segments = prp.segments(ram.memory, BASE, where, 4 << 20, writable=True)
    assert status == 0
    assert sum(size for _, size in segments) == 4 << 20


@pytest.mark.parametrize("prp1", [BASE + 1, BASE + 2, BASE + 3])
def test_prp1_must_be_dword_aligned(ram: Ram, prp1: int) -> None:
    assert prp.segments(ram.memory, prp1, 0, 512, writable=True)[0] == OFFSET_INVALID


def test_prp2_as_data_must_be_page_aligned(ram: Ram) -> None:
    status, _ = prp.segments(ram.memory, BASE, BASE + PAGE + 512, 2 * PAGE, writable=True)
    assert status == OFFSET_INVALID


def test_prp2_as_list_must_be_qword_aligned(ram: Ram) -> None:
    status, _ = prp.segments(ram.memory, BASE, BASE + PAGE + 4, 3 * PAGE, writable=True)
    assert status == OFFSET_INVALID


def test_a_list_entry_with_an_offset_is_refused(ram: Ram) -> None:
    where = BASE + (PAGES - 1) * PAGE
    ram.put_entry(where, BASE + PAGE)
    ram.put_entry(where + 8, BASE + 2 * PAGE + 4)
    status, _ = prp.segments(ram.memory, BASE, where, 3 * PAGE, writable=True)
    assert status == OFFSET_INVALID


def test_unmapped_pages_are_a_transfer_error(ram: Ram) -> None:
    end = BASE + PAGES * PAGE
    assert prp.segments(ram.memory, end, 0, 512, writable=True)[0] == TRANSFER_ERROR
    assert prp.segments(ram.memory, end - PAGE, end, 8192, writable=True)[0] == TRANSFER_ERROR


def test_read_only_memory_is_not_written() -> None:
    fd = os.memfd_create("rom")
    os.ftruncate(fd, PAGE)
    memory = GuestMemory()
    memory.map(BASE, PAGE, fd, 0, readable=True, writable=False)
    os.close(fd)
    assert prp.segments(memory, BASE, 0, 512, writable=True)[0] == TRANSFER_ERROR
    assert prp.segments(memory, BASE, 0, 512, writable=False)[0] == 0
    assert prp.write(memory, BASE, 0, b"x" * 512) == TRANSFER_ERROR


def test_a_page_that_straddles_two_mappings_becomes_two_segments() -> None:
    fds = [os.memfd_create(name) for name in ("low", "high")]
    memory = GuestMemory()
    for index, fd in enumerate(fds):
        os.ftruncate(fd, PAGE)
        memory.map(BASE + index * PAGE, PAGE, fd, 0, readable=True, writable=True)
        os.close(fd)
    status, segments = prp.segments(memory, BASE, 0, 8192, page_size=8192, writable=True)
    assert status == 0
    assert segments in ([(BASE, PAGE), (BASE + PAGE, PAGE)], [(BASE, 2 * PAGE)])


def test_read_and_write_move_the_data_of_a_list(ram: Ram) -> None:
    frames = [7, 3, 5, 2]
    prp1, prp2 = build(ram, frames, 100, 3 * PAGE, 0)
    data = bytes(range(256)) * 48
    assert prp.write(ram.memory, prp1, prp2, data) == 0
    assert prp.read(ram.memory, prp1, prp2, len(data)) == (0, data)
