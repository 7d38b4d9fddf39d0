"""A controller behind a real socket, in this process, for the host driver to drive."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.vfio_user.server import Server

from .assembly import SIZE, Assembly

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.datapath.backends.base import Backend

T = TypeVar("T")


class Served:
    """A device, its server, and the event loop that they run on, in a thread."""

    def __init__(
        self,
        path: Path,
        backends: list[Backend],
        *,
        iothread: IOThread | None = None,
        peer: Served | None = None,
        **settings: Any,
    ) -> None:
        """``iothread`` None: one of its own; ``peer``: a controller that it shares with."""
        self.path = path
        self.peer = peer
        self.backends = backends
        self._own_iothread = iothread is None
        self.iothread = iothread or IOThread("test", poll_timeout_ms=50)
        if self._own_iothread:
            self.iothread.start()
        if peer is None:
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever)
            self._thread.start()
        else:
            self.loop = peer.loop
            settings["subsystem"] = peer.controller.subsystem
            settings["cntlid"] = len(peer.controller.subsystem) + 1
        self.assembly = self.call(lambda: Assembly(self.iothread, backends, **settings))
        self.server = Server(self.assembly.device, path)
        self.run(self.server.start())

    @property
    def controller(self) -> Controller:
        return self.assembly.controller

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the device's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the device's loop."""

        async def work() -> T:
            return function(*args)

        return self.run(work())

    def close(self) -> None:
        try:
            self.run(self.server.close())
            self.call(self.assembly.close)
        finally:
            if self.peer is None:
                self.loop.call_soon_threadsafe(self.loop.stop)
                self._thread.join()
                self.loop.close()
            if self._own_iothread:
                self.iothread.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serve backends (default: those of the peer, or 16 MiB of memory) with any settings."""
    running: list[Served] = []

    def start(*backends: Backend, peer: Served | None = None, **settings: Any) -> Served:
        path = tmp_path / f"{len(running)}.sock"
        shared = peer.backends if peer is not None else [MemoryBackend(SIZE)]
        served = Served(path, list(backends) or shared, peer=peer, **settings)
        running.append(served)
        return served

    yield start
    for served in reversed(running):
        served.close()
        if served.peer is None:
            for backend in served.backends:
                backend.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """One controller with one namespace."""
    return serve()


@pytest.fixture
def host(served: Served) -> Iterator[NvmeHost]:
    """A driver that has enabled the controller of ``served``."""
    with NvmeHost(served.path) as driver:
        yield driver
