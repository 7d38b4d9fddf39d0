"""Bytes and file descriptors of one client, through a socket that never blocks the event loop.

A :class:`JournalledConnection` also survives its process: what it has taken from the socket and
what it has not yet sent are in the journal.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
import struct
from typing import TYPE_CHECKING

from nvme_mdev.spec import vfio_user as wire

from . import framing
from .journal import SO_PEEK_OFF

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from .journal import Journal

_LOOK_AHEAD = 4096  # bytes; more than any message that carries file descriptors has
_PEERCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


def close_all(fds: Sequence[int]) -> None:
    """Close file descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


class Connection:
    """Bytes and file descriptors through a non-blocking stream socket; one user at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        #: A message is sent whole before another one begins.
        self._sending = asyncio.Lock()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        self.peer_pid: int = _PEERCRED.unpack(credentials)[0]

    async def receive(self, size: int) -> tuple[bytes, list[int]]:
        """At most ``size`` bytes and what came with them; no bytes at the end of file.

        Raises OSError of the socket, or :class:`framing.RemoteProtocolError` for more file
        descriptors than we take; those that did come are closed then.
        """
        return await self._receive(size)

    async def _receive(self, size: int, how: int = 0) -> tuple[bytes, list[int]]:
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    size, framing.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC | how
                )
                break
            except BlockingIOError:
                await ready(self._sock, self._loop.add_reader, self._loop.remove_reader)
        fds = framing.fds_in(ancillary)
        if flags & socket.MSG_CTRUNC:
            close_all(fds)
            text = f"more than {framing.MAX_MSG_FDS} file descriptors with a message"
            raise framing.RemoteProtocolError(text, close=True)
        return data, fds

    async def send(self, data: bytes, fd: int | None = None) -> None:
        """A reply: all of ``data``, the fd with its first byte. Raises OSError of the socket."""
        async with self._sending:
            await self._send(data, fd)

    async def send_request(self, data: bytes) -> None:
        """A request of our own. Raises OSError of the socket."""
        async with self._sending:
            await self._send(data)

    def replied(self) -> None:
        """What was received was a reply: there is none to it."""

    async def _send(self, data: bytes, fd: int | None = None) -> None:
        view = memoryview(data)
        ancillary = []
        if fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        while view:
            try:
                sent = self._sock.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await ready(self._sock, self._loop.add_writer, self._loop.remove_writer)
            else:
                view = view[sent:]
                ancillary = []

    @property
    def hung_up(self) -> bool:
        """Whether the client has closed its end, even if we have not read up to there."""
        poll = select.poll()
        poll.register(self._sock.fileno(), 0)  # POLLHUP is always reported
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def fileno(self) -> int:
        """Of the socket."""
        return self._sock.fileno()

    def shut_down(self) -> None:
        """Make a pending and every later :meth:`receive` find the end of file."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class JournalledConnection(Connection):
    """A connection whose message in progress outlives this process (see :mod:`.journal`)."""

    def __init__(self, sock: socket.socket, journal: Journal) -> None:
        super().__init__(sock)
        self.journal = journal
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)

    async def receive(self, size: int) -> tuple[bytes, list[int]]:
        """As of any connection; what it returns is in the journal."""
        seen, fds = await self._receive(max(size + 1, _LOOK_AHEAD), socket.MSG_PEEK)
        try:
            data = seen[:size]
            if data:
                expected = fds if len(seen) <= self._message_left(seen, size) else []
                self.journal.take(data, expected, len(seen))
        finally:
            close_all(fds)
        if not data:
            return data, []
        taken = self._consume(len(data))
        if len(taken) != len(expected):
            # Several messages in one, with descriptors for the first of them: nobody does that.
            self.journal.take(data, taken, len(seen))
        self.journal.taken()
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        return data, taken

    def _message_left(self, seen: bytes, size: int) -> int:
        """Bytes up to the end of the message. A look at them brings its file descriptors, and
        one that goes on behind them those of the next message."""
        if self.journal.received or len(seen) < wire.HEADER_SIZE:
            return size
        return int.from_bytes(seen[4:8], "little")  # message_size

    async def send(self, data: bytes, fd: int | None = None) -> None:
        """As of any connection; nothing (no reply is wanted) is a reply, too."""
        async with self._sending:
            self.journal.answer(data, has_fd=fd is not None)
            if fd is not None:
                # Not by sendfile, and all at once, as clients expect. To be killed between this and
                # the next line makes a second reply; clients ask for an fd once, when they start.
                await self._send(data, fd)
                os.lseek(self.journal.reply_fd, len(data), os.SEEK_SET)
            await self.send_rest()

    def replied(self) -> None:
        """As of any connection."""
        self.journal.finish()

    async def send_rest(self) -> None:
        """What is left of the reply in the journal, which is then ready for the next request."""
        while left := self.journal.reply_size - self.journal.sent:
            try:
                os.sendfile(self._sock.fileno(), self.journal.reply_fd, None, left)
            except BlockingIOError:
                await ready(self._sock, self._loop.add_writer, self._loop.remove_writer)
        self.journal.finish()

    def _consume(self, size: int) -> list[int]:
        """Take from the socket what was peeked at, and the descriptors with it."""
        fds: list[int] = []
        while size:
            data, ancillary, _, _ = self._sock.recvmsg(
                size, framing.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
            fds += framing.fds_in(ancillary)
            size -= len(data)
        return fds

    @classmethod
    def resume(cls, sock: socket.socket, journal: Journal) -> Self:
        """The connection of a process that died, with the journal set right."""
        peeked = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        connection = cls(sock, journal)  # which sets it to 0
        if journal.target == journal.received:
            # Killed when all of it was taken but for the last word.
            journal.target = 0
        if journal.target:
            consumed = journal.peeked - peeked
            if consumed:
                left = journal.target - journal.received - consumed
                close_all(connection._consume(left))
                journal.taken()
            else:
                journal.not_taken()
        journal.claim()
        if journal.answered and journal.reply_has_fd and not journal.sent:
            # The fd is not in the journal: whoever asks for one can be answered again.
            journal.answered = 0
        return connection


async def ready(
    sock: socket.socket,
    add: Callable[[int, Callable[[asyncio.Future[None]], None], asyncio.Future[None]], None],
    remove: Callable[[int], bool],
) -> None:
    """Wait until the socket can be read or written; unlike the loop's own calls, this loses
    nothing when it is cancelled."""
    ready = asyncio.get_running_loop().create_future()
    fd = sock.fileno()
    add(fd, _set_ready, ready)
    try:
        await ready
    finally:
        remove(fd)


def _set_ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
