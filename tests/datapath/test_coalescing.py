"""Interrupt coalescing: features 08h and 09h, as the guest's eventfd sees them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.probe import take_turns

from .guest import READ, Guest, QueuePair, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPT_COALESCING = 8
COALESCING_DISABLE = 1 << 16
LONGEST = 0xFF
"""Aggregation time in units of 100 µs: 25.5 ms."""


class Vector:
    """An eventfd and what has come on it."""

    def __init__(self, guest: Guest, number: int) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        guest.table.interrupts.set_vector(number, os.dup(self.fd))

    def take(self) -> int:
        """Interrupts since the last call."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(NullBackend(1 << 24), running=False) as guest:
        yield guest


def coalesce(guest: Guest, threshold: int, time: int) -> None:
    """Interrupt Coalescing: so many completions (0's based), so long (100 µs)."""
    guest.state.features[INTERRUPT_COALESCING] = threshold | time << 8
    guest.table.interrupts.configure_coalescing()


def run(queue: QueuePair, count: int = 1, *, page: int | None = None) -> None:
    """Commands one after the other, a turn each."""
    page = queue.guest.allocate(1) if page is None else page
    for _ in range(count):
        queue.put(queue.command(READ, prp1=page))
        queue.doorbell(queue.tail)
        take_turns(queue.guest.iothread, 1)
        assert queue.poll() is not None
        queue.doorbell(queue.head, completion=True)


def test_an_interrupt_comes_with_the_completion_that_reaches_the_threshold(guest: Guest) -> None:
    queue, vector = guest.queue(1), Vector(guest, 1)
    coalesce(guest, 3, LONGEST)
    run(queue, 3)
    assert vector.take() == 0
    run(queue)
    assert vector.take() == 1
    run(queue, 8)
    assert vector.take() == 2


@pytest.mark.parametrize(("threshold", "time"), [(0, LONGEST), (10, 0), (0, 0)])
def test_without_a_threshold_or_a_time_nothing_is_held_back(
    guest: Guest, threshold: int, time: int
) -> None:
    queue, vector = guest.queue(1), Vector(guest, 1)
    coalesce(guest, threshold, time)
    run(queue, 3)
    assert vector.take() == 3


def test_an_interrupt_comes_when_the_time_is_over(guest: Guest) -> None:
    queue, vector = guest.queue(1), Vector(guest, 1)
    coalesce(guest, LONGEST, 1)
    run(queue)
    wait_for(lambda: take_turns(guest.iothread, 1) or vector.take(), "the interrupt")
    take_turns(guest.iothread, 1)
    assert vector.take() == 0


def test_the_time_runs_while_the_thread_would_sleep() -> None:
    with Guest(NullBackend(1 << 24), poll_timeout_ms=0) as guest:
        guest.table.doorbells_mapped = False
        queue, vector = guest.queue(1), Vector(guest, 1)
        coalesce(guest, LONGEST, LONGEST)
        page = guest.allocate(1)
        queue.put(queue.command(READ, prp1=page))
        assert guest.table.ring_doorbell(1, queue.tail) == 0
        assert queue.wait().status == 0
        wait_for(vector.take, "the interrupt")
        wait_for(lambda: guest.iothread.asleep, "sleep")


def test_a_vector_can_be_left_out(guest: Guest) -> None:
    queue, other = guest.queue(1), guest.queue(2)
    vector, others = Vector(guest, 1), Vector(guest, 2)
    guest.state.vector_config[1] = 1 | COALESCING_DISABLE
    coalesce(guest, 9, LONGEST)
    run(queue, 3)
    run(other, 3)
    assert (vector.take(), others.take()) == (3, 0)


def test_queues_of_one_vector_gather_together(guest: Guest) -> None:
    first, second = guest.queue(1, vector=5), guest.queue(2, vector=5)
    vector = Vector(guest, 5)
    coalesce(guest, 3, LONGEST)
    run(first, 2)
    run(second, 1)
    assert vector.take() == 0
    run(second, 1)
    assert vector.take() == 1


def test_a_queue_that_is_made_later_coalesces_too(guest: Guest) -> None:
    vector = Vector(guest, 1)
    coalesce(guest, 1, LONGEST)
    queue = guest.queue(1)
    run(queue)
    assert vector.take() == 0
    run(queue)
    assert vector.take() == 1


def test_an_error_is_not_held_back(guest: Guest) -> None:
    queue, vector = guest.queue(1), Vector(guest, 1)
    coalesce(guest, LONGEST, LONGEST)
    run(queue, 2)
    assert vector.take() == 0
    run(queue, page=0x7777_0000_0000)
    assert vector.take() == 1


def test_switching_it_off_loses_nothing(guest: Guest) -> None:
    queue, vector = guest.queue(1), Vector(guest, 1)
    coalesce(guest, LONGEST, 1)
    run(queue)
    coalesce(guest, 0, 0)
    wait_for(lambda: take_turns(guest.iothread, 1) or vector.take(), "the interrupt")
    run(queue)
    assert vector.take() == 1


def test_a_queue_that_goes_takes_no_interrupt_with_it(guest: Guest) -> None:
    """Its vector may be another queue's, too."""
    first, second = guest.queue(1, vector=5), guest.queue(2, vector=5)
    vector = Vector(guest, 5)
    coalesce(guest, LONGEST, LONGEST)
    run(first)
    run(second)
    guest.table.hold(1)
    guest.table.delete_sq(1)
    guest.table.delete_cq(1)
    assert vector.take() == 1


def test_the_pin_is_asserted_when_the_time_is_over(guest: Guest) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    guest.table.interrupts.set_intx(os.dup(fd))
    queue = guest.queue(1)
    coalesce(guest, LONGEST, 1)
    queue.put(queue.command(READ, prp1=guest.allocate(1)))
    queue.doorbell(queue.tail)
    take_turns(guest.iothread, 1)
    assert guest.table.interrupts.pin_level

    def came() -> int:
        take_turns(guest.iothread, 1)
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    wait_for(came, "the interrupt")
    queue.poll()
    queue.doorbell(queue.head, completion=True)
    assert not guest.table.interrupts.pin_level
    os.close(fd)
