"""Locks on bytes of a file that other processes see: fcntl(2)'s, of open file descriptions.

They end with the last descriptor of the description that took them, so with the process at the
latest, and two descriptions of one process keep each other out, too.
"""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock: type, whence, start, length, process (0 for these locks)."""


def lock_range(fd: int, start: int, length: int, *, shared: bool = False) -> bool:
    """Lock ``length`` bytes, 0: all from ``start`` on; False: somebody else has some of them.

    OSError: there are no locks on such a file, or it is not open for what the lock is for.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    return True


def is_locked(fd: int, start: int) -> bool:
    """Whether another description than ``fd``'s has a lock on this byte (OSError as above)."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK
