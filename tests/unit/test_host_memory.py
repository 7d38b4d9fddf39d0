"""DMA memory: the allocator, and PRP entries and lists against the rules of Base 4.3.1."""

from __future__ import annotations

import os
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.host.errors import DmaMemoryError
from nvme_mdev.host.memory import (
    PAGE_SIZE,
    DmaMemory,
    build_prps,
    page_entries,
    prps_for,
    write_prp_list,
)
from nvme_mdev.host.transport import PrivateMemory

IOVA = 0x1_0000_0000


@pytest.fixture
def memory():
    window = DmaMemory(1 << 20, IOVA)
    yield window
    window.close()


def test_a_buffer_is_zeroed_even_when_its_pages_were_used_before(memory):
    with memory.allocate(PAGE_SIZE) as buffer:
        buffer.fill(0xAA)
    assert memory.allocate(PAGE_SIZE).read() == bytes(PAGE_SIZE)


def test_the_file_has_what_the_buffer_has(memory):
    memory.allocate(PAGE_SIZE)
    buffer = memory.allocate(10)
    buffer.write(b"0123456789")
    assert os.pread(memory.fd, 10, buffer.iova - IOVA) == b"0123456789"


def test_a_write_beyond_the_end_is_refused(memory):
    with pytest.raises(DmaMemoryError):
        memory.allocate(10).write(b"12345678901")


def test_an_allocation_is_aligned_as_asked(memory):
    memory.allocate(1)
    assert memory.allocate(1, align=1 << 16).iova % (1 << 16) == 0


def test_when_it_is_used_up_the_error_says_so(memory):
    with pytest.raises(DmaMemoryError, match="attach with more memory"):
        memory.allocate((1 << 20) + 1)


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 4)), max_size=30))
def test_buffers_never_overlap_and_all_memory_comes_back(steps):
    memory = DmaMemory(1 << 20, IOVA)
    live = []
    for size, victim in steps:
        if victim < len(live):
            live.pop(victim).free()
        try:
            live.append(memory.allocate(size))
        except DmaMemoryError:
            continue
        ranges = sorted((one.iova, one.iova + one.size) for one in live)
        assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    for buffer in live:
        buffer.free()
    assert memory.allocate(1 << 20).iova == IOVA
    memory.close()


@given(st.integers(0, PAGE_SIZE - 4), st.integers(1, 1 << 17))
def test_page_entries_cover_the_buffer_exactly(offset, length):
    entries = page_entries(IOVA + offset, length)
    assert entries[0] == IOVA + offset
    assert all(entry % PAGE_SIZE == 0 for entry in entries[1:])
    covered = sum(
        min(PAGE_SIZE - entry % PAGE_SIZE, IOVA + offset + length - entry) for entry in entries
    )
    assert covered == length


def walk(memory: DmaMemory, prp1: int, prp2: int, count: int) -> list[int]:
    """The entries of a command, as a controller reads them."""
    if count == 0:
        return []
    if count <= 2:
        return [prp1, prp2][:count]
    entries, address = [prp1], prp2
    while len(entries) < count:
        at = address - memory.iova
        value = int.from_bytes(memory.view[at : at + 8], "little")
        if address % PAGE_SIZE == PAGE_SIZE - 8 and count - len(entries) > 1:
            address = value
            continue
        entries.append(value)
        address += 8
    return entries


@given(st.integers(1, 1200), st.integers(0, 511))
def test_a_controller_reads_back_the_entries_that_were_laid_out(count, slot):
    memory = DmaMemory(1 << 20, IOVA)
    entries = [0x5_0000_0000 + n * PAGE_SIZE for n in range(count)]
    prps = build_prps(memory, entries, list_offset=slot * 8)
    assert walk(memory, prps.prp1, prps.prp2, count) == entries
    prps.free()
    assert memory.available == 1 << 20
    memory.close()


def test_no_data_has_no_prps(memory):
    assert prps_for(memory, IOVA, 0)[:2] == (0, 0)


def test_two_pages_need_no_list(memory):
    assert prps_for(memory, IOVA, 2 * PAGE_SIZE) == (IOVA, IOVA + PAGE_SIZE, ())


def test_a_list_that_fits_to_the_last_slot_is_not_chained(memory):
    iova, pages = write_prp_list(memory, [1] * 3, list_offset=PAGE_SIZE - 24)
    assert iova % PAGE_SIZE == PAGE_SIZE - 24
    assert len(pages) == 1


def test_a_window_can_be_closed_while_views_are_held():
    memory = DmaMemory(PAGE_SIZE, IOVA)
    view = memory.allocate(PAGE_SIZE).view
    memory.close()
    assert view[0] == 0


def test_a_message_is_done_with_a_window_before_it_is_taken_away():
    """A thread of its own answers them, which a released view would end."""
    memory = PrivateMemory()
    found = threading.Event()

    class Window(DmaMemory):
        def holds(self, iova: int, size: int = 1) -> bool:
            found.set()
            remover.join(0.2)
            return super().holds(iova, size)

    window = Window(PAGE_SIZE, IOVA)
    memory.add(window)

    def remove() -> None:
        found.wait()
        memory.remove(window)
        window.close()

    remover = threading.Thread(target=remove)
    remover.start()
    memory.write(IOVA, b"\1" * PAGE_SIZE)
    remover.join()
    with pytest.raises(OSError, match="in no window"):
        memory.read(IOVA, 1)
