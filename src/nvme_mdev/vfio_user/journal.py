"""The message in progress, in shared memory: a session that survives the death of its server.

A client sends a request and waits. A server that is killed may have read half of the request, may
have executed it, or may have sent half of the reply; the next one has to go on exactly there, or
the client waits for ever, or gets a second reply, which ends QEMU. Two counters that the kernel
keeps, and moves together with the bytes, tell how far it was:

* A piece of a request is *peeked* at first, copied here, and only then taken from the socket.
  ``SO_PEEK_OFF`` counts what was peeked at and not yet taken.
* A reply is written to a memfd and sent with sendfile(2) from that file's position, which counts
  what was sent. The file is emptied before the next reply: the socket may still refer to its pages.

A request without a reply here is executed again, so executing one twice must do no harm.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Protocol

from .framing import MAX_MESSAGE_SIZE, MAX_MSG_FDS

if TYPE_CHECKING:
    from collections.abc import Sequence

SO_PEEK_OFF = 42
"""<asm-generic/socket.h>; Python has no name for it."""

FORMAT = 0x314E_5253_4453_564E  # "NVSDSRN1"
"""Changes with the layout."""
_HEADER = struct.Struct("<Q")
_BUFFER = mmap.PAGESIZE
_SIZE = _BUFFER + MAX_MESSAGE_SIZE


class _Word:
    """A 32-bit word of the header page."""

    def __init__(self, index: int) -> None:
        self._at = index

    def __get__(self, journal: Journal, _owner: type) -> int:
        return journal.words[self._at]

    def __set__(self, journal: Journal, value: int) -> None:
        journal.words[self._at] = value


class Files(Protocol):
    """Where a client's file descriptors are kept, by number."""

    def __getitem__(self, number: int) -> int: ...
    def __contains__(self, number: int) -> bool: ...
    def keep(self, fd: int) -> int:
        """Keep a duplicate; its number."""

    def claim(self, number: int) -> int:
        """One more user of a file that is kept."""

    def drop(self, number: int) -> None:
        """One user less."""


class Journal:
    """One session's journal. ``fd`` and ``reply_fd`` are what has to be kept."""

    running = _Word(2)
    """VERSION was agreed on."""
    peer_max_msg_fds = _Word(3)
    received = _Word(4)
    """Bytes of the request that were taken from the socket."""
    target = _Word(5)
    """What `received` will be when the piece that is being taken is ours; 0: none is."""
    fd_count = _Word(6)
    target_fds = _Word(7)
    answered = _Word(8)
    """The reply is decided: the request must not be executed any more."""
    reply_size = _Word(9)
    reply_has_fd = _Word(10)
    peeked = _Word(11)
    """SO_PEEK_OFF after the look: at more than the piece, to see where the next message begins."""
    peer_max_data_xfer_size = _Word(12)
    """What the client takes in a message; 0: it has not said."""
    epoch = _Word(13)
    """Processes that have served this client before (see :mod:`.client_memory`)."""
    _FDS = 16

    def __init__(self, files: Files, fd: int | None = None, reply_fd: int | None = None) -> None:
        """Make a journal, or adopt one (ValueError: of another version)."""
        fresh = fd is None or reply_fd is None
        self.fd = os.memfd_create("nvme-mdev-session") if fd is None else fd
        self.reply_fd = os.memfd_create("nvme-mdev-reply") if reply_fd is None else reply_fd
        self._files = files
        self._claimed: list[int] = []
        if fresh:
            os.ftruncate(self.fd, _SIZE)
        elif os.fstat(self.fd).st_size != _SIZE:
            raise ValueError("the session's journal is of another version of nvme-mdev")
        self._map = mmap.mmap(self.fd, _SIZE)
        if fresh:
            _HEADER.pack_into(self._map, 0, FORMAT)
        elif _HEADER.unpack_from(self._map)[0] != FORMAT:
            raise ValueError("the session's journal is of another version of nvme-mdev")
        self._view = memoryview(self._map)
        self.words = self._view[:_BUFFER].cast("I")
        if not fresh:
            # What the client has spoilt is given up before :meth:`claim`; this may be part of it.
            count = max(self.fd_count, self.target_fds if self.target else 0)
            self._claimed += self._claims(self._numbers(count))

    def close(self) -> None:
        """Close the descriptors; what is kept elsewhere stays."""
        self.words.release()
        self._view.release()
        self._map.close()
        os.close(self.fd)
        os.close(self.reply_fd)

    def reset(self) -> None:
        """A new client, or none."""
        self.finish()
        self.running = self.peer_max_msg_fds = 0
        self.peer_max_data_xfer_size = self.epoch = 0

    # -- the request -------------------------------------------------------------------------

    def take(self, data: bytes, fds: Sequence[int], peeked: int) -> None:
        """The next piece, peeked at: it is taken from the socket next."""
        self.peeked = peeked
        start = _BUFFER + self.received
        self._map[start : start + len(data)] = data
        for position, fd in enumerate(fds, self.fd_count):
            if position < MAX_MSG_FDS:
                number = self._files.keep(fd)
                self._claimed.append(number)
                self.words[self._FDS + position] = number
        self.target_fds = min(self.fd_count + len(fds), MAX_MSG_FDS)
        self.target = self.received + len(data)

    def taken(self) -> None:
        """The piece is ours. May be done again, by a process after us."""
        self.fd_count = self.target_fds
        self.received = self.target
        self.target = 0

    def not_taken(self) -> None:
        """The piece is still in the socket, and comes again."""
        self.target = 0

    def request(self) -> tuple[bytes, list[int]]:
        """What was received so far: the bytes, and duplicates of its file descriptors."""
        numbers = self._numbers(self.fd_count)
        fds = [os.dup(self._files[number]) for number in numbers if number in self._files]
        return self._map[_BUFFER : _BUFFER + self.received], fds

    def claim(self) -> None:
        """After adopting: the files of the request, and no others, are in use."""
        before = self._claimed
        self._claimed = self._claims(self._numbers(self.fd_count))
        for number in before:
            self._files.drop(number)

    def _claims(self, numbers: Sequence[int]) -> list[int]:
        return [self._files.claim(number) for number in numbers if number in self._files]

    def _numbers(self, count: int) -> list[int]:
        return self.words[self._FDS : self._FDS + count].tolist()

    # -- the reply ---------------------------------------------------------------------------

    def answer(self, reply: bytes, *, has_fd: bool) -> None:
        """This is the reply; from now on the request is not executed again."""
        os.ftruncate(self.reply_fd, 0)
        os.lseek(self.reply_fd, 0, os.SEEK_SET)
        os.pwrite(self.reply_fd, reply, 0)
        self.reply_size = len(reply)
        self.reply_has_fd = has_fd
        self.answered = 1

    @property
    def sent(self) -> int:
        """Bytes of the reply that the socket has."""
        return os.lseek(self.reply_fd, 0, os.SEEK_CUR)

    def finish(self) -> None:
        """The reply is sent, if there was to be one: ready for the next request."""
        self.received = self.fd_count = self.target = 0
        self.answered = 0
        for number in self._claimed:
            self._files.drop(number)
        self._claimed.clear()
