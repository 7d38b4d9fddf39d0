"""Which admin commands there are: opcode to handler and effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.controller.admin.abort import abort
from nvme_mdev.controller.admin.async_events import async_event_request
from nvme_mdev.controller.admin.dbbuf import doorbell_buffer_config
from nvme_mdev.controller.admin.erase import check_not_sanitizing, format_nvm, sanitize
from nvme_mdev.controller.admin.features import get_features, set_features
from nvme_mdev.controller.admin.identify import identify
from nvme_mdev.controller.admin.keep_alive import keep_alive
from nvme_mdev.controller.admin.logs import get_log_page
from nvme_mdev.controller.admin.queues import (
    create_io_cq,
    create_io_sq,
    delete_io_cq,
    delete_io_sq,
)
from nvme_mdev.controller.admin.self_test import device_self_test
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.spec.nvme_commands import AdminOpcode
from nvme_mdev.spec.nvme_logs import CommandEffect
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand, Handler, Outcome
    from nvme_mdev.controller.controller import Controller


class Entry(NamedTuple):
    """What is known of a command without executing it."""

    handler: Handler
    effects: CommandEffect = CommandEffect.CSUPP
    """Its entry in the Commands Supported and Effects log."""


COMMANDS: dict[AdminOpcode, Entry] = {
    AdminOpcode.DELETE_IO_SQ: Entry(delete_io_sq),
    AdminOpcode.CREATE_IO_SQ: Entry(create_io_sq),
    AdminOpcode.GET_LOG_PAGE: Entry(get_log_page),
    AdminOpcode.DELETE_IO_CQ: Entry(delete_io_cq),
    AdminOpcode.CREATE_IO_CQ: Entry(create_io_cq),
    AdminOpcode.IDENTIFY: Entry(identify),
    AdminOpcode.ABORT: Entry(abort),
    AdminOpcode.SET_FEATURES: Entry(set_features),
    AdminOpcode.GET_FEATURES: Entry(get_features),
    AdminOpcode.ASYNC_EVENT_REQUEST: Entry(async_event_request),
    AdminOpcode.KEEP_ALIVE: Entry(keep_alive),
    AdminOpcode.DEVICE_SELF_TEST: Entry(device_self_test),
    AdminOpcode.FORMAT_NVM: Entry(
        format_nvm,
        CommandEffect.CSUPP | CommandEffect.LBCC | CommandEffect.NCC | CommandEffect.CSE_SAME_NS,
    ),
    AdminOpcode.SANITIZE: Entry(
        sanitize, CommandEffect.CSUPP | CommandEffect.LBCC | CommandEffect.CSE_ALL
    ),
    AdminOpcode.DOORBELL_BUFFER_CONFIG: Entry(doorbell_buffer_config),
}
"""Every admin command. What is not here is an invalid opcode."""


def supported(controller: Controller) -> dict[AdminOpcode, Entry]:
    """The commands that this controller has, by its settings and what its media can do."""
    return {opcode: entry for opcode, entry in COMMANDS.items() if _is_here(controller, opcode)}


def _is_here(controller: Controller, opcode: int) -> bool:
    match opcode:
        case AdminOpcode.DOORBELL_BUFFER_CONFIG:
            return controller.settings.shadow_doorbell
        case AdminOpcode.FORMAT_NVM | AdminOpcode.SANITIZE:
            return controller.erasing.offered
        case AdminOpcode.DEVICE_SELF_TEST:
            return controller.self_test.offered
        case _:
            return True


def dispatch(controller: Controller, command: AdminCommand) -> Outcome:
    """Check what all commands have in common, then execute it."""
    entry = COMMANDS.get(command.sqe.opc)  # type: ignore[call-overload]
    if entry is None or not _is_here(controller, command.sqe.opc):
        raise NvmeError(GenericStatus.INVALID_OPCODE, Field.OPC)
    if command.sqe.flags:
        # No fused admin commands (FUSES), no SGLs (SGLS): these bits and the reserved ones are 0.
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.FLAGS)
    check_not_sanitizing(controller, command)
    outcome: Outcome = entry.handler(controller, command)
    return outcome
