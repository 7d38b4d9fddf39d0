"""NSIDs up to 256 are their own places; the few above share as many, which outlive the process."""

from __future__ import annotations

import pytest

from nvme_mdev.controller.places import DIRECT_PLACES, HIGH_PLACES, PLACES, Places
from nvme_mdev.spec.nvme_commands import MAX_NSID, NSID_ALL

START = 2


def words() -> memoryview:
    """Memory in which others have the words before and behind."""
    view = memoryview(bytearray(8 * (START + HIGH_PLACES + 1))).cast("Q")
    view[0] = view[START - 1] = view[START + HIGH_PLACES] = 0xA5A5
    return view


def test_a_low_nsid_is_its_own_place_and_takes_none() -> None:
    places = Places(words(), START)
    assert [places[nsid] for nsid in (1, DIRECT_PLACES)] == [0, DIRECT_PLACES - 1]
    assert not places.take(7)
    places.give(7)
    assert 7 in places
    assert list(places) == list(range(1, DIRECT_PLACES + 1))


@pytest.mark.parametrize("nsid", [0, DIRECT_PLACES + 1, MAX_NSID, NSID_ALL])
def test_another_nsid_has_a_place_when_it_was_given_one(nsid: int) -> None:
    places = Places(words(), START)
    assert nsid not in places
    with pytest.raises(KeyError):
        places[nsid]


def test_the_next_process_finds_them_where_they_were() -> None:
    memory = words()
    places = Places(memory, START)
    for nsid in (MAX_NSID, 300, 4_000_000_000):
        assert places.take(nsid)
        assert not places.take(nsid)
    places.give(300)
    again = Places(memory, START)
    assert list(again) == list(places)
    assert [again[nsid] for nsid in (MAX_NSID, 4_000_000_000)] == [256, 258]
    assert 300 not in again
    assert again.take(301)
    assert again[301] == 257
    assert memory[0] == memory[START - 1] == memory[START + HIGH_PLACES] == 0xA5A5


def test_there_are_so_many_places_and_each_can_be_had_again() -> None:
    memory = words()
    places = Places(memory, START)
    for nsid in range(1000, 1000 + HIGH_PLACES):
        places.take(nsid)
    assert {places[nsid] for nsid in places} == set(range(PLACES))
    with pytest.raises(ValueError, match="namespace 5000: 256 above 256 are possible"):
        places.take(5000)
    assert Places(memory, START).take(1000) is False
    places.give(1100)
    places.give(1100)
    assert places.take(5000)
    assert places[5000] == DIRECT_PLACES + 100
