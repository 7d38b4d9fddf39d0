"""What a controller is made of, as options: of `serve`, and of `controller add`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.parameters import CONTROLLER_TYPE, SIZE
from nvme_mdev.service.definition import (
    DEFAULT_MAX_NSID,
    DEFAULT_QUEUE_ENTRIES,
    DEFAULT_QUEUES,
    MAX_NSID,
    MAX_QUEUE_ENTRIES,
    MAX_QUEUES,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.cli.parameters import Command

_MEDIUM = (
    click.option("--size", type=SIZE, help="Create the image with this size if it does not exist."),
    click.option(
        "--block-size",
        type=click.Choice(["512", "4096"]),
        help="Logical block size in bytes.  [default: what fits the medium, 512 where both do]",
    ),
    click.option("--read-only", is_flag=True, help="Never write; the guest sees a protected disk."),
)
_CONTROLLER = (
    click.option("--serial", help="Serial number.  [default: derived from the first target]"),
    click.option(
        "--queues",
        type=click.IntRange(1, MAX_QUEUES),
        default=DEFAULT_QUEUES,
        metavar="N",
        show_default=True,
        help="I/O queue pairs offered to the guest; Linux takes one per vCPU.",
    ),
    click.option(
        "--queue-entries",
        type=click.IntRange(2, MAX_QUEUE_ENTRIES),
        default=DEFAULT_QUEUE_ENTRIES,
        metavar="N",
        show_default=True,
        help="Most entries of an I/O queue.",
    ),
    click.option(
        "--mdts",
        type=SIZE,
        default="1M",
        show_default=True,
        metavar="SIZE",
        help="Most data of a command: 8K to 32M, a power of two.",
    ),
    click.option(
        "--max-nsid",
        type=click.IntRange(1, MAX_NSID),
        metavar="N",
        help=f"The highest NSID a namespace can have, up to {MAX_NSID}; a guest's firmware asks for"
        f" each before it boots.  [default: {DEFAULT_MAX_NSID}]",
    ),
    click.option(
        "--type",
        "host_queues",
        type=CONTROLLER_TYPE,
        metavar="nvme-NQ_V1",
        help="Spread the queues over N polling threads, 1 to 16.  [default: nvme-1Q_V1]",
    ),
    click.option(
        "--iothread",
        metavar="NAME[,NAME...]",
        help="Polling threads that controllers share by these names.  [default: its own]",
    ),
)


def medium_options(command: Command) -> Command:
    """How targets are opened."""
    return _with(command, _MEDIUM)


def controller_options(command: Command) -> Command:
    """What the guest finds, and who serves it."""
    return _with(command, _CONTROLLER)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
