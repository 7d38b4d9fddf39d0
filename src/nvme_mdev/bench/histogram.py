"""Latency distributions in fio's buckets (fio ``stat.c``: plat_val_to_idx, plat_idx_to_val)."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from nvme_mdev.host.samples import Samples

_BITS = 6
_VALUES = 1 << _BITS
BUCKETS = 29 * _VALUES
"""FIO_IO_U_PLAT_NR."""

PERCENTILES = (
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
)  # fmt: skip
"""What fio reports when it is not told otherwise."""


def bucket_value(index: int) -> int:
    """The latency that a bucket stands for, its middle (nanoseconds)."""
    if index < 2 * _VALUES:
        return index
    error_bits = (index >> _BITS) - 1
    base = 1 << (error_bits + _BITS)
    return base + int((index % _VALUES + 0.5) * (1 << error_bits))


def _no_buckets() -> array[int]:
    return array("Q", bytes(8 * BUCKETS))


@dataclass(slots=True)
class Histogram:
    """A distribution of latencies in nanoseconds."""

    count: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    squares: float = 0.0
    buckets: array[int] = field(default_factory=_no_buckets, repr=False)

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """What a workload measured."""
        return cls(
            samples.count,
            samples.total,
            samples.least,
            samples.most,
            samples.squares,
            samples.buckets,
        )

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Self:
        """All samples of several distributions."""
        whole = cls()
        for part in parts:
            if part.count == 0:
                continue
            whole.least = min(whole.least, part.least) if whole.count else part.least
            whole.most = max(whole.most, part.most)
            whole.count += part.count
            whole.total += part.total
            whole.squares += part.squares
            whole.buckets = array("Q", map(sum, zip(whole.buckets, part.buckets, strict=True)))
        return whole

    @property
    def mean(self) -> float:
        """Nanoseconds; 0 without samples."""
        return self.total / self.count if self.count else 0.0

    @property
    def stddev(self) -> float:
        """Standard deviation of the sample, nanoseconds."""
        if self.count < 2:
            return 0.0
        variance = (self.squares - self.total * self.mean) / (self.count - 1)
        return math.sqrt(max(variance, 0.0))

    def percentiles(self, wanted: tuple[float, ...] = PERCENTILES) -> dict[float, int]:
        """Nanoseconds that so many percent of the samples do not exceed; ``wanted`` ascends."""
        found: dict[float, int] = {}
        if self.count == 0:
            return dict.fromkeys(wanted, 0)
        pending = list(wanted)
        seen = 0
        for index, number in enumerate(self.buckets):
            if number == 0:
                continue
            seen += number
            while pending and seen >= pending[0] / 100 * self.count:
                found[pending.pop(0)] = bucket_value(index)
            if not pending:
                break
        return found
