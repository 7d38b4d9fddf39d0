"""Namespaces that come, go and change their size while the guest runs (Base 3.2.1, 5.1.2.1).

The data path is changed first and the guest is told afterwards, in every case: what the guest looks
at because of the event is then already so. Each change puts the NSID on the Changed Namespace List
and raises Namespace Attribute Changed, if the guest has asked for that event. What happens to a
namespace that several controllers share happens to all of them at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from nvme_mdev.controller.namespaces import make_namespace
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
        self._controller = controller
        self._namespaces = controller.namespaces
        self.queues = controller.queues
        #: NSIDs whose size is being changed by us, or that are on their way out.
        self.busy: set[int] = set()
        #: NSIDs whose medium could not be asked for its size, so that it is said once.
        self._lost: set[int] = set()

    def attach(self, nsid: int, backend: Backend) -> None:
        """Make a namespace active without telling; ValueError: the NSID cannot be had.

        OSError: the IOThread cannot serve the backend.
        """
        if nsid in self.busy:
            raise ValueError(f"namespace {nsid} is still being removed")
        self._namespaces.add(make_namespace(nsid, backend, self._controller.settings.serial))
        try:
            self.queues.set_namespace(nsid, backend)
        except BaseException:
            self._namespaces.remove(nsid)
            raise

    def add(self, nsid: int, backend: Backend) -> None:
        """Attach a namespace and tell the guest; errors as of :meth:`attach`."""
        cached = bool(self._namespaces.volatile())
        self.attach(nsid, backend)
        if backend.volatile_cache and not cached:
            self._keep_cache_off()
        self._controller.events.namespace_changed(nsid)

    def _keep_cache_off(self) -> None:
        """Identify Controller said that there is no volatile write cache, so no guest flushes one.

        Until a reset, after which drivers identify the controller again, writes are durable when
        they complete: that is what WCE = 0 means to the data path.
        """
        if self._controller.life_cycle.state is not State.DISABLED:
            self._controller.features[Fid.VOLATILE_WRITE_CACHE] = 0

    async def remove(self, nsid: int) -> Backend:
        """Detach a namespace and tell the guest; KeyError: there is none of this NSID.

        Commands in flight complete normally and are waited for; new ones find the NSID inactive
        (Invalid Field in Command, Base 3.2.1.4).
        """
        if nsid in self.busy:
            raise KeyError(nsid)
        namespace = self._namespaces.remove(nsid)
        self.busy.add(nsid)
        try:
            self.queues.retire_namespace(nsid)
            self._controller.events.namespace_changed(nsid)
            await self.unused(nsid)
            self.queues.set_namespace(nsid, None)
        finally:
            self.busy.discard(nsid)
            self._lost.discard(nsid)
        return namespace.backend

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
            self._tell(nsid)

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
        return [one.namespace_changes for one in self._controller.subsystem.attached(nsid)]

    def _tell(self, nsid: int) -> None:
        """Tell the guest of each of these controllers that the namespace has changed."""
        for controller in self._controller.subsystem.attached(nsid):
            controller.events.namespace_changed(nsid)

    async def unused(self, nsid: int, start: int = 0) -> None:
        """Return when no command in flight touches byte ``start`` or later of the namespace."""
        while self.queues.namespace_in_use(nsid, start):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    def follow(self) -> None:
        """Take over the sizes that files and devices were given by others; never raises."""
        for namespace in self._namespaces:
            if namespace.nsid not in self.busy:
                self._follow_one(namespace.nsid, namespace.backend)

    def _follow_one(self, nsid: int, backend: Backend) -> None:
        try:
            size = backend.medium_size()
            if size == backend.size:
                return
            _serve_size(self._sharers(nsid), nsid, size)
        except OSError as error:
            if nsid not in self._lost:
                _log.warning("namespace %d, %s: %s", nsid, backend.name, error)
            self._lost.add(nsid)
            return
        self._lost.discard(nsid)
        _log.info("namespace %d, %s: now %d bytes", nsid, backend.name, size)
        self._tell(nsid)


def _serve_size(sharers: Sequence[NamespaceChanges], nsid: int, size: int) -> None:
    """Serve so many bytes of a backend from now on, on all of its controllers at once.

    Each IOThread that serves it stands still until all of them know: the backend moves once.
    """
    with ExitStack() as standing:
        for one in sharers:
            iothread = one.queues.iothread
            iothread.pause()
            standing.callback(iothread.resume)
        for one in sharers:
            one.queues.resize_namespace(nsid, size)
