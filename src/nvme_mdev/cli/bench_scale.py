"""``nvme-mdev bench scale``: many controllers on one IOThread."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from nvme_mdev.cli.bench import echo_json, host_errors, progress_bar
from nvme_mdev.cli.bench_floor import two_cpus
from nvme_mdev.cli.bench_options import rounds_option, runtime_option, two_cpus_option
from nvme_mdev.cli.parameters import json_option
from nvme_mdev.cli.private_daemon import Interrupts, serve_privately

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.bench.scale import Scale

_TARGET = "null:64G"
_POLL_TIMEOUT_MS = 20
"""The other daemons sleep while one is measured."""
_MOST = 256
COUNTS = (1, 8, 64, 256)


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers of controllers, ``1,8,64``, ascending."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Each once."""
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.isascii() and part.isdecimal() for part in parts):
            self.fail(f"{value!r}: give numbers with commas between them", param, ctx)
        counts = tuple(sorted({int(part) for part in parts}))
        if not 1 <= counts[0] <= counts[-1] <= _MOST:
            self.fail(f"{value!r}: give numbers from 1 to {_MOST}", param, ctx)
        return counts


@click.command()
@click.option(
    "--controllers",
    "counts",
    type=Counts(),
    default=COUNTS,
    metavar="N[,N...]",
    help="How many, one after the other.  [default: 1,8,64,256]",
)
@click.option(
    "--qd",
    "depth",
    type=click.IntRange(1, 128),
    default=32,
    show_default=True,
    help="Commands outstanding on each controller.",
)
@two_cpus_option("the IOThread's")
@rounds_option(5, "Each measures everything once; shown are median, min and max.")
@runtime_option(0.5)
@json_option
def scale(
    *,
    counts: tuple[int, ...],
    depth: int,
    cpus: tuple[int, ...],
    rounds: int,
    runtime: float,
    as_json: bool,
) -> None:
    """Measure what 1, 8, 64, 256 controllers do together that share one IOThread.

    4 KiB random reads of a null namespace: IOPS of all, as a share of what the smallest number of
    them does, how far they lie apart (coefficient of variation), and what a single busy one does
    while the others are idle. Then how long a light load waits beside a heavy one, on the largest
    number. Each number has a daemon of its own; one thread drives all controllers, but for the
    heavy one, which has a third CPU where there is one.
    """
    from nvme_mdev.bench.machine import machine_line
    from nvme_mdev.bench.scale import Scale
    from nvme_mdev.bench.table import text_table

    found = Scale(counts, depth, rounds, runtime)
    with (
        Interrupts() as interrupts,
        host_errors(),
        progress_bar("scale", enabled=not as_json) as progress,
    ):
        fill_in(found, interrupts, two_cpus(cpus), progress)
    if as_json:
        echo_json(found.to_json())
        return
    from rich.console import Console

    click.echo(f"{machine_line()}: {rounds} rounds of {runtime:g} s each, depth {depth}")
    console = Console(highlight=False)
    for rows in (found.rows(), found.light_rows()):
        if rows:
            console.print(text_table(rows))
    if note := found.light_note():
        click.echo(note)


def fill_in(
    found: Scale,
    interrupts: Interrupts,
    cpus: tuple[int, int],
    progress: Callable[[float, str], None],
) -> None:
    """Start the daemons, attach to all controllers, measure. HostError: a controller fails.

    ``cpus``: the host's and the IOThread's.
    """
    from nvme_mdev.bench.scale import Group, measure, spare_cpu

    spare = spare_cpu(*cpus)
    with ExitStack() as stack:
        groups = []
        for count in found.counts:
            progress(0.0, f"attaching to {count}")
            sockets = _serve(interrupts, stack, count, cpus[1])
            own_thread = spare is not None
            groups.append(Group(sockets, found.depth, found.runtime, stack, own_thread=own_thread))
        measure(found, groups, cpus[0], spare, progress)


def _serve(interrupts: Interrupts, stack: ExitStack, count: int, cpu: int) -> list[Path]:
    """A daemon with so many controllers; their sockets."""
    sockets: list[Path] = []

    def arguments(folder: Path) -> list[str]:
        sockets.extend(folder / f"{number}.sock" for number in range(1, count))
        more = [part for socket in sockets for part in ("--socket", str(socket))]
        shared = ["--iothread", "shared", "--poll-timeout-ms", str(_POLL_TIMEOUT_MS)]
        return [_TARGET, *shared, *more]

    daemon = stack.enter_context(serve_privately(interrupts, arguments, cpu))
    return [daemon.socket, *sockets]
