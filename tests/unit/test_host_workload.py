"""The benchmark loop against a controller that does as told, right and wrong."""

from __future__ import annotations

import math
import os
import random
import threading
import time

import pytest
from fake_controller import BLOCK, FakeController
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.bench.histogram import BUCKETS, Histogram, bucket_value
from nvme_mdev.host.samples import Failure
from nvme_mdev.host.workload import Workload, block_pattern, bucket_index

SECOND = 10**9


def workload(fake: FakeController, depth: int = 4, **settings) -> Workload:
    data = fake.memory.allocate(depth * 4096)
    defaults = {
        "nsid": 1,
        "block_size": BLOCK,
        "blocks_per_io": 1,
        "first_block": 0,
        "units": len(fake.medium) // BLOCK,
        "prps": [(data.iova + slot * 4096, 0) for slot in range(depth)],
        "data": data.view,
        "data_stride": 4096,
        "timeout_ns": 20 * SECOND,
    }
    return Workload(fake.queue, **{**defaults, **settings})


@pytest.mark.parametrize("doorbells", [{}, {"shadow": True}, {"by_socket": True}])
@pytest.mark.parametrize("depth", [1, 7, 15])
def test_it_does_as_many_commands_as_asked(doorbells, depth):
    with FakeController(**doorbells) as fake:
        work = workload(fake, depth, commands=200)
        work.run()
        assert work.failure == Failure.NONE
    measured = work.measured(write=False)
    assert (measured.commands, work.progress) == (200, 200)
    assert measured.slat.count == measured.clat.count == measured.lat.count == 200
    assert work.measured(write=True).commands == 0


def test_total_latency_is_submission_and_completion_together():
    with FakeController() as fake:
        work = workload(fake, commands=100)
        work.run()
    measured = work.measured(write=False)
    difference = measured.lat.total - measured.slat.total - measured.clat.total
    assert abs(difference) <= 2 * 100
    assert measured.lat.least <= measured.lat.total / 100 <= measured.lat.most


def test_it_sends_nothing_more_when_its_time_is_over():
    with FakeController() as fake:
        work = workload(fake, depth := 4, runtime_ns=1)
        work.run()
    # What filled the queue, and what took the places of the completions that were found first.
    assert depth <= work.measured(write=False).commands <= 2 * depth
    assert work.failure == Failure.NONE


def test_it_does_not_end_before_its_time():
    with FakeController() as fake:
        work = workload(fake, runtime_ns=3600 * SECOND, commands=200)
        work.run()
    assert work.measured(write=False).commands == 200


def test_another_thread_can_stop_it():
    with FakeController() as fake:
        work = workload(fake)
        thread = threading.Thread(target=work.run)
        thread.start()
        while work.progress < 10:
            time.sleep(0.001)
        work.stop()
        thread.join(20)
        assert not thread.is_alive()
    assert work.failure == Failure.NONE


def test_sequential_commands_go_through_the_range_and_start_again():
    seen = []
    with FakeController() as fake:
        fake.status_of = lambda _opcode, slba: seen.append(slba) or 0
        workload(fake, 1, commands=7, random=False, first_block=10, units=3, blocks_per_io=2).run()
    assert seen == [10, 12, 14, 10, 12, 14, 10]


def test_random_commands_stay_in_their_range_and_reach_all_of_it():
    seen = set()
    with FakeController() as fake:
        fake.status_of = lambda _opcode, slba: seen.add(slba) or 0
        workload(fake, commands=500, first_block=100, units=8, blocks_per_io=4).run()
    assert seen == {100 + 4 * unit for unit in range(8)}


def test_the_mix_of_reads_and_writes_is_as_asked():
    with FakeController() as fake:
        work = workload(fake, commands=2000, read_fraction=0.7)
        work.run()
    reads = work.measured(write=False).commands
    # Five standard deviations of a binomial distribution.
    assert abs(reads - 1400) < 5 * math.sqrt(2000 * 0.7 * 0.3)
    assert work.measured(write=True).commands == 2000 - reads


def test_what_was_written_is_read_back_and_compared():
    with FakeController() as fake:
        work = workload(fake, commands=100, read_fraction=0.0, verify=True, data_seed=9)
        work.run()
        work.run_read_back()
        slba = next(n for n in range(256) if any(fake.medium[n * BLOCK : (n + 1) * BLOCK]))
        block = bytes(fake.medium[slba * BLOCK : (slba + 1) * BLOCK])
    assert block == block_pattern(slba, 9, BLOCK)
    assert work.checked_blocks == work.written_units == work.measured(write=False).commands
    assert work.mismatches == 0


def test_a_mixed_run_verifies_while_it_runs():
    with FakeController() as fake:
        work = workload(fake, commands=1000, units=32, read_fraction=0.5, verify=True)
        work.run()
    assert work.checked_blocks > 100
    assert (work.mismatches, work.failure) == (0, Failure.NONE)


def test_a_single_wrong_bit_is_found():
    def flip(slba: int, data: bytes) -> bytes:
        return data if slba != 77 else data[:-1] + bytes([data[-1] ^ 1])

    with FakeController() as fake:
        work = workload(
            fake, commands=256, random=False, read_fraction=0.0, verify=True, max_errors=10
        )
        work.run()
        fake.on_read = flip
        work.run_read_back()
    assert (work.mismatches, work.checked_blocks) == (1, 256)
    assert work.first_error.failure == Failure.MISMATCH
    assert work.first_error.block == 77


def test_data_of_another_seed_is_wrong_data():
    with FakeController() as fake:
        fake.medium[:] = b"".join(block_pattern(n, 1, BLOCK) for n in range(256))
        work = workload(fake, commands=50, verify=True, check_all=True, data_seed=2)
        work.run()
    assert work.failure == Failure.MISMATCH
    assert work.mismatches >= 1


def test_an_error_status_ends_the_run_and_is_told():
    with FakeController() as fake:
        fake.status_of = lambda _opcode, slba: 0x281 if slba == 5 else 0
        work = workload(fake, commands=1000, random=False)
        work.run()
    assert work.failure == Failure.STATUS
    assert work.first_error[:4] == (Failure.STATUS, False, 5, 0x281)
    assert work.errors == 1


def test_errors_can_be_counted_instead():
    with FakeController() as fake:
        fake.status_of = lambda _opcode, slba: 0x281 if slba == 5 else 0
        work = workload(fake, commands=512, random=False, max_errors=100)
        work.run()
    assert (work.failure, work.errors, work.progress) == (Failure.NONE, 2, 512)


def test_a_command_that_never_completes_is_a_timeout():
    with FakeController() as fake:
        fake.status_of = lambda _opcode, slba: None if slba == 20 else 0
        work = workload(fake, commands=1000, random=False, timeout_ns=SECOND // 10)
        work.run()
    assert work.failure == Failure.TIMEOUT


def test_a_completion_nobody_waits_for_is_found_out():
    with FakeController() as fake:
        fake.status_of = lambda _opcode, slba: fake.complete(99) if slba == 3 else 0
        work = workload(fake, commands=1000, random=False)
        work.run()
    assert work.failure == Failure.UNKNOWN_CID
    assert work.first_error.cid == 99


def test_a_command_that_is_completed_twice_ends_the_run():
    """Both at once: when they are found, nothing has taken its place yet."""
    with FakeController() as fake:
        work = workload(fake, commands=2, random=False)
        held: list[int] = []

        def hold(_opcode: int, _slba: int) -> None:
            held.append(0)
            if len(held) == 2:
                words = (0, 0, 2 | 1 << 16, 0 | 1 << 16)
                entry = b"".join(word.to_bytes(4, "little") for word in words)
                # The second first, so that the first is the last to be seen.
                fake.cq.write(entry, 16)
                fake.cq.write(entry, 0)

        fake.status_of = hold
        work.run()
    assert work.failure == Failure.UNKNOWN_CID
    assert work.first_error.cid == 0


def test_stopping_can_abandon_what_is_outstanding():
    with FakeController() as fake:
        fake.status_of = lambda _opcode, _slba: None
        work = workload(fake)
        thread = threading.Thread(target=work.run)
        thread.start()
        time.sleep(0.05)
        work.stop()
        time.sleep(0.05)
        assert thread.is_alive()
        work.stop(abandon=True)
        thread.join(20)
    assert work.failure == Failure.ABANDONED


def test_it_sleeps_for_interrupts_when_there_are_some():
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with FakeController(eventfd=eventfd) as fake:
            work = workload(fake, commands=100)
            work.run()
            assert (work.failure, work.progress) == (Failure.NONE, 100)
            assert 0 < work.wakeups <= 100
    finally:
        os.close(eventfd)


def test_an_exception_while_ringing_comes_out_of_run():
    with FakeController(by_socket=True) as fake:
        work = workload(fake, commands=10)
        fake.register_writes = None
        with pytest.raises(AttributeError):
            work.run()


def test_the_completion_queue_never_overflows_although_the_head_is_rung_lazily():
    # FakeController.complete waits for room by the doorbell, so a host too lazy would hang.
    with FakeController(entries=64) as fake:
        for depth in (1, 31, 62, 63):
            work = workload(fake, depth, commands=500)
            work.run()
            assert work.failure == Failure.NONE


def test_more_commands_than_the_queue_holds_are_refused():
    fake = FakeController(entries=4)
    with pytest.raises(ValueError, match="do not fit"):
        workload(fake, 4)


@given(st.integers(0, 2**40))
def test_a_bucket_stands_for_what_falls_into_it(ns):
    index = bucket_index(ns)
    assert 0 <= index < BUCKETS
    if index < BUCKETS - 1:
        assert abs(bucket_value(index) - ns) <= ns / 64 + 1
    assert bucket_index(bucket_value(index)) == index


def test_statistics_are_those_of_the_samples():
    samples = [random.Random(5).randrange(100, 10**6) for _ in range(1000)]
    one = Histogram(len(samples), sum(samples), min(samples), max(samples))
    one.squares = float(sum(value * value for value in samples))
    for value in samples:
        one.buckets[bucket_index(value)] += 1
    mean = sum(samples) / 1000
    deviation = math.sqrt(sum((value - mean) ** 2 for value in samples) / 999)
    assert one.mean == pytest.approx(mean)
    assert one.stddev == pytest.approx(deviation)
    for percent, value in one.percentiles().items():
        exact = sorted(samples)[max(math.ceil(percent / 100 * 1000) - 1, 0)]
        assert value == pytest.approx(exact, rel=1 / 64)
