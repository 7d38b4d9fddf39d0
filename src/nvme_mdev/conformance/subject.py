"""The controller under test, as a check gets it: attached to afresh, enabled, nothing set up.

A check may leave the controller in any state. The next one attaches again, which resets it.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import CheckFailed, NotApplicable
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import HostError
from nvme_mdev.spec.nvme_commands import NSID_ALL
from nvme_mdev.spec.nvme_logs import CommandsEffectsLog, LogPage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from nvme_mdev.host.admin_commands import Namespace
    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.spec.nvme_identify_controller import IdentifyController
    from nvme_mdev.spec.nvme_registers import Register

MEMORY = 4 << 20
"""Bytes of DMA memory that a check has, unless it attaches with more."""
COMMAND_TIMEOUT = 30.0
"""Seconds for a command; what Linux gives one."""
TIMEOUT = 10.0
"""Seconds for a state or an event that a check waits for."""
QUIET = 0.05
"""Seconds in which what must not happen would have happened."""
_POLL = 0.001


class Subject:
    """One controller behind a vfio-user socket, and a namespace of it."""

    def __init__(
        self, path: str | os.PathLike[str], *, nsid: int | None = None, share_memory: bool = True
    ) -> None:
        """``nsid`` None: the first active namespace; ``share_memory``: see `NvmeHost`."""
        self.path = path
        self.share_memory = share_memory
        self._wanted_nsid = nsid
        self._host: NvmeHost | None = None
        self._queue: IoQueue | None = None
        self._namespace: Namespace | None = None

    def attach(
        self,
        *,
        enable: bool = True,
        map_doorbells: bool = True,
        shadow_doorbells: bool = False,
        memory_size: int = MEMORY,
        admin_entries: int = 32,
    ) -> NvmeHost:
        """Attach in another way than a check finds itself attached; HostError: it cannot be."""
        self.detach()
        self._host = NvmeHost(
            self.path,
            enable=enable,
            map_doorbells=map_doorbells,
            shadow_doorbells=shadow_doorbells,
            memory_size=memory_size,
            admin_entries=admin_entries,
            timeout=COMMAND_TIMEOUT,
            share_memory=self.share_memory,
        )
        return self._host

    def detach(self) -> None:
        """Let go of the controller."""
        host, self._host, self._queue, self._namespace = self._host, None, None, None
        if host is not None:
            with suppress(HostError):
                host.close()

    @property
    def host(self) -> NvmeHost:
        """The driver."""
        return self._host if self._host is not None else self.attach()

    @property
    def controller(self) -> IdentifyController:
        """Identify Controller."""
        return self.host.identify_controller()

    @property
    def queue(self) -> IoQueue:
        """An I/O queue pair of 64 entries, polled."""
        if self._queue is None or self._queue.qid not in self.host.queues:
            self._queue = self.host.create_queue_pair(min(64, self.host.max_entries))
        return self._queue

    @property
    def namespace(self) -> Namespace:
        """The namespace under test; NotApplicable when the controller has none."""
        if self._namespace is None:
            nsid = self._wanted_nsid
            if nsid is None:
                active = self.host.active_namespaces()
                if not active:
                    raise NotApplicable("no namespace is active")
                nsid = active[0]
            self._namespace = self.host.namespace(nsid)
        return self._namespace

    @property
    def nsid(self) -> int:
        """The namespace's identifier."""
        return self.namespace.nsid

    @property
    def block_size(self) -> int:
        """Bytes of its logical blocks."""
        return self.namespace.block_size

    def effects(self) -> CommandsEffectsLog:
        """The Commands Supported and Effects log, of the NVM command set."""
        page = self.host.get_log_page(LogPage.COMMANDS_EFFECTS, ctypes.sizeof(CommandsEffectsLog))
        return CommandsEffectsLog.from_buffer_copy(page)

    def inactive_nsid(self) -> int:
        """A valid NSID without a namespace; NotApplicable when all are in use."""
        active = set(self.host.active_namespaces())
        for nsid in range(1, min(self.controller.nn, 1 << 16) + 1):
            if nsid not in active:
                return nsid
        raise NotApplicable("every valid NSID has a namespace")

    def invalid_nsid(self) -> int:
        """An NSID above NN; NotApplicable when there is none."""
        nsid = self.controller.nn + 1
        if nsid >= NSID_ALL:
            raise NotApplicable("every NSID is valid")
        return nsid

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something holds; CheckFailed when it does not, after `TIMEOUT`."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise CheckFailed(f"{what} did not happen within {TIMEOUT:g} s")
            time.sleep(_POLL)

    def wait_ready(self, *, ready: bool = True) -> None:
        """Wait for CSTS.RDY."""
        self.wait(lambda: self.host.csts().rdy == ready, f"CSTS.RDY = {int(ready)}")

    def register(self, register: Register) -> int:
        """A controller register."""
        return self.host.read_register(register)
