"""How long a command takes on one core, in all its stages: nothing waits for another core.

A batch of commands lies in the queue, one turn takes it, executes it and posts it; the clock is
read around the turns. On a busy machine the median still is the path's own time: a batch takes a
microsecond, and most are not interrupted.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from benchmarks.paths import Path, prepared, scattered_prps
from nvme_mdev.datapath.probe import take_turns

REPEATS = 2000


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
        prp1, prp2 = scattered_prps(guest, path.size)
        sqe = queue.command(path.opcode, blocks=path.size // 512, prp1=prp1, prp2=prp2)
        for _ in range(repeats):
            for _ in range(path.batch):
                queue.put(sqe)
            queue.doorbell(queue.tail)
            if drive is not None:
                drive.complete(path.batch)
            before = time.perf_counter_ns()
            take_turns(guest.iothread, 1)
            taken.append((time.perf_counter_ns() - before) / path.batch)
            for _ in range(path.batch):
                completion = queue.poll()
                assert completion is not None
                assert completion.status == 0
            queue.doorbell(queue.head, completion=True)
    return Timing(statistics.median(taken), min(taken), statistics.quantiles(taken, n=10)[-1])
