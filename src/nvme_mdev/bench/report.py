"""The original's two tables, and what there is to plot: `nvme-mdev bench report`.

The polling and the interrupt test are 4 KiB random reads at depth 1; then IOPS against queue depth,
block size and number of jobs. Each round measures every subject in every point once, one subject
right after the other, so that a slow minute of the machine falls on all alike; what is shown is the
median of the rounds, and ratios are taken within them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nvme_mdev.bench import fio
from nvme_mdev.bench.histogram import Histogram
from nvme_mdev.bench.job import Job, Pattern
from nvme_mdev.bench.limits import SQE_CQE
from nvme_mdev.bench.machine import describe_machine
from nvme_mdev.bench.runner import Runner
from nvme_mdev.bench.spread import Spread
from nvme_mdev.errors import UserError
from nvme_mdev.host.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from nvme_mdev.bench.counters import DeviceCounters
    from nvme_mdev.bench.limits import Floor, FloorMeter
    from nvme_mdev.bench.results import Direction
    from nvme_mdev.bench.scale import Scale
    from nvme_mdev.host.driver import NvmeHost

HOST = "host"
"""Name of the row that the others are compared with."""
BLOCK, PASSTHROUGH = "mdev/block", "mdev/passthrough"
"""The daemon on the target: through io_uring; in direct mode over the kernel's driver."""
HARDWARE, DIRECT = "hardware", "mdev/direct"
"""A controller that takes its time, bare and below another: direct mode is compared with that,
or, where there is none, with the host's."""
NULL, MEMORY = "null", "memory"
OWN_ROWS = frozenset((HOST, BLOCK, PASSTHROUGH, HARDWARE, DIRECT, NULL, MEMORY))
"""No other server's row may have such a name."""


class Point(NamedTuple):
    """One thing to measure: random reads."""

    interrupts: bool = False
    iodepth: int = 1
    bs: int = 4096
    numjobs: int = 1


POLLING, INTERRUPT = Point(), Point(interrupts=True)
TESTS = {"polling test": POLLING, "interrupt test": INTERRUPT}
"""The original's two tables."""
NOTES = (
    "4 KiB random reads at depth 1, as in the original's tables.",
    "BW, IOPS: medians of the rounds, ± over the rounds. Latencies: means and ± over all commands.",
    "host: fio (io_uring, O_DIRECT) on the bare target; mdev/block: the same through the daemon.",
    "mdev/passthrough: in direct mode over the kernel's driver, on the other half of the target.",
    "hardware: a controller with a service time; mdev/direct: on its queues, IOPS/host is to it.",
    "IOPS/host, LAT/floor: medians of the ratios within each round.",
    "The floor is a command's round trip to a controller that does nothing.",
)
"""What is said below the tables."""
NOTES_OF_A_CONTROLLER = (
    *NOTES[:2],
    "host: our own driver on a queue of TARGET; mdev/direct: the same driver on the daemon, which",
    "has such a queue. TARGET has one driver at a time: each measurement attaches anew.",
    *NOTES[-2:],
)
"""Where TARGET is a controller that we drive ourselves."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """IOPS against something: a plot."""

    title: str
    axis: str
    """Field of `Point` that changes."""
    points: tuple[Point, ...]


def sweeps(*, quick: bool, jobs: int) -> list[Sweep]:
    """What to plot; ``jobs`` is how many can run at the same time."""
    depths = (1, 8, 32) if quick else (1, 2, 4, 8, 16, 32, 64, 128)
    sizes = (4096, 65536) if quick else (512, 4096, 16384, 65536, 131072)
    numbers = tuple(n for n in (1, 2, 4, 8) if n <= (2 if quick else max(jobs, 4)))
    return [
        Sweep("queue depth", "iodepth", tuple(Point(iodepth=depth) for depth in depths)),
        Sweep("block size", "bs", tuple(Point(iodepth=32, bs=size) for size in sizes)),
        Sweep("queues", "numjobs", tuple(Point(iodepth=32, numjobs=n) for n in numbers)),
    ]


def largest_block(points: Sequence[Sweep]) -> int:
    """Bytes of the largest command that is measured."""
    return max(point.bs for one in points for point in one.points)


# -- what is measured ----------------------------------------------------------------------------
class Subject(Protocol):
    """A row of the tables."""

    name: str

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        """Run a job that reads. UserError: it cannot be run on this subject."""


@dataclass(slots=True)
class BareTarget:
    """The file or device itself."""

    target: str
    size: int
    """Bytes that are read from."""
    name: str = HOST

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        """Through fio."""
        return fio.run_fio(self.target, replace(job, size=self.size)), None


@dataclass(slots=True)
class Namespace:
    """A namespace of a controller that is attached already."""

    name: str
    host: NvmeHost
    nsid: int
    size: int | None = None
    """Bytes that are read from; None: all."""

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        """Through the host driver. HostError when the controller fails."""
        sized = replace(job, nsid=self.nsid, size=self.size)
        with Runner(self.host, sized) as runner:
            result = runner.run()
        if result.problems:
            raise HostError(f"{self.name}: {result.problems[0]}")
        return result.read, result.counters


@dataclass(slots=True)
class AttachedAnew:
    """A namespace of a controller that has one driver at a time: attached for each measurement."""

    name: str
    attach: Callable[[], AbstractContextManager[NvmeHost]]
    nsid: int
    size: int | None
    """Bytes that are read from; None: all."""

    def whole_size(self) -> int:
        """Bytes that the namespace has. HostError, and what `attach` raises: it cannot be had."""
        with self.attach() as host:
            return host.namespace(self.nsid).size

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        """Through the host driver. HostError when the controller fails."""
        with self.attach() as host:
            return Namespace(self.name, host, self.nsid, self.size).measure(job)


# -- what came out -------------------------------------------------------------------------------
@dataclass(slots=True)
class Cell:
    """One subject in one point, over the rounds."""

    iops: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    lat_means: list[float] = field(default_factory=list)
    """Nanoseconds."""
    slat: Histogram = field(default_factory=Histogram)
    clat: Histogram = field(default_factory=Histogram)
    lat: Histogram = field(default_factory=Histogram)
    counters: DeviceCounters | None = None

    def add(self, direction: Direction, counters: DeviceCounters | None) -> None:
        """One more round."""
        self.iops.append(direction.iops)
        self.bandwidth.append(direction.bandwidth)
        self.lat_means.append(direction.lat.mean)
        self.slat = Histogram.merged((self.slat, direction.slat))
        self.clat = Histogram.merged((self.clat, direction.clat))
        self.lat = Histogram.merged((self.lat, direction.lat))
        if counters:
            self.counters = self.counters.plus(counters) if self.counters else counters

    def to_json(self) -> dict[str, object]:
        """Spreads over the rounds; latencies of all commands of all rounds."""
        return {
            "iops": Spread(tuple(self.iops)).to_json(),
            "bw_bytes": Spread(tuple(self.bandwidth)).to_json(),
            "lat_mean_ns": Spread(tuple(self.lat_means)).to_json(),
            **{
                f"{name}_ns": {
                    "mean": histogram.mean,
                    "stddev": histogram.stddev,
                    "percentile": {f"{p:g}": ns for p, ns in histogram.percentiles().items()},
                }
                for name, histogram in (("slat", self.slat), ("clat", self.clat), ("lat", self.lat))
                if histogram.count
            },
            "counters": self.counters.to_json() if self.counters else None,
        }


@dataclass(slots=True)
class Report:
    """Everything that was measured."""

    subjects: list[str]
    sweeps: list[Sweep]
    rounds: int
    runtime: float
    """Seconds of each measurement."""
    cells: dict[tuple[Point, str], Cell] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    measured: dict[str, str] = field(default_factory=dict)
    """What is behind each row: a target or a socket, in words."""
    run: dict[str, object] = field(default_factory=dict)
    """With which version, when, and how (`describe_run`); empty: nobody said."""
    floor: Floor | None = None
    scale: Scale | None = None
    """Many controllers on one IOThread."""
    tests: dict[str, Point] = field(default_factory=lambda: dict(TESTS))
    """Points that are shown as tables."""
    notes: tuple[str, ...] = NOTES

    def cell(self, point: Point, subject: str) -> Cell | None:
        """None: it was left out."""
        return self.cells.get((point, subject))

    def against_host(self, point: Point, subject: str) -> Spread | None:
        """IOPS as a share of the bare target's, or hardware's, in the same round."""
        has_hardware = HARDWARE in self.subjects
        bare = HARDWARE if has_hardware and subject in {HARDWARE, DIRECT} else HOST
        one, host = self.cell(point, subject), self.cell(point, bare)
        if one is None or host is None:
            return None
        return Spread(tuple(a / b for a, b in zip(one.iops, host.iops, strict=True)))

    def against_floor(self, point: Point, subject: str) -> Spread | None:
        """Mean latency in round trips of the echo controller in the same round; depth 1 only."""
        one = self.cell(point, subject)
        if one is None or self.floor is None or point.iodepth != 1:
            return None
        floor = self.floor.spreads[SQE_CQE[1]].values
        return Spread(tuple(a / b for a, b in zip(one.lat_means, floor, strict=True)))

    def to_json(self) -> dict[str, object]:
        """What was measured, tests, sweeps, then the floor."""
        return {
            **self.run,
            "machine": describe_machine(),
            "measured": self.measured,
            "rounds": self.rounds,
            "runtime": self.runtime,
            "tests": {name: self._point_json(point) for name, point in self.tests.items()},
            "sweeps": {
                sweep.axis: [
                    {sweep.axis: getattr(point, sweep.axis), "rows": self._point_json(point)}
                    for point in sweep.points
                ]
                for sweep in self.sweeps
            },
            "left_out": self.left_out,
            "floor": self.floor.to_json() if self.floor else None,
            "scale": self.scale.to_json() if self.scale else None,
        }

    def _point_json(self, point: Point) -> dict[str, object]:
        rows: dict[str, object] = {}
        for subject in self.subjects:
            if cell := self.cell(point, subject):
                host = self.against_host(point, subject)
                floor = self.against_floor(point, subject)
                rows[subject] = {
                    **cell.to_json(),
                    "iops_to_host": host.to_json() if host else None,
                    "lat_to_floor": floor.to_json() if floor else None,
                }
        return rows


def run_report(
    subjects: Sequence[Subject],
    report: Report,
    *,
    cpus: tuple[int, ...],
    meter: FloorMeter | None,
    progress: Callable[[float, str], None],
) -> None:
    """Measure everything in every round, into ``report``. HostError when a controller fails."""
    swept = [point for one in report.sweeps for point in one.points]
    points = list(dict.fromkeys([*report.tests.values(), *swept]))
    dead: set[tuple[Point, str]] = set()
    steps = report.rounds * (len(points) * len(subjects) + bool(meter))
    done = 0
    for _round in range(report.rounds):
        if meter:
            progress(done / steps, "floor")
            meter.round()
            done += 1
        for point in points:
            for subject in subjects:
                progress(done / steps, subject.name)
                done += 1
                if (point, subject.name) not in dead:
                    _measure(subject, point, report, cpus, dead)
    report.floor = meter.result() if meter else None
    progress(1.0, "done")


def _measure(
    subject: Subject,
    point: Point,
    report: Report,
    cpus: tuple[int, ...],
    dead: set[tuple[Point, str]],
) -> None:
    """Once; a point that a subject cannot do is left out, with the reason."""
    job = Job(rw=Pattern.RANDREAD, runtime=report.runtime, cpus=cpus, **point._asdict())
    try:
        measured = subject.measure(job)
    except UserError as error:
        dead.add((point, subject.name))
        report.cells.pop((point, subject.name), None)
        report.left_out.append(f"{subject.name}, {job.name}: {error}")
        return
    report.cells.setdefault((point, subject.name), Cell()).add(*measured)
