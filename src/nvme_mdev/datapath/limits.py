"""Limits of a namespace: how many commands and bytes a second."""

from __future__ import annotations

from typing import NamedTuple

LIMIT_NAMES = ("iops", "read_iops", "write_iops", "bps", "read_bps", "write_bps")
"""Of everything, of what reads, of what writes; a command has to satisfy all that apply."""

MAX_RATE = 1 << 40
"""Tokens (commands or bytes) a second: more than any machine does."""
MAX_BURST_S = 24 * 3600
"""A burst is at most what the rate gives in so many seconds: a day."""


class Limit(NamedTuple):
    """A token bucket."""

    rate: int
    """Tokens a second: commands, or bytes; 1 to `MAX_RATE`."""
    burst: int
    """Tokens that it holds when it is full: what can be used at once; from 1, see `MAX_BURST_S`."""


def default_burst(rate: int) -> int:
    """A tenth of a second's worth, as in QEMU."""
    return max(rate // 10, 1)


def check_limit(name: str, limit: Limit) -> None:
    """ValueError, which says what is wrong: there is no such limit, or it cannot be had."""
    if name not in LIMIT_NAMES:
        raise ValueError(f"there is no limit {name}: there are {', '.join(LIMIT_NAMES)}")
    if not 1 <= limit.rate <= MAX_RATE:
        raise ValueError(f"{name}: a rate is 1 to {MAX_RATE} a second")
    if not 1 <= limit.burst <= limit.rate * MAX_BURST_S:
        raise ValueError(f"{name}: a burst is at least 1, and at most what the rate gives in a day")
