"""``nvme-mdev controller``: add controllers to a daemon that runs, and remove them."""

from __future__ import annotations

from pathlib import Path

import click

from nvme_mdev.cli.control import call, name_argument
from nvme_mdev.cli.controller_options import controller_options, medium_options
from nvme_mdev.cli.output import Show, output_option
from nvme_mdev.errors import UserError
from nvme_mdev.service import api
from nvme_mdev.service.runtime import find
from nvme_mdev.service.settings import parse_settings
from nvme_mdev.service.targets import Target


@click.group()
def controller() -> None:
    """Add controllers to a daemon that runs, and remove them."""


@controller.command()
@name_argument
@click.argument("targets", metavar="[TARGET...]", nargs=-1)
@click.option(
    "--socket",
    required=True,
    metavar="PATH",
    help="Unix socket to serve on; a directory (or DIR/) means DIR/cntrl.",
)
@click.option("--share", is_flag=True, help="Share all namespaces of the controller NAME.")
@click.option("--name", "new_name", help="Its name.  [default: the socket's stem]")
@medium_options
@controller_options
@click.option(
    "--set", "settings", metavar="SETTING=VALUE", multiple=True, help="A setting (see set)."
)
@output_option
def add(
    *,
    name: str,
    targets: tuple[str, ...],
    socket: str,
    share: bool,
    new_name: str | None,
    size: int | None,
    block_size: str | None,
    read_only: bool,
    settings: tuple[str, ...],
    show: Show,
    **once: int | str | None,
) -> None:
    """Add a controller to the daemon that serves the controller NAME.

    It has the TARGETs as its namespaces 1, 2, ... or shares those of NAME (--share), as a second
    controller of the same NVM subsystem.
    """
    options: dict[str, int | bool | str | None] = parse_settings(settings)
    options.update({key: value for key, value in once.items() if value is not None})
    path = str(Path(socket).absolute()) + ("/" if socket.endswith("/") else "")
    params = api.ControllerAdd(
        path,
        [Target.parse(text).absolute.text for text in targets],
        _named(name) if share else None,
        new_name,
        size,
        int(block_size) if block_size else None,
        read_only,
        options,
    )
    show(call(name, api.CONTROLLER_ADD, params))


def _named(name: str) -> str:
    """What the daemon calls the controller; UserError: the control socket does not tell."""
    found = find(name).controller
    if found is None:
        raise UserError(f"{name} is a control socket: name the controller that is to be shared")
    return found


@controller.command()
@name_argument
@click.option("--force", is_flag=True, help="Disconnect its client.")
@output_option
def remove(name: str, force: bool, show: Show) -> None:
    """Take the controller NAME down; the others of its daemon go on."""
    show(call(name, api.CONTROLLER_REMOVE, api.ControllerRemove(force)))
