"""The machine's limits: the loops do what they say they measure, and rounds are kept apart."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from nvme_mdev.bench import limits
from nvme_mdev.bench.floor import (
    CacheLine,
    EchoController,
    EmptyRing,
    clock_read_ns,
    copy_ns,
    eventfd_write_ns,
)
from nvme_mdev.bench.limits import Limit, measure_echo, pick_cpus
from nvme_mdev.bench.runner import entries_for
from nvme_mdev.bench.spread import Spread

MILLISECOND = 10**6
PATIENCE = 30

two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="the limit is one between two processors"
)


def test_a_copy_moves_a_page_of_the_source_to_the_target():
    source = memoryview(bytes(4096) * 3 + bytes([7]) * 4096)
    target = memoryview(bytearray(4096 + 1))
    while target[0] != 7:
        assert copy_ns(MILLISECOND, source, target) > 0
        assert copy_ns(MILLISECOND, source, target, alone=True) > 0
    assert bytes(target) == bytes([7]) * 4096 + b"\0"


def test_a_copy_needs_a_page_on_both_sides():
    page = memoryview(bytearray(4096))
    for source, target in ((page[1:], page), (page, page[1:])):
        with pytest.raises(ValueError, match="4096 bytes"):
            copy_ns(MILLISECOND, source, target)


def test_an_eventfd_is_really_written():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert eventfd_write_ns(MILLISECOND, fd) > 0
        assert os.eventfd_read(fd) >= 256
    finally:
        os.close(fd)


def test_an_eventfd_that_cannot_be_written_is_an_error():
    with Path(os.devnull).open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        eventfd_write_ns(MILLISECOND, file.fileno())


def test_an_empty_ring_goes_round_until_it_is_closed():
    ring = EmptyRing()
    assert ring.nop_ns(MILLISECOND) > 0
    ring.close()
    ring.close()
    with pytest.raises(ValueError, match="closed"):
        ring.nop_ns(MILLISECOND)


def test_the_clock_is_read_at_least_once_however_short_the_time():
    assert clock_read_ns(0) > 0


def test_a_cache_line_comes_back_changed():
    line = CacheLine()
    other = threading.Thread(target=line.reflect)
    other.start()
    assert line.bounce_ns(MILLISECOND) > 0
    line.stop()
    other.join(PATIENCE)
    assert not other.is_alive()


def test_a_cache_line_that_nobody_reflects_can_be_given_up():
    line = CacheLine()
    thread = threading.Thread(target=line.bounce_ns, args=(60_000 * MILLISECOND,))
    thread.start()
    time.sleep(0.01)
    line.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_echo_controller_needs_doorbells_in_memory():
    from nvme_mdev.host.queues import QueuePair

    queue = QueuePair(
        1,
        sq=memoryview(bytearray(256)),
        cq=memoryview(bytearray(64)),
        sq_entries=4,
        cq_entries=4,
        write_doorbell=lambda *_: None,
    )
    with pytest.raises(ValueError, match="doorbells in memory"):
        EchoController(queue)


@two_cpus
@pytest.mark.parametrize("depth", limits.DEPTHS)
def test_a_command_makes_its_round_trip_at_every_depth(depth):
    cpus = pick_cpus(())
    assert cpus is not None
    latency, rate = measure_echo(cpus, depth, 2 * MILLISECOND)
    assert latency > 0
    assert rate > 0


def test_the_echo_controllers_queues_are_those_that_bench_makes():
    assert [entries_for(depth) for depth in limits.DEPTHS] == [64, 64, 256]


@two_cpus
def test_every_limit_is_measured_once_a_round():
    cpus = pick_cpus(())
    assert cpus is not None
    told: list[float] = []
    with limits.FloorMeter(cpus, runtime=0.001) as meter:
        meter.round()
        meter.round(told.append)
        floor = meter.result()
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert {limit.key for limit in floor.spreads} == {
        *("rdtsc", "cache_line", "eventfd", "io_uring_nop"),
        *("copy_hot", "copy_random", "copy_random_huge"),
        *("copy_random_alone", "copy_random_huge_alone"),
        *(f"{what}_{depth}" for what in ("sqe_cqe", "rate") for depth in (1, 32, 128)),
    }
    assert all(len(spread.values) == 2 for spread in floor.spreads.values())


def test_a_failure_on_the_other_processor_is_raised_here():
    def fail() -> float:
        raise RuntimeError("no")

    cpu = min(os.sched_getaffinity(0))
    with pytest.raises(RuntimeError, match="no"):
        limits._run_pinned(cpu, fail)


def test_what_runs_beside_is_stopped_when_the_measurement_fails():
    line = CacheLine()
    cpu = min(os.sched_getaffinity(0))
    with (
        pytest.raises(RuntimeError, match="no"),
        limits._beside(cpu, line.reflect, line.stop),
    ):
        raise RuntimeError("no")
    assert not any(thread.name == f"floor-{cpu}" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("wanted", "picked"), [((0, 1), (0, 1)), ((3, 1, 2), (3, 2)), ((5,), None), ((2, 2), None)]
)
def test_the_first_processor_is_the_hosts_and_the_last_the_controllers(wanted, picked):
    assert pick_cpus(wanted) == picked


def test_a_spread_has_its_median_and_its_ends():
    spread = Spread((3.0, 1.0, 2.0, 9.0))
    assert (spread.median, spread.least, spread.most) == (2.5, 1.0, 9.0)
    assert spread.stddev == pytest.approx(3.594, abs=0.001)
    assert spread.to_json()["values"] == [3.0, 1.0, 2.0, 9.0]
    assert Spread((5.0,)).stddev == 0.0
    with pytest.raises(ValueError, match="needs a measurement"):
        Spread(())


def test_a_floor_in_json_says_what_it_was_measured_on():
    limit = Limit("eventfd", "eventfd write", "ns")
    output = limits.Floor((0, 1), 0.1, {limit: Spread((200.0,))}).to_json()
    assert output["cpus"] == [0, 1]
    assert set(output["machine"]) == {"system", "processor", "model", "cpus"}
    assert output["limits"]["eventfd"]["median"] == 200.0
    assert output["limits"]["eventfd"]["unit"] == "ns"
