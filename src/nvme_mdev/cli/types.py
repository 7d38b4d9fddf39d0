"""``nvme-mdev types``: what controllers can be made of, and how many more of each type."""

from __future__ import annotations

import click

from nvme_mdev.cli.output import Show, output_option
from nvme_mdev.service.parent_types import parent_types


@click.command()
@click.argument("parents", metavar="[PARENT]...", nargs=-1)
@output_option
def types(parents: tuple[str, ...], show: Show) -> None:
    """Show the types of controllers that each PARENT allows, and how many more of them.

    A controller of type nvme-NQ_V1 takes N host queues. A PARENT is an NVMe drive (/dev/nvme0, its
    PCI address), vfio:ADDRESS, vfio-user:SOCKET, a block device or a file; without one, the host's
    drives and those that daemons drive themselves are shown.
    """
    show(parent_types(parents))
