"""A process that is killed at any store, and the next one that adopts what it has left.

The first process is a guest's data path that is stopped between two commands; what it would have
stored up to the moment of its death is then stored by hand.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.queue_table import QueueTable
from nvme_mdev.datapath.state import SLOTS_PER_QUEUE, ControllerState, layout

from .guest import FID_VOLATILE_WRITE_CACHE, IOVA, PAGE, WRITE, Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENTRIES = 8
SIZE = 1 << 20
SLOT_SIZE = 128
CID = 7
UNDECIDED = 2
QID = 1


class Killed:
    """A guest whose data path is dead; what it has left can be changed word by word."""

    def __init__(self, dstrd: int = 0, nsid: int = 1) -> None:
        self.nsid = nsid
        self.backend = MemoryBackend(SIZE)
        self.guest = Guest(dstrd=dstrd, max_nsid=nsid)
        self.guest.backends = (self.backend,)
        self.guest.table.namespaces.set(nsid, self.backend)
        self.queue = self.guest.queue(QID, ENTRIES)
        self.page = self.guest.allocate(1)
        self._shared = mmap.mmap(self.guest.state.fd, 0)
        self._slots = layout()["slots"][0] + QID * SLOTS_PER_QUEUE * SLOT_SIZE
        self._sq = layout()["sq"][0] + QID * 64
        self._cq = layout()["cq"][0] + QID * 64

    def complete(self, count: int) -> None:
        """Commands that the process executes while it lives, all with the same identifier."""
        for _ in range(count):
            assert self.queue.run(self.command()).cid == CID

    def command(self, data: bytes = b"before", cid: int = CID) -> bytes:
        """A Write of a block to LBA 0."""
        self.guest.poke(self.page, data.ljust(512, b"\0"))
        sqe = bytearray(self.queue.command(WRITE, nsid=self.nsid, prp1=self.page))
        sqe[2:4] = struct.pack("<H", cid)
        return bytes(sqe)

    def kill(self) -> None:
        """No thread runs any more."""
        self.guest.iothread.stop()

    def word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._shared, at)[0])

    def set_word(self, at: int, value: int) -> None:
        struct.pack_into("<I", self._shared, at, value)

    # -- what a process stores, step by step --------------------------------------------------

    def copy_sqe(self, slot: int, sqe: bytes) -> None:
        # Slots are made ready before the first of them is used.
        if self.word(self._sq + 60) >> 16 <= slot:
            struct.pack_into("<H", self._shared, self._sq + 62, ENTRIES)
        at = self._slots + slot * SLOT_SIZE
        self._shared[at : at + 64] = sqe

    def make_busy(self, slot: int, ahead: int = 0) -> None:
        at = self._slots + slot * SLOT_SIZE
        self.set_word(at + 72, UNDECIDED)
        self.set_word(at + 80, (self.word(self._sq + 20) + ahead) & 0xFFFFFFFF)
        self.set_word(at + 64, 1)

    def publish_head(self, count: int = 1) -> None:
        self.set_word(self._sq + 16, (self.word(self._sq + 16) + count) % ENTRIES)
        self.set_word(self._sq + 20, (self.word(self._sq + 20) + count) & 0xFFFFFFFF)

    def place(self, ahead: int) -> tuple[int, int]:
        """Index and phase of the CQE that is so many behind the tail."""
        index = self.word(self._cq + 16) + ahead
        return index % ENTRIES, self.word(self._cq + 20) ^ (index >= ENTRIES)

    def record_index(self, slot: int, ahead: int = 0) -> None:
        self.set_word(self._slots + slot * SLOT_SIZE + 68, self.place(ahead)[0])

    def record_phase(self, slot: int, ahead: int = 0) -> None:
        self.set_word(self._slots + slot * SLOT_SIZE + 72, self.place(ahead)[1])

    def write_cqe(self, slot: int, ahead: int = 0, *, whole: bool = True) -> None:
        at = self._slots + slot * SLOT_SIZE
        (cid,) = struct.unpack_from("<H", self._shared, at + 2)
        index, phase = self.place(ahead)
        entry = self.queue.cq + index * 16
        self.guest.poke(entry, bytes(8))
        if whole:
            head = self.word(self._sq + 16)
            self.guest.poke(entry + 8, struct.pack("<HHHH", head, QID, cid, phase))

    def move_tail(self) -> None:
        tail = self.word(self._cq + 16) + 1
        if tail == ENTRIES:
            self.set_word(self._cq + 20, self.word(self._cq + 20) ^ 1)
        self.set_word(self._cq + 16, tail % ENTRIES)

    def free(self, slot: int) -> None:
        self.set_word(self._slots + slot * SLOT_SIZE + 64, 0)

    # -- the next process ---------------------------------------------------------------------

    def adopt(self, eventfd: int | None = None) -> None:
        """A new process takes over, with the same guest, state and memory (and eventfd)."""
        old = self.guest
        state = ControllerState(os.dup(old.state.fd), os.dup(old.state.doorbell_fd))
        memory = GuestMemory()
        iothread = IOThread("next")
        iothread.start()
        table = QueueTable(state, memory, iothread, max_nsid=self.nsid)
        table.dma.map(IOVA, old.size, old.fd, 0, readable=True, writable=True)
        # The dead one stays open: its table of queues, which nobody closes, refers to it.
        backend = MemoryBackend(SIZE, fd=os.dup(self.backend.fd))
        old.backends = (*old.backends, backend)
        table.namespaces.set(self.nsid, backend)
        if eventfd is not None:
            table.interrupts.set_vector(QID, os.dup(eventfd))
        old.state.close()
        os.close(old.table.notify_fd)
        old.state, old.memory, old.iothread, old.table = state, memory, iothread, table
        old.iothreads = [iothread]
        assert state.features[FID_VOLATILE_WRITE_CACHE] == 1
        table.adopt(page_size=PAGE, dstrd=old.dstrd, weighted=False)
        table.execute_again()

    def close(self) -> None:
        self._shared.close()
        self.guest.close()


@pytest.fixture
def killed() -> Iterator[Killed]:
    process = Killed()
    yield process
    process.close()


def copied(p: Killed) -> None:
    p.copy_sqe(0, p.command(b"again"))


def fetched(p: Killed) -> None:
    copied(p)
    p.make_busy(0)


def published(p: Killed) -> None:
    fetched(p)
    p.publish_head()


def place_half_recorded(p: Killed) -> None:
    published(p)
    p.record_index(0)


def place_recorded(p: Killed) -> None:
    place_half_recorded(p)
    p.record_phase(0)


def half_completed(p: Killed) -> None:
    place_recorded(p)
    p.write_cqe(0, whole=False)


def completed(p: Killed) -> None:
    place_recorded(p)
    p.write_cqe(0)


def tail_moved(p: Killed) -> None:
    completed(p)
    p.move_tail()


def freed(p: Killed) -> None:
    tail_moved(p)
    p.free(0)


def rung(p: Killed) -> None:
    """Nothing is fetched."""


BEFORE = [rung, copied, fetched, published, place_half_recorded, place_recorded]
BEFORE += [half_completed]
AFTER = [completed, tail_moved, freed]


@pytest.mark.parametrize("earlier", [0, 1, ENTRIES - 1, ENTRIES, 2 * ENTRIES + 3])
@pytest.mark.parametrize("moment", [*BEFORE, *AFTER], ids=lambda moment: moment.__name__)
def test_a_command_completes_once_wherever_its_process_was_killed(
    killed: Killed, moment: Callable[[Killed], None], earlier: int
) -> None:
    killed.complete(earlier)
    killed.queue.put(killed.command(b"again"))
    killed.kill()
    killed.queue.doorbell(killed.queue.tail)
    moment(killed)
    # A command that completed is not executed again: its data may be gone.
    killed.guest.poke(killed.page, b"once more".ljust(512, b"\0"))
    killed.adopt()
    completion = killed.queue.wait()
    assert (completion.cid, completion.status, completion.sq_head) == (CID, 0, killed.queue.tail)
    assert _block(killed) == (b"once more" if moment in BEFORE else _before(earlier))
    killed.complete(3 * ENTRIES)
    assert killed.queue.poll() is None
    assert killed.guest.table.inflight() == 0


BATCH = [20, 21, 22, 23]
"""Identifiers of commands that are fetched together."""


def _killed_with_a_batch(killed: Killed) -> list[bytes]:
    """The process is killed; these are in the SQ, and the guest rings meanwhile."""
    commands = [killed.command(cid=cid) for cid in BATCH]
    for sqe in commands:
        killed.queue.put(sqe)
    killed.kill()
    killed.queue.doorbell(killed.queue.tail)
    return commands


def _before(earlier: int) -> bytes:
    return b"before" if earlier else b""


def _block(killed: Killed) -> bytes:
    """What is at LBA 0."""
    return os.pread(killed.backend.fd, 512, 0).rstrip(b"\0")


@pytest.mark.parametrize("publish", [True, False])
def test_a_batch_is_executed_again_and_nothing_of_it_is_fetched_twice(
    killed: Killed, publish: bool
) -> None:
    killed.complete(ENTRIES - 2)
    commands = _killed_with_a_batch(killed)
    for ahead, (slot, sqe) in enumerate(zip([3, 0, 5, 1], commands, strict=True)):
        killed.copy_sqe(slot, sqe)
        killed.make_busy(slot, ahead)
    if publish:
        killed.publish_head(len(commands))
    killed.adopt()
    # In the order of fetching.
    assert [killed.queue.wait().cid for _ in BATCH] == BATCH
    killed.complete(3 * ENTRIES)
    assert killed.queue.poll() is None


@pytest.mark.parametrize("posted", range(5))
@pytest.mark.parametrize("earlier", [1, ENTRIES - 4, ENTRIES - 2, ENTRIES - 1])
def test_completions_beyond_the_tail_that_was_stored_are_neither_lost_nor_posted_again(
    killed: Killed, posted: int, earlier: int
) -> None:
    """Those of a batch are written one after the other, then the tail is moved behind them."""
    killed.complete(earlier)
    commands = _killed_with_a_batch(killed)
    # In no order of the slots.
    slots = [3, 0, 2, 1]
    for ahead, (slot, sqe) in enumerate(zip(slots, commands, strict=True)):
        killed.copy_sqe(slot, sqe)
        killed.make_busy(slot, ahead)
    killed.publish_head(len(commands))
    for ahead, slot in enumerate(slots):
        killed.record_index(slot, ahead)
        killed.record_phase(slot, ahead)
    for ahead, slot in enumerate(slots[:posted]):
        killed.write_cqe(slot, ahead)
    killed.guest.poke(killed.page, b"once more".ljust(512, b"\0"))
    killed.adopt()
    assert [killed.queue.wait().cid for _ in BATCH] == BATCH
    assert _block(killed) == (b"before" if posted == len(BATCH) else b"once more")
    killed.complete(3 * ENTRIES)
    assert killed.queue.poll() is None
    assert killed.guest.table.inflight() == 0


def test_an_old_command_is_not_taken_for_one_whose_head_was_not_published(killed: Killed) -> None:
    """A command can be in flight for longer than the SQ takes to wrap."""
    killed.complete(ENTRIES)
    killed.kill()
    # Fetched a whole queue ago, from the entry where the head is now.
    killed.copy_sqe(4, killed.command(cid=99))
    killed.make_busy(4, -ENTRIES)
    killed.queue.put(killed.command(cid=5))
    killed.queue.doorbell(killed.queue.tail)
    killed.adopt()
    assert sorted(killed.queue.wait().cid for _ in range(2)) == [5, 99]
    assert killed.queue.poll() is None


def test_being_killed_while_adopting_changes_nothing(killed: Killed) -> None:
    killed.complete(3)
    killed.queue.put(killed.command(b"again"))
    killed.kill()
    killed.queue.doorbell(killed.queue.tail)
    completed(killed)
    killed.adopt()
    killed.kill()
    killed.adopt()
    assert killed.queue.wait().cid == CID
    assert killed.queue.poll() is None


def test_a_queue_outside_of_guest_memory_is_not_adopted(killed: Killed) -> None:
    killed.kill()
    at = layout()["sq"][0] + QID * 64
    struct.pack_into("<Q", killed._shared, at, 0x1000)
    with pytest.raises(ValueError, match="SQ 1 is not in guest memory"):
        killed.adopt()


def test_every_interrupt_is_raised_once_after_adopting(killed: Killed) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    killed.kill()
    killed.adopt(eventfd)
    assert os.eventfd_read(eventfd) == 1
    os.close(eventfd)


def test_a_head_that_is_rung_behind_the_tail_is_found_by_the_next_process() -> None:
    killed = Killed(dstrd=3)
    queue = killed.queue

    def run() -> None:
        queue.put(killed.command())
        queue.ring()
        assert queue.wait(ring=False).status == 0
        at = 2 * QID * (4 << 3) + 4
        killed.guest.state.doorbells[at : at + 4] = struct.pack("<I", queue.head)

    # The tail has gone round: by the register, which is 0, entries before it would be free.
    for _ in range(ENTRIES + 2):
        run()
    killed.kill()
    killed.adopt()
    for _ in range(3 * ENTRIES):
        run()
    killed.close()


# -- commands that were aborted while they waited ---------------------------------------------

NOTE_SEQUENCE, NOTE_PLACE, NOTE_STATE = 24, 36, 48
POSTING, POSTED = 1, 2


def note(killed: Killed, state: int, cid: int) -> None:
    """What Abort notes of the first command that waits."""
    place = killed.word(killed._cq + 16) | cid << 16
    killed.set_word(killed._sq + NOTE_SEQUENCE, killed.word(killed._sq + 20))
    killed.set_word(killed._sq + NOTE_PLACE, place)
    killed.set_word(killed._sq + NOTE_STATE, state | killed.word(killed._cq + 20) << 2)


def post_aborted(killed: Killed, cid: int) -> None:
    """The completion of a command that is still in the SQ."""
    entry = killed.queue.cq + killed.word(killed._cq + 16) * 16
    status = killed.word(killed._cq + 20) | 7 << 1
    killed.guest.poke(entry, bytes(8) + struct.pack("<HHHH", 0, QID, cid, status))


@pytest.mark.parametrize("earlier", [0, 1, ENTRIES - 1, ENTRIES])
@pytest.mark.parametrize("moment", ["noted", "posted", "moved", "done"])
def test_a_command_that_was_aborted_completes_once_wherever_its_process_was_killed(
    killed: Killed, moment: str, earlier: int
) -> None:
    killed.complete(earlier)
    killed.kill()
    killed.queue.put(killed.command(b"aborted", cid=50))
    killed.queue.put(killed.command(cid=51))
    killed.queue.doorbell(killed.queue.tail)
    note(killed, POSTING, 50)
    if moment != "noted":
        post_aborted(killed, 50)
    if moment in ("moved", "done"):
        killed.move_tail()
    if moment == "done":
        killed.set_word(killed._sq + NOTE_STATE, POSTED)
    killed.adopt()
    first, second = killed.queue.wait(), killed.queue.wait()
    assert (first.cid, first.status) == (50, 0 if moment == "noted" else 7)
    assert (second.cid, second.status) == (51, 0)
    killed.complete(3 * ENTRIES)
    assert killed.queue.poll() is None
    assert killed.guest.table.inflight() == 0


def test_a_note_that_makes_no_sense_is_not_followed(killed: Killed) -> None:
    killed.kill()
    killed.queue.put(killed.command(cid=50))
    killed.queue.doorbell(killed.queue.tail)
    note(killed, POSTING, 50)
    killed.set_word(killed._sq + NOTE_PLACE, 0xFFFF)
    killed.adopt()
    assert killed.queue.wait().cid == 50
