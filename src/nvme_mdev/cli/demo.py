"""``nvme-mdev demo``: the main job on this machine, in half a minute, leaving nothing behind."""

from __future__ import annotations

import ctypes
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from os import sched_getaffinity
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from nvme_mdev.cli.bench import host_errors, run_job
from nvme_mdev.errors import UserError
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Self

    from nvme_mdev.bench.results import BenchResult
    from nvme_mdev.host.driver import NvmeHost

IMAGE_SIZE = 1 << 30
DATA_SIZE = 256 << 20
"""Bytes written, verified and then measured on: what is allocated of the sparse image."""
NULL_SIZE = "64G"
IMAGE_NSID, NULL_NSID = 1, 2
_DEPTHS = (1, 32)
_READY_TIMEOUT = 20.0
_STOP_TIMEOUT = 10.0
_PR_SET_PDEATHSIG = 1
"""``<sys/prctl.h>``."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP as KeyboardInterrupt, except while something must be whole."""

    def __init__(self) -> None:
        self._held = 0
        self._pending = False
        self._raised = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        self._pending = True
        self._raise()

    def _raise(self) -> None:
        """Once: what the first one unwinds, a second one must not disturb."""
        if self._pending and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait until the end of the block."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()


class Daemon(NamedTuple):
    """The daemon of the demo, and where it is."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def wait_ready(self) -> None:
        """Return when it serves; UserError with what it says when it does not."""
        deadline = time.monotonic() + _READY_TIMEOUT
        while "ready on" not in (text := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = text.strip().splitlines()[-1:] or ["it said nothing"]
                raise UserError(f"the daemon did not start: {last[0].removeprefix('nvme-mdev: ')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it, kindly first."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _die_with_parent() -> None:
    """In the daemon's process, before it starts: stop when the demo is killed without mercy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start(folder: Path, iothread_cpu: int | None) -> Daemon:
    socket, log = folder / "nvme.sock", folder / "daemon.log"
    command = [sys.executable, "-m", "nvme_mdev.cli.main", "serve", str(folder / "disk.img")]
    command += [f"null:{NULL_SIZE}", "--size", str(IMAGE_SIZE)]
    command += ["--socket", str(socket), "--no-control"]
    if iothread_cpu is not None:
        command += ["--iothread-cpu", str(iothread_cpu)]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for us, and we stop the daemon in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads yet
        )
    return Daemon(process, socket, log)


@contextmanager
def _served(interrupts: Interrupts, iothread_cpu: int | None) -> Iterator[Daemon]:
    """A daemon on a new image in a private folder; gone without a trace afterwards."""
    cleanup = ExitStack()
    try:
        with interrupts.held():
            folder = Path(tempfile.mkdtemp(prefix="nvme-mdev-demo-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            daemon = _start(folder, iothread_cpu)
            cleanup.callback(daemon.stop)
        try:
            daemon.wait_ready()
            yield daemon
        finally:
            with interrupts.held():
                cleanup.close()
    finally:
        # If a signal came just before `held` above; there is no second one.
        cleanup.close()


@click.command()
@click.option(
    "--runtime",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds for each measurement.",
)
def demo(runtime: float) -> int:
    """Make a 1 GiB disk, serve it, write and verify data, and measure it.

    Needs nothing and leaves nothing behind, Ctrl-C included. No virtual machine takes part: the
    built-in NVMe driver is the guest. Ends with the command line that boots a real one.
    """
    cpus = sorted(sched_getaffinity(0))
    iothread_cpu = cpus[-1] if len(cpus) > 1 else None
    with Interrupts() as interrupts, host_errors(), _served(interrupts, iothread_cpu) as daemon:
        return _show(daemon, cpus[:1] if len(cpus) > 1 else [], runtime)


def _show(daemon: Daemon, cpus: list[int], runtime: float) -> int:
    from nvme_mdev.host.driver import NvmeHost

    click.echo(f"Serving a {format_size(IMAGE_SIZE)} sparse image and a null namespace:")
    click.echo(f"  {daemon.log.read_text().strip()}")
    with NvmeHost(daemon.socket) as host:
        click.echo(f"Attached: {host.model}, {min(host.queue_counts)} I/O queues")
        if (status := _write_and_verify(host)) != 0:
            return status
        results = _measure(host, tuple(cpus), runtime)
    _print_results(results)
    click.echo(qemu_lines())
    return 0


def _write_and_verify(host: NvmeHost) -> int:
    from nvme_mdev.bench.job import Job, Pattern

    bs = 128 << 10
    job = Job(
        rw=Pattern.WRITE,
        bs=bs,
        iodepth=8,
        runtime=None,
        number_ios=DATA_SIZE // bs,
        size=DATA_SIZE,
        nsid=IMAGE_NSID,
        verify=True,
    )
    started = time.monotonic()
    result = run_job(host, job, show=True, title=f"{format_size(DATA_SIZE)} of data,")
    seconds = time.monotonic() - started
    blocks = sum(one.checked_blocks for one in result.jobs)
    if result.problems:
        click.echo(f"nvme-mdev: {result.problems[0]}", err=True)
        return 1
    size = format_size(blocks * int(str(result.controller["lba_size"])))
    click.echo(f"Wrote {size} and verified all of it in {seconds:.1f} s")
    return 0


def _measure(
    host: NvmeHost, cpus: tuple[int, ...], runtime: float
) -> list[tuple[str, BenchResult]]:
    from nvme_mdev.bench.job import Job, Pattern

    results: list[tuple[str, BenchResult]] = []
    for nsid, what in ((IMAGE_NSID, "image"), (NULL_NSID, "null")):
        for depth in _DEPTHS:
            for pattern in (Pattern.RANDREAD, Pattern.RANDWRITE):
                size = DATA_SIZE if nsid == IMAGE_NSID else None
                job = Job(
                    rw=pattern, iodepth=depth, runtime=runtime, nsid=nsid, size=size, cpus=cpus
                )
                verb = str(pattern).removeprefix("rand")
                label = f"{what}, 4k random {verb}, depth {depth}"
                results.append((label, run_job(host, job, show=True, title=label)))
    return results


def _print_results(results: list[tuple[str, BenchResult]]) -> None:
    from rich.console import Console

    from nvme_mdev.bench.table import counter_table, summary_table

    console = Console(highlight=False)
    console.print(summary_table(results))
    label, last = results[-2]
    if last.counters:
        console.print(f"What the daemon did in the run '{label}':")
        console.print(counter_table(last.counters))


def qemu_lines() -> str:
    """The commands that serve a disk and boot a guest with it (QEMU 10.1 or newer)."""
    socket = "/tmp/vm1.sock"  # noqa: S108 - an example for a person to change
    device = f'{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}}}}'
    qemu = [
        "qemu-system-x86_64 -accel kvm -accel tcg -m 1G",
        "-machine q35,memory-backend=m",
        "-object memory-backend-memfd,id=m,size=1G,share=on",
        f"-device {shlex.quote(device)}",
    ]
    return "\n".join(
        [
            "A virtual machine with such a disk, in two terminals (QEMU 10.1 or newer):",
            f"  nvme-mdev serve vm1.img --size 1G --socket {socket}",
            "  " + " \\\n    ".join(qemu),
        ]
    )
