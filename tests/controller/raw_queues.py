"""I/O queues of a few lines: several SQs on a CQ, any entry, any doorbell value."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_commands import CQE, CQE_SIZE, SQE_SIZE

if TYPE_CHECKING:
    from nvme_mdev.host.driver import NvmeHost
    from nvme_mdev.host.memory import DmaBuffer
    from nvme_mdev.spec.nvme_commands import SQE

PATIENCE = 30.0
"""Seconds after which a completion will not come any more."""


class RawCq:
    """A completion queue that was created at ``buffer``."""

    def __init__(self, host: NvmeHost, qid: int, entries: int, buffer: DmaBuffer) -> None:
        self.host, self.qid, self.entries, self.buffer = host, qid, entries, buffer
        self.head = 0
        self.phase = 1

    def reap(self) -> list[CQE]:
        """The completions that are there, consumed."""
        found = []
        while True:
            entry = CQE.from_buffer_copy(self.buffer.read(self.head * CQE_SIZE, CQE_SIZE))
            if entry.status & 1 != self.phase:
                break
            found.append(entry)
            self.head = (self.head + 1) % self.entries
            self.phase ^= self.head == 0
        if found:
            self.host.write_doorbell(self.qid, self.head, completion=True)
        return found

    def wait(self, count: int) -> list[CQE]:
        """As many completions."""
        found: list[CQE] = []
        deadline = time.monotonic() + PATIENCE
        while len(found) < count:
            found += self.reap()
            assert time.monotonic() < deadline, f"{len(found)} completions of {count}"
        return found


class RawSq:
    """A submission queue that was created at ``buffer``."""

    def __init__(
        self, host: NvmeHost, qid: int, entries: int, buffer: DmaBuffer, cq: RawCq
    ) -> None:
        self.host, self.qid, self.entries, self.buffer, self.cq = host, qid, entries, buffer, cq
        self.tail = 0

    def post(self, sqe: SQE) -> None:
        """Write an entry; does not ring."""
        self.buffer.write(bytes(sqe), self.tail * SQE_SIZE)
        self.tail = (self.tail + 1) % self.entries

    def ring(self) -> None:
        """Tell the controller."""
        self.host.write_doorbell(self.qid, self.tail)

    def execute(self, sqe: SQE) -> CQE:
        """One command, alone on its completion queue."""
        self.post(sqe)
        self.ring()
        (entry,) = self.cq.wait(1)
        assert (entry.sqid, entry.cid, entry.sqhd) == (self.qid, sqe.cid, self.tail)
        return entry
