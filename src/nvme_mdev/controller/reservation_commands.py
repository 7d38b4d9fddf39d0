"""Reservation commands of one controller, from the data path to their completion (Base 7.5-7.8).

They come on I/O queues, and the data path hands them over (``DeferredCommands.take``). Each
becomes a task; the commands of a subsystem take effect one after the other. What a command changes
is in the subsystem's shared state by one store, and the slot says before which change that is: a
process that finds the command there knows whether it has happened, and never does it twice.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from nvme_mdev.controller import ptpl
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.reservation_report import report
from nvme_mdev.controller.reservations import Change, acquire, register, release
from nvme_mdev.controller.transitions import State
from nvme_mdev.spec.nvme_commands import SQE, NvmOpcode
from nvme_mdev.spec.nvme_reservations import (
    CPTPL_SHIFT,
    KEY_SIZE,
    REPORT_EDS,
    RESERVATION_ACTION_MASK,
    RESERVATION_IEKEY,
    RESERVATION_TYPE_SHIFT,
    AcquireAction,
    Cptpl,
    RegisterAction,
    ReleaseAction,
    ReservationType,
)
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace
    from nvme_mdev.controller.reservations import Reservations
    from nvme_mdev.datapath.statistics import DeferredCommand, InFlight

_log = logging.getLogger(__name__)

_POLL_S = 0.001
"""How often to look whether commands of preempted hosts are over; I/O takes about 0.1 ms."""


class ReservationCommands:
    """Executes them."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._queues = controller.queues
        self._tasks: set[asyncio.Task[None]] = set()

    def process(self) -> None:
        """Begin what the data path has handed over."""
        for command in self._queues.deferred.take():
            task = asyncio.get_running_loop().create_task(self._serve(command))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """The controller ends with this process, or the next one goes on."""
        for task in self._tasks:
            task.cancel()

    # -- one command -------------------------------------------------------------------------

    async def _serve(self, command: DeferredCommand) -> None:
        try:
            data = b""
            try:
                data = await self._execute(command, SQE.from_buffer_copy(command.sqe))
            except NvmeError as error:
                self._queues.deferred.settle(command, error.status, error.location)
            self._queues.deferred.complete(command, data)
        except KeyError:
            _log.debug("a reservation command is gone with its queue")
        except Exception:
            _log.exception("reservation command")
            self._controller.fail()

    @property
    def _alive(self) -> bool:
        """Whether commands are executed: what is left of them at a reset is aborted."""
        return self._controller.life_cycle.state in (State.READY, State.SHUTTING_DOWN)

    async def _execute(self, command: DeferredCommand, sqe: SQE) -> bytes:
        """Settle the command; what it returns."""
        if sqe.opc == NvmOpcode.RESERVATION_REPORT:
            data = self._report(sqe)
            self._queues.deferred.settle(command, GenericStatus.SUCCESS)
            return data
        flying: list[tuple[Controller, InFlight]] = []
        async with self._controller.subsystem.changing:
            change = await self._decide(command, sqe)
            if change is not None:
                self._commit(command, sqe.nsid, change)
                if sqe.opc == NvmOpcode.RESERVATION_ACQUIRE and (
                    sqe.cdw10 & RESERVATION_ACTION_MASK == AcquireAction.PREEMPT_AND_ABORT
                ):
                    flying = self._abort(sqe.nsid, change)
        await self._ended(flying)
        return b""

    async def _decide(self, command: DeferredCommand, sqe: SQE) -> Change | None:
        """What the command does, which is in the namespace's file if it has to; None: it is done
        already."""
        shared = self._controller.subsystem.shared
        if self._queues.deferred.decided(command) == (shared.changes(sqe.nsid) & 0xFFFF):
            self._queues.deferred.settle(command, GenericStatus.SUCCESS)
            return None
        while True:
            namespace, changes = self._namespace(sqe.nsid), shared.changes(sqe.nsid)
            before = shared[sqe.nsid].reservations
            change = self._change(namespace, before, sqe, command.data)
            await persist(namespace, before, change.after)
            if changes == shared.changes(sqe.nsid) and self._namespace(sqe.nsid) is namespace:
                return change

    def _namespace(self, nsid: int) -> Namespace:
        """The namespace; NvmeError: it is gone, or the controller is being reset."""
        if not self._alive:
            raise NvmeError(GenericStatus.ABORT_REQUESTED, dnr=False)
        namespace = self._controller.namespaces.get(nsid)
        if namespace is None:
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
        return namespace

    def _change(self, namespace: Namespace, before: Reservations, sqe: SQE, data: bytes) -> Change:
        match sqe.opc:
            case NvmOpcode.RESERVATION_REGISTER:
                return self._register(namespace, before, sqe, data)
            case NvmOpcode.RESERVATION_ACQUIRE:
                return self._acquire(before, sqe, data)
            case _:
                return self._release(before, sqe, data)

    def _commit(self, command: DeferredCommand, nsid: int, change: Change) -> None:
        """All at once: no guest sees a part of it. After a death a notice may come twice."""
        subsystem = self._controller.subsystem
        self._queues.deferred.decide(command, subsystem.shared.changes(nsid) + 1)
        for controller in subsystem.attached(nsid):
            for host, notice in change.notices:
                if controller.host == host:
                    controller.notices.add(nsid, notice)
        subsystem.shared.reserve(nsid, change.after)
        subsystem.enforce(nsid)
        self._queues.deferred.settle(command, GenericStatus.SUCCESS)

    # -- preempt and abort ---------------------------------------------------------------------

    def _abort(self, nsid: int, change: Change) -> list[tuple[Controller, InFlight]]:
        """Have the commands of preempted hosts aborted, as far as they can be; which these are."""
        return [
            (one, command)
            for one in self._controller.subsystem.attached(nsid)
            if one.host in change.preempted
            for command in one.queues.namespaces.preempt(nsid)
        ]

    async def _ended(self, flying: list[tuple[Controller, InFlight]]) -> None:
        """Return when they are over: nothing of a preempted host reaches the medium after that."""
        while self._alive and any(_is_in_flight(one, command) for one, command in flying):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    # -- their fields ----------------------------------------------------------------------------

    def _host(self) -> bytes:
        """Whose command it is; NvmeError: the host has not said who it is (RHII)."""
        if not self._controller.host:
            raise NvmeError(GenericStatus.HOST_ID_NOT_INITIALIZED)
        return self._controller.host

    def _register(
        self, namespace: Namespace, before: Reservations, sqe: SQE, data: bytes
    ) -> Change:
        action = sqe.cdw10 & RESERVATION_ACTION_MASK
        cptpl = sqe.cdw10 >> CPTPL_SHIFT
        if action not in tuple(RegisterAction) or cptpl not in tuple(Cptpl):
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
        if cptpl == Cptpl.SET and namespace.backend.ptpl_file is None:
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
        return register(
            before,
            self._host(),
            RegisterAction(action),
            current=_key(data, 0),
            new=_key(data, 1),
            ignore_existing=bool(sqe.cdw10 & RESERVATION_IEKEY),
            ptpl=None if cptpl == Cptpl.NO_CHANGE else cptpl == Cptpl.SET,
        )

    def _acquire(self, before: Reservations, sqe: SQE, data: bytes) -> Change:
        action = sqe.cdw10 & RESERVATION_ACTION_MASK
        rtype = _rtype(sqe)
        if action not in tuple(AcquireAction) or sqe.cdw10 & RESERVATION_IEKEY:
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
        if rtype not in tuple(ReservationType)[1:]:
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10 + 1)
        return acquire(
            before,
            self._host(),
            AcquireAction(action),
            ReservationType(rtype),
            current=_key(data, 0),
            preempt=_key(data, 1),
        )

    def _release(self, before: Reservations, sqe: SQE, data: bytes) -> Change:
        action = sqe.cdw10 & RESERVATION_ACTION_MASK
        if action not in tuple(ReleaseAction) or sqe.cdw10 & RESERVATION_IEKEY:
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
        rtype = _rtype(sqe)
        if action == ReleaseAction.RELEASE and rtype not in tuple(ReservationType):
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10 + 1)
        return release(before, self._host(), ReleaseAction(action), rtype, current=_key(data, 0))

    def _report(self, sqe: SQE) -> bytes:
        namespace = self._namespace(sqe.nsid)
        extended = bool(sqe.cdw11 & REPORT_EDS)
        self._host()
        if extended != self._controller.features.data.host_identifier_is_long:
            raise NvmeError(GenericStatus.HOST_ID_INCONSISTENT, Field.CDW11)
        return report(self._controller.subsystem, namespace.nsid, extended=extended)


async def persist(namespace: Namespace, before: Reservations, after: Reservations) -> None:
    """Bring a change to the namespace's file, if it has one; NvmeError: that cannot be."""
    path = namespace.backend.ptpl_file
    if path is None or before == after or not (before.ptpl or after.ptpl):
        return
    try:
        await asyncio.to_thread(ptpl.save, path, after)
    except OSError as error:
        _log.error("namespace %d, reservations: %s: %s", namespace.nsid, path, error)
        raise NvmeError(GenericStatus.INTERNAL_ERROR, dnr=False) from error


async def set_persistence(controller: Controller, nsid: int, *, ptpl: bool) -> None:
    """Set the Persist Through Power Loss State (feature 83h); NvmeError: it cannot be kept.

    It is done to its end when the command is forgotten, by a reset: or the file would say one thing
    and the feature another.
    """
    await asyncio.shield(asyncio.ensure_future(_set_persistence(controller, nsid, ptpl=ptpl)))


async def _set_persistence(controller: Controller, nsid: int, *, ptpl: bool) -> None:
    subsystem = controller.subsystem
    async with subsystem.changing:
        while True:
            namespace = controller.namespaces.get(nsid)
            if namespace is None:
                raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
            changes, before = subsystem.shared.changes(nsid), subsystem.shared[nsid].reservations
            after = replace(before, ptpl=ptpl)
            await persist(namespace, before, after)
            if changes == subsystem.shared.changes(nsid):
                subsystem.shared.reserve(nsid, after)
                return


def _is_in_flight(controller: Controller, command: InFlight) -> bool:
    try:
        return controller.queues.is_in_flight(command)
    except KeyError:
        return False


def _rtype(sqe: SQE) -> int:
    return sqe.cdw10 >> RESERVATION_TYPE_SHIFT & 0xFF


def _key(data: bytes, index: int) -> int:
    return int.from_bytes(data[index * KEY_SIZE : (index + 1) * KEY_SIZE], "little")
