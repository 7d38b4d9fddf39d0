"""The report: rounds, ratios, what is left out, and the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from nvme_mdev.bench import fio
from nvme_mdev.bench.counters import Counter, DeviceCounters
from nvme_mdev.bench.histogram import Histogram, bucket_value
from nvme_mdev.bench.job import Job, Pattern
from nvme_mdev.bench.limits import SQE_CQE, Floor
from nvme_mdev.bench.page import cumulative, html_page
from nvme_mdev.bench.report import (
    HOST,
    POLLING,
    TESTS,
    Point,
    Report,
    Sweep,
    run_report,
    sweeps,
)
from nvme_mdev.bench.report_table import (
    bandwidth_rows,
    counter_rows,
    floor_rows,
    latency_rows,
    rate_rows,
    round_rows,
)
from nvme_mdev.bench.results import Direction
from nvme_mdev.bench.spread import Spread
from nvme_mdev.bench.svg import Axis, Series, decades, line_chart, nice_ceiling
from nvme_mdev.errors import UserError
from nvme_mdev.host.workload import bucket_index

SECOND = 10**9
COUNTERS = DeviceCounters(10**9, Counter(10, 5, 500), Counter(10, 5, 250), Counter(0, 0, 0))


def histogram(ns: int, count: int) -> Histogram:
    made = Histogram(count, ns * count, ns, ns, float(ns * ns * count))
    made.buckets[bucket_index(ns)] = count
    return made


def direction(iops: int, ns: int) -> Direction:
    return Direction(
        iops,
        iops * 4096,
        SECOND,
        histogram(10, iops),
        histogram(ns - 10, iops),
        histogram(ns, iops),
    )


class FakeSubject:
    """Measures nothing: each round it is a little slower. Cannot do what it is told not to."""

    def __init__(self, name: str, iops: int, *, cannot: object = None, log: list | None = None):
        self.name = name
        self.iops = iops
        self.cannot = cannot
        self.log = [] if log is None else log

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        self.log.append((self.name, job))
        if job.bs == self.cannot:
            raise UserError("too much")
        self.iops -= 10
        return direction(self.iops, 1000), None if self.name == HOST else COUNTERS


class FakeMeter:
    """A floor of 500 ns in every round."""

    rounds = 0

    def round(self) -> None:
        self.rounds += 1

    def result(self) -> Floor:
        return Floor((0, 1), 0.1, {SQE_CQE[1]: Spread((500.0,) * self.rounds)})


def made(*, cannot: object = None, log: list | None = None, rounds: int = 3) -> Report:
    subjects = [
        FakeSubject(HOST, 1000, log=log),
        FakeSubject("null <1>", 2000, cannot=cannot, log=log),
    ]
    report = Report([one.name for one in subjects], sweeps(quick=True, jobs=1), rounds, 0.1)
    told: list[float] = []
    run_report(
        subjects,
        report,
        cpus=(0,),
        meter=FakeMeter(),
        progress=lambda fraction, _what: told.append(fraction),
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    return report


def test_every_round_measures_every_subject_in_every_point_one_after_the_other():
    log: list[tuple[str, Job]] = []
    made(log=log, rounds=2)
    assert [name for name, _ in log[:4]] == [HOST, "null <1>"] * 2
    points = len(log) // 4
    assert log[: 2 * points] == log[2 * points :]
    assert {job.rw for _, job in log} == {Pattern.RANDREAD}
    assert {job.interrupts for _, job in log} == {False, True}


def test_a_point_of_two_sweeps_is_measured_once_a_round():
    log: list[tuple[str, Job]] = []
    made(log=log, rounds=1)
    assert len({job for _, job in log}) == len(log) // 2


def test_ratios_are_taken_within_a_round():
    report = made()
    host, null = report.cell(POLLING, HOST), report.cell(POLLING, "null <1>")
    spread = report.against_host(POLLING, "null <1>")
    assert spread is not None
    assert spread.values == tuple(a / b for a, b in zip(null.iops, host.iops, strict=True))
    assert report.against_floor(POLLING, "null <1>").values == (2.0, 2.0, 2.0)
    assert report.against_floor(Point(iodepth=8), "null <1>") is None


def test_without_a_host_there_is_no_ratio_to_it():
    report = made()
    report.cells = {key: cell for key, cell in report.cells.items() if key[1] != HOST}
    assert report.against_host(POLLING, "null <1>") is None
    assert [row[-1] for row in rate_rows(report, POLLING)] == ["IOPS/host", "-"]


def test_what_a_subject_cannot_do_is_left_out_once_with_the_reason():
    report = made(cannot=65536)
    assert report.left_out == ["null <1>, 64k randread QD32: too much"]
    point = Point(iodepth=32, bs=65536)
    assert report.cell(point, "null <1>") is None
    assert len(report.cell(point, HOST).iops) == 3


def test_counters_of_all_rounds_are_added_up():
    rows = counter_rows(made(), POLLING)
    assert rows[1] == ["null <1>", "commands translated", "30", "100", "100 ns"]
    assert len(rows) == 3


def test_tables_have_a_row_for_each_subject():
    report = made()
    for rows in (rate_rows, bandwidth_rows, latency_rows, round_rows):
        table = rows(report, POLLING)
        assert [row[0] for row in table] == ["", HOST, "null <1>"]
        assert {len(row) for row in table} == {len(table[0])}
    assert rate_rows(report, POLLING)[1][2:] == ["870", "990", "1"]
    assert latency_rows(report, POLLING)[1][3] == "1.00 µs ± 0 ns"
    assert round_rows(report, POLLING)[2][-1] == "2"
    assert floor_rows(report.floor)[1][1] == "500 ns"


def test_json_has_tests_sweeps_and_the_floor():
    output = made().to_json()
    assert set(output["tests"]) == set(TESTS)
    row = output["tests"]["polling test"]["null <1>"]
    assert row["lat_to_floor"]["median"] == 2.0
    assert row["lat_ns"]["mean"] == 1000
    assert row["counters"]["commands_translated"]["count"] == 30
    assert [one["iodepth"] for one in output["sweeps"]["iodepth"]] == [1, 8, 32]
    assert output["floor"]["limits"]["sqe_cqe_1"]["median"] == 500


class Page(HTMLParser):
    """What a page loads, and whether its tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "path", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"path", "circle"}:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself():
    text = html_page(made())
    page = Page(text)
    assert (page.open, page.loads) == ([], [])
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert "prefers-color-scheme:dark" in text


def test_the_page_has_a_plot_for_each_test_and_sweep():
    report = made()
    text = html_page(report)
    assert text.count("<svg") == len(TESTS) + len(report.sweeps)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_names_are_escaped_in_the_page():
    text = html_page(made(cannot=65536))
    assert "null &lt;1&gt;" in text
    assert "null <1>" not in text


def test_a_distribution_ends_at_one_in_ten_thousand():
    one = histogram(1000, 99_990)
    one.buckets[bucket_index(10**9)] = 10
    points = cumulative(one)
    assert len(points) == 1
    assert points[0] == (bucket_value(bucket_index(1000)), 0.9999)
    assert cumulative(Histogram()) == ()


@pytest.mark.parametrize(("value", "top"), [(0, 1), (1, 1), (1.1, 2), (2.1, 2.5), (42e3, 50e3)])
def test_an_axis_ends_at_a_round_number(value, top):
    assert nice_ceiling(value) == pytest.approx(top)


def test_decades_are_ticked_at_one_two_and_five():
    assert decades(150, 6000) == [200, 500, 1000, 2000, 5000]


def test_a_chart_places_points_between_its_axes():
    axis = Axis("x", "{:g}".format)
    drawing = line_chart([Series("a", ((1, 0), (4, 10)))], axis, axis, [1, 2, 4])
    assert 'd="M64.0 276.0L624.0 12.0"' in drawing
    assert ">2</text>" in drawing
    assert line_chart([Series("a", ())], axis, axis, []) == ""


def test_a_chart_of_a_single_value_is_drawn():
    axis = Axis("x", "{:g}".format)
    assert "<circle" in line_chart([Series("a", ((1, 5),))], axis, axis, [1])


def test_more_jobs_than_processors_are_tried_up_to_four():
    (jobs,) = (one for one in sweeps(quick=False, jobs=1) if one.axis == "numjobs")
    assert [point.numjobs for point in jobs.points] == [1, 2, 4]
    assert isinstance(jobs, Sweep)


def test_fio_is_asked_for_the_same_job_and_never_to_write():
    job = Job(iodepth=8, bs=8192, numjobs=2, runtime=0.25, size=1 << 20, cpus=(0, 1))
    line = fio.command_line("/a:b", job)
    for argument in (
        *("--filename=/a\\:b", "--ioengine=io_uring", "--direct=1", "--rw=randread", "--readonly"),
        *("--bs=8192", "--iodepth=8", "--numjobs=2", "--size=1048576", "--runtime=250ms"),
        "--cpus_allowed=0,1",
    ):
        assert argument in line
    assert "--hipri" not in line
    with pytest.raises(AssertionError):
        fio.command_line("/a", Job(rw=Pattern.WRITE))


@pytest.mark.parametrize(
    ("job", "polls"),
    [
        (Job(cpus=(0,)), True),
        (Job(cpus=(0, 1), numjobs=2), False),  # they would wait for each other
        (Job(cpus=(0,), interrupts=True), False),
    ],
)
def test_fio_polls_a_device_that_can_be_polled(monkeypatch, job, polls):
    monkeypatch.setattr(fio, "device_polls", lambda target: target == "/dev/nvme0n1")
    assert ("--hipri" in fio.command_line("/dev/nvme0n1", job)) == polls
    assert "--hipri" not in fio.command_line("/dev/sda", job)
    # A device of another machine.
    assert ("--hipri" in fio.command_line("/dev/sda", job, polls=True)) == polls
    assert "--hipri" not in fio.command_line("/dev/nvme0n1", job, polls=False)


def test_fios_numbers_become_ours():
    latency = {"min": 100, "max": 5000, "mean": 300.0, "stddev": 50.0, "N": 4}
    read = {
        "total_ios": 4,
        "io_bytes": 16384,
        "runtime": 2,
        "slat_ns": latency,
        "clat_ns": {**latency, "bins": {"100": 1, str(bucket_value(bucket_index(5000))): 3}},
        "lat_ns": latency,
    }
    parsed = fio.parse_read(read)
    assert (parsed.commands, parsed.iops, parsed.bandwidth) == (4, 2000, 16384 / 0.002)
    assert (parsed.lat.mean, parsed.lat.stddev) == (300.0, pytest.approx(50.0))
    assert parsed.clat.buckets[bucket_index(100)] == 1
    assert parsed.clat.buckets[bucket_index(5000)] == 3


def test_an_ordinary_file_is_no_device_that_polls(tmp_path):
    (tmp_path / "image").touch()
    assert not fio.device_polls(str(tmp_path / "image"))
    assert not fio.device_polls(str(tmp_path / "none"))
