"""Turns taken by hand: what the instruction counts rely on."""

from __future__ import annotations

import pytest
from benchmarks.drive import CutOffDrive

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.passthru import PassthruBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.probe import (
    by_hand,
    complete_ring,
    cut_off_kernel,
    line_places,
    line_starts,
    struct_sizes,
    take_turns,
)
from nvme_mdev.spec.nvme_status import MediaStatus, Sct

from .guest import READ, Guest, QueuePair


def put(queue: QueuePair, commands: int) -> None:
    buffer = queue.guest.allocate(1)
    for _ in range(commands):
        queue.put(queue.command(READ, prp1=buffer))
    queue.doorbell(queue.tail)


def completed(queue: QueuePair) -> int:
    count = 0
    while queue.poll():
        count += 1
    return count


def test_a_turn_takes_what_waits_up_to_the_arbitration_burst():
    with Guest(NullBackend(1 << 20), running=False) as guest:
        queue = guest.queue()
        guest.table.set_arbitration(4)
        put(queue, 10)
        assert [take_turns(guest.iothread, 1) for _ in range(4)] == [4, 4, 2, 0]
        assert completed(queue) == 10


def test_several_turns_are_taken_in_one_call():
    with Guest(NullBackend(1 << 20), running=False) as guest:
        queue = guest.queue()
        guest.table.set_arbitration(1)
        put(queue, 10)
        assert take_turns(guest.iothread, 7) == 7
        assert completed(queue) == 7


def test_a_thread_that_runs_takes_its_turns_itself():
    with Guest(NullBackend(1 << 20)) as guest, pytest.raises(RuntimeError, match="itself"):
        take_turns(guest.iothread, 1)


def test_what_threads_or_queues_have_one_each_of_is_whole_cache_lines():
    assert all(size % 64 == 0 for size in struct_sizes().values()), struct_sizes()
    assert all(start % 64 == 0 for start in line_starts().values()), line_starts()
    with Guest(NullBackend(1 << 20), running=False) as guest:
        guest.queue()
        assert not any(line_places(guest.iothread))


def test_what_a_file_is_asked_is_completed_in_the_kernels_place_when_it_is_cut_off(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    iothread = IOThread("by hand")
    with by_hand(iothread), Guest(UringBackend(str(path)), shared=iothread) as guest:
        queue = guest.queue()
        with pytest.raises(RuntimeError, match="the kernel's"):
            complete_ring(iothread, 512)
        cut_off_kernel(iothread)
        put(queue, 3)
        assert take_turns(iothread, 4) == 3
        assert completed(queue) == 0
        assert complete_ring(iothread, 512) == 3
        assert take_turns(iothread, 1) == 3
        assert completed(queue) == 3


def test_what_is_passed_is_completed_in_the_kernels_place_with_its_status():
    iothread = IOThread("by hand")
    backend = PassthruBackend(CutOffDrive(1 << 20))
    with by_hand(iothread), Guest(backend, shared=iothread) as guest:
        queue = guest.queue()
        cut_off_kernel(iothread)
        for status in (0, Sct.MEDIA << 8 | MediaStatus.UNRECOVERED_READ):
            # More than one entry of the rings, whose entries have twice the usual size.
            put(queue, 3)
            assert take_turns(iothread, 4) == 3
            assert queue.poll() is None
            assert complete_ring(iothread, status) == 3
            assert take_turns(iothread, 1) == 3
            assert [queue.poll().status for _ in range(3)] == [status] * 3


def test_a_thread_without_an_io_uring_cannot_be_cut_off_from_the_kernel():
    iothread = IOThread("by hand")
    with by_hand(iothread), pytest.raises(RuntimeError, match="has no io_uring"):
        cut_off_kernel(iothread)


def test_a_thread_that_runs_is_called_itself():
    with (
        Guest(NullBackend(1 << 20)) as guest,
        pytest.raises(RuntimeError, match="itself"),
        by_hand(guest.iothread),
    ):
        pass
