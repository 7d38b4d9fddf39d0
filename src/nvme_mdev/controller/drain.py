"""Waiting for I/O that is in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvme_mdev.datapath.queue_table import QueueTable

_POLL_S = 0.0005
"""How often to look. I/O takes as long as the medium does, about 0.1 ms; a guest that waits for a
reset looks every 1 to 100 ms."""


async def drained(queues: QueueTable, qid: int | None = None) -> None:
    """Return when nothing is in flight, of one I/O SQ or of all.

    The caller has held or stopped them. The data path has no way to tell, and need not: only
    resets, deletions and removals wait.
    """
    while queues.inflight(qid):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
