"""The machine's own limits, measured in rounds: what `nvme-mdev bench floor` shows.

A command costs at least a cache line there and one back (`CACHE_LINE`), and what the host's own
loop adds to that (`SQE_CQE`); a namespace in memory a copy besides; a command through the kernel
an empty trip through io_uring; an interrupt a write to an eventfd. A controller is judged by its
ratio to these, measured in the same run.

Each round measures everything once, so that a slow minute of a shared machine falls on all alike.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.bench.floor import (
    CacheLine,
    EchoController,
    EmptyRing,
    clock_read_ns,
    copy_ns,
    eventfd_write_ns,
)
from nvme_mdev.bench.machine import describe_machine
from nvme_mdev.bench.runner import entries_for
from nvme_mdev.bench.spread import Spread
from nvme_mdev.bench.worker import Worker
from nvme_mdev.host.memory import DmaMemory
from nvme_mdev.host.queues import QueuePair
from nvme_mdev.host.workload import Workload
from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self, TypeAlias

    Measurement: TypeAlias = Callable[[], tuple[float, ...]]
    """Measures once: a value for each of its limits, in their order."""

DEPTHS = (1, 32, 128)
COPY_RANGE = 256 << 20
"""Bytes; far more than caches and TLBs cover, as a namespace is."""
_PAGE = 4096
_LINE = 64


class Limit(NamedTuple):
    """One row."""

    key: str
    """In the JSON output."""
    label: str
    unit: str
    """``ns`` or ``IOPS``."""


CLOCK = Limit("rdtsc", "time-stamp counter, read", "ns")
CACHE_LINE = Limit("cache_line", "cache line between the two cores, round trip", "ns")
SQE_CQE = {depth: Limit(f"sqe_cqe_{depth}", f"SQE/CQE, depth {depth}", "ns") for depth in DEPTHS}
"""Mean latency of a command on the echo controller, by depth."""
RATE = {depth: Limit(f"rate_{depth}", f"SQE/CQE rate, depth {depth}", "IOPS") for depth in DEPTHS}
"""Commands a second on the echo controller, by depth."""
COPY_HOT = Limit("copy_hot", "4 KiB copy, hot", "ns")
COPY_SMALL = Limit("copy_random", "4 KiB copy, random place in 256 MiB, 4 KiB pages", "ns")
COPY_SMALL_ALONE = Limit("copy_random_alone", "... each after the last, 4 KiB pages", "ns")
COPY_HUGE = Limit("copy_random_huge", "4 KiB copy, random place, huge pages", "ns")
COPY_HUGE_ALONE = Limit("copy_random_huge_alone", "... each after the last, huge pages", "ns")
"""Otherwise a copy begins while the one before still waits for memory: at depth 1 none does."""
EVENTFD = Limit("eventfd", "eventfd write", "ns")
NOP = Limit("io_uring_nop", "io_uring no-operation, submitted and waited for", "ns")


@dataclass(frozen=True, slots=True)
class Floor:
    """What `measure_floor` found."""

    cpus: tuple[int, int]
    """Host's and controller's."""
    runtime: float
    """Seconds of each measurement."""
    spreads: dict[Limit, Spread]

    def median(self, limit: Limit) -> float:
        """In the limit's unit."""
        return self.spreads[limit].median

    def to_json(self) -> dict[str, object]:
        """Each limit under its key."""
        return {
            "machine": describe_machine(),
            "cpus": list(self.cpus),
            "runtime": self.runtime,
            "limits": {
                limit.key: {"label": limit.label, "unit": limit.unit, **spread.to_json()}
                for limit, spread in self.spreads.items()
            },
        }


class FloorMeter:
    """Everything that is needed to measure the floor again and again; a context manager.

    ``cpus`` are two different ones: the host's, on which the result is taken, and the controller's.
    OSError when io_uring or memory is not to be had.
    """

    def __init__(self, cpus: tuple[int, int], *, runtime: float) -> None:
        self.cpus = cpus
        self.runtime = runtime
        self._runtime_ns = int(runtime * 1e9)
        self._cleanup = ExitStack()
        self._measurements: list[tuple[tuple[Limit, ...], Measurement]] = []
        self._found: dict[Limit, list[float]] = {}

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _prepare(self) -> None:
        runtime = self._runtime_ns
        ring = EmptyRing()
        self._cleanup.callback(ring.close)
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._cleanup.callback(os.close, eventfd)
        target = self._buffer(_PAGE)
        self._measurements = [
            ((CLOCK,), self._alone(lambda: clock_read_ns(runtime))),
            ((CACHE_LINE,), self._bounce),
            *(((SQE_CQE[depth], RATE[depth]), self._echo(depth)) for depth in DEPTHS),
            ((EVENTFD,), self._alone(lambda: eventfd_write_ns(runtime, eventfd))),
            ((NOP,), self._alone(lambda: ring.nop_ns(runtime))),
        ]
        for limits, size, advice in (
            ((COPY_HOT,), _PAGE, mmap.MADV_NOHUGEPAGE),
            ((COPY_SMALL, COPY_SMALL_ALONE), COPY_RANGE, mmap.MADV_NOHUGEPAGE),
            ((COPY_HUGE, COPY_HUGE_ALONE), COPY_RANGE, mmap.MADV_HUGEPAGE),
        ):
            source = self._buffer(size, advice)
            for limit, alone in zip(limits, (False, True), strict=False):
                measure = self._alone(self._copy(source, target, alone))
                self._measurements.append(((limit,), measure))

    def _copy(self, source: memoryview, target: memoryview, alone: bool) -> Callable[[], float]:
        return lambda: copy_ns(self._runtime_ns, source, target, alone)

    def _buffer(self, size: int, advice: int | None = None) -> memoryview:
        """Anonymous memory, every page of it there."""
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._cleanup.callback(memory.close)
        if advice is not None:
            memory.madvise(advice)
        view = memoryview(memory)
        # First in, last out: a mapping cannot be closed under a view.
        self._cleanup.callback(view.release)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 1, size)
        return view

    # -- measuring -----------------------------------------------------------------------------
    def round(self, progress: Callable[[float], None] = lambda _fraction: None) -> None:
        """Measure everything once; ``progress`` is told how much of it is done (0 to 1)."""
        for number, (limits, measure) in enumerate(self._measurements, 1):
            for limit, value in zip(limits, measure(), strict=True):
                self._found.setdefault(limit, []).append(value)
            progress(number / len(self._measurements))

    def result(self) -> Floor:
        """The rounds so far; at least one."""
        spreads = {limit: Spread(tuple(values)) for limit, values in self._found.items()}
        return Floor(self.cpus, self.runtime, spreads)

    def _alone(self, operation: Callable[[], float]) -> Measurement:
        """A measurement that needs only the host's processor."""
        return lambda: (_run_pinned(self.cpus[0], operation),)

    def _bounce(self) -> tuple[float, ...]:
        line = CacheLine()
        with _beside(self.cpus[1], line.reflect, line.stop):
            return (_run_pinned(self.cpus[0], lambda: line.bounce_ns(self._runtime_ns), line.stop),)

    def _echo(self, depth: int) -> Measurement:
        return lambda: measure_echo(self.cpus, depth, self._runtime_ns)


def measure_echo(cpus: tuple[int, int], depth: int, runtime_ns: int) -> tuple[float, float]:
    """Mean latency (nanoseconds) and rate (commands a second) of the echo controller."""
    memory = DmaMemory(entries_for(depth) * (SQE_SIZE + CQE_SIZE) + 4 * _PAGE, 0)
    try:
        queue, workload = _echo_workload(memory, depth, runtime_ns)
        echo = EchoController(queue)
        with _beside(cpus[1], echo.run, echo.stop):
            _run_pinned(cpus[0], workload.run, lambda: workload.stop(abandon=True))
        measured = workload.measured(write=False)
        queue.close()
        return (
            measured.lat.total / measured.lat.count,
            measured.commands * 1e9 / workload.elapsed_ns,
        )
    finally:
        memory.close()


def _echo_workload(memory: DmaMemory, depth: int, runtime_ns: int) -> tuple[QueuePair, Workload]:
    entries = entries_for(depth)
    sq, cq = memory.allocate(entries * SQE_SIZE), memory.allocate(entries * CQE_SIZE)
    # Two lines apart: the prefetcher of some processors takes lines in pairs.
    doorbells, data = memory.allocate(_PAGE).view, memory.allocate(_PAGE)
    queue = QueuePair(
        1,
        sq=sq.view,
        cq=cq.view,
        sq_entries=entries,
        cq_entries=entries,
        write_doorbell=_by_socket,
        tail_register=doorbells[0:4],
        head_register=doorbells[2 * _LINE : 2 * _LINE + 4],
    )
    workload = Workload(
        queue,
        nsid=1,
        block_size=512,
        blocks_per_io=_PAGE // 512,
        first_block=0,
        units=1 << 20,
        # Nobody moves data: one buffer is enough for all, and the same line of PRPs.
        prps=[(data.iova, 0)] * depth,
        data=memoryview(bytearray(depth * _PAGE)),
        data_stride=_PAGE,
        runtime_ns=runtime_ns,
    )
    return queue, workload


def _by_socket(completion: bool, value: int) -> None:
    raise AssertionError(f"there is no socket to write a doorbell to ({completion=}, {value=})")


# -- threads on processors -------------------------------------------------------------------------
def _run_pinned(
    cpu: int, operation: Callable[[], float | None], stop: Callable[[], None] = lambda: None
) -> float:
    """Run something in a thread on a processor, and wait; ``stop`` ends it early (Ctrl-C)."""
    found: list[float] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            found.append(operation() or 0.0)
        except BaseException as error:
            failed.append(error)

    worker = Worker(work, f"floor-{cpu}")
    try:
        worker.start()
        worker.wait()
    except BaseException:
        stop()
        worker.wait()
        raise
    if failed:
        raise failed[0]
    return found[0]


@contextmanager
def _beside(cpu: int, work: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Have something run on another processor meanwhile; it ends when told to ``stop``."""
    started = threading.Event()

    def pinned() -> None:
        try:
            os.sched_setaffinity(0, {cpu})
        finally:
            started.set()
        work()

    worker = Worker(pinned, f"floor-{cpu}")
    try:
        worker.start()
        started.wait()
        yield
    finally:
        stop()
        worker.wait()


def pick_cpus(wanted: tuple[int, ...]) -> tuple[int, int] | None:
    """The host's processor and the controller's; None: there are no two different ones.

    Without a wish, the first and the last that this process may use.
    """
    cpus = wanted or tuple(sorted(os.sched_getaffinity(0)))
    return (cpus[0], cpus[-1]) if cpus and cpus[0] != cpus[-1] else None
