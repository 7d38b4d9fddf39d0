"""Namespaces with any NSID in the data path's table: each is found, and has its own data."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend

from .guest import COMPARE, DSM, FLUSH, READ, WRITE, WRITE_ZEROES, Guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .guest import QueuePair

SIZE = 1 << 20
MAX_NSID = 0xFFFFFFFE
NSID_ALL = 0xFFFFFFFF
HIGH = 4_000_000_000
DNR = 0x4000
INVALID_OPCODE, INVALID_FIELD, INVALID_NAMESPACE = 0x001 | DNR, 0x002 | DNR, 0x00B | DNR
RESERVATION_CONFLICT = 0x083 | DNR
UNREADABLE = 0x281 | DNR
WRITE_UNCORRECTABLE, VERIFY, COPY = 0x04, 0x0C, 0x19
GROUP_WRITE = 2


@pytest.fixture
def guest() -> Iterator[Guest]:
    """Namespaces come and go; any NSID."""
    with Guest(max_nsid=MAX_NSID) as made:
        yield made


def attach(guest: Guest, nsid: int) -> None:
    backend = MemoryBackend(SIZE)
    guest.backends = (*guest.backends, backend)
    guest.table.namespaces.set(nsid, backend)


def write(queue: QueuePair, nsid: int, page: int) -> int:
    """Its NSID to a namespace's first block; the status."""
    queue.guest.poke(page, nsid.to_bytes(512, "little"))
    return queue.run(queue.command(WRITE, nsid=nsid, prp1=page)).status


def read(queue: QueuePair, nsid: int, page: int) -> tuple[int, int]:
    """The status, and what is on its first block."""
    queue.guest.poke(page, bytes(512))
    status = queue.run(queue.command(READ, nsid=nsid, prp1=page)).status
    return status, int.from_bytes(queue.guest.peek(page, 512), "little")


def test_each_nsid_has_its_own_blocks_in_whatever_order_they_came(guest: Guest) -> None:
    nsids = [HIGH, 257, 1, MAX_NSID, 300, 256, 1 << 31]
    queue, page = guest.queue(), guest.allocate(1)
    for nsid in nsids:
        attach(guest, nsid)
    assert [write(queue, nsid, page) for nsid in nsids] == [0] * len(nsids)
    assert [read(queue, nsid, page) for nsid in nsids] == [(0, nsid) for nsid in nsids]


@pytest.mark.parametrize("opcode", [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY, COPY])
def test_every_command_finds_a_high_namespace_and_says_what_another_nsid_is(
    guest: Guest, opcode: int
) -> None:
    attach(guest, HIGH)
    queue, page = guest.queue(), guest.allocate(1)
    status = {
        nsid: queue.run(queue.command(opcode, nsid=nsid, prp1=page)).status
        for nsid in (HIGH, HIGH - 1, HIGH + 1, 1, 257, MAX_NSID, 0)
    }
    assert status.pop(HIGH) == 0
    assert status.pop(0) == INVALID_NAMESPACE
    assert set(status.values()) == {INVALID_FIELD}


@pytest.mark.parametrize("highest", [1, 255, 256, 257, HIGH])
def test_above_the_highest_nsid_all_are_invalid_and_below_it_inactive(highest: int) -> None:
    with Guest(NullBackend(SIZE), max_nsid=highest) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        for nsid in (highest + 1, highest + 2, MAX_NSID):
            assert read(queue, nsid, page)[0] == INVALID_NAMESPACE
            with pytest.raises(ValueError, match=f"NSID {nsid} is not in 1 to {highest}"):
                guest.table.namespaces.set(nsid, guest.backends[0])
        assert read(queue, highest, page)[0] == (0 if highest == 1 else INVALID_FIELD)
        assert read(queue, NSID_ALL, page)[0] == INVALID_FIELD


def test_a_namespace_that_is_retired_or_gone_is_inactive(guest: Guest) -> None:
    for nsid in (300, HIGH):
        attach(guest, nsid)
    queue, page = guest.queue(), guest.allocate(1)
    guest.table.namespaces.retire(300)
    assert read(queue, 300, page)[0] == INVALID_FIELD
    guest.table.namespaces.set(300, None)
    assert read(queue, 300, page)[0] == INVALID_FIELD
    assert read(queue, HIGH, page)[0] == 0
    with pytest.raises(KeyError):
        guest.table.namespaces.retire(300)


def test_256_are_above_256_and_another_one_has_the_place_of_one_that_has_gone(guest: Guest) -> None:
    one = NullBackend(SIZE)
    guest.backends = (one,)
    nsids = range(HIGH, HIGH + 2560, 10)
    for nsid in nsids:
        guest.table.namespaces.set(nsid, one)
    with pytest.raises(ValueError, match="there are 256 above 256 already"):
        guest.table.namespaces.set(1000, one)
    guest.table.namespaces.set(256, one)
    guest.table.namespaces.set(nsids[100], None)
    guest.table.namespaces.set(1000, one)
    queue, page = guest.queue(), guest.allocate(1)
    found = [read(queue, nsid, page)[0] for nsid in (*nsids, 256, 1000)]
    assert found.count(0) == 257
    assert found[100] == INVALID_FIELD


def test_namespaces_that_come_and_go_at_random_are_never_taken_for_another(guest: Guest) -> None:
    chance = random.Random(8)
    queue, page = guest.queue(), guest.allocate(1)
    known = [1, 2, 256, 257, 258, 1000, HIGH - 1, HIGH, HIGH + 1, MAX_NSID]
    there: set[int] = set()
    for _ in range(200):
        nsid = chance.choice(known)
        if nsid in there:
            guest.table.namespaces.set(nsid, None)
            there.discard(nsid)
        else:
            attach(guest, nsid)
            there.add(nsid)
            assert read(queue, nsid, page) == (0, 0)
            assert write(queue, nsid, page) == 0
        assert [one for one in known if read(queue, one, page) == (0, one)] == sorted(there)


def test_flush_of_all_namespaces_has_the_high_ones_in_it(guest: Guest) -> None:
    queue = guest.queue()
    flush = queue.command(FLUSH, nsid=NSID_ALL)
    assert queue.run(flush).status == 0
    for nsid in (3, HIGH, 300):
        attach(guest, nsid)
    for nsid in (HIGH, 300):
        guest.table.namespaces.refuse_groups(nsid, GROUP_WRITE)
        assert queue.run(flush).status == RESERVATION_CONFLICT
        guest.table.namespaces.refuse_groups(nsid, 0)
    assert queue.run(flush).status == 0


def test_a_high_namespace_that_deallocates_makes_it_a_hint_to_the_others(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(tmp_path / "image"), read_only=True), max_nsid=HIGH) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        hint = queue.command(DSM, prp1=page, cdw10=0, cdw11=0)
        assert queue.run(hint).status == INVALID_OPCODE
        attach(guest, HIGH)
        assert queue.run(hint).status == 0


def test_unreadable_blocks_are_those_of_their_namespace(guest: Guest) -> None:
    for nsid in (300, HIGH):
        attach(guest, nsid)
    queue, page = guest.queue(), guest.allocate(1)
    assert queue.run(queue.command(WRITE_UNCORRECTABLE, nsid=HIGH)).status == 0
    assert [read(queue, nsid, page)[0] for nsid in (300, HIGH)] == [0, UNREADABLE]
    guest.table.namespaces.set(300, None)
    attach(guest, 301)
    assert [read(queue, nsid, page)[0] for nsid in (301, HIGH)] == [0, UNREADABLE]
    guest.table.namespaces.set(HIGH, None)
    guest.table.namespaces.forget_uncorrectable(HIGH)
    attach(guest, HIGH)
    assert read(queue, HIGH, page)[0] == 0
