"""The bytes under a namespace, for whoever maintains them: self-tests, formatting, sanitizing.

Not for the guest's commands. Everything here blocks, so it is called in threads of its own, while
IOThreads go on; the caller sees to it that no command of the guest writes meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable

_Transfer = Callable[[int, list[memoryview], int], int]

_libc = ctypes.CDLL(None, use_errno=True)

#: <linux/falloc.h>
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

CHUNK = 1 << 20
"""Most bytes of one call."""


class RawMedium:
    """A file, block device or memfd, from byte ``start`` on; errors are OSErrors of the kernel."""

    def __init__(
        self,
        fd: int,
        start: int = 0,
        direct_fd: int | None = None,
        gave_back: Callable[[int, int], None] | None = None,
    ) -> None:
        """``direct_fd``: the same with O_DIRECT, which reads the medium and not a cache.

        ``gave_back`` is told offset and length of what was deallocated. The descriptors stay the
        backend's.
        """
        self._fd = fd
        self._start = start
        self._direct_fd = direct_fd
        self._gave_back = gave_back

    def read(self, offset: int, length: int) -> None:
        """Read and throw away; at most :data:`CHUNK` bytes."""
        # Anonymous memory begins at a page, as direct I/O wants it.
        with mmap.mmap(-1, CHUNK) as buffer, memoryview(buffer) as view, view[:length] as part:
            if self._transfer(os.preadv, part, offset) < length:
                raise OSError(errno.EIO, "the medium ends before the namespace does")

    def write(self, offset: int, data: bytes) -> None:
        """Write at most :data:`CHUNK` bytes."""
        with mmap.mmap(-1, CHUNK) as buffer, memoryview(buffer) as view:
            view[: len(data)] = data
            with view[: len(data)] as part:
                if self._transfer(os.pwritev, part, offset) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def deallocate(self, offset: int, length: int) -> bool:
        """Give the bytes back, so that they read as zeroes; False: the medium cannot."""
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        where = ctypes.c_long(self._start + offset)
        if _libc.fallocate(self._fd, mode, where, ctypes.c_long(length)) == 0:
            if self._gave_back is not None:
                self._gave_back(offset, length)
            return True
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise OSError(number, os.strerror(number))

    def flush(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._fd)

    def _transfer(self, call: _Transfer, part: memoryview, offset: int) -> int:
        """Directly if that is possible; what does not suit direct I/O goes through the cache."""
        if self._direct_fd is not None:
            try:
                return call(self._direct_fd, [part], self._start + offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return call(self._fd, [part], self._start + offset)


class NoMedium:
    """Of a namespace that keeps nothing: all of it goes well."""

    def read(self, offset: int, length: int) -> None:
        """Nothing to read."""

    def write(self, offset: int, data: bytes) -> None:
        """Nothing is written."""

    def deallocate(self, offset: int, length: int) -> bool:  # noqa: ARG002
        """Nothing is there to be given back."""
        return True

    def flush(self) -> None:
        """Nothing to flush."""
