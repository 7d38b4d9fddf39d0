"""Several IOThreads for one controller: who serves what, together and after a death."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.queue_table import QueueTable
from nvme_mdev.datapath.state import MAX_IOTHREADS, ControllerState

from .guest import IOVA, PAGE, READ, WRITE, Guest, slept, wait_for

SIZE = 1 << 24


@pytest.mark.parametrize("iothreads", [1, 2, 3, MAX_IOTHREADS])
def test_queues_are_spread_over_the_threads_in_turn(iothreads: int) -> None:
    with Guest(NullBackend(SIZE), iothreads=iothreads) as guest:
        page = guest.allocate(1)
        queues = [guest.queue(qid, 16) for qid in range(1, 8)]
        for queue in queues:
            for _ in range(queue.qid):
                assert queue.run(queue.command(READ, prp1=page)).status == 0
        counts = [0] * iothreads
        for queue in queues:
            counts[(queue.qid - 1) % iothreads] += queue.qid
        assert [part.translated.count for part in guest.table.thread_statistics()] == counts
        assert guest.table.statistics().completed.count == sum(counts) == 28
        assert sum(thread.queue_count for thread in guest.iothreads) == len(queues)


def test_what_all_threads_moved_is_added_up() -> None:
    with Guest(MemoryBackend(SIZE), iothreads=3) as guest:
        page = guest.allocate(1)
        for qid in range(1, 7):
            queue = guest.queue(qid)
            queue.io(WRITE, page, PAGE, slba=8 * qid)
            queue.io(READ, page, 512, slba=8 * qid)
        counters = guest.state.counters()
        assert (counters["read_commands"], counters["write_units"]) == (6, 48)
        assert guest.table.namespaces.counters(1) == (6, 6, 6 * 512, 6 * PAGE)


def test_submission_queues_of_one_completion_queue_are_on_its_thread() -> None:
    with Guest(NullBackend(SIZE), iothreads=2) as guest:
        guest.queue(1, 16)
        for qid in (2, 3, 4):
            guest.table.create_sq(qid, 1, guest.allocate(1), 16)
        assert [thread.queue_count for thread in guest.iothreads] == [4, 0]


def test_a_polling_thread_dozes_while_others_compute_on_its_processor(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    busy = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    with Guest(UringBackend(str(image))) as guest:
        (task,) = set(tasks.iterdir()) - before
        guest.iothread.configure(cpu=cpu, poll_timeout_ms=600_000)
        queue = guest.queue()
        page = guest.allocate(1)
        assert queue.io(READ, page, PAGE, slba=0).status == 0
        with subprocess.Popen([sys.executable, "-c", busy]) as other:
            try:
                at_first = slept(task)
                # It polls, so it would not sleep for ten minutes.
                wait_for(lambda: slept(task) > at_first + 100, "a thread that dozes")
                for block in range(100):
                    assert queue.io(READ, page, PAGE, slba=8 * block).status == 0
            finally:
                other.kill()


def test_pausing_and_resuming_holds_the_queues_of_every_thread() -> None:
    with Guest(NullBackend(SIZE), iothreads=2) as guest:
        page = guest.allocate(1)
        queues = [guest.queue(qid, 16) for qid in (1, 2)]
        guest.table.paused = True
        for queue in queues:
            queue.put(queue.command(READ, prp1=page))
            queue.ring()
        assert [queue.poll() for queue in queues] == [None, None]
        guest.table.paused = False
        for queue in queues:
            assert queue.wait().status == 0


def test_sleeping_threads_are_woken_by_the_doorbells_of_their_queues() -> None:
    with Guest(NullBackend(SIZE), iothreads=2, poll_timeout_ms=0) as guest:
        guest.table.doorbells_mapped = False
        page = guest.allocate(1)
        for queue in [guest.queue(qid, 16) for qid in (1, 2)]:
            wait_for(lambda: all(thread.asleep for thread in guest.iothreads), "sleep")
            queue.put(queue.command(READ, prp1=page))
            assert guest.table.ring_doorbell(queue.qid, queue.tail) == 0
            assert queue.wait().status == 0


def test_a_thread_with_a_mapped_doorbell_page_does_not_park_whatever_it_serves() -> None:
    """The second thread has no admin queue to look after."""
    with Guest(NullBackend(SIZE), iothreads=2, poll_timeout_ms=0) as guest:
        page = guest.allocate(1)
        queue = guest.queue(2, 16)
        wait_for(lambda: guest.iothreads[1].asleep, "sleep")
        queue.put(queue.command(READ, prp1=page))
        queue.doorbell(queue.tail)
        assert queue.wait().status == 0


def test_memory_is_unmapped_when_no_thread_uses_it() -> None:
    with Guest(MemoryBackend(SIZE), iothreads=2) as guest:
        data = os.memfd_create("more")
        os.ftruncate(data, PAGE)
        guest.table.dma.map(0x9000_0000, PAGE, data, 0, readable=True, writable=True)
        for qid in (1, 2):
            queue = guest.queue(qid)
            assert queue.run(queue.command(READ, prp1=0x9000_0000)).status == 0
        assert guest.table.dma.try_unmap(0x9000_0000, PAGE) == PAGE
        assert queue.run(queue.command(READ, prp1=0x9000_0000)).status != 0
        os.close(data)


@pytest.mark.parametrize("count", [0, MAX_IOTHREADS + 1])
def test_a_controller_has_one_to_sixteen_threads(count: int) -> None:
    state = ControllerState()
    threads = [IOThread(str(number)) for number in range(count)]
    with pytest.raises(ValueError, match="1 to 16 IOThreads"):
        QueueTable(state, GuestMemory(), threads)
    state.close()


def test_a_thread_is_named_once() -> None:
    state = ControllerState()
    thread = IOThread("twice")
    with pytest.raises(ValueError, match="each of them once"):
        QueueTable(state, GuestMemory(), [thread, thread])
    state.close()


def test_one_thread_serves_two_controllers() -> None:
    with Guest(NullBackend(SIZE)) as first:
        state = ControllerState()
        second = QueueTable(state, GuestMemory(), first.iothread)
        second.dma.map(IOVA, first.size, first.fd, 0, readable=True, writable=True)
        second.namespaces.set(1, NullBackend(SIZE))
        second.enable(
            admin_sq=first.allocate(1),
            admin_sq_size=2,
            admin_cq=first.allocate(1),
            admin_cq_size=2,
            page_size=PAGE,
        )
        sq, cq = first.allocate(1), first.allocate(1)
        second.create_cq(1, cq, 16, 0, interrupts=False)
        second.create_sq(1, 1, sq, 16)
        queue = first.queue(1, 16)
        page = first.allocate(1)
        first.poke(sq, queue.command(READ, prp1=page))
        assert second.ring_doorbell(1, 1) == 0
        wait_for(lambda: first.peek(cq + 12, 4) != bytes(4), "the other's completion")
        assert queue.run(queue.command(READ, prp1=page)).status == 0
        assert first.iothread.queue_count == 2
        second.stop()
        second.close()
        assert first.iothread.queue_count == 1
        assert queue.run(queue.command(READ, prp1=page)).status == 0
        state.close()


def test_what_is_kept_for_each_thread_has_64_places_and_a_place_that_is_left_is_taken() -> None:
    backend = NullBackend(SIZE, latency_ns=1000)
    with ExitStack() as stack:

        def serve(threads: list[IOThread]) -> QueueTable:
            table = QueueTable(ControllerState(), GuestMemory(), threads)
            stack.callback(table.close)
            table.namespaces.set(1, backend)
            return table

        threads = [IOThread(f"test-{number}") for number in range(65)]
        tables = [serve(threads[first : first + 16]) for first in range(0, 64, 16)]
        again = serve(threads[:1])
        assert backend.threads == 64
        with pytest.raises(OSError, match="too many IOThreads") as refused:
            serve(threads[64:])
        assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, backend.name)
        # The first thread still serves another controller: it keeps its place.
        tables[0].namespaces.set(1, None)
        assert backend.threads == 49
        serve(threads[64:])
        with pytest.raises(OSError, match="too many IOThreads"):
            serve([IOThread(f"more-{number}") for number in range(15)])
        again.namespaces.set(1, None)
        serve([IOThread(f"more-{number}") for number in range(15)])
        assert backend.threads == 64
