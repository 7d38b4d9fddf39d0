"""Clients' file descriptors in the FD store: each open file once, under a number.

systemd drops a descriptor of an open file that it has already, whatever its name. So every file
that a client sends is compared (kcmp(2)) with those that are kept, of all clients, and has one
number, ``fd.NUMBER`` in the store, however often it comes: guest memory comes a dozen times while
firmware starts, and again from each controller of the same guest. Whoever needs the file in the
next process writes the number down in shared memory.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvme_mdev.service.fdstore import FdStore

_PREFIX = "fd."
_KCMP_FILE = 0
_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
"""System call numbers, which the C library has no function for."""
_SAME, _BEFORE = 0, 1
"""What kcmp(2) answers: it orders open files, so that they can be searched."""

_libc = ctypes.CDLL(None)


class KeptFds:
    """The open files of all clients, counted by their users."""

    def __init__(self, store: FdStore, inherited: Mapping[str, int]) -> None:
        """``inherited``: what the process before us has stored; those of other names are left."""
        self._store = store
        self._fds: dict[int, int] = {}
        self._users: dict[int, int] = {}
        #: The numbers, in the order of their files.
        self._order: list[int] = []
        for name, fd in inherited.items():
            if name.startswith(_PREFIX):
                self._insert(int(name.removeprefix(_PREFIX)), fd, self._find(fd)[1])
        self._next = max(self._fds, default=0) + 1

    def __getitem__(self, number: int) -> int:
        """The descriptor of a number; it stays ours."""
        return self._fds[number]

    def __contains__(self, number: int) -> bool:
        """Whether there is one of this number."""
        return number in self._fds

    def keep(self, fd: int) -> int:
        """The number (from 1) of the file behind ``fd``, which is stored when this returns."""
        number, position = self._find(fd)
        if not number:
            number = self._next
            self._next += 1
            self._insert(number, os.dup(fd), position)
            self._store.store(f"{_PREFIX}{number}", fd)
        return self.claim(number)

    def claim(self, number: int) -> int:
        """One more user of a file that is kept; KeyError: it is not. Returns the number."""
        if number not in self._fds:
            raise KeyError(number)
        self._users[number] = self._users.get(number, 0) + 1
        return number

    def drop(self, number: int) -> None:
        """One user less; with the last one the file is given up."""
        self._users[number] -= 1
        if not self._users[number]:
            del self._users[number]
            self._give_up(number)

    def give_up_unclaimed(self) -> None:
        """After :meth:`claim` of all that is in use: the rest is what nobody came to write down."""
        for number in [number for number in self._fds if number not in self._users]:
            self._give_up(number)

    def close(self) -> None:
        """Close our descriptors; what is stored stays."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._users.clear()
        self._order.clear()

    def _find(self, fd: int) -> tuple[int, int]:
        """The number of the file behind ``fd``, 0 if it is not kept, and its place in the order."""
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            answer = _compare(fd, self._fds[self._order[middle]])
            if answer == _SAME:
                return self._order[middle], middle
            if answer == _BEFORE:
                high = middle
            else:
                low = middle + 1
        return 0, low

    def _insert(self, number: int, fd: int, position: int) -> None:
        self._fds[number] = fd
        self._order.insert(position, number)

    def _give_up(self, number: int) -> None:
        self._store.remove(f"{_PREFIX}{number}")
        self._order.remove(number)
        os.close(self._fds.pop(number))


def _compare(one: int, other: int) -> int:
    """kcmp(2) of two descriptors; a negative number where the kernel cannot tell."""
    number = _SYS_KCMP.get(os.uname().machine)
    if number is None:
        return -1
    pid = os.getpid()
    return int(_libc.syscall(number, pid, pid, _KCMP_FILE, one, other))
