"""The DMA map with many regions: against a dict, in orders that are easy and hard for it."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvme_mdev.datapath.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
FILE = 1 << 20
MANY = 3000
BASE = 1 << 32


@pytest.fixture(scope="module")
def fd() -> Iterator[int]:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, FILE)
    for page in range(FILE // PAGE):
        os.pwrite(descriptor, page.to_bytes(8, "little"), page * PAGE)
    yield descriptor
    os.close(descriptor)


def iova_of(number: int) -> int:
    """Every other page."""
    return BASE + 2 * number * PAGE


def map_page(memory: GuestMemory, fd: int, number: int) -> None:
    offset = number % (FILE // PAGE) * PAGE
    memory.map(iova_of(number), PAGE, fd, offset, readable=True, writable=True)


def check(memory: GuestMemory, numbers: set[int]) -> None:
    """These pages, and no others, are mapped, each where it belongs."""
    ordered = sorted(numbers)
    assert [iova for iova, *_ in memory.ranges()] == [iova_of(number) for number in ordered]
    for number in ordered[:: max(1, len(ordered) // 50)]:
        page = int.from_bytes(memory.read(iova_of(number), 8), "little")
        assert page == number % (FILE // PAGE)
        assert not memory.covers(iova_of(number) + PAGE, 1, writable=False)


def outside_in(count: int) -> list[int]:
    """From both ends to the middle: each between those before."""
    return [number // 2 if number % 2 == 0 else count - 1 - number // 2 for number in range(count)]


def shuffled(count: int) -> list[int]:
    numbers = list(range(count))
    random.Random(1).shuffle(numbers)
    return numbers


ORDERS = {
    "upwards": list(range(MANY)),
    "downwards": list(range(MANY))[::-1],
    "outside in": outside_in(MANY),
    "shuffled": shuffled(MANY),
    "down into a gap": [*range(300), *range(MANY - 1, 299, -1)],
}


@pytest.mark.parametrize("order", ORDERS)
def test_single_pages_come_and_go_in_any_order(fd: int, order: str) -> None:
    memory = GuestMemory()
    mapped: set[int] = set()
    for step, number in enumerate(ORDERS[order]):
        map_page(memory, fd, number)
        mapped.add(number)
        if step % 700 == 0:
            check(memory, mapped)
    check(memory, mapped)
    # All but a few of them go, and come back.
    for number in ORDERS[order]:
        if number % 97:
            assert memory.unmap(iova_of(number), PAGE) == PAGE
            mapped.remove(number)
    check(memory, mapped)
    for number in ORDERS[order]:
        if number not in mapped:
            map_page(memory, fd, number)
    check(memory, set(range(MANY)))
    assert memory.unmap(0, 1 << 63) == MANY * PAGE
    assert memory.ranges() == []
    map_page(memory, fd, 1)
    check(memory, {1})
    memory.clear()


def test_a_range_is_removed_across_many_regions_but_never_a_part_of_one(fd: int) -> None:
    memory = GuestMemory()
    for number in range(MANY):
        map_page(memory, fd, number)
    start, end = iova_of(100), iova_of(MANY - 100)
    with pytest.raises(ValueError, match="cuts"):
        memory.unmap(start + PAGE // 2, end - start)
    with pytest.raises(ValueError, match="cuts"):
        memory.unmap(start, end - start + PAGE // 2)
    check(memory, set(range(MANY)))
    assert memory.unmap(start, end - start) == (MANY - 200) * PAGE
    check(memory, {*range(100), *range(MANY - 100, MANY)})
    memory.clear()


def test_a_region_that_overlaps_is_refused_wherever_it_does(fd: int) -> None:
    memory = GuestMemory()
    for number in shuffled(1000):
        map_page(memory, fd, number)
    for number in range(0, 1000, 37):
        for first, size in ((0, 1), (-1, 2), (0, 2), (-1, 3)):
            iova = iova_of(number) + first * PAGE
            assert memory.overlaps(iova, size * PAGE)
            with pytest.raises(ValueError, match="overlaps"):
                memory.map(iova, size * PAGE, fd, 0, readable=True, writable=True)
        assert not memory.overlaps(iova_of(number) + PAGE, PAGE)
    check(memory, set(range(1000)))
    memory.clear()


def test_both_ends_of_the_address_space_can_be_mapped(fd: int) -> None:
    memory = GuestMemory()
    last = (1 << 64) - PAGE
    for iova in (last, 0):
        memory.map(iova, PAGE, fd, 0, readable=True, writable=True)
        assert memory.overlaps(iova, PAGE)
        with pytest.raises(ValueError, match="overlaps"):
            memory.map(iova, PAGE, fd, 0, readable=True, writable=True)
    assert [iova for iova, *_ in memory.ranges()] == [0, last]
    assert memory.unmap(last, PAGE) == PAGE
    assert memory.unmap(0, PAGE) == PAGE


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 600), st.integers(1, 40)), min_size=1, max_size=120
    )
)
def test_the_map_is_what_a_dict_says(fd: int, steps: list[tuple[bool, int, int]]) -> None:
    memory = GuestMemory()
    model: dict[int, int] = {}

    def overlap(first: int, size: int) -> list[int]:
        return [at for at, length in model.items() if at < first + size and first < at + length]

    for adds, first, size in steps:
        found = overlap(first, size)
        if adds and found:
            with pytest.raises(ValueError, match="overlaps"):
                memory.map(first * PAGE, size * PAGE, fd, 0, readable=True, writable=False)
        elif adds:
            memory.map(first * PAGE, size * PAGE, fd, 0, readable=True, writable=False)
            model[first] = size
        elif all(first <= at and at + model[at] <= first + size for at in found):
            removed = memory.unmap(first * PAGE, size * PAGE)
            assert removed == sum(model.pop(at) for at in found) * PAGE
        else:
            with pytest.raises(ValueError, match="cuts"):
                memory.unmap(first * PAGE, size * PAGE)
        assert [(iova // PAGE, length // PAGE) for iova, length, *_ in memory.ranges()] == sorted(
            model.items()
        )
    memory.clear()
