"""What the data path tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


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


class IoCounters(NamedTuple):
    """Data moved for a namespace."""

    read_commands: int
    """Read and Compare commands that succeeded."""
    write_commands: int
    read_bytes: int
    write_bytes: int


class SubmissionQueue(NamedTuple):
    """An I/O submission queue."""

    qid: int
    cqid: int
    entries: int
    inflight: int
    """Commands fetched and not completed."""
    held: bool
    """Nothing is fetched from it: paused, being deleted, its memory unmapped, or in error."""


class InFlight(NamedTuple):
    """A command that a backend was asked to cancel."""

    qid: int
    slot: int
    sequence: int
    """The how manieth of its SQ."""


class QueueError(NamedTuple):
    """A doorbell value that the data path found invalid; the queue is not served until a reset."""

    qid: int
    submission: bool
    """True: submission queue tail, False: completion queue head."""
    value: int
