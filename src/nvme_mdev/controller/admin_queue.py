"""The admin queue: commands are fetched, executed and completed here, on the event loop.

What must not be lost is in shared memory: a fetched command stays in its slot until its completion
is posted. What is here is how far this process has come with it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.controller.admin.background import is_begun
from nvme_mdev.controller.admin.command import AdminCommand
from nvme_mdev.controller.admin.dispatch import dispatch
from nvme_mdev.controller.admin.queues import is_done
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.memory_map import Scratch
from nvme_mdev.spec.nvme_commands import AdminOpcode
from nvme_mdev.spec.nvme_status import GenericStatus, Status, status_field

if TYPE_CHECKING:
    from nvme_mdev.controller.controller import Controller

_log = logging.getLogger(__name__)

_RETRY_S = 0.001
"""How soon a completion is tried again that found the completion queue full."""
_MAX_COMMANDS = 64
"""Commands executed in a row before the event loop serves others again; arbitrary."""

_OPCODE = 0
"""Byte of the SQE that holds the opcode, and where the command identifier begins."""
_CID = 2


class _Completion(NamedTuple):
    slot: int
    result: int
    status: int
    location: int
    log_error: bool


class _Waiting(NamedTuple):
    command: AdminCommand
    task: asyncio.Task[int]


class AdminQueue:
    """The controller's side of the admin queue pair."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._queues = controller.queues
        self._tasks: dict[int, _Waiting] = {}
        self._unposted: list[_Completion] = []
        self._retry: asyncio.TimerHandle | None = None
        self._warned = False

    def process(self) -> None:
        """Execute what the guest has submitted, as far as there is room for completions."""
        if self._controller.state.scratch[Scratch.DMA_BLOCKED] or not self._post():
            return
        for _ in range(_MAX_COMMANDS):
            fetched = self._queues.admin.fetch()
            if fetched is None:
                return
            self._warn_of_private_memory(fetched[1])
            self._execute(fetched[0], fetched[1])
            if self._unposted:
                return
        asyncio.get_running_loop().call_soon(self._controller.on_notify)

    def resume(self) -> None:
        """Execute what a process before us has fetched and not completed.

        Asynchronous Event Requests are as they should be. Creating and deleting a queue may be done
        already, a self-test or a sanitize operation begun: then it has succeeded.
        """
        for slot, sqe in self._queues.admin.pending():
            if sqe[_OPCODE] == AdminOpcode.ASYNC_EVENT_REQUEST:
                continue
            command = self._command(slot, sqe)
            if is_done(self._controller, command) or is_begun(self._controller, command):
                self.complete(slot, 0)
            else:
                self._execute(slot, sqe)

    def outstanding(self, opcode: int) -> list[tuple[int, bytes]]:
        """Commands of this opcode that have no completion yet: (slot, SQE)."""
        decided = {completion.slot for completion in self._unposted}
        return [
            (slot, sqe)
            for slot, sqe in self._queues.admin.pending()
            if sqe[_OPCODE] == opcode and slot not in decided
        ]

    def complete(
        self,
        slot: int,
        result: int,
        status: int = 0,
        *,
        location: int = Field.NONE,
        log_error: bool = True,
    ) -> None:
        """Post a completion, or as soon as the guest has made room for it."""
        self._unposted.append(_Completion(slot, result, status, location, log_error))
        self._post()

    def report_event(self, result: int) -> bool:
        """Complete one Asynchronous Event Request.

        False: none is outstanding, or the completion queue is full. The event waits then where a
        process after us finds it, and is tried again.
        """
        requests = self.outstanding(AdminOpcode.ASYNC_EVENT_REQUEST)
        if not requests or not self._post():
            return False
        posted = self._queues.admin.complete(requests[0][0], result, 0)
        if not posted:
            self._retry_soon()
        return posted

    def waiting(self, opcode: int) -> list[AdminCommand]:
        """Commands of this opcode whose handlers wait for something."""
        return [entry.command for entry in self._tasks.values() if entry.command.sqe.opc == opcode]

    def abort(self, cid: int) -> bool:
        """End the Asynchronous Event Request with this identifier, False when there is none.

        Other commands are executing, not waiting to be executed; an Abort has no effect on them.
        """
        for slot, sqe in self.outstanding(AdminOpcode.ASYNC_EVENT_REQUEST):
            if int.from_bytes(sqe[_CID : _CID + 2], "little") == cid:
                status = status_field(GenericStatus.ABORT_REQUESTED)
                self.complete(slot, 0, status, log_error=False)
                return True
        return False

    def cancel(self) -> None:
        """Forget every command: the queue is gone."""
        for entry in self._tasks.values():
            entry.task.cancel()
        self._tasks.clear()
        self._unposted.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # -- one command -------------------------------------------------------------------------

    def _execute(self, slot: int, sqe: bytes) -> None:
        command = self._command(slot, sqe)
        _log.debug("admin command %#04x, CID %d", command.sqe.opc, command.sqe.cid)
        try:
            outcome = dispatch(self._controller, command)
        except NvmeError as error:
            self._fail(command, error)
            return
        if outcome is None:
            return
        if isinstance(outcome, int):
            self.complete(slot, outcome)
            return
        task = asyncio.get_running_loop().create_task(outcome)
        self._tasks[slot] = _Waiting(command, task)
        task.add_done_callback(functools.partial(self._finished, command))

    def _warn_of_private_memory(self, sqe: bytes) -> None:
        """No driver sends zeroes: it is what we see of memory that is mapped but not shared."""
        if not self._warned and not any(sqe):
            self._warned = True
            _log.warning(
                "an admin command of zeroes: if the guest's NVMe driver gives up now, start QEMU"
                " with a memory backend with share=on"
            )

    def _command(self, slot: int, sqe: bytes) -> AdminCommand:
        page_size = self._controller.registers.cc.page_size
        return AdminCommand(slot, sqe, self._queues.memory, page_size)

    def _finished(self, command: AdminCommand, task: asyncio.Task[int]) -> None:
        """A handler that had to wait has returned, or was cancelled with its queue."""
        if task.cancelled():
            return
        del self._tasks[command.slot]
        error = task.exception()
        if error is None:
            self.complete(command.slot, task.result())
        elif isinstance(error, NvmeError):
            self._fail(command, error)
        else:
            _log.error("admin command %#04x", command.sqe.opc, exc_info=error)
            self._controller.fail()

    def _fail(self, command: AdminCommand, error: NvmeError) -> None:
        _log.debug("admin command %#04x: %s", command.sqe.opc, Status.unpack(error.status))
        self.complete(command.slot, 0, error.status, location=error.location)

    def _post(self) -> bool:
        """Post what waits, in order. False: the completion queue is full."""
        while self._unposted:
            entry = self._unposted[0]
            if not self._queues.admin.complete(
                entry.slot,
                entry.result,
                entry.status,
                error_location=entry.location,
                log_error=entry.log_error,
            ):
                self._retry_soon()
                return False
            self._unposted.pop(0)
        return True

    def _retry_soon(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._controller.on_notify)
