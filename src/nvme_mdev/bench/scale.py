"""Many controllers on one IOThread: what they do together, and how evenly they are served.

For each number of controllers there is a daemon with so many, on a null namespace, which share one
IOThread. A single thread of ours drives them all, a look at each in turn, so that the guests are
equal, and counts what each of them gets. A round measures every number once, one right after the
other, and ratios are taken within rounds.

Beside a heavy neighbour a light load must not wait for us, who drive both. Where a third processor
is free, the neighbour has a thread of its own there. Where there is none, one thread looks at the
light queue after each single completion of the neighbour's.
"""

from __future__ import annotations

import os
import statistics
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.bench.histogram import Histogram
from nvme_mdev.bench.job import Job, Pattern
from nvme_mdev.bench.machine import describe_machine
from nvme_mdev.bench.runner import Runner, describe_problem
from nvme_mdev.bench.spread import Spread
from nvme_mdev.bench.table import format_count, format_ns
from nvme_mdev.bench.worker import Worker
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import HostError
from nvme_mdev.host.workload import run_together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from nvme_mdev.host.workload import Workload

_MEMORY = 1 << 20
"""Bytes of each guest, besides those of its commands."""
_HEAVY_DEPTH = 128
_P99 = 99.0


class Kind(NamedTuple):
    """Who is busy, of the controllers of a daemon."""

    name: str
    label: str


BUSY = Kind("busy", "all busy")
ONE_BUSY = Kind("one_busy", "one busy, the others idle")


@dataclass(slots=True)
class Cell:
    """A number of controllers, over the rounds."""

    iops: list[float] = field(default_factory=list)
    """Of all of them together."""
    variation: list[float] = field(default_factory=list)
    """Coefficient of variation of what each controller got, in percent."""


@dataclass(slots=True)
class Scale:
    """Everything that was measured."""

    counts: tuple[int, ...]
    depth: int
    rounds: int
    runtime: float
    cells: dict[tuple[Kind, int], Cell] = field(default_factory=dict)
    light: dict[str, list[float]] = field(default_factory=dict)
    """99th percentile of the latency at depth 1, nanoseconds: alone, beside a heavy neighbour."""
    own_thread: bool = False
    """The neighbour was driven by a thread of its own, on a third processor."""

    def against_one(self, count: int) -> Spread:
        """IOPS of so many busy controllers in those of the smallest number, round by round."""
        one, many = self.cells[BUSY, self.counts[0]], self.cells[BUSY, count]
        return Spread(tuple(a / b for a, b in zip(many.iops, one.iops, strict=True)))

    def rows(self) -> list[list[str]]:
        """As a table."""
        rows = [["controllers", "IOPS", "min", "max", "share", "variation", "one busy: IOPS"]]
        for count in self.counts:
            busy, alone = self.cells[BUSY, count], self.cells[ONE_BUSY, count]
            iops, variation = Spread(tuple(busy.iops)), Spread(tuple(busy.variation))
            rows.append([
                str(count),
                *map(format_count, (iops.median, iops.least, iops.most)),
                f"{self.against_one(count).median:.2f}",
                f"{variation.median:.2f} %",
                format_count(Spread(tuple(alone.iops)).median),
            ])  # fmt: skip
        return rows

    def lines(self) -> list[tuple[str, list[tuple[float, float]]]]:
        """To plot: what was busy, and IOPS (median) against the number of controllers."""
        return [
            (
                kind.label,
                [
                    (float(count), Spread(tuple(self.cells[kind, count].iops)).median)
                    for count in self.counts
                ],
            )
            for kind in (BUSY, ONE_BUSY)
        ]

    def light_rows(self) -> list[list[str]]:
        """The light load's latency, as a table; empty when there is only one controller."""
        if not self.light:
            return []
        rows = [["depth 1, 99 % within", "median", "min", "max"]]
        for name, values in self.light.items():
            spread = Spread(tuple(values))
            rows.append([name, *map(format_ns, (spread.median, spread.least, spread.most))])
        return rows

    def light_note(self) -> str:
        """How the light load was measured; empty when it was not."""
        if not self.light:
            return ""
        whose = "a thread of its own" if self.own_thread else "the same thread"
        return f"depth 1: one of {self.counts[-1]} controllers; {whose} drives the heavy one"

    def to_json(self) -> dict[str, object]:
        """Numbers by name."""
        return {
            "machine": describe_machine(),
            "iodepth": self.depth,
            "rounds": self.rounds,
            "runtime": self.runtime,
            "controllers": [
                {
                    "controllers": count,
                    "iops": Spread(tuple(self.cells[BUSY, count].iops)).to_json(),
                    "iops_to_one": self.against_one(count).to_json(),
                    "variation_percent": Spread(tuple(self.cells[BUSY, count].variation)).to_json(),
                    "one_busy_iops": Spread(tuple(self.cells[ONE_BUSY, count].iops)).to_json(),
                }
                for count in self.counts
            ],
            "light_p99_ns": {
                name: Spread(tuple(values)).to_json() for name, values in self.light.items()
            },
            "light_controllers": self.counts[-1] if self.light else None,
            "light_neighbour": ("own thread" if self.own_thread else "same thread")
            if self.light
            else None,
        }


class Group:
    """The controllers of one daemon, attached, with a workload each."""

    def __init__(
        self,
        sockets: Sequence[Path],
        depth: int,
        runtime: float,
        stack: ExitStack,
        *,
        own_thread: bool = False,
    ) -> None:
        """Attach to all; HostError: one fails. ``stack`` gives everything back.

        ``own_thread``: the heavy load will have one.
        """
        job = Job(rw=Pattern.RANDREAD, iodepth=depth, runtime=runtime)
        self._hosts = [
            stack.enter_context(NvmeHost(socket, memory_size=_MEMORY)) for socket in sockets
        ]
        self.workloads = [_workload(host, job, stack) for host in self._hosts]
        self.light: Workload | None = None
        self.heavy: Workload | None = None
        if len(sockets) > 1:
            light = Job(rw=Pattern.RANDREAD, iodepth=1, runtime=runtime)
            heavy = Job(
                rw=Pattern.RANDREAD,
                iodepth=_HEAVY_DEPTH,
                runtime=runtime,
                # In the same thread the light one's queue is looked at after each completion.
                batch=0 if own_thread else 1,
            )
            self.light = _workload(self._hosts[0], light, stack)
            self.heavy = _workload(self._hosts[1], heavy, stack)

    @property
    def count(self) -> int:
        """How many controllers there are."""
        return len(self._hosts)


def _workload(host: NvmeHost, job: Job, stack: ExitStack) -> Workload:
    (workload,) = stack.enter_context(Runner(host, job)).workloads
    return workload


def _run(workloads: Sequence[Workload]) -> list[int]:
    """Run them together; commands of each. HostError: one failed."""
    run_together(workloads)
    for workload in workloads:
        if problem := describe_problem(workload):
            raise HostError(problem)
    return [workload.measured(write=False).commands for workload in workloads]


def _measure(found: Scale, kind: Kind, count: int, workloads: Sequence[Workload]) -> None:
    commands = _run(workloads)
    cell = found.cells.setdefault((kind, count), Cell())
    cell.iops.append(sum(commands) / workloads[0].elapsed_ns * 1e9)
    mean = statistics.fmean(commands)
    cell.variation.append(100 * statistics.pstdev(commands) / mean if mean else 0.0)


def _measure_light(found: Scale, group: Group, spare_cpu: int | None) -> None:
    if group.light is None or group.heavy is None:
        return
    for name, beside in (("alone", None), (f"beside one at depth {_HEAVY_DEPTH}", group.heavy)):
        if beside is None:
            _run([group.light])
        elif spare_cpu is None:
            _run([group.light, beside])
        else:
            _run_beside(group.light, beside, spare_cpu)
        latency = Histogram.of(group.light.measured(write=False).lat)
        found.light.setdefault(name, []).append(latency.percentiles((_P99,))[_P99])


def _run_beside(light: Workload, heavy: Workload, cpu: int) -> None:
    """Run the light load while another thread, on ``cpu``, drives the heavy one."""
    failed: list[BaseException] = []
    begun, over = threading.Event(), threading.Event()

    def drive() -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            begun.set()
            while not over.is_set():
                _run([heavy])
        except BaseException as error:
            failed.append(error)
        finally:
            begun.set()

    worker = Worker(drive, "neighbour")
    worker.start()
    try:
        begun.wait()
        _run([light])
    finally:
        over.set()
        worker.wait()
    if failed:
        raise failed[0]


def spare_cpu(host: int, iothread: int) -> int | None:
    """A processor for the neighbour of a light load: one that neither of these is; None: none."""
    return min(os.sched_getaffinity(0) - {host, iothread}, default=None)


def measure(
    found: Scale,
    groups: Sequence[Group],
    cpu: int,
    spare: int | None,
    progress: Callable[[float, str], None],
) -> None:
    """Measure every group in every round, in this thread, on ``cpu``; a light load's neighbour on
    ``spare``, where there is one (`spare_cpu`).

    HostError: a controller fails.
    """
    found.own_thread = spare is not None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        for number in range(found.rounds):
            for index, group in enumerate(groups):
                done = (number + index / len(groups)) / found.rounds
                progress(done, f"{group.count} controllers")
                _measure(found, BUSY, group.count, group.workloads)
                _measure(found, ONE_BUSY, group.count, group.workloads[:1])
            _measure_light(found, groups[-1], spare)
    finally:
        os.sched_setaffinity(0, before)
    progress(1.0, "done")
