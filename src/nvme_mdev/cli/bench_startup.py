"""``nvme-mdev bench startup``: how long a daemon and its controller take to be there."""

from __future__ import annotations

from contextlib import ExitStack

import click

from nvme_mdev.cli.bench import echo_json, host_errors, progress_bar
from nvme_mdev.cli.bench_options import rounds_option
from nvme_mdev.cli.parameters import json_option
from nvme_mdev.cli.private_daemon import Interrupts, serve_privately

_TARGET = "null:1G"


@click.command()
@rounds_option(7, "Daemons that are started; shown are median, min and max.")
@json_option
def startup(*, rounds: int, as_json: bool) -> None:
    """Time the start: of a daemon, of a client on it, of the controller, of a queue.

    Each round starts a daemon of its own, as `serve` does, attaches, and stops it.
    """
    from nvme_mdev.bench.startup import Startup, Step, time_client

    found = Startup()
    with (
        Interrupts() as interrupts,
        host_errors(),
        progress_bar("startup", enabled=not as_json) as progress,
    ):
        for number in range(rounds):
            progress(number / rounds, "")
            with ExitStack() as stack:
                with found.timed(Step.READY):
                    serving = serve_privately(interrupts, lambda _folder: [_TARGET], None)
                    daemon = stack.enter_context(serving)
                time_client(found, daemon.socket)
    if as_json:
        echo_json(found.to_json())
        return
    from rich.console import Console

    from nvme_mdev.bench.machine import machine_line
    from nvme_mdev.bench.table import text_table

    click.echo(f"{machine_line()}: {rounds} daemons")
    Console(highlight=False).print(text_table(found.rows()))
