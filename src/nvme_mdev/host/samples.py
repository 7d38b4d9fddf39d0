"""What a workload measured, as plain values; `nvme_mdev.bench` makes statistics of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from array import array


@dataclass(frozen=True, slots=True)
class Samples:
    """A latency distribution; times in nanoseconds."""

    count: int
    total: int
    """Sum of all samples."""
    least: int
    most: int
    squares: float
    """Sum of the squares, for the standard deviation."""
    buckets: array[int]
    """How many samples fell into each bucket (fio's layout, see `latency_histogram.pxd`)."""


class Measured(NamedTuple):
    """What was measured in one direction, read or write."""

    commands: int
    """Commands completed successfully."""
    slat: Samples
    """Submission latency: from the start of building the command to the doorbell's return."""
    clat: Samples
    """Completion latency: from the doorbell to the completion's discovery."""
    lat: Samples
    """Total latency: both together."""


class Failure(enum.IntEnum):
    """Why a workload ended early."""

    NONE = 0
    STATUS = 1
    """Commands completed with an error status."""
    MISMATCH = 2
    """Data read is not the data written."""
    TIMEOUT = 3
    """A command was not completed in time."""
    UNKNOWN_CID = 4
    """The controller completed a command that was not outstanding."""
    RING = 5
    """A doorbell could not be rung through the socket."""
    ABANDONED = 6
    """Stopped without waiting for what was outstanding."""


class FirstError(NamedTuple):
    """The first thing that went wrong."""

    failure: Failure
    write: bool
    block: int
    """First logical block of the command; with MISMATCH the block that differs."""
    status_field: int
    """The completion's status field, with STATUS."""
    cid: int
