"""asyncio server: one device on one Unix socket, one client at a time.

The layers of a session, from the socket up: :mod:`.connection` moves bytes and file descriptors
without ever blocking the loop, :class:`.framing.Receiver` cuts them into messages,
:class:`.session.Session` says whether a message is legal, and
:class:`.client_session.ClientSession` checks it against what the device says of itself and calls
the device.

A client that goes away, in whatever way, leaves by one door: what it sent is closed,
``device.detached()`` is awaited, and the next client can come. While a client is there, others are
accepted and closed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .client_session import ClientSession
from .connection import Connection, JournalledConnection, ready
from .listener import listen

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Mapping
    from typing import Any, Self

    from .device import Device
    from .journal import Journal

log = logging.getLogger(__name__)

_ACCEPT_RETRY_SECONDS = 0.1  # after a failed accept: out of descriptors, mostly


class Continuity(Protocol):
    """What lets a server be killed under its client: what is kept, and who keeps it."""

    @property
    def journal(self) -> Journal:
        """Of the one session."""

    @property
    def inherited(self) -> Mapping[str, int]:
        """Descriptors by name; what is taken of them is the server's."""

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor until :meth:`remove`."""

    def remove(self, name: str) -> None:
        """Give it up."""


LISTENER = "listener"
CLIENT = "client"


class Server:
    """Serves a device on a Unix socket until closed.

    ::

        async with Server(device, "/run/user/0/vm1.sock") as server:
            await stop.wait()

    All of it, the device's methods included, runs in the event loop that :meth:`start` ran in.
    """

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str],
        continuity: Continuity | None = None,
    ) -> None:
        """``continuity``: None if the session ends with this process."""
        self._continuity = continuity
        self.device = device
        """What is served."""
        self.path = Path(path)
        """The socket's path, as given."""
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._serving is not None and not self._serving.done()

    @property
    def client_pid(self) -> int | None:
        """The process of the client that is there; None: nobody is."""
        return self._connection.peer_pid if self.connected and self._connection else None

    async def disconnect(self) -> None:
        """Send the client away; returns when the device has let go of it and the next can come."""
        serving = self._serving
        if self._connection is not None and self.connected:
            self._connection.shut_down()
        if serving is not None:
            await asyncio.wait({serving})

    async def start(self) -> None:
        """Listen; clients can connect when it returns. Raises OSError as :func:`listen`."""
        inherited = self._continuity.inherited if self._continuity is not None else {}
        if LISTENER in inherited:
            self._listener = socket.socket(fileno=inherited[LISTENER])
            self._listener.setblocking(False)
        else:
            self._listener = listen(self.path)
            if self._continuity is not None:
                self._continuity.store(LISTENER, self._listener.fileno())
        with contextlib.suppress(FileNotFoundError):  # somebody removed it while we were dead
            found = self.path.lstat()
            self._identity = (found.st_dev, found.st_ino)
        if self._continuity is not None and CLIENT in inherited:
            self._resume(socket.socket(fileno=inherited[CLIENT]), self._continuity.journal)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Stop listening, send the client away, wait until the device has let go of it.

        The socket's file is removed, if it is still ours. May be called more than once.
        """
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait({self._accepting})
            self._accepting = None
        if self._listener is not None:
            self._remove_socket()
            self._listener.close()
            self._listener = None
        if self._connection is not None:
            self._connection.shut_down()
        if self._serving is not None:
            await asyncio.wait({self._serving})
            self._serving = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _remove_socket(self) -> None:
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await ready(listener, loop.add_reader, loop.remove_reader)
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                log.warning("%s: cannot accept a client: %s", self.path, error)
                await asyncio.sleep(_ACCEPT_RETRY_SECONDS)
                continue
            try:
                await self._admit(sock)
            except OSError as error:
                sock.close()
                log.warning("%s: client lost at once: %s", self.path, error)
            except BaseException:
                sock.close()
                raise

    async def _admit(self, sock: socket.socket) -> None:
        """Start a session, or refuse the client because another one is there."""
        if self._serving is not None and not self._serving.done():
            if self._connection is not None and not self._connection.hung_up:
                log.warning("%s: another client refused, one is connected", self.path)
                sock.close()
                return
            # The client before has gone but the device is not done with it: that is no reason
            # to send this one away.
            await asyncio.wait({self._serving})
        if self._continuity is None:
            self._connection = Connection(sock)
        else:
            self._continuity.journal.reset()
            self._continuity.store(CLIENT, sock.fileno())
            self._connection = JournalledConnection(sock, self._continuity.journal)
        log.info("%s: client connected (pid %d)", self.path, self._connection.peer_pid)
        session = ClientSession(self.device, self._connection, str(self.path))
        self._serving = asyncio.create_task(self._serve(self._connection, session.run()))

    def _resume(self, sock: socket.socket, journal: Journal) -> None:
        """Go on with the client of a process that died."""
        connection = self._connection = JournalledConnection.resume(sock, journal)
        session = ClientSession(self.device, connection, str(self.path))
        self._serving = asyncio.create_task(self._serve(connection, session.resume(connection)))

    async def _serve(self, connection: Connection, session: Coroutine[Any, Any, None]) -> None:
        fd = connection.fileno()
        self.device.listen(fd)
        try:
            await session
        finally:
            self.device.ignore(fd)
            if self._continuity is not None:
                self._continuity.remove(CLIENT)
                self._continuity.journal.reset()
            connection.close()
            log.info("%s: client disconnected", self.path)
