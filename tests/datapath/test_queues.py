"""Queues: wrap-around, phase, backpressure, doorbells of both kinds, interrupts, life cycle."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvme_mdev.datapath import queue_table
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend

from .guest import (
    IOVA,
    MORE,
    PAGE,
    READ,
    WRITE,
    Completion,
    Guest,
    QueuePair,
    eventfd,
    signals,
    slept,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NULL_SIZE = 1 << 30


def null_guest(**options: int) -> Guest:
    return Guest(NullBackend(NULL_SIZE), **options)


def read_command(queue: QueuePair, page: int) -> bytes:
    return queue.command(READ, prp1=page)


@settings(deadline=None, max_examples=25)
@given(
    entries=st.integers(2, 17),
    cq_entries=st.integers(2, 17),
    batches=st.lists(st.integers(1, 16), min_size=1, max_size=40),
)
def test_every_command_completes_once_whatever_the_sizes(
    entries: int, cq_entries: int, batches: list[int]
) -> None:
    with null_guest() as guest:
        queue = guest.queue(1, entries, cq_entries)
        page = guest.allocate(1)
        for wanted in batches:
            count = min(wanted, entries - 1)
            sent = []
            for _ in range(count):
                queue.put(read_command(queue, page))
                sent.append(queue.cid)
            queue.ring()
            done = [queue.wait() for _ in range(count)]
            assert [completion.cid for completion in done] == sent
            assert all(completion.status == 0 for completion in done)
            assert all(completion.sqid == 1 for completion in done)
            assert done[-1].sq_head == queue.tail
        assert queue.poll() is None


@pytest.mark.parametrize("entries", [2, 3, 64, 1024, 65535])
def test_a_queue_of_any_size_wraps(entries: int) -> None:
    with null_guest(pages=4096) as guest:
        queue = guest.queue(1, entries)
        page = guest.allocate(1)
        rounds = 3 * entries if entries <= 1024 else entries + 100
        left = rounds
        while left:
            count = min(left, entries - 1, 900)
            for _ in range(count):
                queue.put(read_command(queue, page))
            queue.ring()
            for _ in range(count):
                assert queue.wait().status == 0
            left -= count


def test_a_full_completion_queue_is_backpressure_and_loses_nothing() -> None:
    with null_guest() as guest:
        queue = guest.queue(1, 64, 4)
        page = guest.allocate(1)
        for _ in range(40):
            queue.put(read_command(queue, page))
        queue.ring()
        # Three entries fit; nothing moves until the guest makes room.
        seen = [queue.wait(ring=False) for _ in range(3)]
        time.sleep(0.05)
        assert queue.poll() is None
        queue.doorbell(queue.head, completion=True)
        guest.iothread.wake()
        while len(seen) < 40:
            seen.append(queue.wait())
        assert [completion.cid for completion in seen] == list(range(1, 41))


def test_two_submission_queues_share_a_completion_queue() -> None:
    with null_guest() as guest:
        queue = guest.queue(1)
        page = guest.allocate(1)
        sq2 = guest.allocate(1)
        guest.table.create_sq(2, 1, sq2, 64)
        guest.poke(sq2, read_command(queue, page))
        guest.state.doorbells[16:20] = struct.pack("<I", 1)
        guest.iothread.wake()
        completion = queue.wait()
        assert (completion.sqid, completion.cid) == (2, queue.cid)
        assert guest.table.sqs_of_cq(1) == [1, 2]


def test_an_invalid_tail_stops_that_queue_only_and_is_reported() -> None:
    with null_guest() as guest:
        bad, good = guest.queue(1, 16), guest.queue(2, 16)
        page = guest.allocate(1)
        bad.doorbell(16)
        guest.iothread.wake()
        errors: list[object] = []
        wait_for(lambda: errors.extend(guest.table.take_errors()) or errors, "the error")
        assert errors == [(1, True, 16)]
        assert good.run(read_command(good, page)).status == 0
        bad.put(read_command(bad, page))
        bad.ring()
        time.sleep(0.02)
        assert bad.poll() is None


@pytest.mark.parametrize("head", [1, 3, 4, 0xFFFFFFFF])
def test_an_invalid_head_stops_the_queue_and_is_reported(head: int) -> None:
    """1 and 3 are entries, but nothing was posted there yet; 4 is the queue's size."""
    with null_guest() as guest:
        queue = guest.queue(1, 16, 4)
        page = guest.allocate(1)
        queue.doorbell(head, completion=True)
        for _ in range(8):
            queue.put(read_command(queue, page))
        queue.ring()
        errors: list[object] = []
        wait_for(lambda: errors.extend(guest.table.take_errors()) or errors, "the error")
        assert errors == [(1, False, head)]


def test_the_register_write_path_checks_the_doorbell() -> None:
    with null_guest() as guest:
        queue = guest.queue(1, 16)
        table = guest.table
        assert table.ring_doorbell(1, 16) == queue_table.DOORBELL_INVALID_VALUE
        assert table.ring_doorbell(1, 16, completion=True) == queue_table.DOORBELL_INVALID_VALUE
        assert table.ring_doorbell(2, 0) == queue_table.DOORBELL_INVALID_REGISTER
        assert table.ring_doorbell(2, 0, completion=True) == queue_table.DOORBELL_INVALID_REGISTER
        assert table.ring_doorbell(1 << 20, 0) == queue_table.DOORBELL_INVALID_REGISTER
        queue.put(read_command(queue, guest.allocate(1)))
        assert table.ring_doorbell(1, 1) == queue_table.DOORBELL_OK
        assert queue.wait().status == 0


def shadow(guest: Guest) -> tuple[int, int]:
    """Doorbell Buffer Config with two fresh pages."""
    pages = guest.allocate(1), guest.allocate(1)
    assert guest.table.set_doorbell_buffers(*pages)
    return pages


def peek32(guest: Guest, iova: int) -> int:
    return int(struct.unpack("<I", guest.peek(iova, 4))[0])


def need_event(event_idx: int, new: int, old: int) -> bool:
    """The guest's rule (Linux `nvme_dbbuf_need_event`), in 16 bits."""
    return (new - event_idx - 1) % 65536 < (new - old) % 65536


class ShadowDriver:
    """Rings as a Linux guest does: the shadow page, and the register only when EventIdx says so."""

    def __init__(self, guest: Guest, queue: QueuePair, pages: tuple[int, int]) -> None:
        self.guest, self.queue, self.pages = guest, queue, pages
        self.registers = 0

    def ring(self, value: int, *, completion: bool = False) -> None:
        offset = (2 * self.queue.qid + completion) * 4
        old = peek32(self.guest, self.pages[0] + offset)
        self.guest.poke(self.pages[0] + offset, struct.pack("<I", value))
        if need_event(peek32(self.guest, self.pages[1] + offset), value, old):
            self.registers += 1
            self.guest.table.ring_doorbell(self.queue.qid, value, completion=completion)


@pytest.mark.parametrize("before", [True, False])
def test_shadow_doorbells_serve_queues_made_before_and_after(before: bool) -> None:
    with null_guest() as guest:
        page = guest.allocate(1)
        if before:
            queue = guest.queue(1, 16)
            assert queue.run(read_command(queue, page)).status == 0
            pages = shadow(guest)
            assert peek32(guest, pages[0] + 8) == 1
        else:
            pages = shadow(guest)
            queue = guest.queue(1, 16)
        driver = ShadowDriver(guest, queue, pages)
        for _ in range(50):
            queue.put(read_command(queue, page))
            driver.ring(queue.tail)
            assert queue.wait(ring=False).status == 0
            driver.ring(queue.head, completion=True)


def test_a_polling_thread_is_not_rung_and_a_parked_one_is() -> None:
    with null_guest(poll_timeout_ms=60000) as guest:
        guest.table.doorbells_mapped = False
        pages = shadow(guest)
        queue = guest.queue(1, 16)
        page = guest.allocate(1)
        driver = ShadowDriver(guest, queue, pages)

        def command() -> Completion:
            queue.put(read_command(queue, page))
            driver.ring(queue.tail)
            completion = queue.wait(ring=False)
            driver.ring(queue.head, completion=True)
            return completion

        assert command().status == 0
        polled = driver.registers
        for _ in range(100):
            assert command().status == 0
        assert driver.registers == polled
        guest.iothread.configure(poll_timeout_ms=0)
        event_idx = pages[1] + 8
        wait_for(lambda: peek32(guest, event_idx) == queue.tail, "the thread to park")
        time.sleep(0.01)
        assert command().status == 0
        assert driver.registers == polled + 1


class Listening(NamedTuple):
    """A guest whose thread parks as soon as it is idle, and hears of what is sent here."""

    guest: Guest
    client: socket.socket
    server: socket.socket
    task: Path

    def wait_until_asleep(self) -> None:
        """The thread is in the system call that it parks in."""

        def sleeps() -> bool:
            state = (self.task / "stat").read_text().rpartition(")")[2].split()[0]
            return self.guest.iothread.asleep and state == "S"

        wait_for(sleeps, "the thread to park")

    def ring_in_memory(self, queue: QueuePair, pages: tuple[int, int]) -> None:
        """A command, rung in the shadow page; the register is not, though the thread is parked."""
        event_idx = pages[1] + 8 * queue.qid
        wait_for(lambda: peek32(self.guest, event_idx) == queue.tail, "an event to be asked for")
        self.wait_until_asleep()
        queue.put(read_command(queue, self.guest.allocate(1)))
        self.guest.poke(pages[0] + 8 * queue.qid, struct.pack("<I", queue.tail))


@pytest.fixture
def listening() -> Iterator[Listening]:
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    client, server = socket.socketpair()
    with client, server, null_guest(poll_timeout_ms=0) as guest:
        (task,) = set(tasks.iterdir()) - before
        guest.table.doorbells_mapped = False
        guest.iothread.listen(server.fileno())
        yield Listening(guest, client, server, task)
        guest.iothread.ignore(server.fileno())


def test_any_message_makes_a_parked_thread_look_at_its_shadow_doorbells(
    listening: Listening,
) -> None:
    """Nobody reads the message, or writes the register that it asks for."""
    pages = shadow(listening.guest)
    queue = listening.guest.queue(1, 16)
    for _ in range(3):
        listening.ring_in_memory(queue, pages)
        assert queue.poll() is None
        listening.client.send(b"anything")
        assert queue.wait(ring=False).status == 0


def test_a_socket_that_is_ignored_wakes_nobody(listening: Listening) -> None:
    """To ignore it twice is no error."""
    pages = shadow(listening.guest)
    queue = listening.guest.queue(1, 16)
    listening.guest.iothread.ignore(listening.server.fileno())
    listening.ring_in_memory(queue, pages)
    listening.client.send(b"anything")
    time.sleep(0.05)
    assert queue.poll() is None
    listening.guest.iothread.wake()
    assert queue.wait(ring=False).status == 0


@pytest.mark.parametrize(("shadowed", "wakes"), [(True, 1), (False, 0)])
def test_what_nobody_reads_wakes_once_and_not_without_shadow_doorbells(
    listening: Listening, shadowed: bool, wakes: int
) -> None:
    if shadowed:
        shadow(listening.guest)
    listening.guest.queue(1, 16)
    listening.guest.iothread.wake()
    listening.wait_until_asleep()
    time.sleep(0.05)
    at_first = slept(listening.task)
    listening.client.send(b"anything")
    wait_for(lambda: slept(listening.task) - at_first >= wakes, "the thread to wake")
    time.sleep(0.05)
    assert slept(listening.task) - at_first == wakes


def test_shadow_pages_that_are_not_memory_are_refused() -> None:
    with null_guest() as guest:
        assert not guest.table.set_doorbell_buffers(0x1000, guest.allocate(1))
        assert not guest.table.set_doorbell_buffers(guest.allocate(1), 0x1000)


@pytest.mark.parametrize("mapped", [True, False])
def test_an_idle_thread_finds_a_command_that_comes_later(mapped: bool) -> None:
    with null_guest(poll_timeout_ms=1) as guest:
        guest.table.doorbells_mapped = mapped
        queue = guest.queue(1, 16)
        page = guest.allocate(1)
        for pause in (0.0, 0.005, 0.05, 0.1):
            time.sleep(pause)
            queue.put(read_command(queue, page))
            if mapped:
                queue.doorbell(queue.tail)
            else:
                assert guest.table.ring_doorbell(1, queue.tail) == queue_table.DOORBELL_OK
            assert queue.wait().status == 0


def test_a_completion_raises_the_vector_of_its_queue() -> None:
    with null_guest() as guest:
        fd = eventfd()
        guest.table.interrupts.set_vector(1, os.dup(fd))
        queue = guest.queue(1, 16)
        assert queue.run(read_command(queue, guest.allocate(1))).status == 0
        wait_for(lambda: signals(fd), "the interrupt")
        os.close(fd)
        statistics = guest.table.statistics()
        assert statistics.translated.count == statistics.completed.count == 1
        assert statistics.interrupts.count == 1


def test_some_of_the_turns_are_timed() -> None:
    with null_guest() as guest:
        fd = eventfd()
        guest.table.interrupts.set_vector(1, os.dup(fd))
        queue = guest.queue(1, 16)
        page = guest.allocate(1)
        done = 0

        def timed() -> bool:
            nonlocal done
            assert queue.run(read_command(queue, page)).status == 0
            done += 1
            found = guest.table.statistics()
            counters = (found.translated, found.completed, found.interrupts)
            return all(counter.timed and counter.cycles for counter in counters)

        wait_for(timed, "a turn that is timed")
        statistics = guest.table.statistics()
        assert statistics.translated.count == statistics.completed.count == done
        assert statistics.translated.timed <= done
        assert statistics.translated.mean_ns > 0
        os.close(fd)


def test_a_masked_vector_delivers_when_it_is_unmasked() -> None:
    with null_guest() as guest:
        fd = eventfd()
        guest.table.interrupts.set_vector(1, os.dup(fd))
        guest.table.interrupts.mask_vector(1, True)
        queue = guest.queue(1, 16)
        assert queue.run(read_command(queue, guest.allocate(1))).status == 0
        time.sleep(0.01)
        assert signals(fd) == 0
        guest.table.interrupts.mask_vector(1, False)
        assert signals(fd) == 1
        os.close(fd)


def test_the_pin_is_a_level_that_an_unmask_asserts_again() -> None:
    with null_guest() as guest:
        fd = eventfd()
        guest.table.interrupts.set_intx(os.dup(fd))
        queue = guest.queue(1, 16)
        page = guest.allocate(1)
        queue.put(read_command(queue, page))
        queue.ring()
        wait_for(lambda: signals(fd), "the pin")
        queue.put(read_command(queue, page))
        queue.ring()
        assert queue.wait(ring=False).cid == 1
        assert queue.wait(ring=False).cid == 2
        assert signals(fd) == 0, "the pin masks itself"
        guest.table.interrupts.mask_intx(False)
        assert signals(fd) == 1, "two entries are not consumed"
        queue.doorbell(queue.head, completion=True)
        guest.table.interrupts.mask_intx(False)
        assert signals(fd) == 0
        os.close(fd)


def test_intms_holds_the_pin_back() -> None:
    with null_guest() as guest:
        fd = eventfd()
        guest.table.interrupts.set_intx(os.dup(fd))
        guest.table.interrupts.set_intms(1)
        queue = guest.queue(1, 16)
        queue.put(read_command(queue, guest.allocate(1)))
        queue.ring()
        queue.wait(ring=False)
        time.sleep(0.01)
        assert signals(fd) == 0
        guest.table.interrupts.set_intms(0)
        assert signals(fd) == 1
        os.close(fd)


def test_memory_remapped_in_pieces_under_a_live_queue_loses_nothing() -> None:
    with Guest(MemoryBackend(1 << 20)) as guest:
        # Below the queues: mapped before them, and so before they come back to life.
        page = guest.allocate(1)
        queue = guest.queue(1, 16)
        for size in (guest.size, guest.size // 2, guest.size // 4, PAGE):
            assert guest.table.dma.try_unmap(IOVA, guest.size) == guest.size
            queue.put(queue.command(WRITE, prp1=page))
            queue.ring()
            for start in range(0, guest.size, size):
                guest.table.dma.map(
                    IOVA + start, size, guest.fd, start, readable=True, writable=True
                )
            assert queue.wait().status == 0
            if size == PAGE:
                break
            for start in range(0, guest.size, size):
                assert guest.table.dma.try_unmap(IOVA + start, size) == size
            guest.table.dma.map(IOVA, guest.size, guest.fd, 0, readable=True, writable=True)


def test_a_held_queue_is_not_fetched_from_until_released() -> None:
    with null_guest() as guest:
        queue = guest.queue(1, 16)
        guest.table.hold(1)
        queue.put(read_command(queue, guest.allocate(1)))
        queue.ring()
        time.sleep(0.02)
        assert queue.poll() is None
        guest.table.release(1)
        assert queue.wait().status == 0


def test_a_deleted_queue_can_be_made_again() -> None:
    with null_guest() as guest:
        page = guest.allocate(1)
        for _ in range(20):
            queue = guest.queue(1, 16)
            for _ in range(5):
                assert queue.run(read_command(queue, page)).status == 0
            guest.table.hold(1)
            assert guest.table.inflight(1) == 0
            guest.table.delete_sq(1)
            guest.table.delete_cq(1)
            assert not guest.table.has_sq(1)


def test_a_stopped_controller_posts_nothing() -> None:
    with null_guest() as guest:
        queue = guest.queue(1, 16)
        guest.table.stop()
        queue.put(read_command(queue, guest.allocate(1)))
        queue.ring()
        time.sleep(0.02)
        assert queue.poll() is None
        assert guest.table.inflight() == 0
        guest.table.disable()
        assert not guest.table.has_sq(1)


def test_admin_commands_come_in_order_and_complete_in_any() -> None:
    with null_guest() as guest:
        sqes = [struct.pack("<BBH60x", 0x06, 0, cid) for cid in (10, 11, 12)]
        guest.poke(guest.admin_sq, b"".join(sqes))
        assert guest.table.ring_doorbell(0, 3) == queue_table.DOORBELL_OK
        fetched = [guest.table.admin.fetch() for _ in range(4)]
        assert fetched[3] is None
        slots = [slot for slot, _ in fetched[:3]]  # type: ignore[misc]
        assert [sqe for _, sqe in fetched[:3]] == sqes  # type: ignore[misc]
        assert guest.table.admin.pending() == sorted(zip(slots, sqes, strict=True))
        for slot in reversed(slots):
            assert guest.table.admin.complete(slot, 0x1234, 0x4002)
        entries = struct.iter_unpack("<IIHHHH", guest.peek(guest.admin_cq, 48))
        assert [(dw0, head, cid, status) for dw0, _, head, _, cid, status in entries] == [
            (0x1234, 3, cid, (0x4002 | MORE) << 1 | 1) for cid in (12, 11, 10)
        ]
        assert guest.state.error_count == 3
        with pytest.raises(KeyError):
            guest.table.admin.complete(slots[0], 0, 0)


def test_a_queue_that_is_not_there_is_refused_and_the_thread_goes_on() -> None:
    with null_guest() as guest:
        queue = guest.queue(1)
        for refused in (guest.table.hold, guest.table.end_throttled):
            with pytest.raises(KeyError):
                refused(7)
        assert queue.run(queue.command(READ, prp1=guest.allocate(1))).status == 0


def test_a_full_admin_completion_queue_says_so() -> None:
    with null_guest() as guest:
        for index in range(32):
            guest.poke(guest.admin_sq + index * 64, struct.pack("<BBH60x", 6, 0, index))
        done = 0
        tail = 0
        while done < 31:
            tail = (tail + 1) % 32
            guest.table.ring_doorbell(0, tail)
            fetched = guest.table.admin.fetch()
            assert fetched
            assert guest.table.admin.complete(fetched[0], 0, 0)
            done += 1
        guest.table.ring_doorbell(0, 0)
        fetched = guest.table.admin.fetch()
        assert fetched
        assert not guest.table.admin.complete(fetched[0], 0, 0)
        guest.table.ring_doorbell(0, 5, completion=True)
        assert guest.table.admin.complete(fetched[0], 0, 0)


def test_the_admin_doorbell_in_the_mapped_page_wakes_the_control_plane() -> None:
    with null_guest(poll_timeout_ms=0) as guest:
        guest.table.clear_notify()
        guest.poke(guest.admin_sq, struct.pack("<BBH60x", 6, 0, 1))
        guest.state.doorbells[0:4] = struct.pack("<I", 1)
        wait_for(lambda: signals(guest.table.notify_fd), "the notification")
        assert guest.table.admin.fetch() is not None


def test_with_the_pin_a_guest_with_shadow_doorbells_rings_for_every_move_of_the_head() -> None:
    """The register access is how the client learns that the interrupt was seen."""
    with null_guest() as guest:
        fd = eventfd()
        guest.table.interrupts.set_intx(os.dup(fd))
        queue = guest.queue(1, 16)
        driver = ShadowDriver(guest, queue, shadow(guest))
        page = guest.allocate(1)
        for _ in range(50):
            queue.put(read_command(queue, page))
            driver.ring(queue.tail)
            wait_for(lambda: signals(fd), "the pin")
            assert queue.wait(ring=False).status == 0
            before = driver.registers
            driver.ring(queue.head, completion=True)
            assert driver.registers == before + 1
            guest.table.interrupts.mask_intx(False)
            assert signals(fd) == 0
        os.close(fd)


def test_memory_comes_and_goes_under_load_without_losing_a_command() -> None:
    """Memory that no queue is in; the queues' own, which holds them for a moment."""
    with null_guest(pages=256) as guest:
        queue = guest.queue(1, 64)
        page = guest.allocate(1)
        extra = 0x9_0000_0000
        done = 0
        for round_ in range(300):
            for _ in range(16):
                queue.put(read_command(queue, page))
            queue.ring()
            guest.table.dma.map(
                extra + round_ * PAGE, PAGE, guest.fd, 0, readable=True, writable=True
            )
            if round_ % 10 == 9:
                wait_for(
                    lambda: guest.table.dma.try_unmap(IOVA, guest.size), "the memory to be free"
                )
                assert guest.table.submission_queues()[0].held
                guest.table.dma.map(IOVA, guest.size, guest.fd, 0, readable=True, writable=True)
                assert not guest.table.submission_queues()[0].held
            if round_ % 3 == 2:
                assert guest.table.dma.try_unmap(extra + round_ * PAGE, PAGE) == PAGE
            for _ in range(16):
                assert queue.wait().status == 0
                done += 1
        assert done == 300 * 16
