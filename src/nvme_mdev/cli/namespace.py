"""``nvme-mdev namespace``: add, remove, resize and list namespaces while the guest runs."""

from __future__ import annotations

import click

from nvme_mdev.cli.control import call, name_argument
from nvme_mdev.cli.output import Show, output_option
from nvme_mdev.cli.parameters import SIZE
from nvme_mdev.service import api
from nvme_mdev.service.definition import DEFAULT_MAX_NSID
from nvme_mdev.service.limits import split_limits
from nvme_mdev.service.targets import Target

nsid_argument = click.argument("nsid", type=click.IntRange(min=1))


@click.group()
def namespace() -> None:
    """Add, remove, resize and list namespaces while the guest runs."""


@namespace.command("list")
@name_argument
@output_option
def list_namespaces(name: str, show: Show) -> None:
    """List the namespaces of the controller NAME."""
    show(call(name, api.NAMESPACE_LIST, api.OfController()))


@namespace.command()
@name_argument
@click.argument("target")
@click.option(
    "--nsid",
    type=click.IntRange(min=1),
    help=f"NSID, 1 to {DEFAULT_MAX_NSID}, or what serve --max-nsid says.  [default: the lowest free"
    " one]",
)
@click.option("--size", type=SIZE, help="Create the image with this size if it does not exist.")
@click.option(
    "--block-size",
    type=click.Choice(["512", "4096"]),
    help="Logical block size in bytes.  [default: what fits the medium]",
)
@click.option("--read-only", is_flag=True, help="Never write; the guest sees a protected disk.")
@click.option("--shared", is_flag=True, help="Attach it to every controller of the NVM subsystem.")
@output_option
def add(
    *,
    name: str,
    target: str,
    nsid: int | None,
    size: int | None,
    block_size: str | None,
    read_only: bool,
    shared: bool,
    show: Show,
) -> None:
    """Attach TARGET to the controller NAME.

    It is what serve takes: an image file, a block device, /dev/nvme0/n1p3, null:SIZE or
    memory:SIZE, with ",offset=SIZE,length=SIZE" and so on after it.
    """
    params = api.NamespaceAdd(
        # The daemon's working directory is another.
        Target.parse(target).absolute.text,
        nsid,
        size,
        int(block_size) if block_size else None,
        read_only,
        shared,
    )
    show(call(name, api.NAMESPACE_ADD, params))


@namespace.command()
@name_argument
@nsid_argument
@output_option
def attach(name: str, nsid: int, show: Show) -> None:
    """Share the namespace NSID of another controller of its subsystem with the controller NAME."""
    show(call(name, api.NAMESPACE_ATTACH, api.NamespaceAttach(nsid)))


@namespace.command()
@name_argument
@nsid_argument
@click.option("--all", "everywhere", is_flag=True, help="From every controller that shares it.")
@output_option
def remove(name: str, nsid: int, everywhere: bool, show: Show) -> None:
    """Detach the namespace NSID from the controller NAME, when its I/O is done."""
    show(call(name, api.NAMESPACE_REMOVE, api.NamespaceRemove(nsid, everywhere)))


@namespace.command()
@name_argument
@nsid_argument
@click.argument("size", type=SIZE)
@output_option
def resize(name: str, nsid: int, size: int, show: Show) -> None:
    """Give the namespace NSID of the controller NAME, and its image file, another SIZE.

    What lies beyond the new end of a smaller one is lost. A block device is resized where it is
    made; its namespace follows by itself.
    """
    show(call(name, api.NAMESPACE_RESIZE, api.NamespaceResize(nsid, size)))


@namespace.command("set")
@name_argument
@nsid_argument
@click.argument("limits", metavar="LIMIT=RATE[:BURST]...", nargs=-1, required=True)
@output_option
def set_limits(name: str, nsid: int, limits: tuple[str, ...], show: Show) -> None:
    """Change limits of the namespace NSID of the controller NAME, for all that share it.

    LIMIT is iops or bps, of everything, or read-iops, write-iops, read-bps, write-bps. RATE is
    commands or bytes (100M) a second, or off; BURST what can be used at once after a rest, a tenth
    of a second's worth when it is left out.
    """
    changes: dict[str, int | str | None] = dict(split_limits(limits))
    show(call(name, api.NAMESPACE_SET, api.NamespaceSet(nsid, changes)))
