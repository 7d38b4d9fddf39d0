"""Serve controllers until a signal comes, and take everything down in order.

Going up: the targets, the controllers (:mod:`.assembly`), the control socket, and the names by
which they are found. Whatever fails undoes what came before it, the images that were created
included, so nothing is reported ready that is not, and nothing is left behind. Going down is the
same in reverse.

A process that follows one that was killed serves what that one had served at last, not what the
command line says (:mod:`.record`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvme_mdev.errors import UserError
from nvme_mdev.service import fdstore
from nvme_mdev.service.assembly import Assembly, Plan
from nvme_mdev.service.backings import Backings
from nvme_mdev.service.continuity import Kept
from nvme_mdev.service.control import ControlServer
from nvme_mdev.service.controllers import close_all
from nvme_mdev.service.definition import from_options
from nvme_mdev.service.endpoint import why_not_listening
from nvme_mdev.service.keeper import EXIT_RESTART
from nvme_mdev.service.registry import Registry
from nvme_mdev.service.runtime import default_name
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.service.definition import Definition
    from nvme_mdev.service.fdstore import FdStore
    from nvme_mdev.service.record import Record
    from nvme_mdev.service.served import ServedController

log = logging.getLogger(__name__)

#: What ends `serve`: Ctrl-C, a service manager, the terminal that went away.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECOND_SIGNAL_S = 1.0
"""How long after the first one a second stop signal is taken for the same."""


def serve_until_stopped(definitions: Sequence[Definition]) -> None:
    """Serve in the foreground; returns after a stop signal, UserError if it cannot be done.

    The controllers share the targets of the first, whose control socket is the daemon's. Stop
    signals are blocked afterwards: the process is to end.
    """
    asyncio.run(_serve(definitions))


async def _serve(definitions: Sequence[Definition]) -> None:
    stop = _stop_event()
    fd_store = fdstore.connect()
    async with AsyncExitStack() as cleanup:
        cleanup.callback(fd_store.close)
        kept = None
        if fd_store.keeps:
            kept = _kept(fd_store)
            cleanup.callback(kept.close)
        registry = await _start(definitions, cleanup, kept)
        status = f"carrying on at {', '.join(str(one.definition.socket) for one in registry)}"
        if kept is None or not kept.resuming:
            status = ready_line(list(registry))
        fd_store.ready(status)
        log.info("%s", status)
        if await _until(stop, registry.restart_asked):
            log.info("restarting, as asked")
            logging.shutdown()
            # As if killed: what is kept is for the next process.
            os._exit(EXIT_RESTART)
        log.debug("stopping")
        if kept is not None:
            kept.end()
    # The loop's end gives the signals their default back: one that is late is still no second one.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


async def _until(stop: asyncio.Event, restart: asyncio.Event) -> bool:
    """Wait for the end; whether it is one to start again from."""
    waiting = [asyncio.create_task(event.wait()) for event in (stop, restart)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return restart.is_set() and not stop.is_set()


def _stop_event() -> asyncio.Event:
    """An event that the first stop signal sets; a second one ends the process the hard way."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def stop_now() -> None:
        if not stop.is_set():
            stop.set()
            # Not at once: some send a signal to a process and to its group, which are two.
            loop.call_later(_SECOND_SIGNAL_S, give_way)

    def give_way() -> None:
        for number in handled:
            loop.remove_signal_handler(number)

    handled = list(STOP_SIGNALS)
    # What nohup ignores stays ignored. A shell's background jobs ignore SIGINT, too, but for
    # another reason: there, whoever sends it to us means it.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        handled.remove(signal.SIGHUP)
    for number in handled:
        loop.add_signal_handler(number, stop_now)
    # Who started us may have had them blocked, which is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    return stop


def _kept(fd_store: FdStore) -> Kept:
    """What is kept, new or of the process before us."""
    try:
        return Kept(fd_store, fdstore.inherited())
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot carry on after the process before this one: {error}") from error


async def _start(
    definitions: Sequence[Definition], cleanup: AsyncExitStack, kept: Kept | None
) -> Registry:
    """Bring everything up; ``cleanup`` learns how to take it down again."""
    lifeline = -1
    if kept is not None:
        # From here on no I/O of the process before us is in flight.
        lifeline = kept.lifeline()
        cleanup.callback(os.close, lifeline)
    backings = Backings(kept)
    cleanup.callback(backings.close)
    registry = Registry(backings, kept)
    registry.make = Assembly(registry, kept, lifeline).make
    cleanup.push_async_callback(close_all, registry)
    with ExitStack() as rollback:
        if kept is not None and kept.record is not None:
            plans = await _plans_of_record(kept.record, registry)
        else:
            plans = _plans(definitions, registry, rollback)
        for plan in plans:
            await registry.make(plan)
        registry.forget_detached()
        if definitions[0].control is not None:
            await _start_control(registry, definitions, cleanup, kept)
        registry.save()
        if kept is not None:
            kept.complete()
        # Everything is up: from here on the images stay.
        rollback.pop_all()
    return registry


def _plans(
    definitions: Sequence[Definition], registry: Registry, rollback: ExitStack
) -> list[Plan]:
    """What the command line asks for."""
    first = definitions[0]
    opened = registry.backings.open(first.targets, first.access, rollback)
    return [
        Plan(
            number,
            definition.name or default_name(definition.socket),
            replace(definition, serial=first.serial_number, cntlid=number),
            registry.subsystem(first.serial_number),
            dict(enumerate(opened, 1)),
        )
        for number, definition in enumerate(definitions, 1)
    ]


async def _plans_of_record(record: Record, registry: Registry) -> list[Plan]:
    """What the process before us has served at last."""
    found = {}
    changed = set()
    for backing_record in record.backings:
        backing = await registry.backings.reopen(backing_record)
        if backing is not None:
            found[backing_record.number] = backing
        if backing is None or backing.backend.size != backing_record.size:
            changed.add(backing_record.number)
    plans = []
    for one in record.controllers:
        namespaces = {int(nsid): number for nsid, number in one.namespaces.items()}
        definition = from_options(Path(one.socket), one.name, one.options)
        plans.append(
            Plan(
                one.number,
                one.name,
                definition,
                registry.subsystem(definition.serial_number),
                {nsid: found[number] for nsid, number in namespaces.items() if number in found},
                frozenset(one.untold)
                | {nsid for nsid, number in namespaces.items() if number in changed},
                frozenset(nsid for nsid, number in namespaces.items() if number not in found),
            )
        )
    return plans


async def _handle(registry: Registry, method: str, params: dict[str, Any]) -> Any:
    # A third of all our data classes: without them a daemon is ready a twelfth sooner.
    from nvme_mdev.service.methods import handle

    return await handle(registry, method, params)


async def _start_control(
    registry: Registry,
    definitions: Sequence[Definition],
    cleanup: AsyncExitStack,
    kept: Kept | None,
) -> None:
    """The control socket, and the names under which the controllers are found."""
    path = definitions[0].control
    assert path is not None
    server = ControlServer(path, partial(_handle, registry))
    cleanup.push_async_callback(server.close)
    inherited = kept.control() if kept is not None else None
    try:
        await server.start(inherited)
    except OSError as error:
        raise UserError(why_not_listening(error, path, "--control")) from error
    if kept is not None and inherited is None:
        kept.keep_control(server.fileno())
    registry.control = path
    resuming = kept is not None and kept.resuming
    chosen = set() if resuming else {one.name for one in definitions}
    for served in list(registry):
        registry.publish(served, exact=served.name in chosen)


def ready_line(controllers: Sequence[ServedController]) -> str:
    """What `serve` says once it serves; the demo and the tests wait for it."""
    served = controllers[0]
    namespaces = ", ".join(
        f"namespace {nsid} {backing.target.text} ({_describe(backing.backend)})"
        for nsid, backing in served.backings.items()
    )
    sockets = ", ".join(str(one.definition.socket) for one in controllers)
    return f"ready on {sockets}: {namespaces}, serial {served.definition.serial_number}"


def _describe(backend: Backend) -> str:
    parts = [format_size(backend.size), f"{backend.block_size} B blocks"]
    if backend.read_only:
        parts.append("read-only")
    if backend.encrypted:
        parts.append("encrypted")
    return ", ".join(parts)
