"""``nvme-mdev bench idle``: what an idle controller costs, and how soon it wakes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.bench import echo_json, progress_bar
from nvme_mdev.cli.parameters import SecondsType, json_option

if TYPE_CHECKING:
    from nvme_mdev.bench.idle import Idle
    from nvme_mdev.bench.spread import Spread


@click.command()
@click.argument("socket")
@click.option("--nsid", type=click.IntRange(1), default=1, show_default=True, help="Namespace.")
@click.option(
    "--rests",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="How often to let the controller rest.",
)
@click.option(
    "--rest",
    type=SecondsType(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds of each rest; twice as long as it polls, at least.",
)
@json_option
def idle(*, socket: str, nsid: int, rests: int, rest: float, as_json: bool) -> None:
    """Measure how the controller at SOCKET rests.

    How long it takes from the doorbell of the first read after a rest to its completion, and of the
    one right after it, and how much of a processor the server used in the second half of each rest.
    A controller whose doorbells are mapped looks at them every millisecond, and what such sleeps
    cost on this machine at least is told, too; without, it sleeps until it is rung. Nothing is
    written.
    """
    from nvme_mdev.bench.idle import measure
    from nvme_mdev.host.driver import NvmeHost

    with NvmeHost(socket) as host, progress_bar("idle", enabled=not as_json) as progress:
        found = measure(host, nsid, rests, rest, lambda done: progress(done, ""))
    if as_json:
        echo_json(found.to_json())
    else:
        _print(found)


def _print(found: Idle) -> None:
    how = "mapped" if found.mapped else "rung through the socket"
    click.echo(f"doorbells are {how}; median (min to max) of {len(found.first.values)} rests")
    click.echo(f"first read after a rest:  {_microseconds(found.first)}")
    click.echo(f"the read right after it:  {_microseconds(found.next)}")
    if found.load is not None:
        load = found.load
        click.echo(
            f"server's processor time:  {load.median:.2f} % ({load.least:.2f} to {load.most:.2f})"
        )
    if found.mapped:
        click.echo(f"1 ms sleeps cost anybody:  {found.naps:.2f} %")


def _microseconds(spread: Spread) -> str:
    return f"{spread.median / 1000:.1f} µs ({spread.least / 1000:.1f} to {spread.most / 1000:.1f})"
