"""The paths of a command that are counted; run by callgrind, which writes a file for each call of
`take_turns`.

A path is prepared in Python, then taken twice: once to warm up (first faults, hints, lazily bound
symbols), once to be counted. Turns are a multiple of 16, since every sixteenth looks at the admin
doorbells.
"""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.datapath.guest import PAGE, READ, WRITE, Guest

from benchmarks.drive import MemoryDrive
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.probe import take_turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.datapath.guest import QueuePair

    from nvme_mdev.datapath.backends.base import Backend

TURNS = 64
CAPACITY = 1 << 30
_ENTRIES = 2048
"""Of a queue that is never full: two runs of the deepest path fit."""
_QUEUES = 65


@dataclass(frozen=True)
class Path:
    """A way of a command through the data path; what is counted is one command, or one turn."""

    name: str
    what: str
    opcode: int = READ
    size: int = PAGE
    """Bytes of a command."""
    batch: int = 1
    """Commands that wait at the beginning of each turn; 0: an idle turn is counted."""
    turns: int = TURNS
    memory: bool = False
    """On a memory namespace; otherwise null, where only the path itself is."""
    direct: bool = False
    """On the queue of another controller, which completes at once."""
    interrupts: bool = False
    shadow: bool = False
    """The doorbells are in shadow pages."""
    queues: int = 1

    @property
    def counted(self) -> int:
        """Commands (of an idle path: turns) of one run."""
        return self.turns * (self.batch or 1)


PATHS = (
    Path("null_1", "null, 4 KiB read, one a turn"),
    Path("null_32", "null, 4 KiB read, 32 a turn", batch=32, turns=16),
    Path("null_1_shadow", "null, 4 KiB read, one a turn, shadow doorbells", shadow=True),
    Path("null_1_interrupt", "null, 4 KiB read, one a turn, with interrupt", interrupts=True),
    Path("null_two_prps", "null, 8 KiB read, two PRPs", size=2 * PAGE),
    Path("null_prp_list", "null, 32 KiB read, PRP list", size=8 * PAGE),
    Path("memory_read", "memory, 4 KiB read, one a turn", memory=True),
    Path("memory_write", "memory, 4 KiB write, one a turn", memory=True, opcode=WRITE),
    Path("direct_1", "direct, 4 KiB read, one a turn", direct=True, turns=1),
    Path("direct_32", "direct, 4 KiB read, 32 a turn", direct=True, batch=32, turns=1),
    Path("direct_prp_list", "direct, 32 KiB read, PRP list", direct=True, turns=1, size=8 * PAGE),
    Path("idle_1", "turn with nothing to do, one queue", batch=0),
    Path("idle_65", "turn with nothing to do, 65 queues", batch=0, queues=_QUEUES),
)
"""In the order in which `main` takes them."""


def _backend(path: Path) -> tuple[Backend, MemoryDrive | None]:
    """The namespace, and the drive below where there is one."""
    if path.direct:
        drive = MemoryDrive(CAPACITY)
        return drive.backend, drive
    return (MemoryBackend(CAPACITY) if path.memory else NullBackend(CAPACITY)), None


def scattered_prps(guest: Guest, size: int) -> tuple[int, int]:
    """PRP1 and PRP2 for pages of which no two are neighbours, so that each stays a segment."""
    pages = [guest.allocate(2) for _ in range(size // PAGE)]
    if len(pages) == 1:
        return pages[0], 0
    if len(pages) == 2:
        return pages[0], pages[1]
    prp_list = guest.allocate(1)
    guest.poke(prp_list, struct.pack(f"<{len(pages) - 1}Q", *pages[1:]))
    return pages[0], prp_list


@contextmanager
def prepared(path: Path) -> Iterator[tuple[Guest, QueuePair, MemoryDrive | None]]:
    """A guest with the path's queues, the first of which is used, and the drive below."""
    backend, drive = _backend(path)
    with Guest(backend, running=False) as guest:
        if path.shadow:
            assert guest.table.set_doorbell_buffers(guest.allocate(1), guest.allocate(1))
        queues = [
            guest.queue(qid, _ENTRIES if qid == 1 else 2, interrupts=path.interrupts)
            for qid in range(1, path.queues + 1)
        ]
        if path.interrupts:
            guest.table.set_vector(1, os.eventfd(0, os.EFD_NONBLOCK))
        guest.table.set_arbitration(max(path.batch, 1))
        yield guest, queues[0], drive


class _Doorbell:
    """The tail doorbell of the first queue: register or shadow page."""

    def __init__(self, path: Path, guest: Guest, queue: QueuePair) -> None:
        self._shadow = guest.state.shadow_doorbell_iova if path.shadow else None
        self._guest, self._queue = guest, queue

    def ring(self) -> None:
        if self._shadow is None:
            self._queue.doorbell(self._queue.tail)
        else:
            self._guest.poke(
                self._shadow + 8 * self._queue.qid, struct.pack("<I", self._queue.tail)
            )


def take(path: Path) -> None:
    """Take a path twice, `take_turns` once each; AssertionError when not every command is done."""
    with prepared(path) as (guest, queue, drive):
        doorbell = _Doorbell(path, guest, queue)
        prp1, prp2 = scattered_prps(guest, path.size)
        sqe = queue.command(path.opcode, blocks=path.size // 512, prp1=prp1, prp2=prp2)
        commands = path.turns * path.batch
        for _run in ("warm", "counted"):
            # The queue was emptied: as many again fit, and their completions.
            for _ in range(commands):
                queue.put(sqe)
            doorbell.ring()
            if drive is not None:
                drive.complete(commands)
            # Direct mode's completions are work, too.
            work = commands * (2 if drive is not None else 1)
            assert take_turns(guest.iothread, path.turns) == work
            for _ in range(commands):
                completion = queue.poll()
                assert completion is not None
                assert completion.status == 0


def main() -> None:
    """Take every path; callgrind looks on."""
    for path in PATHS:
        take(path)


if __name__ == "__main__":
    main()
