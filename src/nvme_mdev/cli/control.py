"""The commands on a controller as a whole, ``list`` to ``unplug``: clients of the control socket.

They hold no state: each finds the daemon, calls one method, and shows the result.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.output import Show, output_option
from nvme_mdev.cli.parameters import SecondsType
from nvme_mdev.errors import UserError
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient
from nvme_mdev.service.runtime import entries, find
from nvme_mdev.service.settings import parse_settings

if TYPE_CHECKING:
    from typing import TypeVar

    P = TypeVar("P")
    R = TypeVar("R")

_RESTARTED_WITHIN_S = 10.0
"""How long the next process may take; QEMU waits 5 s for a reply."""
_RETRY_S = 0.02

name_argument = click.argument("name")


def call(name: str, method: api.Method[P, R], params: P) -> R:
    """Call a method of the daemon that serves a controller, named or by a socket's path."""
    found = find(name)
    if any(field.name == "controller" for field in dataclasses.fields(method.params)):  # type: ignore[arg-type]
        params = dataclasses.replace(params, controller=found.controller)  # type: ignore[type-var]
    with ControlClient(found.control) as client:
        return client.call(method, params)


@click.command("list")
@output_option
def list_controllers(show: Show) -> None:
    """List the controllers that are served."""
    controllers: list[api.ControllerSummary] = []
    daemons = {entry.control: entry.name for entry in entries()}
    for name in daemons.values():
        try:
            found = call(name, api.CONTROLLER_LIST, api.NoParams())
        except UserError as error:
            # One that ends just now, or does not answer, must not hide the others.
            click.echo(f"nvme-mdev: {name}: {error}", err=True)
        else:
            controllers += found.controllers
    show(api.ControllerList(sorted(controllers, key=lambda one: one.name)))


@click.command()
@name_argument
@output_option
def show(name: str, show: Show) -> None:
    """Show the controller NAME, its settings and its namespaces.

    NAME is a controller's name (see list) or the path of its socket.
    """
    show(call(name, api.CONTROLLER_SHOW, api.OfController()))


@click.command("set")
@name_argument
@click.argument("settings", metavar="SETTING=VALUE...", nargs=-1, required=True)
@output_option
def set_settings(name: str, settings: tuple[str, ...], show: Show) -> None:
    """Change settings of the controller NAME while it runs.

    iothread_cpu, poll_timeout_ms and io_timeout_ms work at once, shadow_doorbell when the guest
    resets the controller the next time, mapped_doorbells for the next client.
    """
    show(call(name, api.CONTROLLER_SET, api.ControllerSet(parse_settings(settings))))


@click.command()
@name_argument
@output_option
def stats(name: str, show: Show) -> None:
    """Show what the controller NAME has done, its queues, and its polling thread."""
    show(call(name, api.CONTROLLER_STATS, api.OfController()))


@click.command()
@name_argument
@output_option
def pause(name: str, show: Show) -> None:
    """Hold the I/O queues of the controller NAME; return when nothing is in flight."""
    show(call(name, api.CONTROLLER_PAUSE, api.OfController()))


@click.command()
@name_argument
@output_option
def resume(name: str, show: Show) -> None:
    """Serve the I/O queues of the controller NAME again."""
    show(call(name, api.CONTROLLER_RESUME, api.OfController()))


@click.command()
@name_argument
@click.option(
    "--timeout",
    "timeout_s",
    type=SecondsType(0, 3600),
    default=api.DEFAULT_UNPLUG_TIMEOUT_S,
    metavar="SECONDS",
    show_default=True,
    help="Wait so long for the client to go.",
)
@click.option("--force", is_flag=True, help="Disconnect a client that has not gone by then.")
@output_option
def unplug(name: str, timeout_s: float, force: bool, show: Show) -> None:
    """Ask the client of the controller NAME to give it back, and wait until it has."""
    show(call(name, api.CONTROLLER_UNPLUG, api.Unplug(timeout_s, force)))


@click.command()
@name_argument
@click.option(
    "--timeout",
    "timeout_s",
    type=SecondsType(0, 3600),
    default=api.DEFAULT_DRAIN_TIMEOUT_S,
    metavar="SECONDS",
    show_default=True,
    help="Wait so long for what is in flight.",
)
@output_option
def restart(name: str, timeout_s: float, show: Show) -> None:
    """Restart the daemon of the controller NAME with the code that is installed now.

    Its guests see a pause of about half a second.
    """
    before = call(name, api.DAEMON_RESTART, api.Restart(timeout_s))
    show(_next_process(name, before.pid))


def _next_process(name: str, before: int) -> api.DaemonInfo:
    """The process that serves after this one; UserError: there is none."""
    deadline = time.monotonic() + _RESTARTED_WITHIN_S
    while True:
        try:
            found = call(name, api.DAEMON_SHOW, api.NoParams())
        except UserError:
            # Accepted by the process that was about to end, or there is none any more.
            if time.monotonic() > deadline:
                raise
        else:
            if found.pid != before:
                return found
        time.sleep(_RETRY_S)
