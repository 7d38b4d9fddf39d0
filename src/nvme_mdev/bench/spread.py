"""Several measurements of one thing: their median, and how far they lie apart."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """One value a round, in the order of the rounds; at least one."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a spread needs a measurement")

    @property
    def median(self) -> float:
        """What half of the rounds do not exceed."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def stddev(self) -> float:
        """Standard deviation over the rounds; 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_json(self) -> dict[str, object]:
        """Median, min, max and all values."""
        return {
            "median": self.median,
            "min": self.least,
            "max": self.most,
            "stddev": self.stddev,
            "values": list(self.values),
        }
