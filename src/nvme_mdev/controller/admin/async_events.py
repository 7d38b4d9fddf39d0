"""Asynchronous Event Request (Base 5.1.2): the command; :mod:`..events` has the events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.admin.identify import ASYNC_EVENT_REQUEST_LIMIT
from nvme_mdev.controller.errors import NvmeError
from nvme_mdev.spec.nvme_commands import AdminOpcode
from nvme_mdev.spec.nvme_status import CommandStatus

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller


def async_event_request(controller: Controller, _command: AdminCommand) -> None:
    """Leave the request outstanding, in its slot; the next event completes it."""
    outstanding = controller.admin_queue.outstanding(AdminOpcode.ASYNC_EVENT_REQUEST)
    if len(outstanding) > ASYNC_EVENT_REQUEST_LIMIT:
        raise NvmeError(CommandStatus.AER_LIMIT_EXCEEDED)
    controller.events.deliver()
