"""A client that does not share its memory: it answers VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE.

The server asks at any time, so a thread reads the socket. It answers what the server asks, and
hands on the replies to what we ask.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import threading
import time
from typing import TYPE_CHECKING, Protocol

from nvme_mdev.spec.vfio_user import Command, MessageType

from . import framing, messages
from .client import DEFAULT_TIMEOUT, Client

if TYPE_CHECKING:
    from collections.abc import Sequence


class Memory(Protocol):
    """What a server reads and writes; from the client's thread."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of a range; OSError: there is no such memory."""

    def write(self, address: int, data: bytes) -> None:
        """Bytes into a range; OSError: there is no such memory, or it must not be written."""


class ServingClient(Client):
    """As any client; with memory that is reached with messages."""

    def __init__(
        self, path: str | os.PathLike[str], memory: Memory, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Connect as a `Client` does, then answer for ``memory`` until :meth:`close`."""
        self._memory = memory
        self._replies: queue.SimpleQueue[framing.Message | Exception] = queue.SimpleQueue()
        self._sending = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        super().__init__(path, timeout=timeout)
        self._thread = threading.Thread(target=self._serve, name="vfio-user memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """As of any client."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            thread.join()
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1
        super().close()

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        with self._sending:
            super()._send(data, fds)

    def _receive_reply(self) -> framing.Message:
        if self._thread is None:
            return super()._receive_reply()
        try:
            reply = self._replies.get(timeout=self._timeout)
        except queue.Empty:
            raise TimeoutError(errno.ETIMEDOUT, "no reply from the server") from None
        if isinstance(reply, Exception):
            self._replies.put(reply)  # for the next call
            raise reply
        return reply

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        try:
            while all(fd != self._stop_fd for fd, _ in poller.poll()):
                message = self._receive(time.monotonic() + self._timeout)
                if message.header.type is MessageType.REPLY:
                    self._hand_on(message)
                else:
                    self._answer(message)
        except (OSError, framing.ProtocolError) as error:
            self._replies.put(error)

    def _hand_on(self, reply: framing.Message) -> None:
        """To who has asked; RemoteProtocolError: nobody has, and they must not heap up."""
        if not self._replies.empty():
            for fd in reply.fds:
                os.close(fd)
            raise framing.RemoteProtocolError("replies to nothing")
        self._replies.put(reply)

    def _answer(self, message: framing.Message) -> None:
        """Do what the server asks, and reply."""
        header = message.header
        for fd in message.fds:
            os.close(fd)
        try:
            body = self._access(header.command, message.body)
        except framing.RemoteProtocolError as error:
            self._refuse(header, error.errno)
        except OSError as error:
            self._refuse(header, error.errno or errno.EIO)
        else:
            if not header.no_reply:
                reply = framing.MessageHeader(header.message_id, header.command, MessageType.REPLY)
                self._send(framing.encode(reply, body))

    def _access(self, command: int, body: bytes) -> bytes:
        """The reply's body; OSError: it cannot be done."""
        if command == Command.DMA_READ:
            read = messages.DmaAccess.unpack(body)
            return messages.DmaWrite(
                read.address, self._memory.read(read.address, read.count)
            ).pack()
        if command == Command.DMA_WRITE:
            write = messages.DmaWrite.unpack(body)
            self._memory.write(write.address, write.data)
            return messages.DmaAccess(write.address, len(write.data)).pack()
        raise OSError(errno.ENOSYS, f"command {command}")
