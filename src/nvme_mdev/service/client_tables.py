"""What a client has told us of itself, in shared memory: its DMA windows and its eventfds.

File descriptors are numbers of :mod:`.kept_fds`. The layout is this module's, version and all.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.spec.vfio_user import PciIrq
from nvme_mdev.vfio_user.messages import MAX_DMA_MAPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.service.kept_fds import KeptFds

FORMAT = 0x3130_5442_4C43_4D4E  # "NMCLBT01"
"""Changes with the layout."""
_HEADER = struct.Struct("<Q")
_EVENTFDS = 64
"""Where the table of eventfds begins: a number of 32 bits each, 0 for none."""
_EVENTFD = struct.Struct("<I")
_TYPE_SIZE = 160
"""Eventfds of one interrupt type: 129 vectors and room."""
_TYPES = 8
_WINDOWS = 8192
#: IOVA, size, offset in the file; flags, number of the file (0: none), 1 if the window is mapped.
_WINDOW = struct.Struct("<QQQIII4x")
_VALID = struct.Struct("<I")
_VALID_AT = 32
_SIZE = _WINDOWS + MAX_DMA_MAPS * _WINDOW.size

MASK = PciIrq.REQ + 1
"""As interrupt types: the eventfds with which a client masks and unmasks the pin."""
UNMASK = PciIrq.REQ + 2


class Window(NamedTuple):
    """A DMA window of the client."""

    iova: int
    size: int
    """Bytes."""
    offset: int
    """Bytes into the file."""
    flags: int
    """`DmaMapFlags`."""
    file: int
    """0: the client does not share it."""


class ClientTables:
    """The tables, and the files that they keep in use."""

    def __init__(self, files: KeptFds, fd: int | None = None) -> None:
        """Make them, or adopt those of a process before us (ValueError: of another version).

        Without the windows and eventfds whose file is not kept any more.
        """
        self.fd = os.memfd_create("nvme-mdev-client") if fd is None else fd
        self._files = files
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
        elif os.fstat(fd).st_size != _SIZE:
            raise ValueError("the client's tables are of another version of nvme-mdev")
        self._map = mmap.mmap(self.fd, _SIZE)
        self._windows: dict[int, int] = {}
        #: The keys of that, ascending.
        self._starts: list[int] = []
        self._free: list[int] = []
        self._end = 0
        if fd is None:
            _HEADER.pack_into(self._map, 0, FORMAT)
            return
        if _HEADER.unpack_from(self._map)[0] != FORMAT:
            raise ValueError("the client's tables are of another version of nvme-mdev")
        self._adopt()

    def close(self) -> None:
        """Unmap and close; what is kept elsewhere stays."""
        self._map.close()
        os.close(self.fd)

    def _adopt(self) -> None:
        for position, window, valid in self._entries():
            if valid and window.file and window.file not in self._files:
                at = _WINDOWS + position * _WINDOW.size
                _VALID.pack_into(self._map, at + _VALID_AT, 0)
            elif valid:
                self._windows[window.iova] = position
                self._end = position + 1
                if window.file:
                    self._files.claim(window.file)
        self._starts = sorted(self._windows)
        taken = set(self._windows.values())
        self._free = [n for n in range(self._end) if n not in taken]
        for index in range(_TYPES):
            for interrupt, number in self.eventfds(index):
                if number in self._files:
                    self._files.claim(number)
                else:
                    _EVENTFD.pack_into(self._map, _eventfd_at(index, interrupt), 0)

    def _entries(self) -> Iterator[tuple[int, Window, int]]:
        """Every entry up to the first that was never used: entries are used in order."""
        for position in range(MAX_DMA_MAPS):
            *window, valid = _WINDOW.unpack_from(self._map, _WINDOWS + position * _WINDOW.size)
            if not window[1]:
                return
            yield position, Window(*window), valid

    # -- windows -----------------------------------------------------------------------------

    def windows(self) -> list[Window]:
        """Every window."""
        return [window for _, window, valid in self._entries() if valid]

    def add_window(self, iova: int, size: int, offset: int, flags: int, fd: int | None) -> None:
        """Remember a window that does not overlap another one, and its file."""
        position = self._free.pop() if self._free else self._end
        self._end = max(self._end, position + 1)
        at = _WINDOWS + position * _WINDOW.size
        number = self._files.keep(fd) if fd is not None else 0
        _WINDOW.pack_into(self._map, at, iova, size, offset, flags, number, 0)
        _VALID.pack_into(self._map, at + _VALID_AT, 1)
        self._windows[iova] = position
        insort(self._starts, iova)

    def remove_windows(self, iova: int, size: int) -> None:
        """Forget the windows inside a range."""
        first = bisect_left(self._starts, iova)
        last = bisect_left(self._starts, iova + size, first)
        removed, self._starts[first:last] = self._starts[first:last], []
        for start in removed:
            position = self._windows.pop(start)
            at = _WINDOWS + position * _WINDOW.size
            window = Window(*_WINDOW.unpack_from(self._map, at)[:-1])
            _VALID.pack_into(self._map, at + _VALID_AT, 0)
            self._free.append(position)
            if window.file:
                self._files.drop(window.file)

    # -- eventfds ----------------------------------------------------------------------------

    def eventfds(self, index: int) -> list[tuple[int, int]]:
        """The eventfds of an interrupt type: which interrupt, and the file's number."""
        start = _EVENTFDS + index * _TYPE_SIZE * _EVENTFD.size
        numbers = struct.unpack_from(f"<{_TYPE_SIZE}I", self._map, start)
        return [(interrupt, number) for interrupt, number in enumerate(numbers) if number]

    def set_eventfd(self, index: int, interrupt: int, fd: int | None) -> None:
        """Remember an eventfd, None: there is none."""
        at = _eventfd_at(index, interrupt)
        (old,) = _EVENTFD.unpack_from(self._map, at)
        number = self._files.keep(fd) if fd is not None else 0
        _EVENTFD.pack_into(self._map, at, number)
        if old:
            self._files.drop(old)

    def clear_eventfds(self, index: int) -> None:
        """Forget the eventfds of an interrupt type."""
        for interrupt, _ in self.eventfds(index):
            self.set_eventfd(index, interrupt, None)


def _eventfd_at(index: int, interrupt: int) -> int:
    return _EVENTFDS + (index * _TYPE_SIZE + interrupt) * _EVENTFD.size
