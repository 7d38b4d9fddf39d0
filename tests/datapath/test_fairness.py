"""Controllers that share an IOThread, a turn at a time: what each of them gets."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.datapath.probe import take_turns

from .guest import READ, Guest, QueuePair, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES = 256
BURST = 16
SIZE = 4 << 20
NOT_READY = 0x082
VERIFY, WRITE_ZEROES = 0x0C, 0x08


@contextmanager
def controllers(count: int) -> Iterator[list[QueuePair]]:
    """A queue of each of so many controllers on one IOThread."""
    backend = NullBackend(1 << 24)
    with ExitStack() as stack:
        first = stack.enter_context(Guest(backend, running=False, pages=64))
        guests = [first] + [
            stack.enter_context(Guest(backend, shared=first.iothread, pages=64))
            for _ in range(count - 1)
        ]
        for guest in guests:
            guest.table.set_arbitration(BURST)
        yield [guest.queue(1, ENTRIES, interrupts=False) for guest in guests]


def fill(queue: QueuePair, count: int) -> None:
    page = queue.guest.allocate(1) if queue.cid == 0 else queue.guest.admin_sq
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


@pytest.mark.parametrize("count", [1, 8, 64])
def test_equal_loads_are_served_equally_in_every_turn(count: int) -> None:
    with controllers(count) as queues:
        for queue in queues:
            fill(queue, ENTRIES - 1)
        for _ in range(15):
            take_turns(queues[0].guest.iothread, 1)
            assert [completed(queue) for queue in queues] == [BURST] * count
        take_turns(queues[0].guest.iothread, 1)
        assert [completed(queue) for queue in queues] == [ENTRIES - 1 - 15 * BURST] * count


def test_a_light_load_waits_for_one_burst_of_each_heavy_one_at_most() -> None:
    with controllers(8) as queues:
        *heavy, light = queues
        for queue in heavy:
            fill(queue, ENTRIES - 1)
        for _ in range(10):
            take_turns(light.guest.iothread, 1)
            assert [completed(queue) for queue in queues] == [BURST] * 7 + [0]
            fill(light, 1)
            take_turns(light.guest.iothread, 1)
            assert completed(light) == 1
            for queue in heavy:
                assert completed(queue) <= BURST
                fill(queue, 2 * BURST)


def test_a_queue_whose_guest_takes_no_completions_holds_up_nobody() -> None:
    with controllers(3) as queues:
        for queue in queues:
            fill(queue, ENTRIES - 1)
        stuck, *others = queues
        for _ in range(40):
            take_turns(stuck.guest.iothread, 1)
            for queue in others:
                assert completed(queue) == BURST
                fill(queue, BURST)
        count = 0
        while stuck.poll() is not None:
            count += 1
        assert count == ENTRIES - 1


def test_a_turn_ends_at_the_next_queue_when_the_control_plane_asks_for_it() -> None:
    """Each of them takes its turn before any has a second one."""
    with controllers(5) as queues:
        for queue in queues:
            fill(queue, 2 * BURST)
        iothread = queues[0].guest.iothread
        take_turns(iothread, 1)
        for queue in queues:
            completed(queue)
        iothread.pause()
        served = []
        for _ in queues:
            take_turns(iothread, 1)
            served += [i for i, queue in enumerate(queues) if completed(queue) == BURST]
        iothread.resume()
        assert sorted(served) == [0, 1, 2, 3, 4]


def test_a_turn_takes_one_long_command_of_a_queue() -> None:
    with Guest(MemoryBackend(SIZE), running=False) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        zeroes = queue.command(WRITE_ZEROES, blocks=2048)
        short = queue.command(WRITE_ZEROES, blocks=2047)
        read = queue.command(READ, prp1=page)
        for sqe in (read, zeroes, read, short, zeroes, zeroes):
            queue.put(sqe)
        queue.doorbell(queue.tail)
        assert [take_turns(guest.iothread, 1) for _ in range(4)] == [2, 3, 1, 0]
        assert completed(queue) == 6


def verify_everything(queue: QueuePair, count: int) -> None:
    for _ in range(count):
        queue.put(queue.command(VERIFY, blocks=SIZE // 512))
    queue.doorbell(queue.tail)


def test_commands_of_one_that_wait_for_a_bounce_buffer_are_not_in_the_way_of_another(
    tmp_path: Path,
) -> None:
    """Not for long, nor by their number."""
    for name in ("heavy", "light"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    with (
        Guest(UringBackend(str(tmp_path / "heavy"))) as heavy,
        Guest(UringBackend(str(tmp_path / "light")), shared=heavy.iothread) as light,
    ):
        loads = [heavy.queue(qid, 1024) for qid in (1, 2)]
        for load in loads:
            verify_everything(load, 1023)
        wait_for(lambda: heavy.table.inflight() > 1000, "the list of those that wait to be full")
        queue = light.queue(1, 16)
        for _ in range(3):
            verify_everything(queue, 1)
            assert queue.wait().status == 0
        # They had not to wait until the heavy one has done everything, ...
        assert heavy.table.inflight() > 0
        # ... some of which was too much: it may try that again.
        statuses = {done.status for load in loads for done in iter(load.poll, None)}
        assert statuses == {0, NOT_READY}
