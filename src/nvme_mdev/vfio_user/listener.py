"""The Unix socket that clients connect to: made so that only its owner can, and never stolen."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SUN_PATH_SIZE = 108  # struct sockaddr_un


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` that only its owner can connect to.

    The socket file of a server that has died is replaced. Raises :class:`OSError` with a message
    for users: EADDRINUSE if a process listens there, EEXIST if something else has that name,
    ENAMETOOLONG, or whatever else ``bind`` finds.
    """
    if len(os.fsencode(path)) >= _SUN_PATH_SIZE:
        limit = _SUN_PATH_SIZE - 1
        raise OSError(errno.ENAMETOOLONG, f"socket path longer than {limit} bytes", str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # bind() gives the file the mode of the socket: no moment in which others can connect.
        os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
            _remove_stale(path)
            listener.bind(str(path))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on; raises OSError for anything else."""
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.lstat().st_ino == found.st_ino:
                path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    raise OSError(errno.EADDRINUSE, "in use by a running process", str(path))
