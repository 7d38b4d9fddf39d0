"""The paths of a command that are counted; run by callgrind, which writes a file for each call of
`take_turns`.

A path is prepared in Python, then taken twice: once to warm up (first faults, hints, lazily bound
symbols), once to be counted. Turns are a multiple of 16, since every sixteenth looks at the admin
doorbells.

What the kernel would do for a file, or with passed commands, is done in its place between two
turns: the first puts a batch on the io_uring, the second finds all of it done. Each is a path of
its own.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.datapath.guest import PAGE, READ, WRITE, Guest

from benchmarks.drive import CutOffDrive, MemoryDrive
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.passthru import PassthruBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.limits import Limit
from nvme_mdev.datapath.probe import by_hand, complete_ring, cut_off_kernel, stop_clock, take_turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.datapath.guest import QueuePair

    from nvme_mdev.datapath.backends.base import Backend

TURNS = 64
CAPACITY = 1 << 30
_ENTRIES = 2048
"""Of a queue that is never full: two runs of the deepest path fit."""
_QUEUES = 65
INLINE, MAPPED, SENT, TAKEN = "inline", "mapped", "sent", "taken"
BLOCK, SEGMENT = "block", "segment"
_SGL = 0x40
"""PSDT of an SQE (Base 2.x, figure 92): an SGL."""
_SGL_LAST_SEGMENT = 0x30
_MEDIUM_PRIORITY = 2
_RATE = 1 << 40
"""Of a limit that is never reached."""


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
    file: str = ""
    """On a file in memory: `MAPPED`, `INLINE` (a hole), or the turn of io_uring that is counted,
    `SENT` or `TAKEN`."""
    passed: str = ""
    """On the kernel's driver (passthrough): the turn that is counted, `SENT` or `TAKEN`."""
    limited: bool = False
    """The namespace has limits, which none of the commands reaches."""
    sgl: str = ""
    """The data is described by an SGL: `BLOCK` or `SEGMENT`."""
    weighted: bool = False
    """The queue takes part in weighted round robin, with medium priority."""
    interrupts: bool = False
    shadow: bool = False
    """The doorbells are in shadow pages."""
    queues: int = 1

    @property
    def counted(self) -> int:
        """Commands (of an idle path: turns) of one run."""
        return self.turns * (self.batch or 1)

    @property
    def calls(self) -> int:
        """Calls of `take_turns` in a run."""
        return 2 if {self.file, self.passed} & {SENT, TAKEN} else 1

    @property
    def counted_call(self) -> int:
        """Which of the last run's is counted, from the end."""
        return -2 if SENT in {self.file, self.passed} else -1

    @property
    def result(self) -> int:
        """What the kernel says of a command on its io_uring: bytes, of a passed one its status."""
        return 0 if self.passed else self.size


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
    Path("limited_1", "null, 4 KiB read, one a turn, with limits", limited=True),
    Path("sgl_block", "null, 4 KiB read, one a turn, SGL: one data block", sgl=BLOCK),
    Path("sgl_segment", "null, 32 KiB read, SGL: a segment of 8", size=8 * PAGE, sgl=SEGMENT),
    Path("weighted_1", "null, 4 KiB read, one a turn, weighted round robin", weighted=True),
    Path("file_inline", "file in memory, 4 KiB read, one a turn, inline", file=INLINE),
    Path("file_mapped", "the same, mapped", file=MAPPED),
    Path("uring_sent_1", "file, 4 KiB read: given to io_uring, one a turn", file=SENT, turns=1),
    Path("uring_taken_1", "file, 4 KiB read: taken from io_uring, one", file=TAKEN, turns=1),
    Path("uring_sent_32", "the same, 32 a turn", file=SENT, batch=32, turns=1),
    Path("uring_taken_32", "the same, 32 a turn", file=TAKEN, batch=32, turns=1),
    Path("passed_sent_1", "passthrough, 4 KiB read: given to io_uring", passed=SENT, turns=1),
    Path("passed_taken_1", "passthrough, 4 KiB read: taken from it", passed=TAKEN, turns=1),
    Path("passed_sent_32", "the same, 32 a turn", passed=SENT, batch=32, turns=1),
    Path("passed_taken_32", "the same, 32 a turn", passed=TAKEN, batch=32, turns=1),
    Path("passed_prp_list", "passthrough, 32 KiB: given", passed=SENT, turns=1, size=8 * PAGE),
    Path("idle_1", "turn with nothing to do, one queue", batch=0),
    Path("idle_65", "turn with nothing to do, 65 queues", batch=0, queues=_QUEUES),
)
"""In the order in which `main` takes them."""


def _backend(path: Path) -> tuple[Backend, MemoryDrive | None]:
    """The namespace, and the drive below where there is one."""
    if path.direct:
        drive = MemoryDrive(CAPACITY)
        return drive.backend, drive
    if path.passed:
        return PassthruBackend(CutOffDrive(CAPACITY)), None
    if path.file:
        return _file(inline=path.file in {INLINE, MAPPED}, hole=path.file == INLINE), None
    return (MemoryBackend(CAPACITY) if path.memory else NullBackend(CAPACITY)), None


def _file(*, inline: bool, hole: bool) -> UringBackend:
    """A file in memory, which the backend keeps open; its first page may be a hole."""
    fd = os.memfd_create("medium")
    try:
        os.ftruncate(fd, CAPACITY)
        if not hole:
            os.pwrite(fd, bytes(PAGE), 0)
        return UringBackend(f"/proc/self/fd/{fd}", inline_io=inline)
    finally:
        os.close(fd)


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


def read_or_write(path: Path, guest: Guest, queue: QueuePair) -> bytes:
    """The path's command."""
    blocks = path.size // 512
    prp1, prp2 = scattered_prps(guest, path.size)
    if not path.sgl:
        return queue.command(path.opcode, blocks=blocks, prp1=prp1, prp2=prp2)
    if path.sgl == BLOCK:
        kind, length = 0, path.size
    else:
        # The PRP list's pages, with a length each.
        pages = struct.unpack(
            f"<{path.size // PAGE - 1}Q", guest.peek(prp2, path.size // PAGE * 8 - 8)
        )
        blocks_of_data = [struct.pack("<QI4x", page, PAGE) for page in (prp1, *pages)]
        prp1 = guest.allocate(1)
        guest.poke(prp1, b"".join(blocks_of_data))
        kind, length = _SGL_LAST_SEGMENT, 16 * len(blocks_of_data)
    # SGL 1 lies where PRP 1 and 2 do: address, length, three bytes, type.
    return queue.command(
        path.opcode, blocks=blocks, flags=_SGL, prp1=prp1, prp2=length | kind << 56
    )


@contextmanager
def prepared(path: Path) -> Iterator[tuple[Guest, QueuePair, MemoryDrive | None]]:
    """A guest with the path's queues, the first of which is used, and the drive below."""
    with ExitStack() as stack:
        iothread = IOThread("counted")
        stack.enter_context(by_hand(iothread))
        backend, drive = _backend(path)
        guest = stack.enter_context(Guest(backend, shared=iothread, weighted=path.weighted))
        if path.shadow:
            assert guest.table.set_doorbell_buffers(guest.allocate(1), guest.allocate(1))
        priority = {"priority": _MEDIUM_PRIORITY} if path.weighted else {}
        queues = [
            guest.queue(qid, _ENTRIES if qid == 1 else 2, interrupts=path.interrupts, **priority)
            for qid in range(1, path.queues + 1)
        ]
        if path.interrupts:
            guest.table.interrupts.set_vector(1, os.eventfd(0, os.EFD_NONBLOCK))
        if path.calls == 2:
            cut_off_kernel(iothread)
        if path.limited:
            stop_clock(iothread)
            backend.set_limits({name: Limit(_RATE, _RATE) for name in ("iops", "bps")})
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
    """Take a path twice, `take_turns` so often as it says; AssertionError when not every command is
    done."""
    with prepared(path) as (guest, queue, drive):
        doorbell = _Doorbell(path, guest, queue)
        sqe = read_or_write(path, guest, queue)
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
            if path.calls == 2:
                assert complete_ring(guest.iothread, path.result) == commands
                assert take_turns(guest.iothread, path.turns) == commands
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
