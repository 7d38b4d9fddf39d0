"""Decides whether a controller's guest is served through a relay, and keeps its DMA windows.

That is so from the moment that the guest enables the controller with an admin queue in memory
without a file descriptor, until it enables it with one that it shares, or leaves. Meanwhile all of
its memory is behind the shadow, what it shares included, so that every command is the same to the
data path.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from nvme_mdev.controller.registers import admin_queues
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.service.relay.files import RELAY, SHADOW, RelayFiles
from nvme_mdev.service.relay.guest import Guest, PrivateWindow, PrivateWindows
from nvme_mdev.service.relay.shadow import Shadow
from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE_SIZE

if TYPE_CHECKING:
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.service.relay.files import Keeper
    from nvme_mdev.service.relay.pump import Pump
    from nvme_mdev.vfio_user.client_memory import ClientMemory

_log = logging.getLogger(__name__)


class Relay:
    """The memory of one controller's clients, and how it is reached."""

    def __init__(self, controller: Controller, keeper: Keeper | None = None) -> None:
        """``keeper``: who keeps what the next process needs; None: there is none."""
        self._controller = controller
        self._queues = controller.queues
        self._keeper = keeper
        self._shared = controller.queues.memory
        self._private = PrivateWindows()
        self._guest = Guest(self._shared, self._private)
        self._files: RelayFiles | None = None
        self._shadow: Shadow | None = None
        self._pump: Pump | None = None
        self._event_fd = -1
        self._given_doorbells = False
        controller.life_cycle.before_start = self._before_start

    @property
    def active(self) -> bool:
        """Whether the guest is served so."""
        return self._pump is not None

    # -- windows -----------------------------------------------------------------------------

    def map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """A DMA window; raises as `DmaWindows.map`."""
        if self._shadow is None:
            self._queues.dma.map(iova, size, fd, offset, readable=readable, writable=writable)
        else:
            self._shared.map(iova, size, fd, offset, readable=readable, writable=writable)
            try:
                self._map_shadow(self._shadow, iova, size, readable=readable, writable=writable)
            except BaseException:
                self._shared.unmap(iova, size)
                raise
        if fd is None:
            self._private.add(PrivateWindow(iova, size, readable, writable))
        if self._pump is not None:
            self._pump.look()

    def _map_shadow(
        self, shadow: Shadow, iova: int, size: int, *, readable: bool, writable: bool
    ) -> None:
        for piece in shadow.place(iova, size):
            self._queues.dma.map(
                piece.iova,
                piece.size,
                shadow.fd,
                piece.offset,
                readable=readable,
                writable=writable,
            )

    def try_unmap(self, iova: int, size: int) -> int | None:
        """Take windows away; as `DmaWindows.try_unmap`.

        Nothing waits for messages that are under way: the client answers them when it is done with
        this, as it likes.
        """
        if self.active:
            # First: the windows here are the client's, those of the shadow may be in pieces.
            self._shared.unmap(iova, size)
        removed = self._queues.dma.try_unmap(iova, size)
        if removed is not None:
            self._forget_windows(iova, size)
        return removed

    def try_unmap_all(self) -> int | None:
        """As `DmaWindows.try_unmap_all`."""
        removed = self._queues.dma.try_unmap_all()
        if removed is not None:
            if self.active:
                self._shared.clear()
            self._forget_windows(0, 1 << 64)
        return removed

    def _forget_windows(self, iova: int, size: int) -> None:
        self._private.remove(iova, size)
        self._guest.unmapped_at = asyncio.get_running_loop().time()

    # -- clients -----------------------------------------------------------------------------

    @property
    def shares_memory(self) -> bool:
        """Whether the client has shared any memory, or has told of none at all."""
        return not len(self._private) or any(shared for _, _, shared, _ in self._shared.ranges())

    @property
    def busy(self) -> bool:
        """Whether the client has messages to answer."""
        return self._pump is not None and self._pump.work(None) > 0

    def doorbells_given(self) -> None:
        """The client can ring in memory."""
        self._given_doorbells = True

    def use_client_memory(self, memory: ClientMemory) -> None:
        """How to reach the client that is there."""
        self._guest.client = memory
        if self._pump is not None:
            self._pump.start()

    def resume(self) -> None:
        """After a process before us, when its windows are mapped; before the controller goes on."""
        inherited = self._keeper.inherited if self._keeper is not None else {}
        if RELAY in inherited:
            self._begin(adopt=True)
        elif SHADOW in inherited and self._keeper is not None:
            # Killed before the other one was stored, and anything was done.
            self._keeper.remove(SHADOW)
            os.close(inherited[SHADOW])

    def resumed(self) -> None:
        """The controller goes on with its queues."""
        if self._pump is not None:
            self._pump.adopt()

    async def detached(self) -> None:
        """The client has gone, and nothing is mapped any more."""
        self._guest.client = None
        await asyncio.gather(*self._end(), return_exceptions=True)
        self._given_doorbells = False

    # -- being one ---------------------------------------------------------------------------

    def _before_start(self) -> None:
        """The guest enables the controller; it has no queues."""
        queues = admin_queues(self._controller.registers)
        places = (
            (queues.sq, queues.sq_size * SQE_SIZE, False),
            (queues.cq, queues.cq_size * CQE_SIZE, True),
        )
        if all(self._shared.covers(iova, size, writable=write) for iova, size, write in places):
            self._end()
        elif self._pump is None and all(
            self._guest.covers(iova, size, write=write) for iova, size, write in places
        ):
            try:
                self._begin()
            except OSError as error:
                # The admin queue is not in memory then, and the controller cannot be enabled.
                _log.error("memory that is not shared cannot be used: %s", error)
            else:
                _log.info("guest memory is reached with messages")
        if self._pump is not None:
            # A shadow doorbell page would have to be asked for again and again.
            self._controller.withhold_shadow_doorbell()

    def _begin(self, *, adopt: bool = False) -> None:
        """OSError: there is no room, or a backend cannot use the shadow."""
        files = RelayFiles(self._keeper, adopt=adopt)
        if not adopt:
            files.polls = self._given_doorbells
        try:
            self._begin_with(files)
        except BaseException:
            files.close()
            raise

    def _begin_with(self, files: RelayFiles) -> None:
        # Most daemons never need it, and are ready sooner without it.
        from nvme_mdev.service.relay.pump import Pump

        shadow = Shadow(files)
        memory = GuestMemory(sparse=True)
        private = {window.iova: window for window in self._private}
        for iova, size, shared, writable in self._shared.ranges():
            window = private.get(iova, PrivateWindow(iova, size, shared, writable))
            for piece in shadow.place(iova, size):
                memory.map(
                    piece.iova,
                    piece.size,
                    shadow.fd,
                    piece.offset,
                    readable=window.readable,
                    writable=window.writable,
                )
        event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._queues.relayed.begin(memory, files.doorbells, event_fd)
        except BaseException:
            os.close(event_fd)
            memory.clear()
            raise
        self._files, self._shadow, self._event_fd = files, shadow, event_fd
        self._pump = Pump(self._controller, self._guest, files, shadow, event_fd)
        self._queues.relayed.on_queue = self._pump.queue_changed
        self._queues.relayed.work = self._pump.work
        if self._guest.client is not None:
            self._pump.start()

    def _end(self) -> list[asyncio.Task[None]]:
        """Serve the guest without a relay; the tasks that are about to end."""
        if self._pump is None or self._files is None:
            return []
        ending = self._pump.stop()
        self._pump = None
        self._queues.relayed.on_queue = self._queues.relayed.work = None
        shadow_memory = self._queues.memory
        self._queues.relayed.end(self._shared)
        shadow_memory.clear()
        self._shadow = None
        self._files.close()
        self._files = None
        os.close(self._event_fd)
        self._event_fd = -1
        return ending
