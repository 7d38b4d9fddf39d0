"""The DMA map: what may be mapped and unmapped, and what a client cannot do with it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.datapath import sigbus
from nvme_mdev.datapath.memory import MAX_REGIONS, GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
TOP = 1 << 64


@pytest.fixture
def fd() -> Iterator[int]:
    descriptor = os.memfd_create("ram")
    os.ftruncate(descriptor, 64 * PAGE)
    yield descriptor
    os.close(descriptor)


def map_(
    memory: GuestMemory, iova: int, size: int, fd: int | None, offset: int = 0, **more: bool
) -> None:
    memory.map(iova, size, fd, offset, **({"readable": True, "writable": True} | more))


def test_what_is_written_is_in_the_clients_file(fd: int) -> None:
    memory = GuestMemory()
    map_(memory, 0x10000, 4 * PAGE, fd, 8 * PAGE)
    memory.write(0x10000 + 100, b"hello")
    assert os.pread(fd, 5, 8 * PAGE + 100) == b"hello"
    assert memory.read(0x10000 + 100, 5) == b"hello"


def test_a_copy_crosses_mappings(fd: int) -> None:
    memory = GuestMemory()
    map_(memory, 0x10000, PAGE, fd, PAGE)
    map_(memory, 0x11000, PAGE, fd, 0)
    memory.write(0x11000 - 2, b"abcd")
    assert os.pread(fd, 2, 2 * PAGE - 2) == b"ab"
    assert os.pread(fd, 2, 0) == b"cd"


def test_a_copy_into_a_gap_is_refused(fd: int) -> None:
    memory = GuestMemory()
    map_(memory, 0x10000, PAGE, fd)
    with pytest.raises(GuestMemoryError):
        memory.read(0x11000 - 2, 4)
    with pytest.raises(GuestMemoryError):
        memory.read(0, 1)


@pytest.mark.parametrize(
    ("iova", "size"),
    [(0, 0), (1, PAGE), (0, PAGE + 1), (TOP - PAGE, 2 * PAGE), (0x10000, PAGE), (0xF000, 3 * PAGE)],
)
def test_empty_unaligned_wrapping_or_overlapping_ranges_are_refused(
    fd: int, iova: int, size: int
) -> None:
    memory = GuestMemory()
    map_(memory, 0x10000, PAGE, fd)
    with pytest.raises(ValueError, match="range"):
        map_(memory, iova, size, fd)
    assert len(memory.ranges()) == 1


def test_the_last_page_of_the_address_space_can_be_mapped(fd: int) -> None:
    memory = GuestMemory()
    map_(memory, TOP - PAGE, PAGE, fd)
    memory.write(TOP - 4, b"last")
    assert memory.read(TOP - 4, 4) == b"last"
    assert memory.unmap(TOP - 2 * PAGE, 2 * PAGE) == PAGE


def test_a_mapping_past_the_end_of_its_file_is_refused(fd: int) -> None:
    memory = GuestMemory()
    with pytest.raises(ValueError, match="past the end"):
        map_(memory, 0, PAGE, fd, 64 * PAGE)
    assert memory.ranges() == []


def test_a_mapping_without_a_descriptor_is_known_and_inaccessible() -> None:
    memory = GuestMemory()
    map_(memory, 0x10000, PAGE, None)
    assert memory.ranges() == [(0x10000, PAGE, False, False)]
    with pytest.raises(GuestMemoryError):
        memory.read(0x10000, 1)
    assert memory.unmap(0x10000, PAGE) == PAGE


def test_unmapping_takes_what_lies_inside_and_is_content_with_nothing(fd: int) -> None:
    memory = GuestMemory()
    for page in range(4):
        map_(memory, page * 2 * PAGE, PAGE, fd, page * PAGE)
    assert memory.unmap(2 * PAGE, 4 * PAGE) == 2 * PAGE
    assert memory.unmap(2 * PAGE, 4 * PAGE) == 0
    assert [iova for iova, *_ in memory.ranges()] == [0, 6 * PAGE]
    assert memory.unmap(0, 0xFFFFFFFF01100000) == 2 * PAGE


@pytest.mark.parametrize(("iova", "size"), [(PAGE, PAGE), (0, PAGE), (3 * PAGE, 4 * PAGE)])
def test_unmapping_never_cuts_a_mapping(fd: int, iova: int, size: int) -> None:
    memory = GuestMemory()
    map_(memory, 0, 4 * PAGE, fd)
    with pytest.raises(ValueError, match="cuts"):
        memory.unmap(iova, size)
    assert memory.ranges() == [(0, 4 * PAGE, True, True)]


def mappings() -> int:
    with Path("/proc/self/maps").open(encoding="ascii") as maps:
        return sum("memfd:ram" in line for line in maps)


def test_a_file_is_mapped_once_however_many_regions_it_has(fd: int) -> None:
    memory = GuestMemory()
    for page in range(64):
        map_(memory, page * 16 * PAGE, PAGE, fd, (63 - page) * PAGE)
    assert mappings() == 1
    memory.clear()
    assert mappings() == 0


def test_memory_of_a_read_only_descriptor_can_be_mapped_for_reading(fd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    memory = GuestMemory()
    map_(memory, 0, PAGE, read_only, writable=False)
    with pytest.raises(OSError, match="denied"):
        map_(memory, PAGE, PAGE, read_only)
    os.close(read_only)
    with pytest.raises(GuestMemoryError):
        memory.write(0, b"x")


def test_a_file_cut_under_a_mapping_reads_as_zeroes_and_kills_nobody() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 16 * PAGE)
    memory = GuestMemory()
    map_(memory, 0, 16 * PAGE, fd)
    memory.write(0, b"\xff" * (16 * PAGE))
    before = sigbus.contained_count()
    os.ftruncate(fd, PAGE)
    assert memory.read(8 * PAGE, PAGE) == bytes(PAGE)
    memory.write(9 * PAGE, b"lost")
    assert memory.read(0, PAGE) == b"\xff" * PAGE
    assert sigbus.contained_count() == before + 1
    memory.clear()
    os.close(fd)


RANGES = st.tuples(st.integers(0, 40), st.integers(1, 8))


@given(
    st.lists(st.tuples(st.sampled_from(["map", "unmap"]), RANGES), max_size=60),
)
def test_any_sequence_of_maps_and_unmaps_agrees_with_a_dictionary(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 64 * PAGE)
    memory = GuestMemory()
    model: dict[int, int] = {}
    for action, (first, count) in steps:
        pages = range(first, first + count)
        touched = [
            (at, size) for at, size in model.items() if at < first + count and first < at + size
        ]
        inside = all(at in pages and at + size - 1 in pages for at, size in touched)
        try:
            if action == "map":
                map_(memory, first * PAGE, count * PAGE, fd, first * PAGE)
                assert not touched
                model[first] = count
            else:
                removed = memory.unmap(first * PAGE, count * PAGE)
                assert inside
                assert removed == sum(size for _, size in touched) * PAGE
                for at, _ in touched:
                    del model[at]
        except ValueError:
            assert touched if action == "map" else not inside
        assert memory.ranges() == [
            (at * PAGE, size * PAGE, True, True) for at, size in sorted(model.items())
        ]
    memory.clear()
    os.close(fd)


def test_guest_memory_goes_away_with_its_object(fd: int) -> None:
    memory = GuestMemory()
    map_(memory, 0, PAGE, fd)
    del memory
    assert mappings() == 0


def test_mmap_module_sees_the_same_bytes(fd: int) -> None:
    memory = GuestMemory()
    map_(memory, 0, PAGE, fd)
    with mmap.mmap(fd, PAGE) as window:
        window[:4] = b"ring"
        assert memory.read(0, 4) == b"ring"


def test_the_number_of_mappings_is_bounded() -> None:
    memory = GuestMemory()
    for page in range(MAX_REGIONS):
        map_(memory, page * PAGE, PAGE, None)
    with pytest.raises(OSError, match="too many"):
        map_(memory, MAX_REGIONS * PAGE, PAGE, None)
    assert memory.unmap(0, PAGE) == PAGE
    map_(memory, MAX_REGIONS * PAGE, PAGE, None)


def test_guest_memory_can_be_in_100000_single_pages() -> None:
    """As a virtual IOMMU maps it, here from the top down; taken away in the other order."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 64 * PAGE)
    memory = GuestMemory()
    count = 100_000
    top = 1 << 32
    for n in range(1, count + 1):
        memory.map(top - 2 * n * PAGE, PAGE, fd, n % 64 * PAGE, readable=True, writable=True)
    memory.write(top - 2 * count * PAGE, b"first")
    assert os.pread(fd, 5, count % 64 * PAGE) == b"first"
    assert memory.covers(top - 2 * PAGE, PAGE, writable=True)
    assert not memory.covers(top - 2 * PAGE, PAGE + 1, writable=False)
    assert memory.overlaps(top - 3 * PAGE, PAGE + 1)
    assert not memory.overlaps(top - 3 * PAGE, PAGE)
    for n in range(count, 0, -1):
        assert memory.unmap(top - 2 * n * PAGE, PAGE) == PAGE
    assert memory.ranges() == []
    os.close(fd)


def test_a_tebibyte_of_guest_memory_is_mapped_in_64_pieces() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 1 << 40)
    memory = GuestMemory()
    piece = 1 << 34
    for n in range(64):
        memory.map(n * piece, piece, fd, (63 - n) * piece, readable=True, writable=True)
    memory.write((1 << 40) - 3, b"end")
    assert memory.read((1 << 40) - 3, 3) == b"end"
    assert memory.covers(0, 1 << 40, writable=True)
    assert memory.unmap(0, 1 << 40) == 1 << 40
    os.close(fd)
