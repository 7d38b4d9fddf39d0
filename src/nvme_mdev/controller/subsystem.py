"""The NVM subsystem: controllers that can share namespaces (Base 2.4.1, 3.2.1.1).

A namespace that is attached to several controllers has the same NSID on each. Controllers of one
subsystem have its serial number and its NQN in common, and differ in CNTLID. What they know of a
namespace in common (:mod:`.shared_state`) holds on all of them from one moment on.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from nvme_mdev.controller import ptpl
from nvme_mdev.controller.memory_map import Scratch
from nvme_mdev.controller.shared_state import NamespaceState, SharedState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace

_log = logging.getLogger(__name__)


class Subsystem:
    """The controllers of one NVM subsystem, by CNTLID."""

    def __init__(self, shared: SharedState | None = None) -> None:
        """``shared``: what is known of the namespaces, None: nothing yet."""
        self._controllers: dict[int, Controller] = {}
        self.shared = SharedState() if shared is None else shared
        self.changing = asyncio.Lock()
        """Reservations are changed by one command at a time."""
        self.protecting = asyncio.Lock()
        """So is write protection."""
        self.refusing_writes: set[int] = set()
        """NSIDs of namespaces that are about to be write protected."""

    def __iter__(self) -> Iterator[Controller]:
        """The controllers, by ascending CNTLID."""
        return iter([self._controllers[cntlid] for cntlid in sorted(self._controllers)])

    def __len__(self) -> int:
        return len(self._controllers)

    def add(self, controller: Controller) -> None:
        """Take a controller in; ValueError: its CNTLID is in use."""
        cntlid = controller.settings.cntlid
        if cntlid in self._controllers:
            raise ValueError(f"controller {cntlid} exists")
        self._controllers[cntlid] = controller

    def remove(self, controller: Controller) -> None:
        """Let a controller go."""
        self._controllers.pop(controller.settings.cntlid, None)

    def attached(self, nsid: int) -> list[Controller]:
        """The controllers that the namespace is attached to."""
        return [one for one in self if one.namespaces.get(nsid) is not None]

    def holding(self, nsid: int) -> list[Controller]:
        """Those, and the controllers that have it but whose medium has gone."""
        return [one for one in self if one.namespaces.get(nsid) or nsid in one.namespaces.lost]

    def namespace_changed(self, nsid: int) -> None:
        """Tell the guest of each of these controllers that the namespace has changed."""
        for one in self.attached(nsid):
            one.events.namespace_changed(nsid)

    @property
    def sharing(self) -> bool:
        """Whether there are several controllers, so that namespaces can be shared (CMIC, NMIC)."""
        return len(self._controllers) > 1

    # -- what is known of namespaces -----------------------------------------------------------

    def know(self, controller: Controller, namespace: Namespace) -> None:
        """A namespace is being attached to a controller: if to no other, its reservations may be in
        a file."""
        path, nsid = namespace.backend.ptpl_file, namespace.nsid
        others = [one for one in self.holding(nsid) if one is not controller]
        if path is None or others or self.shared[nsid] != NamespaceState():
            return
        try:
            kept = ptpl.load(path)
        except (OSError, ValueError) as error:
            _log.error("namespace %d begins without reservations: %s", nsid, error)
            return
        if kept.ptpl:
            self.shared.reserve(nsid, kept)

    def forget(self, nsid: int) -> None:
        """A namespace was detached from a controller; another one of this NSID begins anew."""
        if not self.holding(nsid):
            self.shared.forget(nsid)

    def forget_detached(self) -> None:
        """All controllers that there are have begun, or one has gone: what else is known is of no
        namespace any more."""
        for nsid in self.shared.places:
            self.forget(nsid)

    def enforce(self, nsid: int) -> None:
        """Let the data path of each controller know, after a change."""
        sharers = self.holding(nsid)
        with standing(sharers):
            for one in sharers:
                one.enforce(nsid)

    def power_cycle(self, controller: Controller) -> None:
        """A controller has lost its power: with the last one that had any, the subsystem has."""
        if any(one.state.scratch[Scratch.POWERED] for one in self if one is not controller):
            return
        for nsid in self.shared:
            after = self.shared[nsid].after_power_loss()
            if after != self.shared[nsid]:
                self.shared[nsid] = after
                self.enforce(nsid)
                controller.enforce(nsid)


@contextmanager
def standing(controllers: Sequence[Controller]) -> Iterator[None]:
    """Each IOThread that serves one of them stands still, so that all see a change at once."""
    with ExitStack() as stack:
        for one in controllers:
            for iothread in one.queues.iothreads:
                iothread.pause()
                stack.callback(iothread.resume)
        yield
