"""Weighted round robin with urgent priority class (Base 3.4.4.2), a turn at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.probe import take_turns

from .guest import READ, Guest, QueuePair, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

URGENT, HIGH, MEDIUM, LOW = range(4)
ENTRIES = 256


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(NullBackend(1 << 24), weighted=True, running=False) as guest:
        yield guest


def fill(queue: QueuePair, count: int) -> None:
    """Put commands into a queue and ring."""
    page = queue.guest.allocate(1)
    for _ in range(count):
        queue.put(queue.command(READ, prp1=page))
    queue.doorbell(queue.tail)


def completed(queue: QueuePair) -> int:
    """Completions that have come since the last call."""
    count = 0
    while queue.poll() is not None:
        count += 1
    queue.doorbell(queue.head, completion=True)
    return count


def served(guest: Guest, *queues: QueuePair) -> list[int]:
    """What each queue gets in one turn."""
    take_turns(guest.iothread, 1)
    return [completed(queue) for queue in queues]


def queues(guest: Guest, *priorities: int) -> list[QueuePair]:
    made = [
        guest.queue(qid, ENTRIES, priority=priority) for qid, priority in enumerate(priorities, 1)
    ]
    for queue in made:
        fill(queue, ENTRIES - 1)
    return made


def test_classes_get_commands_by_their_weights(guest: Guest) -> None:
    guest.table.set_arbitration(64, 40, 20, 10)
    assert served(guest, *queues(guest, HIGH, MEDIUM, LOW)) == [40, 20, 10]


def test_while_the_urgent_class_has_commands_nothing_else_is_served(guest: Guest) -> None:
    guest.table.set_arbitration(64, 8, 8, 8)
    urgent, low = guest.queue(1, 256, priority=URGENT), guest.queue(2, 256, priority=LOW)
    fill(urgent, 100)
    fill(low, 100)
    assert served(guest, urgent, low) == [64, 0]
    assert served(guest, urgent, low) == [36, 0]
    assert served(guest, urgent, low) == [0, 8]


def test_a_weight_is_shared_by_the_queues_of_a_class_in_turn(guest: Guest) -> None:
    guest.table.set_arbitration(4, 16, 1, 1)
    first, second, third = queues(guest, HIGH, HIGH, HIGH)
    assert served(guest, first, second, third) == [8, 4, 4]
    assert served(guest, first, second, third) == [4, 8, 4]
    assert served(guest, first, second, third) == [4, 4, 8]


def test_the_arbitration_burst_bounds_what_a_queue_takes_at_a_time(guest: Guest) -> None:
    guest.table.set_arbitration(2, 5, 1, 1)
    first, second = queues(guest, HIGH, HIGH)
    assert served(guest, first, second) == [3, 2]
    assert served(guest, first, second) == [2, 3]


def test_what_a_class_leaves_another_one_does_not_wait_for(guest: Guest) -> None:
    guest.table.set_arbitration(64, 100, 10, 10)
    high, low = guest.queue(1, 256, priority=HIGH), guest.queue(2, 256, priority=LOW)
    fill(high, 3)
    fill(low, 50)
    assert served(guest, high, low) == [3, 10]
    assert served(guest, high, low) == [0, 10]


def test_a_queue_without_room_for_completions_is_passed_over(guest: Guest) -> None:
    guest.table.set_arbitration(64, 32, 1, 1)
    blocked = guest.queue(1, 64, 2, priority=HIGH)
    other = guest.queue(2, 64, priority=HIGH)
    fill(blocked, 10)
    fill(other, 40)
    take_turns(guest.iothread, 1)
    # One entry fits into the first queue's CQ, and is not consumed.
    assert blocked.poll() is not None
    assert completed(other) == 31
    take_turns(guest.iothread, 1)
    assert completed(other) == 9


def test_queues_come_and_go_in_every_class(guest: Guest) -> None:
    guest.table.set_arbitration(64, 4, 3, 2)
    low, high, medium = queues(guest, LOW, HIGH, MEDIUM)
    assert served(guest, low, high, medium) == [2, 4, 3]
    guest.table.hold(high.qid)
    guest.table.delete_sq(high.qid)
    assert guest.iothread.queue_count == 2
    assert served(guest, low, medium) == [2, 3]
    guest.table.create_sq(high.qid, high.qid, high.sq, ENTRIES, priority=URGENT)
    high.tail = 0
    fill(high, 5)
    assert served(guest, low, high, medium) == [0, 5, 0]


def test_with_round_robin_the_priority_has_no_effect() -> None:
    with Guest(NullBackend(1 << 24), running=False) as guest:
        guest.table.set_arbitration(8, 100, 1, 1)
        assert served(guest, *queues(guest, URGENT, HIGH, LOW)) == [8, 8, 8]


def test_a_thread_with_weighted_queues_goes_to_sleep_and_is_woken() -> None:
    with Guest(NullBackend(1 << 24), weighted=True, poll_timeout_ms=0) as guest:
        guest.table.doorbells_mapped = False
        queue = guest.queue(1, 16, priority=MEDIUM)
        for _ in range(3):
            wait_for(lambda: guest.iothread.asleep, "sleep")
            queue.put(queue.command(READ, prp1=guest.allocate(1)))
            assert guest.table.ring_doorbell(1, queue.tail) == 0
            assert queue.wait().status == 0
