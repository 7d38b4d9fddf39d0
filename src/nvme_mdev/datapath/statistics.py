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
    timed: int
    """How many of these were timed: to look at the clock takes as long as parts of a command."""
    cycles: int
    """Time-stamp counter cycles spent on those."""
    hz: int
    """Rate of the time-stamp counter."""

    @property
    def mean_cycles(self) -> float:
        """Cycles of one; 0.0 when none was timed."""
        return self.cycles / self.timed if self.timed else 0.0

    @property
    def mean_ns(self) -> float:
        """Mean time of one, in nanoseconds; 0.0 when none was timed."""
        return self.mean_cycles * 1e9 / self.hz


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
    translated: tuple[int, int, int],
    completed: tuple[int, int, int],
    interrupts: tuple[int, int, int],
    hz: int,
) -> PathStatistics:
    """Statistics of (count, timed, cycles) each, the time-stamp counter running at ``hz``."""
    return PathStatistics(
        PathCounter(*translated, hz), PathCounter(*completed, hz), PathCounter(*interrupts, hz)
    )


def sum_statistics(parts: Sequence[PathStatistics]) -> PathStatistics:
    """What several threads did, together."""

    def add(counters: list[PathCounter]) -> PathCounter:
        return PathCounter(
            sum(counter.count for counter in counters),
            sum(counter.timed for counter in counters),
            sum(counter.cycles for counter in counters),
            counters[0].hz,
        )

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
