"""Format NVM (Base 5.1.10), Sanitize (5.1.22) and the Sanitize Status log (5.1.12.1.33).

What they do goes on in :mod:`nvme_mdev.controller.erasing`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nvme_mdev.controller.erasing import Format, has_key
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.controller.reservations import CommandGroup
from nvme_mdev.spec.nvme_commands import NSID_ALL, AdminOpcode
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_maintenance import (
    FORMAT_LBAFL_MASK,
    FORMAT_LBAFU_SHIFT,
    FORMAT_PI_SHIFT,
    FORMAT_SES_SHIFT,
    SANITIZE_AUSE,
    SANITIZE_GDE,
    SANITIZE_NO_PROGRESS,
    SANITIZE_NO_TIME,
    SanitizeAction,
    SanitizeLog,
    SanitizeState,
    SelfTestResult,
    Ses,
)
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand, Outcome
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace

WHILE_SANITIZING = frozenset(
    {
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.IDENTIFY,
        AdminOpcode.ABORT,
        AdminOpcode.SET_FEATURES,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.ASYNC_EVENT_REQUEST,
        AdminOpcode.KEEP_ALIVE,
    }
)
"""Admin commands that a sanitize operation, also one that failed, allows (Base 5.1, 8.1.24.4)."""

LOG_PAGES_WHILE_SANITIZING = frozenset(
    {
        LogPage.ERROR,
        LogPage.SMART,
        LogPage.CHANGED_NAMESPACES,
        LogPage.RESERVATION_NOTIFICATION,
        LogPage.SANITIZE_STATUS,
    }
)
"""Those of Get Log Page."""


def check_not_sanitizing(controller: Controller, command: AdminCommand) -> None:
    """NvmeError while a sanitize operation excludes the command."""
    refusal = controller.erasing.sanitize_refusal
    if refusal is None:
        return
    opcode = command.sqe.opc
    allowed = opcode in WHILE_SANITIZING
    if opcode == AdminOpcode.GET_LOG_PAGE:
        allowed = command.sqe.cdw10 & 0xFF in LOG_PAGES_WHILE_SANITIZING
    elif opcode == AdminOpcode.SANITIZE:
        allowed = controller.erasing.sanitize_state == SanitizeState.FAILED
    if not allowed:
        raise NvmeError(refusal, dnr=False)


# --- format ---


def format_nvm(controller: Controller, command: AdminCommand) -> Outcome:
    """Erase one namespace or all, and give them blocks of the size that was asked for."""
    wanted = _formats(controller, command)
    for nsid, what in wanted.items():
        # The same one is this command, executed again by a process after the one that began it.
        if controller.erasing.formatting(nsid) not in (None, what):
            raise NvmeError(GenericStatus.FORMAT_IN_PROGRESS, dnr=False)
    for nsid in wanted:
        controller.self_test.abort(SelfTestResult.ABORTED_BY_FORMAT, nsid)
    tasks = [controller.erasing.format(nsid, what) for nsid, what in wanted.items()]
    return _done(tasks)


async def _done(tasks: list[asyncio.Task[None]]) -> int:
    """The formats go on when the command is forgotten, by a reset."""
    for task in tasks:
        try:
            await asyncio.shield(task)
        except OSError as error:
            raise NvmeError(GenericStatus.INTERNAL_ERROR, dnr=False) from error
    return 0


def _formats(controller: Controller, command: AdminCommand) -> dict[int, Format]:
    """What to do, by NSID; NvmeError: no part of it can be done."""
    cdw10 = command.sqe.cdw10
    ses = cdw10 >> FORMAT_SES_SHIFT & 0x7
    if ses > max(Ses):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10 + 1)
    # Protection information needs metadata, which no format has.
    if cdw10 >> FORMAT_PI_SHIFT & 0x7:
        raise NvmeError(CommandStatus.INVALID_FORMAT, Field.CDW10)
    index = cdw10 & FORMAT_LBAFL_MASK | (cdw10 >> FORMAT_LBAFU_SHIFT & 0x3) << 4
    wanted = {}
    for namespace in _concerned(controller, command):
        sizes = controller.erasing.block_sizes(namespace)
        if index >= len(sizes):
            raise NvmeError(CommandStatus.INVALID_FORMAT, Field.CDW10)
        if ses == Ses.CRYPTOGRAPHIC and not has_key(namespace):
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10 + 1)
        _check_reservation(controller, namespace)
        if not controller.erasing.writable(namespace.nsid):
            raise NvmeError(GenericStatus.NAMESPACE_WRITE_PROTECTED, Field.NSID)
        wanted[namespace.nsid] = Format(sizes[index], ses)
    return wanted


def _check_reservation(controller: Controller, namespace: Namespace) -> None:
    """NvmeError: a host has it reserved; to erase is to write (Base 8.1.22)."""
    if controller.refused(namespace.nsid) & CommandGroup.WRITE:
        raise NvmeError(GenericStatus.RESERVATION_CONFLICT)


def _concerned(controller: Controller, command: AdminCommand) -> list[Namespace]:
    controller.namespaces.check_nsid(command.sqe.nsid, broadcast=True)
    if command.sqe.nsid == NSID_ALL:
        return list(controller.namespaces)
    namespace = controller.namespaces.get(command.sqe.nsid)
    if namespace is None:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
    return [namespace]


# --- sanitize ---


def sanitize(controller: Controller, command: AdminCommand) -> int:
    """Begin to erase all namespaces, or leave the failure mode; complete at once."""
    action = command.sqe.cdw10 & 0x7
    if action == SanitizeAction.EXIT_FAILURE_MODE:
        _leave_failure_mode(controller)
        return 0
    actions = [SanitizeAction.BLOCK_ERASE, SanitizeAction.OVERWRITE]
    if controller.erasing.offers_new_keys:
        actions.append(SanitizeAction.CRYPTO_ERASE)
    if action not in actions:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
    before = int(controller.state.lifetime[Lifetime.SANITIZE_CDW10])
    failed = controller.erasing.sanitize_state == SanitizeState.FAILED
    if failed and not before & SANITIZE_AUSE and command.sqe.cdw10 & SANITIZE_AUSE:
        # What failed in the restricted mode can only be tried again in that mode.
        raise NvmeError(GenericStatus.SANITIZE_FAILED, Field.CDW10, dnr=False)
    for namespace in controller.namespaces:
        _check_reservation(controller, namespace)
    if not all(controller.erasing.writable(one.nsid) for one in controller.namespaces):
        raise NvmeError(GenericStatus.NAMESPACE_WRITE_PROTECTED)
    if any(controller.erasing.remains(one.nsid) for one in controller.namespaces):
        raise NvmeError(GenericStatus.FORMAT_IN_PROGRESS, dnr=False)
    controller.self_test.abort(SelfTestResult.ABORTED_BY_SANITIZE)
    controller.erasing.sanitize(command.sqe.cdw10, command.sqe.cdw11)
    return 0


def _leave_failure_mode(controller: Controller) -> None:
    """Only what failed in the unrestricted mode."""
    before = int(controller.state.lifetime[Lifetime.SANITIZE_CDW10])
    if controller.erasing.sanitize_state == SanitizeState.FAILED and not before & SANITIZE_AUSE:
        raise NvmeError(GenericStatus.SANITIZE_FAILED, Field.CDW10, dnr=False)
    controller.erasing.leave_failure_mode()


def sanitize_log(controller: Controller, _command: AdminCommand) -> SanitizeLog:
    """How the most recent sanitize operation stands."""
    life, erasing = controller.state.lifetime, controller.erasing
    running = erasing.sanitize_state == SanitizeState.IN_PROGRESS
    none = SANITIZE_NO_TIME
    return SanitizeLog(
        sprog=erasing.sanitize_progress if running else SANITIZE_NO_PROGRESS,
        sstat=life[Lifetime.SANITIZE_STATE] | (SANITIZE_GDE if erasing.nothing_written else 0),
        scdw10=life[Lifetime.SANITIZE_CDW10],
        eto=none,
        etbe=none,
        etce=none,
        etond=none,
        etbend=none,
        etcend=none,
    )
