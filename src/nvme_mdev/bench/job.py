"""What a benchmark is asked to do, and whether a controller can do it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from nvme_mdev.host.admin_commands import Namespace
    from nvme_mdev.host.driver import NvmeHost

MAX_NLB = 1 << 16
"""Logical blocks of one command (NLB is 16 bits, 0's based)."""


class Pattern(enum.StrEnum):
    """fio's ``rw``."""

    READ = "read"
    WRITE = "write"
    RW = "rw"
    RANDREAD = "randread"
    RANDWRITE = "randwrite"
    RANDRW = "randrw"

    @property
    def random(self) -> bool:
        """Blocks are drawn at random; otherwise one after the other."""
        return self.value.startswith("rand")

    @property
    def mixed(self) -> bool:
        """Reads and writes."""
        return self in {Pattern.RW, Pattern.RANDRW}

    @property
    def writes(self) -> bool:
        """It overwrites data."""
        return self not in {Pattern.READ, Pattern.RANDREAD}


@dataclass(frozen=True, slots=True)
class Job:
    """A benchmark, in fio's words; sizes are bytes."""

    rw: Pattern = Pattern.RANDREAD
    bs: int = 4096
    """Bytes of a command."""
    iodepth: int = 1
    """Commands outstanding on each queue."""
    numjobs: int = 1
    """Queue pairs, each with a thread."""
    runtime: float | None = 5.0
    """Seconds; None: until ``number_ios``."""
    number_ios: int | None = None
    """Commands of each job; None: until ``runtime``."""
    rwmixread: int = 50
    """Percent of the commands that are reads, in a mixed pattern."""
    nsid: int = 1
    offset: int = 0
    """Where in the namespace the range begins."""
    size: int | None = None
    """Bytes of the range; None: to the end of the namespace."""
    interrupts: bool = False
    """Sleep for interrupts in place of polling."""
    verify: bool = False
    """Write a pattern and compare what is read with it."""
    seed: int | None = None
    """Of random numbers and of the verification pattern; None: a new one each time."""
    cpus: tuple[int, ...] = ()
    """Job N runs on the Nth of these; empty: wherever the scheduler likes."""
    batch: int = 0
    """Completions taken before the doorbell is rung; 0: as many as there are."""
    timeout: float = 30.0
    """Seconds a command may take."""
    continue_on_error: bool = False
    """Count errors and go on."""

    @property
    def read_fraction(self) -> float:
        """Share of reads, 0 to 1."""
        if self.rw.mixed:
            return self.rwmixread / 100
        return 0.0 if self.rw.writes else 1.0

    @property
    def name(self) -> str:
        """What it is called in tables: ``4k randread QD32``."""
        size = format_size(self.bs).replace(" KiB", "k").replace(" MiB", "m").replace(" B", "")
        jobs = f" x{self.numjobs}" if self.numjobs > 1 else ""
        return f"{size} {self.rw} QD{self.iodepth}{jobs}"


@dataclass(frozen=True, slots=True)
class Layout:
    """A job's range in the units of NVMe."""

    block_size: int
    """Bytes of a logical block."""
    blocks_per_io: int
    first_block: int
    units: int
    """Commands that fit into the range without overlapping."""


def lay_out(job: Job, host: NvmeHost, namespace: Namespace) -> Layout:
    """Check a job against a controller; UserError says what does not fit and what would."""
    block = namespace.block_size
    if job.bs < block or job.bs % block:
        raise UserError(
            f"--bs {job.bs} is not a multiple of the logical block size: use a multiple of {block}"
        )
    if job.bs // block > MAX_NLB or 0 < host.max_transfer < job.bs:
        most = min(MAX_NLB * block, host.max_transfer or MAX_NLB * block)
        raise UserError(
            f"--bs {format_size(job.bs)} is more than the controller takes in one command:"
            f" use at most {most} bytes ({format_size(most)})"
        )
    if job.iodepth >= host.max_entries:
        raise UserError(
            f"--qd {job.iodepth} is more than a queue of the controller holds:"
            f" use at most {host.max_entries - 1}"
        )
    queues = min(host.queue_counts)
    if job.numjobs > queues:
        raise UserError(f"--jobs {job.numjobs}: the controller gives {queues} I/O queues at most")
    return _range(job, namespace)


def _range(job: Job, namespace: Namespace) -> Layout:
    block = namespace.block_size
    if job.offset % block:
        raise UserError(f"--offset {job.offset} is not a multiple of the block size {block}")
    size = namespace.size - job.offset if job.size is None else job.size
    if job.offset + size > namespace.size or size <= 0:
        raise UserError(
            f"--offset and --size reach past the end of namespace {namespace.nsid},"
            f" which has {namespace.size} bytes ({format_size(namespace.size)})"
        )
    if size < job.bs:
        raise UserError(f"--size {size} has no room for one command of --bs {job.bs}")
    return Layout(block, job.bs // block, job.offset // block, size // job.bs)
