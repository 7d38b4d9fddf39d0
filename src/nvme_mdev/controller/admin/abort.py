"""Abort (Base 5.1.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nvme_mdev.controller.admin.identify import ABORT_COMMAND_LIMIT
from nvme_mdev.controller.error_log import newest_first
from nvme_mdev.controller.errors import NvmeError
from nvme_mdev.spec.nvme_commands import ABORT_NOT_ABORTED, AdminOpcode
from nvme_mdev.spec.nvme_logs import ErrorLogEntry
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, Status

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand, Outcome
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.datapath.statistics import InFlight

_ADMIN_QUEUE = 0
_ABORTED = 0
_PATIENCE_S = 1.0
"""How long an Abort waits for a command that its backend was asked to cancel; arbitrary."""
_POLL_S = 0.001
_ENTRY_SIZE = 64


def abort(controller: Controller, command: AdminCommand) -> Outcome:
    """Abort a command that waits in its SQ, in its backend, or for an asynchronous event.

    Dword 0 says whether it was; a command that executes already is left to finish.
    """
    if len(controller.admin_queue.waiting(AdminOpcode.ABORT)) >= ABORT_COMMAND_LIMIT:
        raise NvmeError(CommandStatus.ABORT_LIMIT_EXCEEDED)
    sqid = command.sqe.cdw10 & 0xFFFF
    cid = command.sqe.cdw10 >> 16
    if sqid == _ADMIN_QUEUE:
        return _ABORTED if controller.admin_queue.abort(cid) else ABORT_NOT_ABORTED
    if not controller.queues.has_sq(sqid):
        return ABORT_NOT_ABORTED
    before = controller.state.error_count
    outcome = controller.queues.abort_command(sqid, cid)
    if isinstance(outcome, bool):
        return _ABORTED if outcome else ABORT_NOT_ABORTED
    return _cancelled(controller, outcome, cid, before)


async def _cancelled(controller: Controller, flying: InFlight, cid: int, before: int) -> int:
    """Wait for the command; whether it ended because of us is in the error log."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_S
    try:
        while controller.queues.is_in_flight(flying):
            if loop.time() > deadline:
                return ABORT_NOT_ABORTED
            await asyncio.sleep(_POLL_S)
    except KeyError:
        return ABORT_NOT_ABORTED
    page = newest_first(controller.state)
    for at in range(0, len(page), _ENTRY_SIZE):
        entry = ErrorLogEntry.from_buffer_copy(page, at)
        if entry.errcnt <= before:
            break
        status = Status.unpack(entry.sts >> 1)
        if (entry.sqid, entry.cmdid, status.code) == (
            flying.qid,
            cid,
            GenericStatus.ABORT_REQUESTED,
        ):
            return _ABORTED
    return ABORT_NOT_ABORTED
