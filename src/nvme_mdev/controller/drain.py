"""Waiting for I/O that is in flight, and for what caches hold."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nvme_mdev.controller.errors import NvmeError
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.datapath.backends.base import Backend
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


async def flush(backends: Sequence[Backend]) -> None:
    """Return when what the backends' caches hold is on the media; NvmeError: that fails."""
    for backend in backends:
        try:
            await asyncio.to_thread(backend.flush)
        except OSError as error:
            raise NvmeError(GenericStatus.INTERNAL_ERROR, dnr=False) from error
