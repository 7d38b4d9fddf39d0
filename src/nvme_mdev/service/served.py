"""A controller behind its socket: what it is made of, and what can be done to it at run time."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from nvme_mdev.controller.places import DIRECT_PLACES, HIGH_PLACES
from nvme_mdev.errors import UserError
from nvme_mdev.service.definition import join_cpus, options, spread_cpus
from nvme_mdev.service.iothreads import pin
from nvme_mdev.service.limits import change_limits, parse_limits
from nvme_mdev.service.record import ControllerRecord
from nvme_mdev.service.settings import setting
from nvme_mdev.spec.nvme_commands import MAX_NSID
from nvme_mdev.spec.vfio_user import PciIrq
from nvme_mdev.units import MAX_SIZE, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace
    from nvme_mdev.datapath.iothread import IOThread
    from nvme_mdev.service.api import SettingValue
    from nvme_mdev.service.backings import Backing, Backings
    from nvme_mdev.service.definition import Definition
    from nvme_mdev.service.nvme_device import NvmeDevice
    from nvme_mdev.service.targets import Access, Target
    from nvme_mdev.vfio_user.server import Server

_ASK_AGAIN_S = 10.0
"""How often the request interrupt is repeated while the client stays, as the kernel's VFIO does."""
_GONE_POLL_S = 0.02
"""How often to look whether a client that was asked to has left."""


@dataclass(eq=False)
class ServedController:
    """One controller behind its socket; methods run in the event loop, errors are UserErrors.

    A change is written down for the next process (`save`) before it is answered. NSIDs whose guest
    may not know yet are written down with it, so that the next process tells it.
    """

    number: int
    """The daemon's own; the same for the next process."""
    name: str
    definition: Definition
    """The settings are those of now; the targets are those at the start."""
    controller: Controller
    device: NvmeDevice
    server: Server
    iothreads: list[IOThread]
    backings: dict[int, Backing]
    """By NSID: what each namespace is made of, those on their way out included."""
    opened: Backings
    save: Callable[[], None]
    """Write down what the daemon serves."""
    cleanup: AsyncExitStack
    """How to take it down."""
    peers: Callable[[ServedController], list[ServedController]]
    """The controllers of its NVM subsystem, itself included."""
    untold: set[int] = field(default_factory=set)

    @property
    def record(self) -> ControllerRecord:
        """For the next process."""
        return ControllerRecord(
            self.number,
            self.name,
            str(self.definition.socket),
            options(self.definition),
            {str(nsid): backing.number for nsid, backing in self.backings.items()},
            sorted(self.untold),
        )

    async def close(self) -> None:
        """Send the client away, finish what is in flight, and take the controller down."""
        await self.cleanup.aclose()

    # -- namespaces --------------------------------------------------------------------------

    def namespace(self, nsid: int) -> Namespace:
        """The active namespace, or one whose medium has gone."""
        namespaces = self.controller.namespaces
        found = namespaces.get(nsid) or namespaces.lost.get(nsid)
        if found is None:
            there = ", ".join(str(one.nsid) for one in self.controller.namespaces) or "none"
            raise UserError(f"{self.name} has no namespace {nsid}: there are {there}")
        return found

    async def add_namespace(
        self, target: Target, access: Access, nsid: int | None, *, shared: bool = False
    ) -> Namespace:
        """Open a target and attach it; without an NSID it gets the lowest that is free.

        ``shared``: to every controller of the NVM subsystem.
        """
        if nsid is not None:
            self._check_free(nsid)
        with ExitStack() as rollback:
            (backing,) = await self.opened.open_all([target], access, rollback)
            rollback.callback(self.opened.release, backing)
            chosen = self._free_nsid() if nsid is None else nsid
            self._check_free(chosen)
            self._attach(self.peers(self) if shared else [self], chosen, backing)
            rollback.pop_all()
        return self.namespace(chosen)

    def attach_namespace(self, nsid: int) -> Namespace:
        """Share a namespace of another controller of the NVM subsystem."""
        if nsid in self.backings:
            raise UserError(f"{self.name} has namespace {nsid} already")
        holders = [one for one in self.peers(self) if nsid in one.backings]
        if not holders or nsid in holders[0].untold:
            raise UserError(f"no controller that {self.name} shares with has a namespace {nsid}")
        self._attach([self], nsid, holders[0].backings[nsid])
        return self.namespace(nsid)

    def _attach(self, sharers: Sequence[ServedController], nsid: int, backing: Backing) -> None:
        """Attach a namespace, such that the next process has it and the guests know."""
        for one in sharers:
            one.check_transfer(backing)
        for one in sharers:
            self.opened.claim(backing)
            one.backings[nsid] = backing
            one.untold.add(nsid)
        self.save()
        waiting = list(sharers)
        try:
            while waiting:
                waiting[0].controller.add_namespace(nsid, backing.backend)
                waiting.pop(0)
        finally:
            for one in waiting:
                del one.backings[nsid]
            for one in sharers:
                one.untold.discard(nsid)
            self.save()
            for _ in waiting:
                self.opened.release(backing)

    def check_transfer(self, backing: Backing) -> None:
        """The guest was told how much a command may move; that holds for all its namespaces."""
        told, limit = self.controller.settings.max_transfer, backing.backend.transfer_limit
        if limit and limit < told:
            raise UserError(
                f"{backing.target.text} moves at most {format_size(limit)} a command, and"
                f" {self.name} offers {format_size(told)}: serve it from the start"
            )

    def _check_free(self, nsid: int) -> None:
        highest = self.controller.settings.max_nsid
        if not 1 <= nsid <= MAX_NSID:
            raise UserError(f"namespace {nsid}: give an NSID from 1 to {highest}")
        if nsid > highest:
            raise UserError(
                f"namespace {nsid}: the NSIDs of {self.name} end at {highest}: give a lower one, or"
                f" serve it with --max-nsid {nsid}"
            )
        for one in self.peers(self):
            if nsid in one.backings:
                raise UserError(f"{one.name} has a namespace {nsid} already: give another NSID")
        high = [one for one in self._taken() if one > DIRECT_PLACES]
        if nsid > DIRECT_PLACES and len(high) >= HIGH_PLACES:
            raise UserError(
                f"{self.name} has {HIGH_PLACES} namespaces above {DIRECT_PLACES}, which is the"
                " most: remove one"
            )

    def _free_nsid(self) -> int:
        taken, highest = self._taken(), self.controller.settings.max_nsid
        lowest = next(nsid for nsid in count(1) if nsid not in taken)
        if lowest > highest:
            raise UserError(f"{self.name} has {highest} namespaces, which is the most: remove one")
        return lowest

    def _taken(self) -> set[int]:
        """The NSIDs of all namespaces of the NVM subsystem."""
        return {nsid for one in self.peers(self) for nsid in one.backings}

    async def remove_namespace(self, nsid: int, *, everywhere: bool = False) -> None:
        """Detach a namespace, wait for its I/O, and close it, unless others share it.

        ``everywhere``: from them, too.
        """
        self.namespace(nsid)
        sharers = [one for one in self.peers(self) if nsid in one.backings and everywhere]
        sharers = sharers or [self]
        if any(nsid in one.untold for one in sharers):
            raise _being_changed(nsid)
        # Until it is gone the next process has it still: then the guest is told so again.
        for one in sharers:
            one.untold.add(nsid)
        self.save()
        removed = []
        try:
            for one in sharers:
                await one.controller.remove_namespace(nsid)
                removed.append(one.backings.pop(nsid))
        except KeyError:
            raise _being_changed(nsid) from None
        finally:
            for one in sharers:
                one.untold.discard(nsid)
            self.save()
            for backing in removed:
                self.opened.release(backing)

    async def resize_namespace(self, nsid: int, size: int) -> Namespace:
        """Give a namespace, and its image file, another size (bytes)."""
        namespace = self.namespace(nsid)
        backend = namespace.backend
        if size % backend.block_size or not 0 < size <= MAX_SIZE:
            raise UserError(
                f"namespace {nsid}: its size must be a multiple of {backend.block_size} bytes, and"
                " not 0"
            )
        if nsid in self.controller.namespaces.lost:
            raise UserError(
                f"namespace {nsid}: {backend.name} is gone: bring it back, or remove the namespace"
            )
        if backend.read_only:
            raise UserError(f"namespace {nsid} is read-only: resize {backend.name} itself")
        try:
            await self.controller.resize_namespace(nsid, size)
        except KeyError:
            raise _being_changed(nsid) from None
        except OSError as error:
            raise UserError(_why_not_resized(nsid, self.backings[nsid].target, error)) from error
        self.save()
        return namespace

    def limit_namespace(self, nsid: int, changes: Mapping[str, int | str | None]) -> Namespace:
        """Change limits of a namespace, for all controllers that share it; None: no limit."""
        namespace = self.namespace(nsid)
        backend = namespace.backend
        backend.set_limits(change_limits(backend.limits, parse_limits(changes)))
        self.save()
        return namespace

    # -- settings ----------------------------------------------------------------------------

    def settings(self) -> dict[str, tuple[SettingValue, bool]]:
        """Each setting's value, and whether it waits for a reset."""
        controller = self.controller
        waits = controller.shadow_doorbell != controller.settings.shadow_doorbell
        return {
            "iothread_cpu": (join_cpus([thread.cpu for thread in self.iothreads]), False),
            "poll_timeout_ms": (self.iothreads[0].poll_timeout_ms, False),
            "io_timeout_ms": (controller.settings.io_timeout_ms, False),
            "shadow_doorbell": (controller.shadow_doorbell, waits),
            "mapped_doorbells": (self.device.mapped_doorbells, False),
        }

    def change_settings(self, changes: Mapping[str, SettingValue]) -> None:
        """Change settings, all or none of them."""
        for name, value in changes.items():
            setting(name).check(name, value)
        self._check_doorbells(changes)
        # First what the kernel can refuse: the others cannot fail once they are checked.
        if "iothread_cpu" in changes:
            pin(self.iothreads, spread_cpus(changes["iothread_cpu"], len(self.iothreads)))
        for name, value in changes.items():
            if name != "iothread_cpu":
                self._change(name, value)
        chosen: dict[str, Any] = dict(changes)
        self.definition = replace(self.definition, **chosen)
        self.save()

    def _check_doorbells(self, changes: Mapping[str, SettingValue]) -> None:
        wanted = changes.get("mapped_doorbells", self.device.mapped_doorbells)
        if self.server.connected and wanted != self.device.mapped_doorbells:
            raise UserError(
                "mapped_doorbells can be changed while no client is connected: unplug first"
            )

    def _change(self, name: str, value: SettingValue) -> None:
        appliers: dict[str, Callable[[], None]] = {
            "poll_timeout_ms": lambda: self._poll_for(int(value or 0)),
            "io_timeout_ms": lambda: self.controller.set_io_timeout(int(value or 0)),
            "shadow_doorbell": lambda: setattr(self.controller, "shadow_doorbell", bool(value)),
            "mapped_doorbells": lambda: self.device.offer_doorbells(mapped=bool(value)),
        }
        appliers[name]()

    def _poll_for(self, milliseconds: int) -> None:
        for thread in self.iothreads:
            thread.configure(poll_timeout_ms=milliseconds)

    # -- giving it back ----------------------------------------------------------------------

    async def unplug(self, timeout_s: float, *, force: bool) -> tuple[bool, bool]:
        """Ask the client to go, and wait; whether there was one, and whether it was forced.

        The request interrupt (VFIO_PCI_REQ_IRQ_INDEX) is what the client is asked with.
        """
        if not self.server.connected:
            return False, False
        if not self.device.signal(PciIrq.REQ) and not force:
            raise UserError(
                f"{self.name}: the client takes no requests: end it, or disconnect it with --force"
            )
        if await self._left(timeout_s):
            return True, False
        if not force:
            raise UserError(
                f"{self.name}: the client is still there after {timeout_s:g} s: wait longer"
                " (--timeout), or disconnect it with --force"
            )
        await self.server.disconnect()
        return True, True

    async def _left(self, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        ask_again = loop.time() + _ASK_AGAIN_S
        while self.server.connected:
            if loop.time() >= deadline:
                return False
            if loop.time() >= ask_again:
                self.device.signal(PciIrq.REQ)
                ask_again += _ASK_AGAIN_S
            await asyncio.sleep(_GONE_POLL_S)
        return True


def _being_changed(nsid: int) -> UserError:
    return UserError(f"namespace {nsid} is being changed by someone else: try again")


def _why_not_resized(nsid: int, target: Target, error: OSError) -> str:
    name = target.text
    if target.kind == "memory":
        return f"namespace {nsid}: there is not that much memory: give a smaller size"
    match error.errno:
        case errno.ENOTSUP if target.options.length is not None:
            return (
                f"{name} is a part with a length of its own: remove namespace {nsid}, add another"
            )
        case errno.ENOTSUP:
            return f"{name} is a block device: resize it where it is made, namespace {nsid} follows"
        case errno.EFBIG | errno.EINVAL:
            return f"{name}: its file system holds no file of that size: give a smaller one"
        case _:
            return f"{name}: {os.strerror(error.errno or errno.EIO)}"
