"""Abort (Base 5.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_commands import ABORT_NOT_ABORTED

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller

_ADMIN_QUEUE = 0


def abort(controller: Controller, command: AdminCommand) -> int:
    """Abort an Asynchronous Event Request; what executes, I/O above all, is left to finish."""
    sqid = command.sqe.cdw10 & 0xFFFF
    cid = command.sqe.cdw10 >> 16
    if sqid == _ADMIN_QUEUE and controller.admin_queue.abort(cid):
        return 0
    return ABORT_NOT_ABORTED
