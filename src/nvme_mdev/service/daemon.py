"""Serve one controller until a signal comes, and take everything down in order.

Going up: the thread (it needs io_uring and its CPU), the backends, the controller, the socket, the
control socket and the name by which that is found.
Whatever fails undoes what came before it, the image that was created included, so nothing is
reported ready that is not, and nothing is left behind. Going down is the same in reverse: no more
clients, no more commands, then the thread and the backends, and the socket's file is gone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.controller.controller import Controller
from nvme_mdev.controller.settings import (
    DEFAULT_MAX_TRANSFER,
    ControllerSettings,
    fitting_transfer,
)
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.queue_table import QueueTable
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.errors import UserError
from nvme_mdev.pci.function import PciFunction
from nvme_mdev.service import fdstore
from nvme_mdev.service.continuity import Continuity
from nvme_mdev.service.control import ControlServer
from nvme_mdev.service.endpoint import why_not_listening
from nvme_mdev.service.methods import handle
from nvme_mdev.service.nvme_device import NvmeDevice
from nvme_mdev.service.registry import Registry, ServedController
from nvme_mdev.service.runtime import default_name, publish
from nvme_mdev.service.targets import open_targets
from nvme_mdev.units import format_size
from nvme_mdev.vfio_user.server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.statistics import PathStatistics
    from nvme_mdev.service.definition import Definition
    from nvme_mdev.service.fdstore import FdStore

log = logging.getLogger(__name__)

#: What ends `serve`: Ctrl-C, a service manager, the terminal that went away.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNLOCKED_WITHIN_S = 2.0
"""How long an image or device may stay locked by a process that is gone."""
_UNLOCK_RETRY_S = 0.005
_ONLINE_CPUS = Path("/sys/devices/system/cpu/online")


def serve_until_stopped(definition: Definition) -> None:
    """Serve in the foreground; returns after a stop signal, UserError if it cannot be done."""
    asyncio.run(_serve(definition))


async def _serve(definition: Definition) -> None:
    stop = _stop_event()
    fd_store = fdstore.connect()
    async with AsyncExitStack() as cleanup:
        cleanup.callback(fd_store.close)
        continuity = None
        if fd_store.keeps:
            continuity = _continue(fd_store)
            cleanup.callback(continuity.close)
        served = await _start(definition, cleanup, continuity)
        line = ready_line(definition, list(served.backends.values()))
        fd_store.ready(line)
        if continuity is not None and continuity.resuming:
            log.info("carrying on at %s", definition.socket)
        else:
            log.info("%s", line)
        await stop.wait()
        log.debug("stopping")
        if continuity is not None:
            continuity.end()


def _stop_event() -> asyncio.Event:
    """An event that the first stop signal sets; a second one ends the process the hard way."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def stop_now() -> None:
        stop.set()
        for number in handled:
            loop.remove_signal_handler(number)

    handled = list(STOP_SIGNALS)
    # What nohup ignores stays ignored. A shell's background jobs ignore SIGINT, too, but for
    # another reason: there, whoever sends it to us means it.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        handled.remove(signal.SIGHUP)
    for number in handled:
        loop.add_signal_handler(number, stop_now)
    return stop


def _continue(fd_store: FdStore) -> Continuity:
    """What is kept, new or of the process before us."""
    try:
        return Continuity(fd_store, fdstore.inherited())
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot carry on after the process before this one: {error}") from error


async def _start(
    definition: Definition, cleanup: AsyncExitStack, continuity: Continuity | None
) -> ServedController:
    """Bring everything up; ``cleanup`` learns how to take it down again."""
    with ExitStack() as rollback:
        iothread = _start_iothread(definition)
        cleanup.callback(iothread.stop)
        if continuity is not None:
            # From here on no I/O of the process before us is in flight.
            iothread.lifeline = continuity.lifeline()
            cleanup.callback(os.close, iothread.lifeline)
        memory = continuity.memory if continuity is not None else None
        opened = await _open_targets(definition, rollback, memory)
        backends = dict(enumerate(opened, 1))
        cleanup.callback(_close, backends)
        controller = _make_controller(definition, iothread, backends, cleanup, continuity)
        device = _make_device(definition, controller, continuity)
        server = Server(device, definition.socket, continuity)
        cleanup.push_async_callback(server.close)
        try:
            await server.start()
        except OSError as error:
            raise UserError(why_not_listening(error, definition.socket)) from error
        if continuity is not None:
            if continuity.resuming:
                continuity.files.give_up_unclaimed()
            else:
                continuity.keep_all(opened)
        targets = {nsid: target.absolute for nsid, target in enumerate(definition.targets, 1)}
        name = definition.name or default_name(definition.socket)
        served = ServedController(
            name, definition, controller, device, server, iothread, targets, backends
        )
        if definition.control is not None:
            await _start_control(served, definition.control, cleanup)
        # Everything is up: from here on the images stay.
        rollback.pop_all()
    return served


def _close(backends: dict[int, Backend]) -> None:
    """Close the backends that are open then, not those that were opened first."""
    for backend in backends.values():
        backend.close()


async def _start_control(served: ServedController, path: Path, cleanup: AsyncExitStack) -> None:
    """The control socket, and the name under which it is found."""
    registry = Registry()
    registry.add(served)
    server = ControlServer(path, partial(handle, registry))
    cleanup.push_async_callback(server.close)
    try:
        await server.start()
    except OSError as error:
        raise UserError(why_not_listening(error, path, "--control")) from error
    try:
        entry = publish(served.name, path, exact=served.definition.name is not None)
    except OSError as error:
        log.debug("not to be found by name: %s", error)
        return
    if entry is not None:
        cleanup.callback(entry.remove)
        registry.rename(served, entry.name)


async def _open_targets(
    definition: Definition, rollback: ExitStack, memory: Mapping[int, int] | None
) -> list[Backend]:
    """Open the targets; the kernel may need a moment to unlock those of a process that died."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (_UNLOCKED_WITHIN_S if memory is not None else 0)
    while True:
        try:
            return open_targets(definition.targets, definition.access, rollback, memory)
        except UserError as error:
            cause = error.__cause__
            busy = isinstance(cause, OSError) and cause.errno == errno.EBUSY
            if not busy or loop.time() > deadline:
                raise
        await asyncio.sleep(_UNLOCK_RETRY_S)


def _make_controller(
    definition: Definition,
    iothread: IOThread,
    backends: dict[int, Backend],
    cleanup: AsyncExitStack,
    continuity: Continuity | None,
) -> Controller:
    """The controller, from its shared memory up, running in this event loop."""
    settings = ControllerSettings(
        definition.serial_number,
        io_queues=definition.queues,
        shadow_doorbell=definition.shadow_doorbell,
        io_timeout_ms=definition.io_timeout_ms,
        max_transfer=fitting_transfer(DEFAULT_MAX_TRANSFER, backends.values()),
    )
    state = continuity.state if continuity is not None else ControllerState()
    if continuity is None:
        cleanup.callback(state.close)
    queues = QueueTable(state, GuestMemory(), iothread, max_transfer=settings.max_transfer)
    cleanup.callback(queues.close)
    cleanup.callback(_report, queues)
    try:
        controller = Controller(settings, state, queues, backends)
    except OSError as error:
        raise UserError(_why_no_io_uring(error)) from error
    controller.start()
    cleanup.callback(controller.stop)
    return controller


def _make_device(
    definition: Definition, controller: Controller, continuity: Continuity | None
) -> NvmeDevice:
    """The controller as a vfio-user device; it goes on where the process before us was killed."""
    tables = continuity.tables if continuity is not None else None
    device = NvmeDevice(
        PciFunction(controller), mapped_doorbells=definition.mapped_doorbells, tables=tables
    )
    if continuity is not None and continuity.resuming:
        device.restore(continuity.tables, continuity.files)
        controller.carry_on()
    return device


def _start_iothread(definition: Definition) -> IOThread:
    cpu = definition.iothread_cpu
    iothread = IOThread("iothread-0", cpu=cpu, poll_timeout_ms=definition.poll_timeout_ms)
    try:
        iothread.start()
    except OSError as error:
        raise UserError(_why_no_iothread(error, cpu)) from error
    return iothread


def _why_no_iothread(error: OSError, cpu: int | None) -> str:
    if cpu is not None and error.errno == errno.EINVAL:
        return f"--iothread-cpu {cpu}: there is no such CPU here: choose one of {_online_cpus()}"
    return f"the polling thread does not start: {os.strerror(error.errno or 0)}"


def _online_cpus() -> str:
    """The processors as a list like ``0-3,8``."""
    try:
        return _ONLINE_CPUS.read_text().strip()
    except OSError:  # no /sys, in a chroot
        return f"0-{(os.cpu_count() or 1) - 1}"


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


def ready_line(definition: Definition, backends: list[Backend]) -> str:
    """What `serve` says once it serves; the demo and the tests wait for it."""
    namespaces = ", ".join(
        f"namespace {nsid} {target.text} ({_describe(backend)})"
        for nsid, (target, backend) in enumerate(zip(definition.targets, backends, strict=True), 1)
    )
    return f"ready on {definition.socket}: {namespaces}, serial {definition.serial_number}"


def _describe(backend: Backend) -> str:
    parts = [format_size(backend.size), f"{backend.block_size} B blocks"]
    if backend.read_only:
        parts.append("read-only")
    return ", ".join(parts)


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
        f" average {counter.cycles / counter.count if counter.count else 0:.0f} cycles,"
        f" {counter.mean_ns:.0f} ns"
        for name, counter in names.items()
    ]
