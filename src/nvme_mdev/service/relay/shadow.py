"""The shadow: our own memory at the guest's addresses, a page of it only where something uses it.

A page has users: queues, and commands on their way. Without any it is given back to the system,
some at a time.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.service.relay.files import GRANULE_SHIFT, GRANULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nvme_mdev.service.relay.files import RelayFiles

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
MOST_IDLE = 4096
"""Pages without users that are not given back yet: a system call for each would cost more."""

_GRANULE = 1 << GRANULE_SHIFT


class Piece(NamedTuple):
    """A part of a range that lies together in the shadow's file."""

    iova: int
    size: int
    offset: int


class Shadow:
    """Bytes by the guest's addresses (IOVA)."""

    def __init__(self, files: RelayFiles) -> None:
        self._files = files
        self.fd = files.shadow_fd
        self._granules = dict(files.granules())
        self._users: dict[int, int] = {}
        self._idle: dict[int, None] = {}

    def place(self, iova: int, size: int) -> list[Piece]:
        """Where a range is in the file, which has room for it then; OSError: it has none."""
        for granule in range(iova >> GRANULE_SHIFT, (iova + size - 1 >> GRANULE_SHIFT) + 1):
            if granule not in self._granules:
                number = len(self._granules)
                if number == GRANULES:
                    raise OSError(errno.ENOSPC, "too much guest memory that is not shared")
                self._files.set_granule(number, granule)
                self._granules[granule] = number
        pieces: list[Piece] = []
        for piece in self._pieces(iova, size):
            if pieces and pieces[-1].offset + pieces[-1].size == piece.offset:
                last = pieces.pop()
                pieces.append(Piece(last.iova, last.size + piece.size, last.offset))
            else:
                pieces.append(piece)
        return pieces

    def _pieces(self, iova: int, size: int) -> Iterator[Piece]:
        end = iova + size
        while iova < end:
            inside = iova & (_GRANULE - 1)
            count = min(end - iova, _GRANULE - inside)
            number = self._granules[iova >> GRANULE_SHIFT]
            yield Piece(iova, count, (number << GRANULE_SHIFT) + inside)
            iova += count

    def read(self, iova: int, size: int) -> bytes:
        """Bytes of a range that was given a place."""
        return b"".join(os.pread(self.fd, p.size, p.offset) for p in self._pieces(iova, size))

    def write(self, iova: int, data: bytes) -> None:
        """Bytes into a range that was given a place."""
        view = memoryview(data)
        for piece in self._pieces(iova, len(data)):
            start = piece.iova - iova
            os.pwrite(self.fd, view[start : start + piece.size], piece.offset)

    # -- users -------------------------------------------------------------------------------

    def hold(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        """One more user of the pages of some (iova, size); the pages, to be released."""
        pages = [
            page
            for iova, size in ranges
            for page in range(iova >> PAGE_SHIFT, (iova + size - 1 >> PAGE_SHIFT) + 1)
        ]
        for page in pages:
            self._users[page] = self._users.get(page, 0) + 1
            self._idle.pop(page, None)
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """One user less."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                del self._users[page]
                self._idle[page] = None
        if len(self._idle) > MOST_IDLE:
            self._give_back()

    def _give_back(self) -> None:
        for iova, size in _runs(sorted(self._idle)):
            for piece in self._pieces(iova, size):
                self._files.punch(piece.offset, piece.size)
        self._idle.clear()


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending pages as (iova, bytes) of those that follow one another."""
    start = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + 1:
            yield pages[start] << PAGE_SHIFT, (index - start) << PAGE_SHIFT
            start = index
