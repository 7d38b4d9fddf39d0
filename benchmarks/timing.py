"""How long a command takes on one core, in all its stages: nothing waits for another core.

A batch of commands lies in the queue, one turn takes it, executes it and posts it; the clock is
read around the turns. On a busy machine the median still is the path's own time: a batch takes a
microsecond, and most are not interrupted. Of a single command it would be the call's and the
clock's as much: what the same takes without a command, in the median, is subtracted.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import NamedTuple

from tests.datapath.guest import Guest

from benchmarks.paths import CAPACITY, PATHS, Path, prepared, read_or_write
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.probe import take_turns

REPEATS = 2000
TIMED = tuple(
    path
    for path in PATHS
    if path.name in {"null_1", "direct_1"} or (path.batch > 1 and path.calls == 1)
)
"""Paths of batches, and the command that comes alone. What a turn only begins is none of them."""
IDLE_TURNS = 160
"""Of one reading of the clock."""


class Timing(NamedTuple):
    """Nanoseconds of a command."""

    median: float
    least: float
    tenth: float
    """Nine of ten take no longer."""


def time_path(path: Path, repeats: int = REPEATS) -> Timing:
    """Take the first turn of a path again and again; AssertionError: a command was not done."""
    taken = []
    with prepared(path) as (guest, queue, drive):
        sqe = read_or_write(path, guest, queue)
        nothing = _time_nothing(guest, repeats) if path.batch == 1 else 0.0
        for _ in range(repeats):
            for _ in range(path.batch):
                queue.put(sqe)
            queue.doorbell(queue.tail)
            if drive is not None:
                drive.complete(path.batch)
            before = time.perf_counter_ns()
            take_turns(guest.iothread, 1)
            taken.append((time.perf_counter_ns() - before - nothing) / path.batch)
            for _ in range(path.batch):
                completion = queue.poll()
                assert completion is not None
                assert completion.status == 0
            queue.doorbell(queue.head, completion=True)
    return Timing(statistics.median(taken), min(taken), statistics.quantiles(taken, n=10)[-1])


def _time_nothing(guest: Guest, repeats: int) -> float:
    """Nanoseconds of a turn without a command, the call and the clock included: the median."""
    taken = []
    for _ in range(repeats):
        before = time.perf_counter_ns()
        take_turns(guest.iothread, 1)
        taken.append(time.perf_counter_ns() - before)
    return statistics.median(taken)


def time_idle(controllers: int, repeats: int = REPEATS // 4) -> Timing:
    """A turn with nothing to do, of an IOThread with so many controllers that have a queue each."""
    backend = NullBackend(CAPACITY)
    with ExitStack() as stack:
        first = stack.enter_context(Guest(backend, running=False, pages=16))
        guests = [first] + [
            stack.enter_context(Guest(backend, shared=first.iothread, pages=16))
            for _ in range(controllers - 1)
        ]
        for guest in guests:
            guest.queue(1, 64, interrupts=False)
        taken = []
        for _ in range(repeats):
            before = time.perf_counter_ns()
            assert take_turns(first.iothread, IDLE_TURNS) == 0
            taken.append((time.perf_counter_ns() - before) / IDLE_TURNS)
    return Timing(statistics.median(taken), min(taken), statistics.quantiles(taken, n=10)[-1])
