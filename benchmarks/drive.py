"""Drives for direct mode that are made up.

`MemoryDrive` is a queue in memory, with completions written in advance; `CutOffDrive` is what the
kernel's driver would have, for an io_uring that is cut off from the kernel. What is counted is then
the path of a command to the drive's queue, or the kernel's, and back, and nothing of the drive.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from nvme_mdev.datapath.backends.drive import DriveNamespace
from nvme_mdev.datapath.backends.nvme import LowerQueue, NvmeBackend

if TYPE_CHECKING:
    from nvme_mdev.datapath.iothread import IOThread

_ENTRIES = 256
_PAGE = 4096
_PHASE = 1


def _namespace(name: str, capacity: int) -> DriveNamespace:
    """A namespace that does not begin with the drive's first block, of so many bytes."""
    return DriveNamespace(
        name=name,
        identity="",
        nsid=1,
        block_size=512,
        start=2048,
        blocks=capacity // 512,
        max_transfer=1 << 20,
    )


class MemoryDrive:
    """Implements `nvme_mdev.datapath.backends.nvme.Parent` for one IOThread."""

    def __init__(self, capacity: int) -> None:
        self.cq = bytearray(_ENTRIES * 16)
        self._written = 0
        self._queue: LowerQueue | None = None
        self.backend = NvmeBackend(self, _namespace("memory drive", capacity))

    def complete(self, count: int) -> None:
        """Write the completions of the next ``count`` commands; they get the lowest identifiers."""
        for cid in range(count):
            wraps, index = divmod(self._written, _ENTRIES)
            entry = struct.pack("<IIHHHH", 0, 0, 0, 1, cid, _PHASE ^ (wraps & 1))
            self.cq[index * 16 : index * 16 + 16] = entry
            self._written += 1

    def take_queue(self, iothread: IOThread) -> LowerQueue:
        """The only one."""
        self._queue = LowerQueue(iothread, _ENTRIES)
        self._queue.run(
            sq=memoryview(bytearray(_ENTRIES * 64)),
            cq=memoryview(self.cq),
            tail_register=memoryview(bytearray(4)),
            head_register=memoryview(bytearray(4)),
            pages=memoryview(bytearray(_ENTRIES * _PAGE)),
            pages_iova=1 << 32,
        )
        return self._queue

    def give_queue(self, _iothread: IOThread) -> None:
        """The end."""
        if self._queue is not None:
            self._queue.close()

    def map(self, address: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Nobody looks at the data."""

    def unmap(self, address: int, size: int) -> None:
        """As `map`."""

    def current_blocks(self, backend: NvmeBackend) -> int:
        """It never changes."""
        return backend.size // backend.block_size

    def is_read_only(self, _backend: NvmeBackend) -> bool:
        """It never is."""
        return False

    def flush(self, backend: NvmeBackend) -> None:
        """Nothing is kept."""

    def temperature(self) -> None:
        """It has none."""

    def smart(self) -> None:
        """It has no log."""

    def release(self, backend: NvmeBackend) -> None:
        """Nothing to let go of."""


class CutOffDrive:
    """Implements `nvme_mdev.datapath.backends.passthru.Drive`; no command ever reaches it."""

    fd = -1
    polled = False

    def __init__(self, capacity: int) -> None:
        self.namespace = _namespace("cut-off drive", capacity)

    def take_queue(self, owner: object) -> None:
        """There is always one."""

    def give_queue(self, owner: object) -> None:
        """Nobody counts."""

    def current_size(self) -> int:
        """It never changes."""
        return self.namespace.blocks * self.namespace.block_size

    def is_read_only(self) -> bool:
        """It never is."""
        return False

    def flush(self) -> None:
        """Nothing is kept."""

    def smart(self) -> bytes:
        """It has no log."""
        raise OSError(errno.ENOTSUP, "it has no SMART log", self.namespace.name)

    def close(self) -> None:
        """Nothing to let go of."""
