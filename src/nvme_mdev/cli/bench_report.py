"""``nvme-mdev bench report``: the original's two tables and their plots, on this machine."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nvme_mdev.cli.bench import CpuList, echo_json, host_errors, progress_bar, this_run
from nvme_mdev.cli.bench_floor import two_cpus
from nvme_mdev.cli.bench_options import rounds_option
from nvme_mdev.cli.bench_report_controller import BareController
from nvme_mdev.cli.bench_scale import Counts, fill_in
from nvme_mdev.cli.parameters import DURATION, SIZE, SecondsType, json_option
from nvme_mdev.cli.private_daemon import Daemon, Interrupts, serve_privately
from nvme_mdev.errors import UserError
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from nvme_mdev.bench.report import AttachedAnew, Namespace, Report, Subject

NULL_SIZE = 64 << 30
MEMORY_SIZE = 256 << 20
"""Bytes; more than caches hold, so that a read of the memory namespace is one."""
_FILL_BS = 128 << 10
_QUICK_RUNTIME, _RUNTIME = 0.1, 0.5
_FLOOR_RUNTIME = 0.05
"""Seconds of each of its measurements."""
_COUNTS, _QUICK_COUNTS = (1, 8, 64), (1, 4)
"""Controllers on one IOThread."""
_SCALE_DEPTH = 32
_NULL, _MEMORY, _TARGET = 1, 2, 3
"""The daemon's namespaces, and a fourth one if TARGET is served in two ways."""
_ALIGNED = 1 << 20
_SLEEPY = ("--poll-timeout-ms", "20")
"""Less than fio needs to start: daemons do not poll while the host is measured."""


class Peer(click.ParamType[tuple[str, str]]):
    """``NAME=SOCKET``."""

    name = "name=socket"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Name and socket."""
        if isinstance(value, tuple):
            return value
        name, equals, socket = value.partition("=")
        if not (name and equals and socket):
            self.fail(f"{value!r} is not NAME=SOCKET", param, ctx)
        return name, socket


class Bare(NamedTuple):
    """TARGET, as it is measured."""

    path: str
    half: int | None
    """Bytes of the part that goes through the block layer; the rest is passed commands."""
    size: int | None
    """Bytes that are read from; None: all."""


@click.command()
@click.argument("target", required=False)
@click.option(
    "--peer", "peers", type=Peer(), multiple=True, help="Another vfio-user server; repeatable."
)
@click.option(
    "--hardware",
    "hardware_ns",
    type=DURATION,
    metavar="TIME",
    help="Direct mode, on a controller of ours that takes so long for a command (6.4us).",
)
@click.option("--size", type=SIZE, help="Bytes of TARGET to read from.  [default: all]")
@click.option(
    "--cpu",
    "cpus",
    type=CpuList(),
    default=(),
    help="CPUs of the jobs, the last one the daemon's.  [default: all that there are]",
)
@rounds_option(5, "Each measures everything once.")
@click.option(
    "--runtime",
    type=SecondsType(0, min_open=True),
    help=f"Seconds of each measurement.  [default: {_RUNTIME}, with --quick {_QUICK_RUNTIME}]",
)
@click.option(
    "--controllers",
    "counts",
    type=Counts(),
    metavar="N[,N...]",
    help="How many controllers to measure on one IOThread.  [default: 1,8,64; with --quick 1,4]",
)
@click.option("--quick", is_flag=True, help="Fewer points, shorter measurements.")
@json_option
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a self-contained page with tables and plots, too.",
)
def report(
    *,
    target: str | None,
    peers: tuple[tuple[str, str], ...],
    hardware_ns: int | None,
    cpus: tuple[int, ...],
    counts: tuple[int, ...] | None,
    runtime: float | None,
    quick: bool,
    as_json: bool,
    html: Path | None,
    size: int | None,
    rounds: int,
) -> None:
    """Compare the bare TARGET, the daemon on it, and other servers: polling and interrupt test.

    TARGET is an image file or block device, which is only read; a sparse image is measured as the
    holes that it has. A daemon is started for it, for a null and for a memory namespace. One that
    is an NVMe namespace or partition of the kernel's is halved: the second half is served in direct
    mode. Each --peer is the socket of another server, whose namespace 1 is read. The row "host" is
    fio on the bare TARGET, where fio is installed. With --hardware there are two rows more: a null
    controller that takes its time, and the daemon in direct mode on the queues of another such.

    TARGET can also be a controller: vfio:0000:44:00.0, a drive bound to vfio-pci, or
    vfio-user:SOCKET, with /n2 for its namespace 2. Then "host" is our own driver on it.
    """
    controller = BareController.parse(target, size) if target else None
    _check(None if controller else target, html)
    if controller and hardware_ns is not None:
        raise UserError(f"--hardware and {target}: each has a row mdev/direct: give one of them")
    _check_peers(peers)
    _check_size(size, "--size", quick=quick)
    seconds = runtime or (_QUICK_RUNTIME if quick else _RUNTIME)
    floor_cpus = two_cpus(cpus)
    job_cpus = _job_cpus(cpus, floor_cpus[1])
    file = None if controller else target
    bare = Bare(file, _half_of_a_drive(file), size) if file else None
    with Interrupts() as interrupts, host_errors(), ExitStack() as stack:
        daemon = stack.enter_context(
            serve_privately(interrupts, lambda _folder: _arguments(bare), floor_cpus[1])
        )
        subjects = _subjects(stack, daemon, bare, peers, quick=quick)
        if controller:
            subjects[:0] = _rows_of(controller, interrupts, floor_cpus[1], quick=quick)
        if hardware_ns is not None:
            subjects += _direct_subjects(stack, interrupts, hardware_ns, floor_cpus[1])
        found = _empty_report(subjects, rounds, seconds, quick=quick, jobs=len(job_cpus))
        if controller:
            found.notes = controller.notes()
        found.run = this_run()
        found.measured = _behind(subjects, controller or bare, peers, hardware_ns)
        _fill_in(found, subjects, job_cpus, floor_cpus, show=not as_json)
        chosen = counts or (_QUICK_COUNTS if quick else _COUNTS)
        _fill_in_scale(found, chosen, interrupts, floor_cpus, show=not as_json)
    if as_json:
        echo_json(found.to_json())
    else:
        print_report(found)
    if html:
        from nvme_mdev.bench.page import html_page

        html.write_text(html_page(found), encoding="utf-8")


def _check(target: str | None, html: Path | None) -> None:
    """What can be known to be wrong before anything is started."""
    if target is not None:
        if target.startswith(("null:", "memory:")):
            raise UserError(f"{target}: null and memory are measured anyway; give a file or device")
        if not Path(target).exists():
            raise UserError(f"{target}: there is no such file: give an image or a block device")
    if html is not None:
        _check_page(html)


def _check_page(html: Path) -> None:
    """That the page can be written, as long as that costs nothing; OSError: it cannot."""
    if not html.absolute().parent.is_dir():
        raise UserError(f"{html}: there is no such folder")
    there = html.exists()
    with html.open("a"):
        pass
    if not there:
        html.unlink()


def _check_peers(peers: tuple[tuple[str, str], ...]) -> None:
    """A row's name is its own."""
    from nvme_mdev.bench.report import OWN_ROWS

    names = [name for name, _socket in peers]
    for name in names:
        if name in OWN_ROWS:
            raise UserError(f"--peer {name}=...: the report has a row of that name already")
        if names.count(name) > 1:
            raise UserError(f"--peer {name}=... is given twice: give each a name of its own")


def _check_size(size: int | None, what: str, *, quick: bool) -> None:
    """Less than a command cannot be read from. UserError begins with ``what`` that is."""
    from nvme_mdev.bench.report import largest_block, sweeps

    most = largest_block(sweeps(quick=quick, jobs=1))
    if size is not None and size < most:
        raise UserError(f"{what} {size}: commands of up to {format_size(most)} are measured")


def _check_range(size: int | None, whole: int, what: str, *, quick: bool) -> None:
    """That so many bytes can be read of what has ``whole`` of them; UserError: they cannot."""
    _check_size(whole, f"{what} has", quick=quick)
    if size is not None and size > whole:
        raise UserError(f"--size {size} is more than {what} has: {whole} bytes")


def _job_cpus(cpus: tuple[int, ...], daemon_cpu: int) -> tuple[int, ...]:
    """All but the daemon's."""
    chosen = cpus or tuple(sorted(os.sched_getaffinity(0)))
    return tuple(cpu for cpu in chosen if cpu != daemon_cpu)


def _half_of_a_drive(target: str) -> int | None:
    """Bytes of half of an NVMe namespace or partition; None: it is none, or we may not pass it
    commands."""
    from nvme_mdev.datapath.backends.kernel_drive import character_device, locate

    device = Path(target).stat()
    if not stat.S_ISBLK(device.st_mode):
        return None
    try:
        disk, _ = locate(os.major(device.st_rdev), os.minor(device.st_rdev))
        passes = character_device(disk, target)
    except OSError:
        return None
    with Path(target).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    return size // 2 // _ALIGNED * _ALIGNED if os.access(passes, os.R_OK | os.W_OK) else None


def _arguments(bare: Bare | None) -> list[str]:
    """The daemon's."""
    targets = [f"null:{NULL_SIZE}", f"memory:{MEMORY_SIZE}"]
    if bare and bare.half:
        targets.append(f"{bare.path},length={bare.half},read-only")
        targets.append(f"direct:{bare.path},offset={bare.half},read-only")
    elif bare:
        targets.append(f"{bare.path},read-only")
    return [*targets, *_SLEEPY]


def _subjects(
    stack: ExitStack,
    daemon: Daemon,
    bare: Bare | None,
    peers: tuple[tuple[str, str], ...],
    *,
    quick: bool,
) -> list[Subject]:
    """The rows, in their order; controllers stay attached until the end."""
    from nvme_mdev.bench import fio
    from nvme_mdev.bench.report import BLOCK, MEMORY, NULL, PASSTHROUGH, BareTarget, Namespace
    from nvme_mdev.host.driver import NvmeHost

    host = stack.enter_context(NvmeHost(daemon.socket))
    subjects: list[Subject] = []
    if bare is not None:
        whole, part = host.namespace(_TARGET).size, "half of " if bare.half else ""
        _check_range(bare.size, whole, f"{part}{bare.path}", quick=quick)
        if fio.available():
            subjects.append(BareTarget(bare.path, bare.size or whole))
        subjects.append(Namespace(BLOCK, host, _TARGET, bare.size))
        if bare.half:
            subjects.append(Namespace(PASSTHROUGH, host, _TARGET + 1, bare.size))
    memory = Namespace(MEMORY, host, _MEMORY)
    _fill(memory)
    subjects += [Namespace(NULL, host, _NULL), memory]
    for name, socket in peers:
        subjects.append(Namespace(name, stack.enter_context(NvmeHost(socket)), 1))
    return subjects


def _rows_of(
    controller: BareController, interrupts: Interrupts, cpu: int, *, quick: bool
) -> list[AttachedAnew]:
    """Of a TARGET that is a controller. HostError, UserError: one of them cannot have it."""
    rows = controller.rows(interrupts, _SLEEPY, cpu)
    whole = min(row.whole_size() for row in rows)
    _check_range(controller.size, whole, controller.text, quick=quick)
    return rows


def _behind(
    subjects: list[Subject],
    bare: Bare | BareController | None,
    peers: tuple[tuple[str, str], ...],
    hardware_ns: int | None,
) -> dict[str, str]:
    """What each row is of, in words."""
    from nvme_mdev.bench.report import BLOCK, DIRECT, HARDWARE, HOST, MEMORY, NULL, PASSTHROUGH

    what = {
        NULL: f"null namespace of {format_size(NULL_SIZE)}",
        MEMORY: f"memory namespace of {format_size(MEMORY_SIZE)}",
    }
    if isinstance(bare, BareController):
        what |= bare.behind()
    elif bare:
        read = "" if bare.size is None else f", {format_size(bare.size)} of it"
        what |= dict.fromkeys((HOST, BLOCK), f"{bare.path}{read}")
        what[PASSTHROUGH] = f"{bare.path} from byte {bare.half} on{read}"
    if hardware_ns is not None:
        what[HARDWARE] = f"{what[NULL]}, {hardware_ns} ns a command"
        what[DIRECT] = f"direct mode on a {what[HARDWARE]}"
    what |= {name: f"{socket}, namespace 1" for name, socket in peers}
    return {subject.name: what[subject.name] for subject in subjects}


def _direct_subjects(
    stack: ExitStack, interrupts: Interrupts, latency_ns: int, cpu: int
) -> list[Subject]:
    """A controller that takes its time, and the daemon on the queues of another one like it.

    The controller below runs on whatever CPU is free. Where there is no third one, it shares one
    with whoever waits for it, and the row tells of that.
    """
    from nvme_mdev.bench.report import DIRECT, HARDWARE, Namespace
    from nvme_mdev.host.driver import NvmeHost

    target = f"null:{NULL_SIZE},latency={latency_ns}ns"

    def serve(argument: str, cpu: int | None) -> Daemon:
        return stack.enter_context(
            serve_privately(interrupts, lambda _folder: [argument, *_SLEEPY], cpu)
        )

    bare, below = serve(target, cpu), serve(target, None)
    above = serve(f"direct:vfio-user:{below.socket}", cpu)
    return [
        Namespace(HARDWARE, stack.enter_context(NvmeHost(bare.socket)), 1),
        Namespace(DIRECT, stack.enter_context(NvmeHost(above.socket)), 1),
    ]


def _fill(memory: Namespace) -> None:
    """Write all of the memory namespace: what was never written is a single page of zeroes."""
    from nvme_mdev.bench.job import Job, Pattern
    from nvme_mdev.bench.runner import Runner

    job = Job(
        rw=Pattern.WRITE,
        bs=_FILL_BS,
        iodepth=8,
        runtime=None,
        number_ios=MEMORY_SIZE // _FILL_BS,
        nsid=memory.nsid,
    )
    with Runner(memory.host, job) as runner:
        runner.run()


def _empty_report(
    subjects: list[Subject], rounds: int, runtime: float, *, quick: bool, jobs: int
) -> Report:
    from nvme_mdev.bench.report import Report, sweeps

    names = [subject.name for subject in subjects]
    return Report(names, sweeps(quick=quick, jobs=jobs), rounds, runtime)


def _fill_in(
    found: Report,
    subjects: list[Subject],
    cpus: tuple[int, ...],
    floor_cpus: tuple[int, int],
    *,
    show: bool,
) -> None:
    from nvme_mdev.bench.limits import FloorMeter
    from nvme_mdev.bench.report import run_report

    with (
        FloorMeter(floor_cpus, runtime=_FLOOR_RUNTIME) as meter,
        progress_bar("report", enabled=show) as progress,
    ):
        run_report(subjects, found, cpus=cpus, meter=meter, progress=progress)


def _fill_in_scale(
    found: Report,
    counts: tuple[int, ...],
    interrupts: Interrupts,
    cpus: tuple[int, int],
    *,
    show: bool,
) -> None:
    from nvme_mdev.bench.scale import Scale

    found.scale = Scale(counts, _SCALE_DEPTH, found.rounds, found.runtime)
    with progress_bar("controllers", enabled=show) as progress:
        fill_in(found.scale, interrupts, cpus, progress)


def print_report(found: Report) -> None:
    """The tables, to the terminal."""
    from rich.console import Console

    from nvme_mdev.bench.machine import machine_line
    from nvme_mdev.bench.report_table import POINT_TABLES, floor_rows
    from nvme_mdev.bench.table import text_table

    console = Console(highlight=False)
    click.echo(f"{machine_line()}: {found.rounds} rounds of {found.runtime:g} s each")
    for name, point in found.tests.items():
        console.print(f"\n{name}", style="bold")
        for rows in POINT_TABLES:
            if len(table := rows(found, point)) > 1:
                console.print(text_table(table))
    if found.scale:
        console.print("\ncontrollers on one IOThread, null namespaces", style="bold")
        for table in (found.scale.rows(), found.scale.light_rows()):
            if table:
                console.print(text_table(table))
        if note := found.scale.light_note():
            click.echo(note)
    if found.floor:
        console.print(text_table(floor_rows(found.floor)))
    for note in (*found.notes, *(f"left out: {line}" for line in found.left_out)):
        click.echo(note)
