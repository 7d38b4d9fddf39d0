"""What a benchmark found; `to_json` names it as fio's JSON output does."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvme_mdev import __version__
from nvme_mdev.bench.histogram import Histogram
from nvme_mdev.bench.machine import describe_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.bench.counters import DeviceCounters
    from nvme_mdev.bench.job import Job
    from nvme_mdev.host.samples import Measured


@dataclass(slots=True)
class Direction:
    """Reads or writes."""

    commands: int = 0
    bytes: int = 0
    elapsed_ns: int = 0
    slat: Histogram = field(default_factory=Histogram)
    """Submission latency: building the command and ringing."""
    clat: Histogram = field(default_factory=Histogram)
    """Completion latency: from the ring to the completion."""
    lat: Histogram = field(default_factory=Histogram)
    """Both together."""

    @classmethod
    def of(cls, measured: Measured, bs: int, elapsed_ns: int) -> Direction:
        """What a workload measured, with commands of ``bs`` bytes."""
        return cls(
            measured.commands,
            measured.commands * bs,
            elapsed_ns,
            Histogram.of(measured.slat),
            Histogram.of(measured.clat),
            Histogram.of(measured.lat),
        )

    @classmethod
    def merged(cls, parts: Sequence[Direction]) -> Direction:
        """Several jobs' together; they ran at the same time."""
        return cls(
            sum(part.commands for part in parts),
            sum(part.bytes for part in parts),
            max((part.elapsed_ns for part in parts), default=0),
            Histogram.merged(part.slat for part in parts),
            Histogram.merged(part.clat for part in parts),
            Histogram.merged(part.lat for part in parts),
        )

    @property
    def iops(self) -> float:
        """Commands a second."""
        return self.commands * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0

    def to_json(self) -> dict[str, object]:
        """As in fio's ``jobs[].read``."""
        clat = _latency(self.clat)
        clat["percentile"] = {f"{p:.6f}": ns for p, ns in self.clat.percentiles().items()}
        return {
            "io_bytes": self.bytes,
            "io_kbytes": self.bytes // 1024,
            "bw_bytes": round(self.bandwidth),
            "bw": round(self.bandwidth / 1024),
            "iops": self.iops,
            "runtime": round(self.elapsed_ns / 1e6),
            "total_ios": self.commands,
            "slat_ns": _latency(self.slat),
            "clat_ns": clat,
            "lat_ns": _latency(self.lat),
        }


def _latency(histogram: Histogram) -> dict[str, object]:
    return {
        "min": histogram.least,
        "max": histogram.most,
        "mean": histogram.mean,
        "stddev": histogram.stddev,
        "N": histogram.count,
    }


@dataclass(slots=True)
class JobResult:
    """One queue pair's share."""

    read: Direction
    write: Direction
    errors: int = 0
    """Commands that completed with an error status."""
    mismatches: int = 0
    """Blocks that were read and are not what was written."""
    checked_blocks: int = 0
    interrupts: int = 0
    """Times that the job slept and was woken by an interrupt."""
    problem: str = ""
    """The first thing that went wrong, in words; empty when nothing did."""


@dataclass(slots=True)
class BenchResult:
    """A whole benchmark."""

    job: Job
    jobs: list[JobResult]
    controller: dict[str, object]
    """Which controller, and how it was driven."""
    counters: DeviceCounters | None = None
    """What our own daemon counted meanwhile."""

    @property
    def read(self) -> Direction:
        """All jobs' reads."""
        return Direction.merged([job.read for job in self.jobs])

    @property
    def write(self) -> Direction:
        """All jobs' writes."""
        return Direction.merged([job.write for job in self.jobs])

    @property
    def iops(self) -> float:
        """All commands a second."""
        return self.read.iops + self.write.iops

    @property
    def problems(self) -> list[str]:
        """What went wrong, a line a job."""
        return [f"job {n}: {job.problem}" for n, job in enumerate(self.jobs) if job.problem]

    def to_json(self) -> dict[str, object]:
        """fio's layout: a ``jobs`` entry for each job, ours beside it under ``nvme-mdev``."""
        now = time.time()
        return {
            "nvme-mdev version": __version__,
            "timestamp": int(now),
            "timestamp_ms": int(now * 1000),
            "time": time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(now)),
            "jobs": [self._job_json(number, job) for number, job in enumerate(self.jobs)],
            "nvme-mdev": {
                "controller": self.controller,
                "machine": describe_machine(),
                "counters": self.counters.to_json() if self.counters else None,
            },
        }

    def _job_json(self, number: int, result: JobResult) -> dict[str, object]:
        job = self.job
        elapsed_ns = max(result.read.elapsed_ns, result.write.elapsed_ns)
        return {
            "jobname": str(job.rw),
            "groupid": 0,
            "job_start_number": number,
            "error": result.errors + result.mismatches,
            "elapsed": round(elapsed_ns / 1e9),
            "job options": {
                "rw": str(job.rw),
                "bs": str(job.bs),
                "iodepth": str(job.iodepth),
                "numjobs": str(job.numjobs),
                "rwmixread": str(job.rwmixread),
                "runtime": "" if job.runtime is None else f"{job.runtime:g}",
            },
            "read": result.read.to_json(),
            "write": result.write.to_json(),
            "job_runtime": round(elapsed_ns / 1e6),
            "verified_blocks": result.checked_blocks,
            "mismatches": result.mismatches,
            "interrupts": result.interrupts,
            "problem": result.problem,
        }
