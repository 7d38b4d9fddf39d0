"""Runs a `Job`: memory and queue pairs, a native thread for each, and what they measured."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from nvme_mdev.bench.counters import read_counters
from nvme_mdev.bench.job import lay_out
from nvme_mdev.bench.results import BenchResult, Direction, JobResult
from nvme_mdev.bench.worker import Worker
from nvme_mdev.errors import UserError
from nvme_mdev.host.errors import HostError, TransportError
from nvme_mdev.host.memory import Prps, prps_for, round_up
from nvme_mdev.host.samples import Failure
from nvme_mdev.host.workload import Workload
from nvme_mdev.spec.nvme_commands import PRP_SIZE
from nvme_mdev.spec.nvme_status import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self, TypeAlias

    from nvme_mdev.bench.job import Job, Layout
    from nvme_mdev.host.driver import NvmeHost
    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.host.memory import DmaMemory

    Progress: TypeAlias = Callable[[float, str], None]
    """Called now and then with the fraction done (0 to 1) and what is being done."""

_LOOK_INTERVAL = 0.1
"""Seconds between two looks at the threads; each costs the machine a few microseconds."""
_MIN_ENTRIES = 64
"""Entries of a queue at least, so that doorbells and completions are spread over lines."""
_PATIENCE = 2.0
"""Seconds for outstanding commands to complete when a run is stopped, before they are given up."""


def _ignore(_fraction: float, _text: str) -> None:
    """No progress wanted."""


@dataclass(slots=True)
class _Lane:
    """One job: its queue pair and its work."""

    queue: IoQueue
    prps: list[Prps]
    workload: Workload
    cpu: int | None
    read_back: bool
    result: JobResult | None = None
    phase: str = ""
    error: BaseException | None = None
    worker: Worker | None = None


@dataclass(slots=True)
class Runner:
    """A job set up on an enabled controller; a context manager that gives everything back.

    UserError when the job does not fit the controller, HostError when that fails.
    """

    host: NvmeHost
    job: Job
    layout: Layout = field(init=False)
    seed: int = field(init=False)
    _memory: DmaMemory = field(init=False)
    _lanes: list[_Lane] = field(init=False, default_factory=list)
    _abandoned: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Check the job, then take memory and queues."""
        job = self.job
        self.layout = lay_out(job, self.host, self.host.namespace(job.nsid))
        if job.verify and not job.rw.writes and job.seed is None:
            raise UserError(
                "--verify needs the --seed of the run that wrote the data when it only reads"
            )
        self.seed = secrets.randbits(32) | 1 if job.seed is None else job.seed
        check_cpus(job.cpus)
        page = self.host.page_size
        lists = page * -(-(job.bs // page + 1) * PRP_SIZE // page) if job.bs > page else 0
        slot = round_up(job.bs, page) + lists
        self._memory = self.host.map_memory(job.numjobs * job.iodepth * slot)
        try:
            for number in range(job.numjobs):
                self._lanes.append(self._lane(number))
        except BaseException:
            self.close()
            raise

    def _lane(self, number: int) -> _Lane:
        job, host, layout = self.job, self.host, self.layout
        stride = round_up(job.bs, host.page_size)
        data = self._memory.allocate(job.iodepth * stride, align=host.page_size)
        prps = [
            prps_for(self._memory, data.iova + slot * stride, job.bs, page_size=host.page_size)
            for slot in range(job.iodepth)
        ]
        queue = host.create_queue_pair(
            entries_for(job.iodepth, host.max_entries), interrupts=job.interrupts
        )
        # Sequential jobs share the range out; random ones all use all of it.
        first, units = layout.first_block, layout.units
        if not job.rw.random and job.numjobs > 1:
            units = max(1, layout.units // job.numjobs)
            first += number % layout.units * units * layout.blocks_per_io
        if job.rw.writes and not job.verify:
            data.write(os.urandom(data.size))
        workload = Workload(
            queue,
            nsid=job.nsid,
            block_size=layout.block_size,
            blocks_per_io=layout.blocks_per_io,
            first_block=first,
            units=units,
            prps=[(one.prp1, one.prp2) for one in prps],
            data=data.view,
            data_stride=stride,
            read_fraction=job.read_fraction,
            random=job.rw.random,
            seed=self.seed + number,
            data_seed=self.seed,
            verify=job.verify,
            check_all=job.verify and not job.rw.writes,
            runtime_ns=int((job.runtime or 0) * 1e9),
            commands=job.number_ios or 0,
            timeout_ns=int(job.timeout * 1e9),
            max_errors=2**63 if job.continue_on_error else 0,
            batch=job.batch,
        )
        cpu = job.cpus[number % len(job.cpus)] if job.cpus else None
        return _Lane(queue, prps, workload, cpu, read_back=job.verify and job.rw.writes)

    def close(self) -> None:
        """Stop what still runs, delete the queue pairs and free the memory."""
        self._stop()
        if self._abandoned:
            # Commands are still out: only a controller reset takes our memory back from them.
            self.host.disable()
        for lane in self._lanes:
            if lane.queue.qid in self.host.queues:
                self.host.delete_queue_pair(lane.queue)
        self._lanes.clear()
        self.host.unmap_memory(self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except HostError:
            # What went wrong first is what the user wants to know.
            if error is None:
                raise

    @property
    def workloads(self) -> list[Workload]:
        """Of each job, to be run by others (`run_together`) in place of `run`."""
        return [lane.workload for lane in self._lanes]

    # -- running -------------------------------------------------------------------------------
    def run(self, progress: Progress = _ignore) -> BenchResult:
        """Run it to its end; KeyboardInterrupt stops it soon.

        What went wrong with single commands is in the result; HostError when the controller
        does not answer any more.
        """
        before = read_counters(self.host)
        try:
            for number, lane in enumerate(self._lanes):
                lane.worker = Worker(partial(self._work, lane), f"bench-{number}")
                lane.worker.start()
            self._watch(progress)
        except BaseException:
            self._stop()
            raise
        self._raise_first()
        after = read_counters(self.host)
        counters = after.since(before) if before and after else None
        results = [lane.result for lane in self._lanes if lane.result]
        return BenchResult(self.job, results, self._controller(), counters)

    def _work(self, lane: _Lane) -> None:
        """A job's thread."""
        try:
            if lane.cpu is not None:
                os.sched_setaffinity(0, {lane.cpu})
            lane.phase = "running"
            lane.workload.run()
            lane.result = self._result(lane.workload)
            if lane.read_back and not lane.workload.failure:
                lane.phase = "verifying"
                lane.workload.run_read_back()
                lane.result.mismatches = lane.workload.mismatches
                lane.result.errors = lane.workload.errors
                lane.result.checked_blocks = lane.workload.checked_blocks
                lane.result.problem = describe_problem(lane.workload)
        except BaseException as error:
            lane.error = error

    def _result(self, workload: Workload) -> JobResult:
        bs, elapsed = self.job.bs, workload.elapsed_ns
        return JobResult(
            Direction.of(workload.measured(write=False), bs, elapsed),
            Direction.of(workload.measured(write=True), bs, elapsed),
            errors=workload.errors,
            mismatches=workload.mismatches,
            checked_blocks=workload.checked_blocks,
            interrupts=workload.wakeups,
            problem=describe_problem(workload),
        )

    def _watch(self, progress: Progress) -> None:
        started = time.monotonic()
        while running := self._running():
            if running[0].worker:
                running[0].worker.wait(_LOOK_INTERVAL)
            if self.host.transport.disconnected:
                raise TransportError(f"{self.host.transport.path}: the server has gone away")
            progress(self._fraction(time.monotonic() - started), self._lanes[0].phase)
        progress(1.0, "done")

    def _fraction(self, elapsed: float) -> float:
        by_time = elapsed / self.job.runtime if self.job.runtime else 0.0
        by_count = 0.0
        if self.job.number_ios:
            done = sum(lane.workload.progress for lane in self._lanes)
            by_count = done / (self.job.number_ios * len(self._lanes))
        if self._lanes[0].phase == "verifying":
            written = sum(lane.workload.written_units for lane in self._lanes)
            return min(1.0, sum(lane.workload.progress for lane in self._lanes) / max(written, 1))
        return min(1.0, max(by_time, by_count))

    def _stop(self) -> None:
        """Get every thread back, whatever state the controller is in."""
        for abandon in (False, True):
            running = self._running()
            for lane in running:
                lane.workload.stop(abandon=abandon)
            deadline = time.monotonic() + _PATIENCE
            for lane in running:
                if lane.worker:
                    lane.worker.wait(max(0.0, deadline - time.monotonic()))
        self._abandoned |= any(lane.workload.failure >= Failure.TIMEOUT for lane in self._lanes)

    def _running(self) -> list[_Lane]:
        return [lane for lane in self._lanes if lane.worker and lane.worker.running]

    def _raise_first(self) -> None:
        for lane in self._lanes:
            if lane.error is not None:
                raise lane.error
            if lane.workload.failure >= Failure.TIMEOUT:
                self._abandoned = True
                raise HostError(describe_problem(lane.workload))

    def _controller(self) -> dict[str, object]:
        host = self.host
        identify = host.identify_controller()
        queue = self._lanes[0].queue
        if host.shadow_active:
            doorbells = "shadow"
        else:
            doorbells = "socket" if queue.rings_by_socket else "mapped"
        return {
            "socket": str(host.transport.path),
            "model": host.model,
            "serial": identify.sn.decode("ascii", "replace").strip(),
            "firmware": identify.fr.decode("ascii", "replace").strip(),
            "nsid": self.job.nsid,
            "lba_size": self.layout.block_size,
            "doorbells": doorbells,
            "completions": "interrupts" if self.job.interrupts else "polled",
            "queue_entries": queue.sq_entries,
            "seed": self.seed,
        }


def entries_for(depth: int, most: int = 65536) -> int:
    """A power of two with room for twice the depth, so that the CQ head can be rung lazily."""
    wanted = max(_MIN_ENTRIES, 1 << (2 * depth - 1).bit_length())
    return min(wanted, most)


def check_cpus(cpus: tuple[int, ...]) -> None:
    """UserError for a CPU that this process may not use."""
    allowed = os.sched_getaffinity(0)
    for cpu in cpus:
        if cpu not in allowed:
            there = ", ".join(str(one) for one in sorted(allowed))
            raise UserError(f"--cpu {cpu}: this process may use the CPUs {there}")


def describe_problem(workload: Workload) -> str:
    """A workload's first error in words; empty when there was none."""
    first = workload.first_error
    if first is None:
        return ""
    what = "write" if first.write else "read"
    match first.failure:
        case Failure.STATUS:
            status = Status.unpack(first.status_field)
            return f"{what} at block {first.block} failed: {status}"
        case Failure.MISMATCH:
            return f"block {first.block} does not hold what was written ({workload.mismatches} bad)"
        case Failure.TIMEOUT:
            return "no command was completed in time: the controller hangs, look at its log"
        case Failure.UNKNOWN_CID:
            return f"the controller completed command {first.cid}, which was not outstanding"
        case _:
            return f"stopped: {first.failure.name.lower()}"
