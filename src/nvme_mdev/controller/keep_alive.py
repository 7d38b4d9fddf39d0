"""The Keep Alive timer (Base 3.9): a host that says nothing for too long is taken for dead."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nvme_mdev.controller.overdue import STOOD_STILL_S
from nvme_mdev.controller.transitions import State
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_status import GenericStatus, status_field

if TYPE_CHECKING:
    from nvme_mdev.controller.controller import Controller

_log = logging.getLogger(__name__)

GRANULARITY_MS = 100
"""KAS is 1: in units of 100 ms, the finest there is."""


class KeepAlive:
    """The timer of one controller; the timeout (KATO, milliseconds, 0: none) is a feature."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._timer: asyncio.TimerHandle | None = None

    def restart(self) -> None:
        """The host is alive; or the timeout is another one; or the controller was enabled."""
        self.stop()
        timeout_ms = self._controller.features[Fid.KEEP_ALIVE_TIMER]
        if timeout_ms:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_ms / 1000, self._expired)

    def stop(self) -> None:
        """No timer runs any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        """Log it, process no more commands, and say so with CSTS.CFS (Base 3.9.3.1)."""
        assert self._timer is not None
        if asyncio.get_running_loop().time() - self._timer.when() > STOOD_STILL_S:
            # Nobody was there to hear it.
            self.restart()
            return
        self._timer = None
        if self._controller.life_cycle.state is State.READY:
            _log.warning("the guest has let its Keep Alive timer expire")
            status = status_field(GenericStatus.KEEP_ALIVE_EXPIRED)
            self._controller.queues.log_controller_error(status)
            self._controller.fail()
