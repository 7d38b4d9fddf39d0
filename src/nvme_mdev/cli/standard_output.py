"""Standard output, whose reader may go away (``| head``) and whose disk may be full.

An error in writing there is told from those of everything else that is written, sockets among
them, by being an :class:`OutputError`, whoever prints. As such it ends the command: what that has
opened is closed on the way.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nvme_mdev.errors import describe_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer


class OutputError(Exception):
    """Standard output cannot be written: one line for the user."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {describe_os_error(error)}")
        self.reader_left = isinstance(error, BrokenPipeError)


class _Output(io.FileIO):
    """The file descriptor."""

    error: OSError | None = None
    """The first one."""

    def write(self, data: ReadableBuffer, /) -> int:
        """As a file's; OutputError: the kernel refused it. What comes after that is dropped."""
        if self.error is not None:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise OutputError(error) from error


@contextmanager
def standard_output() -> Iterator[None]:
    """Whatever is printed meanwhile raises OutputError where it fails, at the end at the latest."""
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper):  # None: it was closed when this process started
        yield
        return
    raw = _Output(before.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        before.encoding,
        before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    yield
    sys.stdout.flush()
    if raw.error is not None:
        raise OutputError(raw.error)


def end_without_reader() -> None:
    """End this process as one that has not asked for EPIPE: the shell knows what that means."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
