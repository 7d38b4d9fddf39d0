"""Queues that a PRP list describes (PC = 0), guest pages of other sizes, doorbells apart."""

from __future__ import annotations

import os
import struct

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.probe import take_turns

from .guest import PAGE, READ, WRITE, Completion, Guest, QueuePair, wait_for

SIZE = 1 << 24


class ScatteredQueuePair(QueuePair):
    """A queue pair whose pages are in the wrong order, every other page is somebody else's."""

    def __init__(self, guest: Guest, entries: int, page_size: int) -> None:
        self.guest, self.qid = guest, 1
        self.entries = self.cq_entries = entries
        self.tail = self.head = self.cid = 0
        self.phase = 1
        self.page_size = page_size
        self.sq_pages = self._scatter(entries * 64)
        self.cq_pages = self._scatter(entries * 16)
        self.sq_list, self.cq_list = self._list(self.sq_pages), self._list(self.cq_pages)
        guest.table.create_cq(1, self.cq_list, entries, 1, interrupts=False, contiguous=False)
        guest.table.create_sq(1, 1, self.sq_list, entries, contiguous=False)

    def _scatter(self, size: int) -> list[int]:
        pages = -(-size // self.page_size)
        first = self._allocate(2 * pages)
        return [first + 2 * n * self.page_size for n in reversed(range(pages))]

    def _allocate(self, pages: int) -> int:
        self.guest.allocate(-self.guest.next_page % (self.page_size // PAGE))
        return self.guest.allocate(pages * self.page_size // PAGE)

    def _list(self, pages: list[int]) -> int:
        """A PRP list, chained where it has to be."""
        fits = self.page_size // 8
        first = at = self._allocate(1)
        left = pages
        while len(left) > fits:
            following = self._allocate(1)
            self.guest.poke(at, struct.pack(f"<{fits}Q", *left[: fits - 1], following))
            left, at = left[fits - 1 :], following
        self.guest.poke(at, struct.pack(f"<{len(left)}Q", *left))
        return first

    def put(self, sqe: bytes) -> None:
        page, offset = divmod(self.tail * 64, self.page_size)
        self.guest.poke(self.sq_pages[page] + offset, sqe)
        self.tail = (self.tail + 1) % self.entries

    def poll(self) -> Completion | None:
        page, offset = divmod(self.head * 16, self.page_size)
        # What `QueuePair.poll` reads is where the entry would be in a contiguous queue.
        self.cq = self.cq_pages[page] + offset - self.head * 16
        return super().poll()


@pytest.mark.parametrize(
    ("entries", "page_size", "pages"),
    [
        (2, PAGE, 64),
        (300, PAGE, 256),
        (40000, PAGE, 4096),
        (5000, 16384, 2048),
        (3000, 65536, 2048),
    ],
)
def test_a_queue_is_where_its_prp_list_says(entries: int, page_size: int, pages: int) -> None:
    """40000 SQEs are 625 pages: two pages of list, chained."""
    with Guest(NullBackend(SIZE), pages=pages, page_size=page_size) as guest:
        queue = ScatteredQueuePair(guest, entries, page_size)
        page = guest.allocate(1)
        left = entries + 10
        while left:
            count = min(left, entries - 1, 900)
            for _ in range(count):
                queue.put(queue.command(READ, prp1=page))
            queue.ring()
            for _ in range(count):
                assert queue.wait().status == 0
            left -= count


def test_a_list_that_names_no_page_holds_the_queue() -> None:
    """The guest changes its list after it has created the queue; it hurts itself alone."""
    with Guest(NullBackend(SIZE)) as guest:
        queue = ScatteredQueuePair(guest, 300, PAGE)
        good = guest.peek(queue.sq_list, 8)
        for entry in (0, queue.sq_pages[0] + 8, 0x7777_0000_0000):
            guest.poke(queue.sq_list, struct.pack("<Q", entry))
            guest.table.dma.give_up_unmap()
            assert guest.table.submission_queues()[0].held
        guest.poke(queue.sq_list, good)
        guest.table.dma.give_up_unmap()
        assert queue.run(queue.command(READ, prp1=guest.allocate(1))).status == 0


def map_something(guest: Guest, iova: int) -> None:
    """Memory that no queue is in; all queues are bound anew."""
    fd = os.memfd_create("window")
    os.ftruncate(fd, PAGE)
    guest.table.dma.map(iova, PAGE, fd, 0, readable=True, writable=True)
    os.close(fd)


@pytest.mark.parametrize("entry", [0, 0x7777_0000_0000], ids=["none", "unmapped"])
def test_a_completion_lists_page_that_goes_under_a_command_costs_its_completion_alone(
    entry: int,
) -> None:
    """The command ends, the queue is held, and goes on with a list that is right."""
    with Guest(NullBackend(SIZE, latency_ns=200_000_000), running=False) as guest:
        queue = ScatteredQueuePair(guest, 300, PAGE)

        def put() -> None:
            queue.put(queue.command(READ, prp1=guest.allocate(1)))
            queue.doorbell(queue.tail)

        def turn_until_idle() -> bool:
            take_turns(guest.iothread, 1)
            return guest.table.inflight() == 0

        put()
        take_turns(guest.iothread, 1)
        assert guest.table.inflight() == 1
        good = guest.peek(queue.cq_list, 8)
        guest.poke(queue.cq_list, struct.pack("<Q", entry))
        map_something(guest, 0x5_0000_0000)
        wait_for(turn_until_idle, "the command's end")
        assert queue.poll() is None
        put()
        take_turns(guest.iothread, 4)
        assert guest.table.inflight() == 0, "the queue is held"
        guest.poke(queue.cq_list, good)
        map_something(guest, 0x6_0000_0000)
        take_turns(guest.iothread, 1)
        assert guest.table.inflight() == 1
        wait_for(turn_until_idle, "the next command's end")
        queue.head = 1  # the first entry is lost
        completion = queue.poll()
        assert completion is not None
        assert (completion.cid, completion.status) == (queue.cid, 0)


@pytest.mark.parametrize("page_size", [PAGE, 8192, 16384, 32768, 65536])
def test_data_of_guest_pages_of_any_size_is_moved(page_size: int) -> None:
    with Guest(MemoryBackend(SIZE), page_size=page_size, pages=2048) as guest:
        queue = guest.queue(1)
        guest.allocate(-guest.next_page % (page_size // PAGE))
        pages = [guest.allocate(page_size // PAGE) for _ in range(6)]
        order = [pages[n] for n in (3, 0, 5, 1)]
        first = order[0] + page_size - 512
        lists = guest.allocate(page_size // PAGE)
        guest.poke(lists, struct.pack("<3Q", *order[1:]))
        size = 512 + 2 * page_size + 1024
        data = bytes(n % 251 for n in range(size))
        parts = [(first, 512), (order[1], page_size), (order[2], page_size), (order[3], 1024)]
        at = 0
        for iova, length in parts:
            guest.poke(iova, data[at : at + length])
            at += length
        command = {"slba": 9, "blocks": size // 512, "prp1": first, "prp2": lists}
        assert queue.run(queue.command(WRITE, **command)).status == 0
        for iova, length in parts:
            guest.poke(iova, bytes(length))
        assert queue.run(queue.command(READ, **command)).status == 0
        assert b"".join(guest.peek(*part) for part in parts) == data


@pytest.mark.parametrize("dstrd", [0, 1, 2, 3])
@pytest.mark.parametrize("shadow", [False, True])
def test_doorbells_are_where_the_stride_says(dstrd: int, shadow: bool) -> None:
    with Guest(NullBackend(SIZE), dstrd=dstrd) as guest:
        page = guest.allocate(1)
        buffers = guest.allocate(1), guest.allocate(1)
        if shadow:
            assert guest.table.set_doorbell_buffers(*buffers)
        for qid in (1, 2, 31):
            queue = guest.queue(qid, 16)
            for _ in range(40):
                queue.put(queue.command(READ, prp1=page))
                at = 2 * qid * (4 << dstrd)
                if shadow:
                    guest.poke(buffers[0] + at, struct.pack("<I", queue.tail))
                    guest.iothread.wake()
                else:
                    queue.ring()
                assert queue.wait(ring=False).status == 0
                if shadow:
                    head = struct.pack("<I", queue.head)
                    guest.poke(buffers[0] + at + (4 << dstrd), head)
                else:
                    queue.doorbell(queue.head, completion=True)


@pytest.mark.parametrize("dstrd", [1, 2, 3])
def test_a_head_that_is_rung_behind_the_tail_whatever_the_stride_is_found(dstrd: int) -> None:
    # QEMU's block/nvme.c takes no notice of CAP.DSTRD there.
    with Guest(NullBackend(SIZE), dstrd=dstrd) as guest:
        page = guest.allocate(1)
        queue = guest.queue(2, 16, 4)
        at = 2 * 2 * (4 << dstrd) + 4

        def run(count: int) -> None:
            for _ in range(count):
                queue.put(queue.command(READ, prp1=page))
                queue.ring()
                assert queue.wait(ring=False).status == 0
                guest.state.doorbells[at : at + 4] = struct.pack("<I", queue.head)

        run(41)
        # Memory that changes has every queue looked up again.
        guest.table.dma.map(2 << 40, PAGE, guest.fd, 0, readable=True, writable=True)
        run(41)
        guest.table.delete_sq(2)
        guest.table.delete_cq(2)
        queue = guest.queue(2, 16, 4)
        for _ in range(9):
            assert queue.run(queue.command(READ, prp1=page)).status == 0


def test_the_last_doorbell_of_the_page_is_that_of_the_last_queue() -> None:
    with Guest(NullBackend(SIZE), dstrd=3) as guest:
        queue = guest.queue(63, 16)
        assert queue.run(queue.command(READ, prp1=guest.allocate(1))).status == 0
        assert guest.state.doorbells[4096 - 64 : 4096 - 60] == struct.pack("<I", 1)
