"""Lines of a daemon on standard error, which it never waits for.

Who started it may not read what it says, and a pipe that is full would stop every guest. So a line
that does not fit is lost, and how many were is said as soon as there is room again.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading

_PREFIX = "nvme-mdev: "
_STDERR = 2
_LONGEST = select.PIPE_BUF
"""Bytes of a line: as many are written whole, and at once where poll says that there is room."""


class StandardError:
    """Writes lines to a file descriptor, from any thread."""

    def __init__(self, fd: int = _STDERR) -> None:
        self._fd = fd
        self._lost = 0
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def say(self, text: str) -> None:
        """Lines of text, each after the program's name; never raises."""
        with self._lock:
            for line in text.splitlines():
                if self._lost and self._write(f"{self._lost} lines were lost: nobody read them"):
                    self._lost = 0
                if self._lost or not self._write(line):
                    self._lost += 1

    def _write(self, line: str) -> bool:
        data = f"{_PREFIX}{line}".encode(errors="backslashreplace")[: _LONGEST - 1] + b"\n"
        # Nobody is there any more: that is as good as said.
        with contextlib.suppress(OSError):
            if not self._has_room():
                return False
            os.write(self._fd, data)
        return True

    def _has_room(self) -> bool:
        return bool(self._poll.poll(0))


standard_error = StandardError()
"""Of this process."""
