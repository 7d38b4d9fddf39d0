"""Controllers that come and go while the daemon serves others, and what they share.

A controller that is added either has targets of its own, and is an NVM subsystem of its own, or
shares all namespaces of another one and joins its subsystem. The controllers that share a namespace
have it under one NSID.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError
from nvme_mdev.service.assembly import Plan
from nvme_mdev.service.runtime import default_name
from nvme_mdev.service.targets import Access

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvme_mdev.controller.subsystem import Subsystem
    from nvme_mdev.service.backings import Backing
    from nvme_mdev.service.definition import Definition
    from nvme_mdev.service.registry import Registry
    from nvme_mdev.service.served import ServedController

MAX_CONTROLLERS = 1024
"""Of a daemon: arbitrary; the keeper holds 15 descriptors and more for each."""


@dataclass(frozen=True)
class _Membership:
    """What a new controller is a part of."""

    definition: Definition
    subsystem: Subsystem
    backings: dict[int, Backing]
    told: tuple[ServedController, ...] = ()
    """Controllers whose namespaces are shared from now on."""


async def add_controller(
    registry: Registry, definition: Definition, share: ServedController | None
) -> ServedController:
    """Make a controller and serve it; UserError: it cannot be had, and nothing is left of it.

    ``share``: the controller whose namespaces it has, instead of targets of its own.
    """
    async with registry.changing:
        _check_room(registry, definition)
        with ExitStack() as rollback:
            if share is None:
                part = await _alone(registry, definition, rollback)
            else:
                part = _sharing(registry, definition, share)
            name = definition.name or default_name(definition.socket)
            plan = Plan(
                registry.free_number(), name, part.definition, part.subsystem, part.backings
            )
            served = await registry.make(plan)
            rollback.pop_all()
        try:
            registry.publish(served, exact=definition.name is not None)
        except UserError:
            registry.remove(served)
            await served.close()
            registry.forget_subsystem(served)
            raise
        registry.save()
        _tell(part.told)
        return served


def _check_room(registry: Registry, definition: Definition) -> None:
    if len(registry) >= MAX_CONTROLLERS:
        raise UserError(f"the daemon serves {MAX_CONTROLLERS} controllers, which is the most")
    if any(one.name == definition.name for one in registry):
        raise UserError(f"a controller named {definition.name} is being served: choose another")


async def _alone(registry: Registry, definition: Definition, rollback: ExitStack) -> _Membership:
    """A controller with targets of its own, which are closed by ``rollback``."""
    serial = definition.serial_number
    other = next((one for one in registry if one.definition.serial_number == serial), None)
    if other is not None:
        raise UserError(f"serial {serial} is that of {other.name}: give another, or share with it")
    opened = await registry.backings.open_all(definition.targets, definition.access, rollback)
    for backing in opened:
        rollback.callback(registry.backings.release, backing)
    return _Membership(definition, registry.subsystem(serial), dict(enumerate(opened, 1)))


def _sharing(registry: Registry, definition: Definition, other: ServedController) -> _Membership:
    if definition.targets or definition.serial is not None:
        raise UserError("a controller that shares another's namespaces takes no target or serial")
    if definition.access != Access():
        raise UserError(
            "a controller that shares another's namespaces has them as they are: leave size, block"
            " size, read-only and limits out"
        )
    highest = other.definition.highest_nsid
    if definition.max_nsid not in (None, highest):
        raise UserError(
            f"the NSIDs of {other.name} end at {highest}, and so do those of all that share with"
            " it: leave the highest NSID out"
        )
    subsystem = other.controller.subsystem
    taken = {one.settings.cntlid for one in subsystem}
    joined = replace(
        definition,
        serial=other.definition.serial_number,
        max_nsid=highest,
        cntlid=next(cntlid for cntlid in range(1, MAX_CONTROLLERS + 2) if cntlid not in taken),
    )
    backings = {
        nsid: backing for nsid, backing in other.backings.items() if nsid not in other.untold
    }
    # One that is alone so far has told its guest that nothing is shared.
    told = () if subsystem.sharing else tuple(registry.peers(other))
    return _Membership(joined, subsystem, backings, told)


async def remove_controller(registry: Registry, served: ServedController, *, force: bool) -> None:
    """Take a controller down; UserError: it is in use, or the last."""
    async with registry.changing:
        if len(registry) == 1:
            raise UserError(f"{served.name} is the daemon's last controller: end the daemon")
        if served.server.connected and not force:
            raise UserError(
                f"{served.name} has a client: unplug it first, or disconnect it with --force"
            )
        peers = [one for one in registry.peers(served) if one is not served]
        registry.remove(served)
        registry.save()
        await served.close()
        served.controller.subsystem.forget_detached()
        registry.forget_subsystem(served)
        if len(peers) == 1:
            _tell(peers)


def _tell(controllers: Iterable[ServedController]) -> None:
    """Tell guests that their namespaces are shared now, or no longer (NMIC)."""
    for served in controllers:
        for namespace in served.controller.namespaces:
            served.controller.events.namespace_changed(namespace.nsid)


async def close_all(registry: Registry) -> None:
    """Take all controllers down, at the end."""
    await asyncio.gather(*(served.close() for served in list(registry)))
