"""Where controllers are found by their names: a directory of links to control sockets.

A running daemon has a symbolic link ``NAME`` there to its control socket. The directory is
``$NVME_MDEV_RUNTIME_DIR``, ``/run/nvme-mdev`` for root, and ``$XDG_RUNTIME_DIR/nvme-mdev`` for
others; it is its owner's alone. A link whose socket nobody listens on is what a killed daemon left:
whoever comes across it removes it. Changes are made under a lock (flock(2)) on the directory, so
that the link of a daemon that just starts is not taken for such a one.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.service.endpoint import CONTROL_SUFFIX, SOCKET_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = "nvme-mdev"
_OVERRIDE = "NVME_MDEV_RUNTIME_DIR"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_MAX_NAMES = 1000
"""Tries to find a free name: arbitrary."""


def runtime_directory() -> Path | None:
    """Where the links are (it need not exist); None: this user has no place for them."""
    if override := os.environ.get(_OVERRIDE):
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run") / _DIRECTORY
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
    return base / _DIRECTORY if base.is_dir() else None


def check_name(name: str) -> str:
    """The name; UserError: it cannot be one."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be a controller's name: use up to 64 letters, digits, '_', '-', '.'"
            " and ':', and begin with a letter, digit or '_'"
        )
    return name


def default_name(vfio_socket: Path) -> str:
    """The name of a controller that was given none: its socket's, or that one's directory's."""
    path = vfio_socket.absolute()
    stem = path.parent.name if path.name == SOCKET_NAME else path.stem
    cleaned = re.sub(r"[^A-Za-z0-9_.:-]", "_", stem).lstrip(".:-")[:60]
    return cleaned or "controller"


@dataclass(frozen=True, slots=True)
class Entry:
    """A controller that can be found by its name."""

    name: str
    link: Path
    control: Path

    def remove(self) -> None:
        """Take the link away, if it is still ours."""
        with suppress(OSError), _locked(self.link.parent):
            if self.link.readlink() == self.control:
                self.link.unlink()


def publish(name: str, control: Path, *, exact: bool) -> Entry | None:
    """Make a control socket, which must be listening, known by a name.

    Unless ``exact``, ``name-2``, ``name-3``, ... is taken when another daemon has the name;
    otherwise that is a UserError. None: this user has no runtime directory. OSError: it cannot be
    written.
    """
    directory = runtime_directory()
    if directory is None:
        return None
    directory.mkdir(mode=0o700, exist_ok=True)
    target = control.absolute()
    with _locked(directory):
        for number in range(1, _MAX_NAMES):
            entry = Entry(
                name if number == 1 else f"{name}-{number}",
                directory / (name if number == 1 else f"{name}-{number}"),
                target,
            )
            if _claim(entry):
                return entry
            if exact:
                break
    raise UserError(f"a controller named {name} is being served: choose another --name")


def _claim(entry: Entry) -> bool:
    if os.path.lexists(entry.link):
        if entry.link.is_symlink() and entry.link.readlink() == entry.control:
            return True  # of a process before us, whose control socket is now ours
        if is_listening(entry.link):
            return False
        entry.link.unlink()
    entry.link.symlink_to(entry.control)
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def is_listening(path: Path) -> bool:
    """Whether a process listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def entries() -> list[Entry]:
    """The controllers of running daemons, by name; what dead ones have left is removed."""
    directory = runtime_directory()
    if directory is None or not directory.is_dir():
        return []
    found = []
    try:
        links = sorted(path for path in directory.iterdir() if path.is_symlink())
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    for link in links:
        with suppress(FileNotFoundError):
            if is_listening(link):
                found.append(Entry(link.name, link, link.readlink()))
            else:
                _remove_stale(link)
    return found


def _remove_stale(link: Path) -> None:
    """Remove a link that leads nowhere, unless its name was taken meanwhile or it is not ours."""
    with suppress(OSError), _locked(link.parent):
        if not is_listening(link):
            link.unlink()


def find(name: str) -> Path:
    """The control socket of a controller, by its name or by the path of one of its two sockets.

    UserError: there is none.
    """
    if "/" not in name:
        directory = runtime_directory()
        link = None if directory is None else directory / name
        if link is not None and is_listening(link):
            return link
        if not Path(name).exists():
            known = ", ".join(entry.name for entry in entries())
            there_are = f"there are {known}" if known else "none is served"
            raise UserError(f"no controller is named {name}: {there_are} (nvme-mdev list)")
    path = Path(name)
    if path.is_dir():
        path /= SOCKET_NAME
    beside = path.with_name(path.name + CONTROL_SUFFIX)
    return beside if beside.exists() else path
