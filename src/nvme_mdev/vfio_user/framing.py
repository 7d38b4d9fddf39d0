"""Where a vfio-user message begins and ends: headers, and the file descriptors beside them; no I/O.

QEMU ``docs/interop/vfio-user.rst``, *Protocol Specification*. What is in a message is in
:mod:`.messages`.

Receiving
    File descriptors travel beside the bytes, and the kernel gives them with the first byte of the
    ``sendmsg`` that carried them. To know which message they belong to, one must never read past
    the end of a message: a :class:`Receiver` says in :attr:`Receiver.wanted` how many bytes it
    takes next, first the 16 of the header, then exactly the body.

Ownership of file descriptors
    The receiver owns what it was given until it hands out the :class:`Message`; then the message's
    taker does. After an error or at the end, :meth:`Receiver.take_fds` gives those still held.

Whose mistake
    :class:`LocalProtocolError` is a bug in the program that called us, found before anything was
    sent. :class:`RemoteProtocolError` is the peer's doing, and says what to do about it.
"""

from __future__ import annotations

import array
import ctypes
import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import HeaderFlags, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_MSG_FDS = 16
"""File descriptors we take in one message; as many as QEMU sends, and it refuses to hear more."""
MAX_DATA_XFER_SIZE = wire.DEFAULT_MAX_DATA_XFER_SIZE
"""Bytes that a region access moves at most."""
MAX_MESSAGE_SIZE = wire.HEADER_SIZE + ctypes.sizeof(wire.RegionAccess) + MAX_DATA_XFER_SIZE
"""Bytes of the largest message that we take: the largest region access with its headers."""

ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_MSG_FDS * array.array("i").itemsize)
"""Bytes of ancillary data to ask ``recvmsg`` for: room for that many fds and nothing more."""


def fds_in(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The file descriptors in what ``recvmsg`` gave beside the bytes; they are the caller's."""
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return fds.tolist()


class ProtocolError(Exception):
    """The rules of vfio-user were broken."""


class LocalProtocolError(ProtocolError):
    """By this program: a message that must not be sent."""


class RemoteProtocolError(ProtocolError):
    """By the peer.

    ``errno`` is for the error reply. ``close`` says that the session cannot go on, because the
    stream can no longer be followed or the peer is not what it should be; without it an error
    reply is enough. ``header`` is the message's when a :class:`Receiver` has got that far: without
    it there is nothing to reply to.
    """

    def __init__(
        self,
        text: str,
        *,
        errno: int = errno.EINVAL,
        close: bool = False,
        header: MessageHeader | None = None,
    ) -> None:
        super().__init__(text)
        self.errno = errno
        self.close = close
        self.header = header


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """A message's header (section *Header*), without its size."""

    message_id: int
    """The sender's; a reply repeats it."""
    command: int
    """One of :class:`~nvme_mdev.spec.vfio_user.Command`, or any other number of 16 bits."""
    type: MessageType = MessageType.COMMAND
    flags: HeaderFlags = HeaderFlags(0)  # noqa: RUF009 - an enumeration's member, not a mutable
    error: int = 0
    """With ``HeaderFlags.ERROR``: errno, or 0 for an unknown one."""

    @property
    def no_reply(self) -> bool:
        """Whether the sender of this command wants no reply, not even to an error."""
        return HeaderFlags.NO_REPLY in self.flags

    def pack(self, body_size: int) -> bytes:
        """The 16 bytes in front of a body of ``body_size`` bytes."""
        return bytes(
            wire.Header(
                self.message_id,
                self.command,
                wire.HEADER_SIZE + body_size,
                self.type | self.flags,
                self.error,
            )
        )


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message as it came: header, body, and the file descriptors that are now yours."""

    header: MessageHeader
    body: bytes
    fds: tuple[int, ...] = ()


def encode(header: MessageHeader, body: bytes = b"") -> bytes:
    """A message's bytes. Raises :class:`LocalProtocolError` when it is larger than allowed."""
    if wire.HEADER_SIZE + len(body) > MAX_MESSAGE_SIZE:
        raise LocalProtocolError(f"a message of {len(body)} bytes is larger than allowed")
    return header.pack(len(body)) + body


class Receiver:
    """Puts messages together from what a socket gives, a piece at a time.

    Call :meth:`receive` with at most :attr:`wanted` bytes and the file descriptors that came with
    them, until it returns a message; at end of file call :meth:`eof`. After a
    :class:`RemoteProtocolError` with ``close`` the receiver is of no use any more.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._size = wire.HEADER_SIZE
        self._header: MessageHeader | None = None
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at least 1."""
        return self._size - len(self._buffer)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Message | None:
        """Take a piece; returns the message when it is whole.

        Raises :class:`RemoteProtocolError` (always with ``close``) when the header is such that
        the stream cannot be followed. :class:`LocalProtocolError` for more bytes than wanted.
        """
        self._fds += fds
        if len(data) > self.wanted:
            raise LocalProtocolError("more bytes than wanted: file descriptors may be misplaced")
        # A few with every byte of a long body would use up all that this process may open.
        if len(self._fds) > MAX_MSG_FDS:
            text = f"more than {MAX_MSG_FDS} file descriptors with a message"
            raise RemoteProtocolError(text, close=True, header=self._header)
        self._buffer += data
        if len(self._buffer) < self._size:
            return None
        if self._header is None:
            self._header = self._parse_header()
            if len(self._buffer) < self._size:
                return None
        message = Message(self._header, bytes(self._buffer[wire.HEADER_SIZE :]), self.take_fds())
        self._buffer.clear()
        self._size = wire.HEADER_SIZE
        self._header = None
        return message

    def _parse_header(self) -> MessageHeader:
        raw = wire.Header.from_buffer_copy(self._buffer)
        kind = raw.flags & wire.HEADER_TYPE_MASK
        if kind not in (MessageType.COMMAND, MessageType.REPLY):
            raise RemoteProtocolError(f"unknown message type {kind}", close=True)
        header = MessageHeader(
            raw.message_id,
            raw.command,
            MessageType(kind),
            HeaderFlags(raw.flags & ~wire.HEADER_TYPE_MASK & wire.HEADER_FLAGS_MASK),
            raw.error,
        )
        if not wire.HEADER_SIZE <= raw.message_size <= MAX_MESSAGE_SIZE:
            raise RemoteProtocolError(
                f"message of {raw.message_size} bytes", close=True, header=header
            )
        if raw.flags & ~wire.HEADER_FLAGS_MASK:
            raise RemoteProtocolError(
                f"reserved header flags {raw.flags:#x}", close=True, header=header
            )
        self._size = raw.message_size
        return header

    def eof(self) -> None:
        """The peer has closed: raises :class:`RemoteProtocolError` in the middle of a message."""
        if self._buffer:
            raise RemoteProtocolError("end of file in the middle of a message", close=True)

    def take_fds(self) -> tuple[int, ...]:
        """The file descriptors of a message not handed out yet; they are the caller's now."""
        fds = tuple(self._fds)
        self._fds.clear()
        return fds
