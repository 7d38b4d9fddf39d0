"""A controller of a few lines for the host's queue code: Python, one queue pair, no socket.

It reads the rings through the DMA memory's view, so an IOVA that the host got wrong is an
IndexError here, and completes Read and Write on a bytearray.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from nvme_mdev.host.memory import DmaMemory
from nvme_mdev.host.queues import QueuePair

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

BLOCK = 512


class FakeController:
    """Serves one queue pair from a thread: `with FakeController() as fake: fake.queue ...`."""

    def __init__(
        self,
        *,
        entries: int = 16,
        blocks: int = 256,
        shadow: bool = False,
        by_socket: bool = False,
        eventfd: int = -1,
    ) -> None:
        self.memory = DmaMemory(4 << 20, 0x7_0000_0000)
        self.entries = entries
        self.medium = bytearray(blocks * BLOCK)
        self.sq = self.memory.allocate(entries * 64)
        self.cq = self.memory.allocate(entries * 16)
        self.page = bytearray(4096)
        self.doorbells = memoryview(self.page)
        self.shadow = memoryview(bytearray(8))
        self.event_idx = memoryview(bytearray(8))
        self.use_shadow = shadow
        self.eventfd = eventfd
        self.register_writes: list[tuple[bool, int]] = []
        self.head = self.tail = 0
        self.phase = 1
        self.status_of: Callable[[int, int], int | None] = lambda _opcode, _slba: 0
        self.on_read: Callable[[int, bytes], bytes] = lambda _slba, data: data
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.queue = QueuePair(
            1,
            sq=self.sq.view,
            cq=self.cq.view,
            sq_entries=entries,
            cq_entries=entries,
            write_doorbell=self._write_doorbell,
            tail_register=None if by_socket else self.doorbells[0:4],
            head_register=None if by_socket else self.doorbells[4:8],
            tail_shadow=(self.shadow[0:4], self.event_idx[0:4]) if shadow else None,
            head_shadow=(self.shadow[4:8], self.event_idx[4:8]) if shadow else None,
            eventfd=eventfd,
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self.queue.close()

    def _write_doorbell(self, completion: bool, value: int) -> None:
        self.register_writes.append((completion, value))
        start = 4 if completion else 0
        self.doorbells[start : start + 4] = value.to_bytes(4, "little")

    def _doorbell(self, completion: bool) -> int:
        page = self.shadow if self.use_shadow else self.doorbells
        start = 4 if completion else 0
        return int.from_bytes(page[start : start + 4], "little")

    def _serve(self) -> None:
        while not self._stop.is_set():
            tail = self._doorbell(False)
            if tail == self.head:
                time.sleep(0)
                continue
            while self.head != tail:
                sqe = self.sq.read(self.head * 64, 64)
                self.head = (self.head + 1) % self.entries
                self._execute(sqe)

    def _execute(self, sqe: bytes) -> None:
        opcode, cid = sqe[0], int.from_bytes(sqe[2:4], "little")
        prp1 = int.from_bytes(sqe[24:32], "little")
        slba = int.from_bytes(sqe[40:48], "little")
        size = (int.from_bytes(sqe[48:50], "little") + 1) * BLOCK
        status = self.status_of(opcode, slba)
        if status is None:
            return
        if status == 0 and opcode in (1, 2):
            where = prp1 - self.memory.iova
            view = self.memory.view[where : where + size]
            if opcode == 1:
                self.medium[slba * BLOCK : slba * BLOCK + size] = view
            else:
                view[:] = self.on_read(slba, bytes(self.medium[slba * BLOCK : slba * BLOCK + size]))
        self.complete(cid, status)

    def complete(self, cid: int, status: int = 0, result: int = 0) -> None:
        """Post a completion, when there is room for it."""
        while (self.tail + 1) % self.entries == self._doorbell(True):
            if self._stop.is_set():
                return
            time.sleep(0)
        words = (result, 0, self.head | 1 << 16, cid | self.phase << 16 | status << 17)
        entry = b"".join(word.to_bytes(4, "little") for word in words)
        self.cq.write(entry[:12], self.tail * 16)
        # The dword with the phase tag last, as hardware does.
        self.cq.write(entry[12:], self.tail * 16 + 12)
        self.tail = (self.tail + 1) % self.entries
        self.phase ^= self.tail == 0
        if self.eventfd >= 0:
            os.eventfd_write(self.eventfd, 1)
