"""What the data path tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class PathCounter:
    """One of the original's three counters."""

    count: int
    cycles: int
    """Time-stamp counter cycles spent, all together."""
    mean_ns: float
    """Mean time of one, in nanoseconds; 0.0 when count is 0."""


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """What the data path did since the controller was made."""

    translated: PathCounter
    """Commands fetched, checked and turned into requests for a backend."""
    completed: PathCounter
    """Completions posted."""
    interrupts: PathCounter
    """Interrupts sent."""


def path_statistics(
    translated: tuple[int, int], completed: tuple[int, int], interrupts: tuple[int, int], hz: int
) -> PathStatistics:
    """Statistics of (count, cycles) each, the time-stamp counter running at ``hz``."""

    def counter(count: int, cycles: int) -> PathCounter:
        return PathCounter(count, cycles, cycles * 1e9 / hz / count if count else 0.0)

    return PathStatistics(counter(*translated), counter(*completed), counter(*interrupts))


def sum_statistics(parts: Sequence[PathStatistics]) -> PathStatistics:
    """What several threads did, together."""

    def add(counters: list[PathCounter]) -> PathCounter:
        count = sum(counter.count for counter in counters)
        time_ns = sum(counter.mean_ns * counter.count for counter in counters)
        cycles = sum(counter.cycles for counter in counters)
        return PathCounter(count, cycles, time_ns / count if count else 0.0)

    return PathStatistics(
        add([part.translated for part in parts]),
        add([part.completed for part in parts]),
        add([part.interrupts for part in parts]),
    )


class IoCounters(NamedTuple):
    """Data moved for a namespace."""

    read_commands: int
    """Read and Compare commands that succeeded."""
    write_commands: int
    read_bytes: int
    write_bytes: int


class Throttled(NamedTuple):
    """Commands for a namespace that its limits do not allow at once."""

    waiting: int
    """Now."""
    total: int
    """Since the namespace was attached."""


class SubmissionQueue(NamedTuple):
    """An I/O submission queue."""

    qid: int
    cqid: int
    entries: int
    inflight: int
    """Commands fetched and not completed, those that wait for limits included."""
    held: bool
    """Nothing is fetched from it: paused, being deleted, its memory unmapped, or in error."""


class InFlight(NamedTuple):
    """A command that a backend was asked to cancel."""

    qid: int
    slot: int
    sequence: int
    """The how manieth of its SQ."""


class DeferredCommand(NamedTuple):
    """An I/O command that the control plane executes."""

    qid: int
    slot: int
    sequence: int
    """The how manieth of its SQ."""
    sqe: bytes
    data: bytes
    """What the guest sends with it, and zeroes behind that."""


class QueueError(NamedTuple):
    """A doorbell value that the data path found invalid; the queue is not served until a reset."""

    qid: int
    submission: bool
    """True: submission queue tail, False: completion queue head."""
    value: int
