"""A guest in Python: queues in a memfd, SQEs by hand, doorbells in the shared page.

It drives the data path (QueueTable, IOThread, backends) without sockets, registers or processes, so
that a test can do what no driver would.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.queue_table import QueueTable
from nvme_mdev.datapath.state import ControllerState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from nvme_mdev.datapath.backends.base import Backend

PAGE = 4096
#: Guest memory is not at the address that it has anywhere else.
IOVA = 0x1_0000_0000
#: Seconds; the machine may be busy with other tests.
DEADLINE = 60.0

FID_VOLATILE_WRITE_CACHE = 6
FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM = 0x00, 0x01, 0x02, 0x05, 0x08, 0x09


MORE = 0x2000


@dataclass(frozen=True)
class Completion:
    """A CQE without its phase tag."""

    result: int
    sq_head: int
    sqid: int
    cid: int
    status: int
    """SCT, SC and Do Not Retry."""
    more: bool = False
    """The error log has an entry."""


def eventfd() -> int:
    """Of a client, for one interrupt."""
    return os.eventfd(0, os.EFD_NONBLOCK)


def signals(fd: int) -> int:
    """How often it was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def slept(task: Path) -> int:
    """How often a thread has gone to sleep, by its directory in /proc; a yield is none."""
    status = (task / "status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; AssertionError after DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"timed out waiting for {what}"
        time.sleep(0.0002)


class Guest:
    """A controller's data path and a guest's memory; `queue()` makes I/O queue pairs."""

    def __init__(
        self,
        *backends: Backend,
        pages: int = 2048,
        poll_timeout_ms: int = 500,
        max_transfer: int = 1 << 20,
        running: bool = True,
        iothreads: int = 1,
        page_size: int = PAGE,
        dstrd: int = 0,
        weighted: bool = False,
        shared: IOThread | None = None,
        max_nsid: int = 256,
    ) -> None:
        """``shared``: the IOThread of another guest, which runs or not as it does."""
        self.dstrd = dstrd
        self.size = pages * PAGE
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, self.size)
        self.ram = mmap.mmap(self.fd, self.size)
        self.next_page = 0
        self.backends = backends
        self.state = ControllerState()
        self.state.features[FID_VOLATILE_WRITE_CACHE] = 1
        self.memory = GuestMemory()
        self.owns_iothreads = shared is None
        self.iothreads = (
            [shared]
            if shared
            else [
                IOThread(f"test-{number}", poll_timeout_ms=poll_timeout_ms)
                for number in range(iothreads)
            ]
        )
        self.iothread = self.iothreads[0]
        if running and self.owns_iothreads:
            for iothread in self.iothreads:
                iothread.start()
        self.table = QueueTable(
            self.state,
            self.memory,
            self.iothreads,
            max_transfer=max_transfer,
            max_nsid=max_nsid,
        )
        self.table.dma.map(IOVA, self.size, self.fd, 0, readable=True, writable=True)
        for nsid, backend in enumerate(backends, 1):
            self.table.namespaces.set(nsid, backend)
        self.allocate(-self.next_page % (page_size // PAGE))
        self.admin_sq = self.allocate(page_size // PAGE)
        self.admin_cq = self.allocate(page_size // PAGE)
        self.table.enable(
            admin_sq=self.admin_sq,
            admin_sq_size=32,
            admin_cq=self.admin_cq,
            admin_cq_size=32,
            page_size=page_size,
            dstrd=dstrd,
            weighted=weighted,
        )

    def close(self) -> None:
        """Take everything down in order."""
        self.table.stop()
        wait_for(lambda: self.table.inflight() == 0, "commands in flight")
        self.table.close()
        if self.owns_iothreads:
            for iothread in self.iothreads:
                iothread.stop()
        for backend in self.backends:
            backend.close()
        self.state.close()
        self.ram.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def allocate(self, pages: int) -> int:
        """IOVA of fresh, zeroed, consecutive pages."""
        iova = IOVA + self.next_page * PAGE
        self.next_page += pages
        assert self.next_page * PAGE <= self.size
        return iova

    def poke(self, iova: int, data: bytes) -> None:
        self.ram[iova - IOVA : iova - IOVA + len(data)] = data

    def peek(self, iova: int, size: int) -> bytes:
        return self.ram[iova - IOVA : iova - IOVA + size]

    def prps(self, iova: int, size: int) -> tuple[int, int]:
        """PRP1 and PRP2 for consecutive guest memory, with a list where one is needed."""
        first = PAGE - iova % PAGE
        if size <= first:
            return iova, 0
        rest = range(iova + first, iova + size, PAGE)
        if len(rest) == 1:
            return iova, rest[0]
        pages = (len(rest) + 510) // 511 + 1
        lists = self.allocate(pages)
        entries = list(rest)
        at = lists
        while entries:
            fits = 512 if len(entries) <= 512 else 511
            chunk, entries = entries[:fits], entries[fits:]
            if entries:
                chunk.append(at + PAGE)
            self.poke(at, struct.pack(f"<{len(chunk)}Q", *chunk))
            at += PAGE
        return iova, lists

    def queue(
        self,
        qid: int = 1,
        entries: int = 64,
        cq_entries: int | None = None,
        *,
        interrupts: bool = True,
        **options: int,
    ) -> QueuePair:
        """A new I/O queue pair."""
        return QueuePair(self, qid, entries, cq_entries or entries, interrupts, **options)


class QueuePair:
    """The guest's side of an I/O queue pair, and commands on it."""

    def __init__(
        self,
        guest: Guest,
        qid: int,
        entries: int,
        cq_entries: int,
        interrupts: bool,
        *,
        priority: int = 0,
        vector: int | None = None,
    ) -> None:
        self.guest = guest
        self.qid = qid
        self.entries, self.cq_entries = entries, cq_entries
        self.sq = guest.allocate((entries * 64 + PAGE - 1) // PAGE)
        self.cq = guest.allocate((cq_entries * 16 + PAGE - 1) // PAGE)
        self.tail = self.head = 0
        self.phase = 1
        self.cid = 0
        vector = qid if vector is None else vector
        guest.table.create_cq(qid, self.cq, cq_entries, vector, interrupts=interrupts)
        guest.table.create_sq(qid, qid, self.sq, entries, priority=priority)

    def doorbell(self, value: int, *, completion: bool = False) -> None:
        """Write the doorbell as a client with the page mapped does."""
        offset = (2 * self.qid + completion) * (4 << self.guest.dstrd)
        self.guest.state.doorbells[offset : offset + 4] = struct.pack("<I", value)

    def put(self, sqe: bytes) -> None:
        """Place an SQE at the tail, without ringing."""
        self.guest.poke(self.sq + self.tail * 64, sqe)
        self.tail = (self.tail + 1) % self.entries

    def ring(self) -> None:
        self.doorbell(self.tail)
        for iothread in self.guest.iothreads:
            iothread.wake()

    def poll(self) -> Completion | None:
        """The next CQE if it is there; the head doorbell is not rung."""
        entry = self.guest.peek(self.cq + self.head * 16, 16)
        result, _, sq_head, sqid, cid, status = struct.unpack("<IIHHHH", entry)
        if status & 1 != self.phase:
            return None
        self.head += 1
        if self.head == self.cq_entries:
            self.head = 0
            self.phase ^= 1
        status >>= 1
        return Completion(result, sq_head, sqid, cid, status & ~MORE, bool(status & MORE))

    def wait(self, *, ring: bool = True) -> Completion:
        """Wait for a completion and (unless told otherwise) consume it."""
        found: list[Completion] = []

        def look() -> bool:
            completion = self.poll()
            if completion:
                found.append(completion)
            return bool(found)

        wait_for(look, f"a completion on queue {self.qid}")
        if ring:
            self.doorbell(self.head, completion=True)
        return found[0]

    def command(
        self,
        opcode: int,
        *,
        nsid: int = 1,
        slba: int = 0,
        blocks: int = 1,
        prp1: int = 0,
        prp2: int = 0,
        cdw12: int = 0,
        cdw10: int | None = None,
        cdw11: int | None = None,
        flags: int = 0,
    ) -> bytes:
        """An SQE with the next CID."""
        self.cid = (self.cid + 1) % 0x10000
        return struct.pack(
            "<BBHIIIQQQIIIIII",
            opcode,
            flags,
            self.cid,
            nsid,
            0,
            0,
            0,
            prp1,
            prp2,
            slba & 0xFFFFFFFF if cdw10 is None else cdw10,
            slba >> 32 if cdw11 is None else cdw11,
            cdw12 | (blocks - 1 if cdw10 is None else 0),
            0,
            0,
            0,
        )

    def run(self, sqe: bytes) -> Completion:
        """One command, start to end."""
        self.put(sqe)
        self.ring()
        return self.wait()

    def io(
        self, opcode: int, iova: int, size: int, *, slba: int, block: int = 512, **more: int
    ) -> Completion:
        """Read, Write or Compare of consecutive guest memory."""
        prp1, prp2 = self.guest.prps(iova, size)
        return self.run(
            self.command(opcode, slba=slba, blocks=size // block, prp1=prp1, prp2=prp2, **more)
        )
