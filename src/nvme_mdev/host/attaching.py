"""Attaching to a controller that somebody else has let go of just now."""

from __future__ import annotations

import errno
import time

from nvme_mdev.host.driver import DEFAULT_MEMORY, DEFAULT_TIMEOUT, NvmeHost
from nvme_mdev.host.errors import AttachError

_AGAIN_S = 0.02
_WITHIN_S = 2.0
"""How long the session of who had it may take to end."""
_BUSY = (errno.EBUSY, errno.ECONNRESET, errno.EPIPE)


def attach_patiently(
    address: str, *, memory_size: int = DEFAULT_MEMORY, timeout: float = DEFAULT_TIMEOUT
) -> NvmeHost:
    """Attach as `NvmeHost` does; the controller may be busy for a moment with a session that ends.

    AttachError, HostError: as of `NvmeHost`, and when it stays busy.
    """
    deadline = time.monotonic() + _WITHIN_S
    while True:
        try:
            return NvmeHost(address, memory_size=memory_size, timeout=timeout)
        except AttachError as error:
            cause = error.__cause__
            busy = isinstance(cause, OSError) and cause.errno in _BUSY
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN_S)
