"""File descriptors that outlive this process: systemd's FD store, spoken over ``NOTIFY_SOCKET``.

The protocol is that of sd_notify(3) and sd_listen_fds(3). A datagram of ``FDSTORE=1`` and
``FDNAME=…`` hands descriptors to whoever started us, and the process that follows us gets them back
from 3 on, with their names in ``LISTEN_FDNAMES``. The other side is systemd
(``FileDescriptorStoreMax=`` in the unit) or the keeper (:mod:`.keeper`): nothing here knows which.

A datagram that was sent survives its sender: what :meth:`FdStore.store` has returned from is kept.
"""

from __future__ import annotations

import array
import os
import socket

LISTEN_FDS_START = 3
"""The first descriptor that is given back (sd_listen_fds(3))."""


class FdStore:
    """The other end of ``NOTIFY_SOCKET``; without one, everything is a no-op."""

    def __init__(self, address: str | None) -> None:
        """``address``: a path, or ``@`` and a name in the abstract namespace."""
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)

    @property
    def keeps(self) -> bool:
        """Whether somebody is there."""
        return self._socket is not None

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor, even if its peer hangs up, until :meth:`remove`. OSError: not sent."""
        self._notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd)

    def remove(self, name: str) -> None:
        """Give up every descriptor of this name."""
        self._notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def ready(self, status: str) -> None:
        """Start-up is over; ``status`` is one line for people."""
        self._notify(f"READY=1\nSTATUS={status}")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _notify(self, text: str, fd: int | None = None) -> None:
        if self._socket is None:
            return
        ancillary = []
        if fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._socket.sendmsg([text.encode()], ancillary)


def connect() -> FdStore:
    """The FD store of the process that started us, if it has one."""
    return FdStore(os.environ.get("NOTIFY_SOCKET"))


def inherited() -> dict[str, int]:
    """What a process before us has stored, by name, the caller's to close; nothing at first."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + int(os.environ.get("LISTEN_FDS", "0")))
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    for fd in fds:
        os.set_inheritable(fd, False)
    return dict(zip(names, fds, strict=False))
