"""``nvme-mdev bench floor``: what the machine itself can do, to judge a controller by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.bench import echo_json, progress_bar
from nvme_mdev.cli.bench_options import rounds_option, runtime_option, two_cpus_option
from nvme_mdev.cli.parameters import json_option
from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from nvme_mdev.bench.limits import Floor


@click.command()
@two_cpus_option("the controller's")
@rounds_option(7, "Each measures everything once; shown are median, min and max.")
@runtime_option(0.1)
@json_option
def floor(*, cpus: tuple[int, ...], rounds: int, runtime: float, as_json: bool) -> None:
    """Measure the machine's own limits: what no controller can be faster than on it.

    The round trip of a cache line between two CPUs, of a command through a pair of queues with a
    controller that does nothing but complete it, a 4 KiB copy, the write of an eventfd, an empty
    trip through io_uring. No controller takes part, and nothing is written.
    """
    found = _measure(cpus, rounds, runtime, show=not as_json)
    if as_json:
        echo_json(found.to_json())
    else:
        _print(found, rounds)


def two_cpus(wanted: tuple[int, ...]) -> tuple[int, int]:
    """The host's CPU and the controller's; UserError when there are no two of them."""
    from nvme_mdev.bench.limits import pick_cpus
    from nvme_mdev.bench.runner import check_cpus

    check_cpus(wanted)
    cpus = pick_cpus(wanted)
    if cpus is None:
        raise UserError(
            "a controller and its host need a CPU each: give two different ones with --cpu A,B,"
            " and let this process use two (taskset)"
        )
    return cpus


def _measure(cpus: tuple[int, ...], rounds: int, runtime: float, *, show: bool) -> Floor:
    from nvme_mdev.bench.limits import FloorMeter

    with (
        FloorMeter(two_cpus(cpus), runtime=runtime) as meter,
        progress_bar("floor", enabled=show) as progress,
    ):
        for number in range(rounds):
            start = number / rounds

            def show_progress(fraction: float, start: float = start) -> None:
                progress(start + fraction / rounds, "")

            meter.round(show_progress)
        return meter.result()


def _print(floor: Floor, rounds: int) -> None:
    from rich.console import Console

    from nvme_mdev.bench.machine import machine_line
    from nvme_mdev.bench.report_table import floor_rows
    from nvme_mdev.bench.table import text_table

    host, controller = floor.cpus
    click.echo(
        f"{machine_line()}: host on CPU {host}, controller on CPU {controller},"
        f" {rounds} rounds of {floor.runtime:g} s"
    )
    Console(highlight=False).print(text_table(floor_rows(floor)))
