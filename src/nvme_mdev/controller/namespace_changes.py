"""Namespaces that come, go and change their size while the guest runs (Base 3.2.1, 5.1.2.1).

The data path is changed first and the guest is told afterwards, in every case: what the guest looks
at because of the event is then already so. Each change puts the NSID on the Changed Namespace List
and raises Namespace Attribute Changed, if the guest has asked for that event. What happens to a
namespace that several controllers share happens to all of them at the same time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from nvme_mdev.controller.namespaces import make_namespace
from nvme_mdev.controller.subsystem import standing
from nvme_mdev.controller.transitions import State
from nvme_mdev.spec.nvme_features import Fid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.datapath.backends.base import Backend

_log = logging.getLogger(__name__)

_POLL_S = 0.001
"""How often to look whether commands in flight are done; I/O takes about 0.1 ms."""


class NamespaceChanges:
    """Adds, removes and resizes the namespaces of one controller."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._namespaces = controller.namespaces
        self.queues = controller.queues
        #: NSIDs whose size is being changed by us, or that are on their way out.
        self.busy: set[int] = set()

    def attach(self, nsid: int, backend: Backend) -> None:
        """Make a namespace active without telling; ValueError: the NSID cannot be had.

        OSError: the IOThread cannot serve the backend.
        """
        if nsid in self.busy:
            raise ValueError(f"namespace {nsid} is still being removed")
        namespace = make_namespace(nsid, backend, self.controller.settings.serial)
        with ExitStack() as rollback:
            self._namespaces.add(namespace)
            rollback.callback(self._namespaces.remove, nsid)
            for places in (self.controller.places, self.controller.subsystem.shared.places):
                if places.take(nsid):
                    rollback.callback(places.give, nsid)
            self.queues.namespaces.set(nsid, backend)
            rollback.pop_all()
        self.controller.subsystem.know(self.controller, namespace)
        self.controller.enforce(nsid)
        self.controller.erasing.attached(nsid)

    def add(self, nsid: int, backend: Backend) -> None:
        """Attach a namespace and tell the guest; errors as of :meth:`attach`."""
        cached = bool(self._namespaces.volatile())
        self.attach(nsid, backend)
        self.controller.erasing.joined()
        if backend.volatile_cache and not cached:
            self._keep_cache_off()
        self.controller.events.namespace_changed(nsid)

    def _keep_cache_off(self) -> None:
        """Identify Controller said that there is no volatile write cache, so no guest flushes one.

        Until a reset, after which drivers identify the controller again, writes are durable when
        they complete: that is what WCE = 0 means to the data path.
        """
        if self.controller.life_cycle.state is not State.DISABLED:
            self.controller.features[Fid.VOLATILE_WRITE_CACHE] = 0

    async def remove(self, nsid: int) -> Backend:
        """Detach a namespace and tell the guest; KeyError: there is none of this NSID.

        Commands in flight complete normally and are waited for; new ones find the NSID inactive
        (Invalid Field in Command, Base 3.2.1.4).
        """
        if nsid in self.busy:
            raise KeyError(nsid)
        lost = self._namespaces.lost.pop(nsid, None)
        namespace = lost or self._namespaces.remove(nsid)
        self.busy.add(nsid)
        try:
            self.queues.namespaces.retire(nsid)
            if lost is None:
                self.controller.events.namespace_changed(nsid)
            await self.unused(nsid)
            self.queues.namespaces.set(nsid, None)
            self.forget(nsid)
        finally:
            self.busy.discard(nsid)
        return namespace.backend

    def forget(self, nsid: int) -> None:
        """There is no such namespace any more; the next one with this NSID is another one."""
        self.queues.namespaces.forget_uncorrectable(nsid)
        self.controller.subsystem.forget(nsid)
        # Killed behind this, we are told to forget it again, when it has no place.
        if nsid in self.controller.places:
            self.controller.erasing.detached(nsid)
            self.controller.features.set_error_recovery(nsid, 0)
            self.controller.notices.set_mask(nsid, 0)
            self.controller.places.give(nsid)

    async def resize(self, nsid: int, size: int) -> None:
        """Give a namespace another size in bytes, its medium included, and tell the guests.

        KeyError: there is none of this NSID, or another change of it is under way. OSError: the
        medium cannot have that size, which leaves everything as it was.
        """
        namespace = self._namespaces.get(nsid)
        sharers = self._sharers(nsid)
        if namespace is None or any(nsid in one.busy for one in sharers):
            raise KeyError(nsid)
        backend, before = namespace.backend, namespace.backend.size
        for one in sharers:
            one.busy.add(nsid)
        try:
            if size >= before:
                backend.change_medium(size)
                _serve_size(sharers, nsid, size)
            else:
                await self._shrink(sharers, nsid, backend, size)
        finally:
            for one in sharers:
                one.busy.discard(nsid)
        if backend.size != before:
            self.controller.subsystem.namespace_changed(nsid)

    async def _shrink(
        self, sharers: Sequence[NamespaceChanges], nsid: int, backend: Backend, size: int
    ) -> None:
        """No new command beyond the end, then none in flight, then the medium is cut."""
        before = backend.size
        _serve_size(sharers, nsid, size)
        for one in sharers:
            await one.unused(nsid, backend.size)
        try:
            backend.change_medium(size)
        except OSError:
            _serve_size(sharers, nsid, before)
            raise

    def _sharers(self, nsid: int) -> list[NamespaceChanges]:
        """Of every controller that the namespace is attached to."""
        return [one.namespace_changes for one in self.controller.subsystem.holding(nsid)]

    async def unused(self, nsid: int, start: int = 0) -> None:
        """Return when no command in flight touches byte ``start`` or later of the namespace."""
        while self.queues.namespaces.in_use(nsid, start):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    def follow(self) -> None:
        """Take over what others have done to files and devices; never raises.

        They grow and shrink, become read-only and writable, disappear and come back.
        """
        for namespace in [*self._namespaces, *self._namespaces.lost.values()]:
            sharers = self._sharers(namespace.nsid)
            if not any(namespace.nsid in one.busy for one in sharers):
                self._follow_one(sharers, namespace.nsid, namespace.backend)

    def _follow_one(self, sharers: Sequence[NamespaceChanges], nsid: int, backend: Backend) -> None:
        try:
            size, read_only = backend.medium_size(), backend.medium_read_only()
            if not size:
                raise OSError(errno.ENODEV, "less than a block is left of it")
            changed = _adapt(sharers, nsid, backend, size, read_only=read_only)
        except OSError as error:
            if self._namespaces.get(nsid) is not None:
                _log.warning("namespace %d, %s is gone: %s", nsid, backend.name, _reason(error))
                for one in sharers:
                    one.lose(nsid)
            return
        found = nsid in self._namespaces.lost
        if found:
            _log.info("namespace %d, %s: it is back", nsid, backend.name)
            for one in sharers:
                one.find(nsid)
        if found or changed:
            self.controller.subsystem.namespace_changed(nsid)

    def lose(self, nsid: int) -> None:
        """The medium has gone, and the namespace with it: inactive until the medium comes back.

        Commands in flight end as the host ends their I/O.
        """
        if self._namespaces.get(nsid) is not None:
            self.queues.namespaces.retire(nsid)
            self._namespaces.lose(nsid)
            self.controller.events.namespace_changed(nsid)

    def medium_protected(self, nsid: int) -> None:
        """The medium became read-only or writable: what the guest has protected stays so."""
        self.controller.write_protection.enforce(nsid)
        self.controller.health.media_changed()

    def find(self, nsid: int) -> None:
        """The medium has come back."""
        if nsid in self._namespaces.lost:
            self.queues.namespaces.retire(nsid, False)
            self._namespaces.find(nsid)
            self.controller.enforce(nsid)
            self.controller.erasing.attached(nsid)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _adapt(
    sharers: Sequence[NamespaceChanges],
    nsid: int,
    backend: Backend,
    size: int,
    *,
    read_only: bool,
) -> bool:
    """Serve the medium as it is now; whether that is a change."""
    changed = False
    if size != backend.size:
        _serve_size(sharers, nsid, size)
        _log.info("namespace %d, %s: now %d bytes", nsid, backend.name, size)
        changed = True
    if read_only != backend.read_only:
        with standing([one.controller for one in sharers]):
            for one in sharers:
                one.queues.namespaces.protect(nsid, read_only)
                one.medium_protected(nsid)
        state = "read-only" if read_only else "writable"
        _log.info("namespace %d, %s: now %s", nsid, backend.name, state)
        changed = True
    return changed


def _serve_size(sharers: Sequence[NamespaceChanges], nsid: int, size: int) -> None:
    """Serve so many bytes of a backend from now on."""
    with standing([one.controller for one in sharers]):
        for one in sharers:
            one.queues.namespaces.resize(nsid, size)
