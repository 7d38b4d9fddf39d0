"""The Unix socket that a client connects to: where it is, and why it cannot be had."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nvme_mdev.errors import UserError, describe_os_error

#: The name that SPDK's host driver looks for in a directory (``traddr:DIR``).
SOCKET_NAME = "cntrl"
#: sizeof(sockaddr_un.sun_path) less the terminating NUL (unix(7)).
MAX_PATH_BYTES = 107
#: Of the control socket's name, after the vfio-user socket's.
CONTROL_SUFFIX = ".ctl"


def socket_path(text: str) -> Path:
    """The socket's path for a ``--socket`` argument; UserError when there can be none.

    A directory, or anything that ends in a slash, stands for the socket ``cntrl`` in it.
    """
    if not text:
        raise UserError("--socket is empty: give the path of the socket")
    path = Path(text)
    if text.endswith("/") or path.is_dir():
        path /= SOCKET_NAME
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise UserError(
            f"{path}: {length} bytes are too long for a Unix socket (at most {MAX_PATH_BYTES}):"
            " choose a shorter path"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a directory: create it first (mkdir -p)")
    return path


def control_path(text: str | None, socket: Path) -> Path:
    """The control socket's path for a ``--control`` argument, or beside the vfio-user socket.

    UserError when there can be none.
    """
    path = socket.with_name(socket.name + CONTROL_SUFFIX) if text is None else Path(text)
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise UserError(
            f"{path}: {length} bytes are too long for the control socket (at most"
            f" {MAX_PATH_BYTES}): give a shorter --control, or --no-control"
        )
    if path == socket or not path.name:
        raise UserError(f"--control {text!r} is no path for a socket: give one of its own")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a directory: create it first (mkdir -p)")
    return path


def why_not_listening(error: OSError, path: Path, option: str = "--socket") -> str:
    """What to tell the user about an error that listening on ``path`` raised."""
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{path} is in use: somebody listens there (a controller of ours: see list): choose"
                f" another {option}, or stop that one"
            )
        case errno.EEXIST | errno.EISDIR:
            return f"{path} exists and is no socket: choose another {option}"
        case _:
            return describe_os_error(OSError(error.errno, error.strerror, os.fspath(path)))
