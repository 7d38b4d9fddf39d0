"""Doorbell Buffer Config (Base 5.2.5): doorbells in guest memory, and when to ring the register."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller


def doorbell_buffer_config(controller: Controller, command: AdminCommand) -> int:
    """PRP1 is the shadow doorbell page, PRP2 the EventIdx page."""
    page_size = controller.registers.cc.page_size
    for field, address in ((Field.PRP1, command.sqe.prp1), (Field.PRP2, command.sqe.prp2)):
        if address % page_size:
            raise NvmeError(GenericStatus.INVALID_FIELD, field)
    if not controller.queues.set_doorbell_buffers(command.sqe.prp1, command.sqe.prp2):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.PRP1)
    return 0
