"""The same job on the bare file or device, by fio: what a controller is compared with.

fio and not a loop of our own: it is the instrument that everybody has, whose numbers anyone can
repeat without us. Its engine is io_uring with O_DIRECT, as the daemon's. Its names are ours.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvme_mdev.bench.histogram import Histogram
from nvme_mdev.bench.results import Direction
from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from nvme_mdev.bench.job import Job

_PATIENCE = 60
"""Seconds beyond the job's runtime."""


def available() -> bool:
    """Whether fio is installed."""
    return shutil.which("fio") is not None


def device_polls(target: str) -> bool:
    """Whether the target is a block device whose driver polls for completions (io_poll)."""
    try:
        status = Path(target).stat()
        if not stat.S_ISBLK(status.st_mode):
            return False
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return Path(f"/sys/dev/block/{number}/queue/io_poll").read_text().strip() == "1"
    except OSError:
        return False


def command_line(target: str, job: Job, *, polls: bool | None = None) -> list[str]:
    """fio's arguments for a job that only reads; the range is that of the job.

    ``polls``: whether the target can be polled; None: as this machine says (`device_polls`).
    """
    assert not job.rw.writes
    assert job.runtime is not None
    arguments = {
        "name": "host",
        # fio takes a colon for the beginning of the next file.
        "filename": target.replace(":", r"\:"),
        "ioengine": "io_uring",
        "direct": "1",
        "rw": str(job.rw),
        "bs": str(job.bs),
        "iodepth": str(job.iodepth),
        "numjobs": str(job.numjobs),
        "size": str(job.size),
        "offset": str(job.offset),
        "runtime": f"{max(1, round(job.runtime * 1000))}ms",
        "output-format": "json+",
    }
    flags = ["readonly", "time_based", "thread", "group_reporting", "norandommap", "randrepeat=0"]
    # One thread reaps what another has submitted to the same poll queue, and that one goes on
    # looking, in the kernel, for what has come already: two were seen not to end (Linux 6.12).
    polls = device_polls(target) if polls is None else polls
    if polls and not job.interrupts and job.numjobs == 1:
        flags.append("hipri")
    if job.cpus:
        flags.append("cpus_allowed=" + ",".join(map(str, job.cpus)))
    return [
        "fio",
        *(f"--{name}={value}" for name, value in arguments.items()),
        *(f"--{flag}" for flag in flags),
    ]


def run_fio(target: str, job: Job) -> Direction:
    """What fio measures; UserError with what it says when it cannot."""
    try:
        done = subprocess.run(
            command_line(target, job),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=(job.runtime or 0) + _PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"fio on {target} did not end") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it did not say why"]
        raise UserError(f"fio on {target} failed: {lines[-1]}")
    # Warnings may come before the JSON.
    return parse_read(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"])


def parse_read(read: dict[str, Any]) -> Direction:
    """fio's ``jobs[].read`` as ours."""
    return Direction(
        read["total_ios"],
        read["io_bytes"],
        read["runtime"] * 10**6,
        _histogram(read["slat_ns"]),
        _histogram(read["clat_ns"]),
        _histogram(read["lat_ns"]),
    )


def _histogram(latency: dict[str, Any]) -> Histogram:
    """Sums from mean and deviation, buckets from ``bins`` where there are any (json+)."""
    count = latency["N"]
    total = round(latency["mean"] * count)
    squares = latency["stddev"] ** 2 * max(count - 1, 0) + total * latency["mean"]
    made = Histogram(count, total, latency["min"], latency["max"], squares)
    for value, number in latency.get("bins", {}).items():
        made.buckets[_bucket(int(value))] += number
    return made


def _bucket(ns: int) -> int:
    """The bucket whose value, as fio prints it, this is."""
    group = max(ns.bit_length() - 7, 0)
    return ns if ns < 128 else ((group + 1) << 6) + ((ns >> group) & 63)
