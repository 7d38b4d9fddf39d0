"""``nvme-mdev bench``: measure an NVMe controller behind any vfio-user socket.

``bench SOCKET`` is a command without a name of its own: the first word after ``bench`` that is
no subcommand belongs to it. A socket with the name of a subcommand is written ``./floor``.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.parameters import SIZE, SecondsType, SizeType
from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nvme_mdev.bench.job import Job
    from nvme_mdev.bench.results import BenchResult
    from nvme_mdev.bench.runner import Progress
    from nvme_mdev.host.driver import NvmeHost

PATTERNS = ("randread", "randwrite", "read", "write", "randrw", "rw")
#: A queue's entries (64 bytes and 16) for twice the depth, rounded up to a power of two.
_QUEUE_BYTES_PER_DEPTH = 4 * (64 + 16)
_EXIT_FAILED = 1

#: Each subcommand and where it is; all of `bench` that is not one measures a socket.
SUBCOMMANDS = {
    "floor": "nvme_mdev.cli.bench_floor",
    "idle": "nvme_mdev.cli.bench_idle",
    "report": "nvme_mdev.cli.bench_report",
    "scale": "nvme_mdev.cli.bench_scale",
    "startup": "nvme_mdev.cli.bench_startup",
}
#: What the group calls `bench SOCKET`; no first word can be the same.
_UNNAMED = ""


class OffsetType(SizeType):
    """Like a size, and 0 is one."""

    name = "offset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        return 0 if value == "0" else super().convert(value, param, ctx)


class _NamelessContext(click.Context):
    """Help and errors of `bench SOCKET` name the group, as it is typed."""

    @property
    def command_path(self) -> str:
        return self.parent.command_path if self.parent else ""


class _SocketCommand(click.Command):
    """`bench SOCKET`; its help tells of the subcommands, too."""

    context_class = _NamelessContext

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        group = ctx.parent.command if ctx.parent else None
        if isinstance(group, click.Group) and ctx.parent:
            group.format_commands(ctx.parent, formatter)


class Bench(click.Group):
    """Subcommands, and `bench SOCKET` for every first word that is none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's)
        """Names of the subcommands, in the order in which they are shown."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the subcommand ``cmd_name``; its module has a command of that name."""
        if cmd_name == _UNNAMED:
            return measure
        command: click.Command = getattr(import_module(SUBCOMMANDS[cmd_name]), cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options and help belong to `bench SOCKET`, which takes the place of a missing name."""
        if not args or args[0] not in SUBCOMMANDS:
            args = [_UNNAMED, *args]
        return super().parse_args(ctx, args)


class CpuList(click.ParamType[tuple[int, ...]]):
    """CPUs as ``0,2-3``."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The CPUs in the order in which they are written."""
        if isinstance(value, tuple):
            return value
        cpus: list[int] = []
        try:
            for part in value.split(","):
                first, _, last = part.partition("-")
                cpus += range(int(first), int(last or first) + 1)
        except ValueError:
            self.fail(f"{value!r} is not a list of CPUs: write it as 0,2-3", param, ctx)
        if not cpus:
            self.fail(f"{value!r} names no CPU: write it as 0,2-3", param, ctx)
        return tuple(cpus)


@contextmanager
def host_errors() -> Iterator[None]:
    """Make what can go wrong with a controller a user's error: one line, exit status 2."""
    from nvme_mdev.host.errors import HostError

    try:
        yield
    except HostError as error:
        raise UserError(str(error)) from error


def this_run() -> dict[str, object]:
    """How the result of this command line came about."""
    from nvme_mdev.bench.machine import describe_run

    return describe_run(click.get_current_context().find_root().obj)


def echo_json(result: dict[str, object]) -> None:
    """Print a result, and how it came about."""
    click.echo(json.dumps({**this_run(), **result}, indent=2))


@contextmanager
def progress_bar(title: str, *, enabled: bool = True) -> Iterator[Progress]:
    """A bar on standard error, when that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=console,
        disable=not (enabled and console.is_terminal),
        # The machine is busy being measured.
        auto_refresh=False,
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=1.0)

        def show(fraction: float, text: str) -> None:
            bar.update(task, completed=fraction, description=f"{title} {text}".rstrip())
            bar.refresh()

        yield show


@click.command(cls=_SocketCommand)
@click.argument("socket")
@click.option(
    "--rw",
    type=click.Choice(PATTERNS),
    default="randread",
    show_default=True,
    help="I/O pattern. Those with writes DESTROY what is on the namespace.",
)
@click.option("--bs", type=SIZE, default="4k", show_default=True, help="Bytes of a command.")
@click.option(
    "--qd",
    "iodepth",
    type=click.IntRange(1, 65535),
    default=1,
    show_default=True,
    help="Commands kept outstanding by each job.",
)
@click.option(
    "--jobs",
    "numjobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Queue pairs, each with a thread that polls.",
)
@click.option(
    "--runtime",
    type=SecondsType(0, min_open=True),
    help="Seconds.  [default: 5, or until --number-ios]",
)
@click.option("--number-ios", type=click.IntRange(1), help="Commands of each job.")
@click.option(
    "--rwmixread",
    type=click.IntRange(0, 100),
    default=50,
    show_default=True,
    help="Percent of reads in a mixed pattern.",
)
@click.option("--nsid", type=click.IntRange(1), default=1, show_default=True, help="Namespace.")
@click.option("--offset", type=OffsetType(), default=0, help="Where the range begins.")
@click.option("--size", type=SIZE, help="Bytes of the range.  [default: to the end]")
@click.option(
    "--interrupts/--polling",
    default=False,
    help="Sleep for MSI-X interrupts, or poll the completion queue.  [default: polling]",
)
@click.option(
    "--shadow-doorbell/--no-shadow-doorbell",
    default=None,
    help="Use Doorbell Buffer Config.  [default: if the doorbells cannot be mapped]",
)
@click.option(
    "--mapped-doorbells/--no-mapped-doorbells",
    default=True,
    show_default=True,
    help="Ring in mapped memory where the server offers it.",
)
@click.option("--verify", is_flag=True, help="Write a pattern, read it back and compare.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    help="Of random numbers and pattern; with --verify and only reads, the writer's.",
)
@click.option("--cpu", "cpus", type=CpuList(), default=(), help="Job N runs on CPU N of these.")
@click.option(
    "--timeout",
    type=SecondsType(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds a command may take.",
)
@click.option("--continue-on-error", is_flag=True, help="Count failed commands and go on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON as fio does, and nothing else.")
def measure(
    *,
    socket: str,
    rw: str,
    runtime: float | None,
    number_ios: int | None,
    shadow_doorbell: bool | None,
    mapped_doorbells: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Measure the NVMe controller behind a vfio-user SOCKET, ours or another product's.

    A directory means DIR/cntrl. No guest is needed: the built-in NVMe driver takes the place of
    one, so nothing else may be connected.

    Patterns that write overwrite the namespace without asking. Sizes take K, M, G and T. The exit
    status is 1 when commands failed or data was wrong.
    """
    # Not at the top: `--help` is answered without loading what measures.
    from nvme_mdev.bench.job import Job, Pattern

    if runtime is None and number_ios is None:
        runtime = 5.0
    job = Job(rw=Pattern(rw), runtime=runtime, number_ios=number_ios, **settings)
    with host_errors(), _attach(socket, job, shadow_doorbell, mapped_doorbells) as host:
        result = run_job(host, job, show=not as_json)
    if as_json:
        echo_json(result.to_json())
    else:
        _print(result)
    for problem in result.problems:
        click.echo(f"nvme-mdev: {problem}", err=True)
    return _EXIT_FAILED if result.problems else 0


def _attach(socket: str, job: Job, shadow: bool | None, mapped: bool) -> NvmeHost:
    from nvme_mdev.host.driver import DEFAULT_MEMORY, NvmeHost

    return NvmeHost(
        socket,
        memory_size=DEFAULT_MEMORY + job.numjobs * (job.iodepth + 64) * _QUEUE_BYTES_PER_DEPTH,
        shadow_doorbells=shadow,
        map_doorbells=mapped,
        timeout=job.timeout,
    )


def run_job(host: NvmeHost, job: Job, *, show: bool, title: str | None = None) -> BenchResult:
    """Run one job with a progress bar."""
    from nvme_mdev.bench.runner import Runner

    with Runner(host, job) as runner, progress_bar(title or job.name, enabled=show) as progress:
        return runner.run(progress)


def _print(result: BenchResult) -> None:
    from rich.console import Console

    from nvme_mdev.bench.table import counter_table, direction_line, directions, latency_table

    console = Console(highlight=False)
    about = result.controller
    click.echo(
        f"{about['model']} {about['serial']}, namespace {about['nsid']},"
        f" {about['lba_size']} B blocks, {about['doorbells']} doorbells, {about['completions']}"
    )
    click.echo(f"{result.job.name}:")
    for name, direction in directions(result):
        click.echo(direction_line(name, direction))
        console.print(latency_table(direction))
    if result.counters:
        console.print(counter_table(result.counters))
    if result.job.verify:
        checked = sum(job.checked_blocks for job in result.jobs)
        bad = sum(job.mismatches for job in result.jobs)
        console.print(f"{checked:,} blocks verified, {bad:,} wrong (seed {about['seed']})")


#: What ``nvme-mdev bench`` is; `main` looks for it under this name.
bench = Bench("bench", help=measure.help)
