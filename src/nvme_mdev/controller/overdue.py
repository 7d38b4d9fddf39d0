"""I/O commands that have taken longer than `io_timeout_ms`: they are cancelled.

Time in which this process did not run is nobody's delay: the host was suspended, the daemon was
stopped or frozen (SIGSTOP, a cgroup's freezer), its virtual machine did not run. What was in flight
then has a whole time-out once more. A processor that was without power counts its time from 0
again, so whoever keeps a point of time has to be told.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)

STOOD_STILL_S = 3.0
"""Between two looks a second apart: more than a busy machine makes of it."""


class Queues(Protocol):
    """What is asked of a queue table."""

    def inflight(self) -> int:
        """How many commands are in flight."""

    def cancel_expired(self, timeout_ms: int) -> Sequence[tuple[int, int]]:
        """Cancel what is older than this; which these were, as (SQ, CID)."""


def _time_with_suspends() -> float:
    """Seconds; a suspended host's processors may go on counting."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class OverdueCommands:
    """Those of one controller."""

    def __init__(
        self,
        queues: Queues,
        on_standstill: Callable[[], None],
        clock: Callable[[], float] = _time_with_suspends,
    ) -> None:
        """``on_standstill``: called after time in which the process did not run."""
        self._queues = queues
        self._on_standstill = on_standstill
        self._clock = clock
        self._looked = clock()
        self._ran_since = -math.inf

    def cancel(self, timeout_ms: int) -> None:
        """Look, once a second: cancel what has taken longer than ``timeout_ms``."""
        now = self._clock()
        if now - self._looked > STOOD_STILL_S:
            self._ran_since = now
            self._on_standstill()
        self._looked = now
        if not self._queues.inflight() or (now - self._ran_since) * 1000 < timeout_ms:
            return
        for qid, cid in self._queues.cancel_expired(timeout_ms):
            _log.warning("SQ %d, CID %d: no answer in %d ms, cancelled", qid, cid, timeout_ms)
