"""Results: merged, named as fio names them, and shown."""

from __future__ import annotations

import io
import json
import struct

import pytest
from rich.console import Console

from nvme_mdev.bench.counters import LOG_SIZE, Counter, DeviceCounters
from nvme_mdev.bench.histogram import PERCENTILES, Histogram
from nvme_mdev.bench.job import Job, Pattern
from nvme_mdev.bench.results import BenchResult, Direction, JobResult
from nvme_mdev.bench.table import (
    counter_table,
    direction_line,
    directions,
    format_bandwidth,
    format_count,
    format_ns,
    latency_table,
    summary_table,
)
from nvme_mdev.host.workload import bucket_index

SECOND = 10**9


def histogram(*samples: int) -> Histogram:
    made = Histogram(
        len(samples),
        sum(samples),
        min(samples),
        max(samples),
        float(sum(value * value for value in samples)),
    )
    for value in samples:
        made.buckets[bucket_index(value)] += 1
    return made


def direction(commands: int = 2) -> Direction:
    slat, clat = histogram(10, 20), histogram(1000, 3000)
    return Direction(commands, commands * 4096, SECOND // 2, slat, clat, histogram(1010, 3020))


def result() -> BenchResult:
    counters = DeviceCounters(10**9, Counter(4, 2, 200), Counter(4, 4, 200), Counter(0, 0, 0))
    job = Job(rw=Pattern.RANDREAD, iodepth=2)
    jobs = [JobResult(direction(), Direction()), JobResult(direction(), Direction())]
    return BenchResult(job, jobs, {"model": "nvme-mdev"}, counters)


def test_merging_keeps_every_sample():
    merged = Histogram.merged([histogram(5, 7), Histogram(), histogram(100)])
    assert (merged.count, merged.total, merged.least, merged.most) == (3, 112, 5, 100)
    assert merged.percentiles((50.0,)) == {50.0: 7}
    assert merged.stddev == pytest.approx(54.28, abs=0.01)


def test_nothing_measured_is_all_zero():
    empty = Histogram()
    assert (empty.mean, empty.stddev) == (0.0, 0.0)
    assert set(empty.percentiles().values()) == {0}


def test_jobs_that_ran_together_are_added_up():
    assert result().read.iops == 8
    assert result().read.bandwidth == 8 * 4096
    assert result().iops == 8


def test_json_has_the_names_of_fio():
    output = json.loads(json.dumps(result().to_json()))
    job = output["jobs"][0]
    assert (len(output["jobs"]), job["jobname"], job["error"]) == (2, "randread", 0)
    read = job["read"]
    assert (read["iops"], read["bw_bytes"], read["total_ios"], read["runtime"]) == (
        4,
        16384,
        2,
        500,
    )
    assert read["lat_ns"] == {
        "min": 1010,
        "max": 3020,
        "mean": 2015.0,
        "stddev": pytest.approx(1421.3, abs=0.1),
        "N": 2,
    }
    assert list(read["clat_ns"]["percentile"]) == [f"{percent:.6f}" for percent in PERCENTILES]
    assert read["clat_ns"]["percentile"]["1.000000"] == pytest.approx(1000, rel=1 / 64)
    assert job["write"]["total_ios"] == 0


def test_json_tells_the_daemons_counters():
    counters = result().to_json()["nvme-mdev"]["counters"]
    assert counters["commands_translated"] == {"count": 4, "mean_cycles": 100, "mean_ns": 100}
    assert counters["interrupts_sent"]["mean_ns"] == 0


def page(magic: int = 0x56444D4E, version: int = 2) -> bytes:
    counters = (4, 1, 2, 5, 3, 4, 7, 5, 6)
    return struct.pack("<IIQ9Q", magic, version, 2 * 10**9, *counters).ljust(LOG_SIZE, b"\0")


def test_the_counters_log_page_is_read():
    counters = DeviceCounters.unpack(page())
    assert counters == DeviceCounters(
        2 * 10**9, Counter(4, 1, 2), Counter(5, 3, 4), Counter(7, 5, 6)
    )
    assert page()[:4] == b"NMDV"
    assert counters.mean_ns(counters.translated) == 1.0


@pytest.mark.parametrize("strange", [page(magic=0), page(version=1), bytes(LOG_SIZE)])
def test_a_strange_log_page_tells_nothing(strange):
    assert DeviceCounters.unpack(strange) is None


def test_counters_of_a_run_are_what_was_added():
    before = DeviceCounters(1, Counter(9, 1, 10), Counter(9, 2, 20), Counter(9, 3, 30))
    after = DeviceCounters(1, Counter(19, 5, 50), Counter(9, 2, 20), Counter(10, 4, 31))
    assert after.since(before) == DeviceCounters(
        1, Counter(10, 4, 40), Counter(0, 0, 0), Counter(1, 1, 1)
    )


def shown(table) -> str:
    output = io.StringIO()
    Console(file=output, width=160).print(table)
    return output.getvalue()


def test_tables_show_what_was_measured():
    both = result().read
    assert direction_line("read", both) == "read: 8 IOPS, 32 KiB/s, 4 commands in 0.50 s"
    assert "2.00 µs    1.15 µs   1.00 µs" in shown(latency_table(both))
    assert [name for name, _ in directions(result())] == ["read"]
    assert "2.02 µs" in shown(summary_table([("null", result())]))
    counters = shown(counter_table(result().counters))
    assert "commands translated" in counters
    assert "100 ns" in counters


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (12_345, "12.3k"), (999_000, "999k"), (1.234e6, "1.23M")],
)
def test_counts_are_short(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (523, "523 ns"),
        (6_123, "6.12 µs"),
        (61_234, "61.2 µs"),
        (999_400, "999 µs"),
        (1_250_000, "1.25 ms"),
        (2e9, "2.00 s"),
    ],
)
def test_times_are_short(value, text):
    assert format_ns(value) == text


def test_bandwidths_are_short():
    assert format_bandwidth(1536) == "1.5 KiB/s"
    assert format_bandwidth(3 * 2**30) == "3.00 GiB/s"
