"""Options that several ``nvme-mdev bench`` commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.bench import CpuList
from nvme_mdev.cli.parameters import SecondsType

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.cli.parameters import Command


def two_cpus_option(second: str) -> Callable[[Command], Command]:
    """``--cpu A,B``: the host's, and that of ``second``."""
    return click.option(
        "--cpu",
        "cpus",
        type=CpuList(),
        default=(),
        metavar="A,B",
        help=f"The host's CPU and {second}.  [default: the first and the last]",
    )


def rounds_option(default: int, what: str) -> Callable[[Command], Command]:
    """``--rounds``; ``what`` each of them does."""
    return click.option(
        "--rounds", type=click.IntRange(1, 1000), default=default, show_default=True, help=what
    )


def runtime_option(default: float) -> Callable[[Command], Command]:
    """``--runtime``, in seconds."""
    return click.option(
        "--runtime",
        type=SecondsType(0, min_open=True),
        default=default,
        show_default=True,
        help="Seconds of each measurement.",
    )
