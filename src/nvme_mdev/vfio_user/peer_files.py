"""Files that a peer sends: what they must be, lest using them is waiting for the peer.

Looked at without asking the file itself, which may be what waits.
"""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

from .device import DeviceError

_FDINFO = Path("/proc/self/fdinfo")
_MOUNTS = Path("/proc/self/mountinfo")
_EVENTFD = "anon_inode:[eventfd]"


def check_eventfd(fd: int) -> None:
    """DeviceError(EINVAL): it is something else; a pipe, or a file in FUSE, can keep a writer."""
    try:
        is_one = str(Path(f"/proc/self/fd/{fd}").readlink()) == _EVENTFD
    except OSError:
        return  # no /proc, nothing to tell by
    if not is_one:
        raise DeviceError(errno.EINVAL, "a descriptor for interrupts is no eventfd")


def check_memory(fd: int, what: str = "guest memory") -> None:
    """DeviceError(EINVAL): its pages, or its size, come from a process, which may be the peer.

    A page fault there, or fstat(2), takes as long as a FUSE server likes, and no signal but SIGKILL
    ends it. Memory of shmem and hugetlbfs is known by having seals; other files by their mounts.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        kind = _file_system(fd)
    else:
        return
    if kind is None:
        raise DeviceError(errno.EINVAL, f"{what} is a file of a mount that is not to be seen")
    if kind.startswith("fuse"):
        raise DeviceError(errno.EINVAL, f"{what} is a file of {kind}: use a memfd")


def _file_system(fd: int) -> str | None:
    """The type of the file system that the file was opened in; None: it is mounted elsewhere."""
    try:
        said = dict(line.split(":", 1) for line in (_FDINFO / str(fd)).read_text().splitlines()[:4])
        mount = said["mnt_id"].strip()
        for line in _MOUNTS.read_text().splitlines():
            if line.split(" ", 1)[0] == mount:
                return line.partition(" - ")[2].split(" ", 1)[0]
    except (OSError, KeyError, ValueError):
        return None
    return None
