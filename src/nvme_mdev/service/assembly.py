"""Making one controller, from its polling thread to its socket.

Going up: the thread (it needs io_uring and its CPU), the controller on its namespaces, the device,
the socket. Whatever fails undoes what came before it. Going down is the same in reverse: no more
clients, no more commands, then the thread, and the socket's file is gone.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvme_mdev.controller.controller import Controller
from nvme_mdev.controller.settings import (
    ControllerSettings,
    fitting_transfer,
)
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.queue_table import QueueTable
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.errors import UserError
from nvme_mdev.pci.function import PciFunction
from nvme_mdev.service.endpoint import why_not_listening
from nvme_mdev.service.iothreads import IOThreads
from nvme_mdev.service.nvme_device import NvmeDevice
from nvme_mdev.service.served import ServedController
from nvme_mdev.vfio_user.server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nvme_mdev.controller.subsystem import Subsystem
    from nvme_mdev.datapath.iothread import IOThread
    from nvme_mdev.datapath.statistics import PathStatistics
    from nvme_mdev.service.backings import Backing
    from nvme_mdev.service.continuity import Continuity, Kept
    from nvme_mdev.service.definition import Definition
    from nvme_mdev.service.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A controller to be made."""

    number: int
    name: str
    definition: Definition
    subsystem: Subsystem
    backings: Mapping[int, Backing]
    """By NSID."""
    untold: frozenset[int] = field(default_factory=frozenset)
    """NSIDs that the guest of the process before us may not know of."""
    gone: frozenset[int] = field(default_factory=frozenset)
    """NSIDs of namespaces that the process before us had, and that cannot be opened any more."""


class Assembly:
    """Makes controllers for one daemon."""

    def __init__(self, registry: Registry, kept: Kept | None, lifeline: int) -> None:
        """``kept``: None if nothing is; ``lifeline``: -1 then, see `Kept.lifeline`."""
        self._registry = registry
        self._kept = kept
        self._iothreads = IOThreads(lifeline)

    async def make(self, plan: Plan) -> ServedController:
        """Make a controller and serve it; it is in the registry, and kept, when this returns."""
        continuity = self._kept.controller(plan.number) if self._kept is not None else None
        async with AsyncExitStack() as cleanup:
            if self._kept is not None:
                cleanup.callback(self._kept.forget_controller, plan.number)
            served = await self._start(plan, cleanup, continuity)
            if continuity is not None and not continuity.resuming:
                continuity.keep_all()
            served.cleanup = cleanup.pop_all()
        self._registry.add(served)
        return served

    async def _start(
        self, plan: Plan, cleanup: AsyncExitStack, continuity: Continuity | None
    ) -> ServedController:
        """Bring everything up; ``cleanup`` learns how to take it down again."""
        definition = plan.definition
        iothreads = self._iothreads.take(definition)
        cleanup.callback(self._iothreads.give_back, iothreads)
        for backing in plan.backings.values():
            self._registry.backings.claim(backing)
        backings = dict(plan.backings)
        cleanup.callback(self._release, backings)
        controller = _make_controller(plan, iothreads, cleanup, continuity)
        device = _make_device(plan, controller, continuity)
        server = Server(device, definition.socket, continuity)
        cleanup.push_async_callback(server.close)
        try:
            await server.start()
        except OSError as error:
            raise UserError(why_not_listening(error, definition.socket)) from error
        return ServedController(
            plan.number,
            plan.name,
            definition,
            controller,
            device,
            server,
            iothreads,
            backings,
            self._registry.backings,
            self._registry.save,
            cleanup,
            self._registry.peers,
        )

    def _release(self, backings: dict[int, Backing]) -> None:
        """Of the namespaces that there are then, not of those that there were first."""
        for backing in backings.values():
            self._registry.backings.release(backing)


def _make_controller(
    plan: Plan,
    iothreads: Sequence[IOThread],
    cleanup: AsyncExitStack,
    continuity: Continuity | None,
) -> Controller:
    """The controller, from its shared memory up, running in this event loop."""
    definition = plan.definition
    backends = {nsid: backing.backend for nsid, backing in plan.backings.items()}
    settings = ControllerSettings(
        definition.serial_number,
        cntlid=definition.cntlid,
        io_queues=definition.queues,
        queue_entries=definition.queue_entries,
        shadow_doorbell=definition.shadow_doorbell,
        io_timeout_ms=definition.io_timeout_ms,
        max_nsid=definition.highest_nsid,
        allow_erase=definition.allow_erase,
        max_transfer=fitting_transfer(definition.mdts, backends.values()),
    )
    state = continuity.state if continuity is not None else ControllerState()
    if continuity is None:
        cleanup.callback(state.close)
    queues = QueueTable(
        state,
        GuestMemory(),
        iothreads,
        max_transfer=settings.max_transfer,
        max_nsid=settings.max_nsid,
    )
    cleanup.callback(queues.close)
    cleanup.callback(_report, queues)
    try:
        controller = Controller(settings, state, queues, backends, plan.subsystem)
    except OSError as error:
        raise UserError(_why_no_io_uring(error)) from error
    controller.start()
    cleanup.callback(controller.stop)
    return controller


def _make_device(plan: Plan, controller: Controller, continuity: Continuity | None) -> NvmeDevice:
    """The controller as a vfio-user device; it goes on where the process before us was killed."""
    tables = continuity.tables if continuity is not None else None
    device = NvmeDevice(
        PciFunction(controller),
        mapped_doorbells=plan.definition.mapped_doorbells,
        tables=tables,
        keeper=continuity,
    )
    if continuity is not None and continuity.resuming:
        for nsid in sorted(plan.gone):
            controller.namespace_changes.forget(nsid)
        device.restore(continuity.tables, continuity.files)
        device.carry_on()
        for nsid in sorted(plan.untold):
            controller.events.namespace_changed(nsid)
    return device


def _why_no_io_uring(error: OSError) -> str:
    reason = os.strerror(error.errno or 0)
    match error.errno:
        case errno.EPERM | errno.ENOSYS:
            advice = "allow it (sysctl kernel.io_uring_disabled, a container's seccomp profile)"
        case errno.ENOMEM:
            advice = "let it lock more memory (ulimit -l)"
        case _:
            advice = "null: and memory: targets do without it"
    return f"io_uring is not to be had here ({reason}): {advice}"


def _report(queues: QueueTable) -> None:
    """Say what the data path did, if it did anything."""
    for line in statistics_lines(queues.statistics()):
        log.info("%s", line)


def statistics_lines(statistics: PathStatistics) -> list[str]:
    """The three counters of NVME MDEV, a line each; none when there was no command."""
    if not statistics.translated.count:
        return []
    names = {
        "commands translated": statistics.translated,
        "commands completed": statistics.completed,
        "interrupts sent": statistics.interrupts,
    }
    return [
        f"{name}: {counter.count},"
        f" average {counter.mean_cycles:.0f} cycles,"
        f" {counter.mean_ns:.0f} ns"
        for name, counter in names.items()
    ]
