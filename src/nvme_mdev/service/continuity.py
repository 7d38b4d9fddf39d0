"""What the next process needs to go on where this one is killed, and what the last one has left.

In the FD store are: the listening socket and the client's connection; the controller's shared
memory and its doorbell page; the journal of the session; the tables of what the client has told us;
the client's files; and the memory of namespaces that are nothing else. Images and devices are
opened again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.service.client_tables import ClientTables
from nvme_mdev.service.kept_fds import KeptFds
from nvme_mdev.vfio_user.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.service.fdstore import FdStore

log = logging.getLogger(__name__)

STATE = "state"
DOORBELLS = "doorbells"
JOURNAL = "journal"
REPLY = "reply"
TABLES = "tables"
MEMORY = "memory."
"""And the NSID: the contents of a memory namespace."""
COMPLETE = "complete"
"""An empty file, stored last: without it the start was not over, and nothing is gone on with."""

PREDECESSOR_PATIENCE_S = 30.0
"""How long I/O of the process before us may go on in the kernel: until it would be cancelled."""
_RETRY_S = 0.001


class Continuity:
    """The kept parts of one controller; `nvme_mdev.vfio_user.server.Continuity` for its server."""

    def __init__(self, fd_store: FdStore, inherited: dict[str, int]) -> None:
        """``inherited``: what is in the store, by name; nothing, or all that was stored."""
        self._fd_store = fd_store
        self.inherited = inherited
        self.resuming = COMPLETE in inherited
        if self.resuming:
            os.close(inherited.pop(COMPLETE))
        else:
            for name, fd in inherited.items():
                fd_store.remove(name)
                os.close(fd)
            inherited.clear()
        given = inherited.get
        self.files = KeptFds(fd_store, inherited)
        self.state = ControllerState(given(STATE, -1), given(DOORBELLS, -1))
        self.journal = Journal(self.files, given(JOURNAL), given(REPLY))
        self.tables = ClientTables(self.files, given(TABLES))

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor."""
        self._fd_store.store(name, fd)

    def remove(self, name: str) -> None:
        """Give it up."""
        self._fd_store.remove(name)

    @property
    def memory(self) -> dict[int, int]:
        """By NSID, the contents of memory namespaces."""
        return {
            int(name.removeprefix(MEMORY)): fd
            for name, fd in self.inherited.items()
            if name.startswith(MEMORY)
        }

    def keep_all(self, backends: Sequence[Backend]) -> None:
        """Store what a fresh controller consists of; the last step of starting one."""
        for nsid, backend in enumerate(backends, 1):
            if isinstance(backend, MemoryBackend):
                self.store(f"{MEMORY}{nsid}", backend.fd)
        self.store(STATE, self.state.fd)
        self.store(DOORBELLS, self.state.doorbell_fd)
        self.store(JOURNAL, self.journal.fd)
        self.store(REPLY, self.journal.reply_fd)
        self.store(TABLES, self.tables.fd)
        # systemd does not take the same open file twice: this is a file of its own.
        mark = os.memfd_create("nvme-mdev-complete")
        self.store(COMPLETE, mark)
        os.close(mark)

    def end(self) -> None:
        """The controller ends with this process: whoever starts next (systemd's restart) is new."""
        self.remove(COMPLETE)

    def lifeline(self) -> int:
        """A lock on the state, as a descriptor (the caller's); OSError EBUSY: it is not to be had.

        io_uring gets a share of it, so that it is held until the kernel has finished the last I/O
        of a process, which can be after its death: what that still writes, to the medium or to
        guest memory, must not meet what we do.
        """
        fd = os.open(f"/proc/self/fd/{self.state.fd}", os.O_RDWR | os.O_CLOEXEC)
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
        self.tables.close()
        self.journal.close()
        self.files.close()
        self.state.close()
