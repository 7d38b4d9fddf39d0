"""What the next process needs to go on where this one is killed, and what the last one has left.

In the FD store are, for each controller, under its number: the listening socket and the client's
connection; the controller's shared memory and its doorbell page; the journal of the session; the
tables of what the client has told us. For the daemon: clients' files, the memory of namespaces that
are nothing else, the control socket, and, stored last, the record of what is served. Images and
devices are opened again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from nvme_mdev.controller.shared_state import SHARED_STATE_SIZE, SharedState
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.service.client_tables import ClientTables
from nvme_mdev.service.kept_fds import KeptFds
from nvme_mdev.service.record import RecordFile
from nvme_mdev.vfio_user.journal import Journal

if TYPE_CHECKING:
    from nvme_mdev.service.fdstore import FdStore
    from nvme_mdev.service.record import Record

STATE = "state"
DOORBELLS = "doorbells"
JOURNAL = "journal"
REPLY = "reply"
TABLES = "tables"
"""Of a controller; `nvme_mdev.vfio_user.server` has two more."""

CONTROL = "control"
SUBSYSTEM = "subsystem."
"""And a number: what an NVM subsystem's controllers know of its namespaces in common."""
MEMORY = "memory."
"""And the backing's number: the contents of a memory namespace."""
RECORD = "record"
"""Stored last: without it the start was not over, and nothing is gone on with."""

PREDECESSOR_PATIENCE_S = 30.0
"""How long I/O of the process before us may go on in the kernel: until it would be cancelled."""
_RETRY_S = 0.001


class Kept:
    """Everything that is kept of this daemon."""

    def __init__(self, fd_store: FdStore, inherited: dict[str, int]) -> None:
        """``inherited``: what is in the store, by name: nothing, or all that was stored.

        ValueError: it is of another version of nvme-mdev.
        """
        self._fd_store = fd_store
        given = inherited.pop(RECORD, None)
        if given is None:
            for name, fd in inherited.items():
                fd_store.remove(name)
                os.close(fd)
            inherited.clear()
        self._inherited = inherited
        self._record_file = RecordFile(given)
        self.record: Record | None = None if given is None else self._record_file.read()
        """What the process before us has served; None: there was none."""
        self._continuities: dict[int, Continuity] = {}
        self._memories: set[int] = set()
        self._subsystems: dict[str, SharedState] = {}
        #: Serial numbers of those that there are.
        self._serials: set[str] = set()
        for name in [name for name in inherited if name.startswith(SUBSYSTEM)]:
            fd = inherited.pop(name)
            self._subsystems[name] = SharedState(fd)
            os.close(fd)
        self._ending = False
        self.files = KeptFds(fd_store, inherited)

    @property
    def resuming(self) -> bool:
        """Whether there was a process before us."""
        return self.record is not None

    def controller(self, number: int) -> Continuity:
        """What is kept of a controller: what was kept, or new parts, to be stored."""
        prefix = _prefix(number)
        given = {
            name.removeprefix(prefix): self._inherited.pop(name)
            for name in list(self._inherited)
            if name.startswith(prefix)
        }
        made = self._continuities[number] = Continuity(
            _Scope(self._fd_store, prefix), given, self.files
        )
        return made

    def forget_controller(self, number: int) -> None:
        """Give up everything that is kept of a controller, which has been closed."""
        continuity = self._continuities.pop(number)
        if not self._ending:
            continuity.discard()
        continuity.close()

    def shared_state(self, serial: str) -> SharedState:
        """What is known of the namespaces of a subsystem: what was kept, or nothing, to be kept."""
        self._serials.add(serial)
        for shared in self._subsystems.values():
            if shared.serial == serial:
                return shared
        number = 1
        while f"{SUBSYSTEM}{number}" in self._subsystems:
            number += 1
        name = f"{SUBSYSTEM}{number}"
        fd = os.memfd_create(f"nvme-mdev-{name}")
        try:
            os.ftruncate(fd, SHARED_STATE_SIZE)
            made = SharedState(fd, serial)
            self._fd_store.store(name, fd)
        finally:
            os.close(fd)
        self._subsystems[name] = made
        return made

    def forget_subsystem(self, serial: str) -> None:
        """Give up what is kept of a subsystem, whose last controller is gone."""
        self._serials.discard(serial)
        for name, shared in list(self._subsystems.items()):
            if shared.serial == serial:
                del self._subsystems[name]
                self._fd_store.remove(name)

    def memory(self, number: int) -> int | None:
        """The contents of a memory namespace; the caller's."""
        fd = self._inherited.pop(f"{MEMORY}{number}", None)
        if fd is not None:
            self._memories.add(number)
        return fd

    def keep_memory(self, number: int, fd: int) -> None:
        """Keep the contents of a memory namespace."""
        self._memories.add(number)
        self._fd_store.store(f"{MEMORY}{number}", fd)

    def forget_memory(self, number: int) -> None:
        """Give up the contents of a backing, if it has any of its own."""
        if number in self._memories:
            self._memories.remove(number)
            if not self._ending:
                self._fd_store.remove(f"{MEMORY}{number}")

    def control(self) -> int | None:
        """The listening control socket of the process before us; the caller's."""
        return self._inherited.pop(CONTROL, None)

    def keep_control(self, fd: int) -> None:
        """Keep the listening control socket."""
        self._fd_store.store(CONTROL, fd)

    def save(self, record: Record) -> None:
        """Write down what is served; when this returns, the next process serves that."""
        self._record_file.write(record)

    def complete(self) -> None:
        """The start is over: from here on the next process goes on.

        What the process before us has left and nobody has asked for is given up.
        """
        if self.record is None:
            self._fd_store.store(RECORD, self._record_file.fd)
            return
        self.files.give_up_unclaimed()
        for serial in {shared.serial for shared in self._subsystems.values()} - self._serials:
            self.forget_subsystem(serial)
        for name, fd in self._inherited.items():
            if not name.startswith("fd."):
                self._fd_store.remove(name)
                os.close(fd)
        self._inherited.clear()

    def end(self) -> None:
        """The daemon ends with this process: whoever starts next (systemd's restart) is new."""
        self._ending = True
        self._fd_store.remove(RECORD)

    def lifeline(self) -> int:
        """A lock on the record, as a descriptor (the caller's); OSError EBUSY: it is not to be had.

        Every io_uring gets a share of it, so that it is held until the kernel has finished the last
        I/O of a process, which can be after its death: what that still writes, to the medium or to
        guest memory, must not meet what we do.
        """
        fd = os.open(f"/proc/self/fd/{self._record_file.fd}", os.O_RDWR | os.O_CLOEXEC)
        deadline = time.monotonic() + PREDECESSOR_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    raise OSError(
                        errno.EBUSY, "I/O of the process before this one does not end"
                    ) from None
                time.sleep(_RETRY_S)
            else:
                return fd

    def close(self) -> None:
        """Close everything; what is stored stays until the keeper ends."""
        for continuity in self._continuities.values():
            continuity.close()
        self._continuities.clear()
        self.files.close()
        self._record_file.close()


def _prefix(number: int) -> str:
    return f"c{number}."


class _Scope:
    """The part of the FD store that is one controller's."""

    def __init__(self, fd_store: FdStore, prefix: str) -> None:
        self._fd_store = fd_store
        self._prefix = prefix

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor."""
        self._fd_store.store(self._prefix + name, fd)

    def remove(self, name: str) -> None:
        """Give it up."""
        self._fd_store.remove(self._prefix + name)


class Continuity:
    """The kept parts of one controller; `nvme_mdev.vfio_user.server.Continuity` for its server."""

    def __init__(self, scope: _Scope, inherited: dict[str, int], files: KeptFds) -> None:
        """``inherited``: what is in the store, by name; nothing, or all that was stored."""
        self._scope = scope
        self.inherited = inherited
        self.resuming = STATE in inherited
        given = inherited.get
        self.files = files
        self.state = ControllerState(given(STATE, -1), given(DOORBELLS, -1))
        self.journal = Journal(files, given(JOURNAL), given(REPLY))
        self.tables = ClientTables(files, given(TABLES))
        self._stored: set[str] = set(inherited)

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor."""
        self._scope.store(name, fd)
        self._stored.add(name)

    def remove(self, name: str) -> None:
        """Give it up."""
        self._scope.remove(name)
        self._stored.discard(name)

    def keep_all(self) -> None:
        """Store what a fresh controller consists of."""
        self.store(STATE, self.state.fd)
        self.store(DOORBELLS, self.state.doorbell_fd)
        self.store(JOURNAL, self.journal.fd)
        self.store(REPLY, self.journal.reply_fd)
        self.store(TABLES, self.tables.fd)

    def discard(self) -> None:
        """Give up everything that is stored."""
        for name in list(self._stored):
            self.remove(name)

    def close(self) -> None:
        """Close everything; what is stored stays until the keeper ends."""
        self.tables.close()
        self.journal.close()
        self.state.close()
