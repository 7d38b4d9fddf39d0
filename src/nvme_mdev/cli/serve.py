"""``nvme-mdev serve``: one virtual NVMe controller, in the foreground."""

from __future__ import annotations

import logging
import os
import resource
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from nvme_mdev.cli.controller_options import controller_options, medium_options
from nvme_mdev.cli.loading import loading
from nvme_mdev.cli.parameters import CPUS
from nvme_mdev.errors import UserError
from nvme_mdev.service.definition import (
    DEFAULT_IO_TIMEOUT_MS,
    DEFAULT_POLL_TIMEOUT_MS,
    Definition,
)
from nvme_mdev.service.endpoint import control_path, socket_path
from nvme_mdev.service.limits import split_limits
from nvme_mdev.service.runtime import check_name
from nvme_mdev.service.settings import MAX_TIMEOUT_MS
from nvme_mdev.service.standard_error import standard_error
from nvme_mdev.service.targets import Access, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option(
    "--socket",
    "sockets",
    required=True,
    multiple=True,
    metavar="PATH",
    help="Unix socket to serve on; a directory (or DIR/) means DIR/cntrl. Several: as many"
    " controllers, which share the namespaces.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="What list, show, ... call the controller, for each socket.  [default: the socket's stem]",
)
@click.option("--control", metavar="PATH", help="Control socket.  [default: SOCKET.ctl]")
@click.option("--no-control", is_flag=True, help="No control socket.")
@medium_options
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="LIMIT=RATE[:BURST]",
    help="Of each namespace, a second: iops or bps, of everything, or read-iops, write-bps, ...;"
    " burst: at once after a rest.",
)
@controller_options
@click.option(
    "--iothread-cpu",
    type=CPUS,
    metavar="N[,N...]",
    help="Pin the polling thread to this CPU, or each to its own.",
)
@click.option(
    "--shadow-doorbell/--no-shadow-doorbell",
    default=True,
    show_default=True,
    help="Offer Doorbell Buffer Config.",
)
@click.option(
    "--mapped-doorbells/--no-mapped-doorbells",
    default=True,
    show_default=True,
    help="Let the client map the doorbell registers.",
)
@click.option(
    "--poll-timeout-ms",
    type=click.IntRange(0, MAX_TIMEOUT_MS),
    default=DEFAULT_POLL_TIMEOUT_MS,
    metavar="MS",
    show_default=True,
    help="Poll this long after the last command before going to sleep.",
)
@click.option(
    "--io-timeout-ms",
    type=click.IntRange(1, MAX_TIMEOUT_MS),
    default=DEFAULT_IO_TIMEOUT_MS,
    metavar="MS",
    show_default=True,
    help="Cancel I/O that the host has not completed by then.",
)
@click.option(
    "--allow-erase",
    is_flag=True,
    help="Offer Format NVM and Sanitize: the guest can erase the whole medium.",
)
@click.option(
    "--keeper/--no-keeper",
    default=True,
    show_default=True,
    help="Start again when killed, and carry on under the running guest.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the client does, too.")
def serve(
    *,
    targets: tuple[str, ...],
    sockets: tuple[str, ...],
    names: tuple[str, ...],
    control: str | None,
    no_control: bool,
    size: int | None,
    block_size: str | None,
    read_only: bool,
    limits: tuple[str, ...],
    keeper: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Serve TARGETs as a virtual NVMe controller, or, on several sockets, as several.

    They are its namespaces 1, 2, ... A TARGET is an image file, a block device, a namespace or
    partition of an NVMe controller (/dev/nvme0/n1p3), null:SIZE (no medium, for measuring) or
    memory:SIZE (lost at exit). ",offset=SIZE,length=SIZE", ",read-only", ",block-size=4096" and
    ",key-file=PATH" (encrypted) can follow it. Sizes take K, M, G and T, which are powers of 1024.
    Stop with Ctrl-C.
    """
    if no_control and control is not None:
        raise UserError("--control and --no-control exclude each other: give one of them")
    paths = [socket_path(socket) for socket in sockets]
    if len({path.absolute() for path in paths}) < len(paths):
        raise UserError("a --socket is given twice: each controller needs one of its own")
    definition = Definition(
        targets=tuple(Target.parse(text) for text in targets),
        socket=paths[0],
        control=None if no_control else control_path(control, paths[0]),
        access=Access(
            size, int(block_size) if block_size else None, read_only, split_limits(limits)
        ),
        **settings,
    )
    definitions = [
        replace(definition, socket=path, name=name)
        for path, name in zip(paths, _names(names, len(paths)), strict=True)
    ]
    _raise_descriptor_limit()
    if keeper and "NOTIFY_SOCKET" not in os.environ:
        # systemd, or a keeper, is not there: be one.
        from nvme_mdev.service.keeper import Keeper

        context = click.get_current_context()
        keeping = Keeper([sys.executable, "-m", "nvme_mdev.cli.main", *context.obj])
        status = keeping.run(serve_here=list(context.obj) == sys.argv[1:])
        if status is not None:
            context.exit(status)
    _configure_logging(verbose)
    _load_daemon()(definitions)


def _load_daemon() -> Callable[[Sequence[Definition]], None]:
    """Import the data path and all that serves it; a wrong argument is answered without it."""
    with loading():
        from nvme_mdev.service.daemon import serve_until_stopped
    return serve_until_stopped


def _raise_descriptor_limit() -> None:
    """As many file descriptors as the system allows: each controller has a dozen and its client's.

    The soft limit is for programs that use select(), which this one does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _names(given: tuple[str, ...], sockets: int) -> list[str | None]:
    """A name for each socket, None where it has that of the socket."""
    if not given:
        return [None] * sockets
    if len(given) != sockets:
        raise UserError(f"{len(given)} --name for {sockets} --socket: give as many")
    if len(set(given)) < len(given):
        raise UserError("a --name is given twice: each controller needs one of its own")
    return [check_name(name) for name in given]


class _Lines(logging.Handler):
    """To standard error, without waiting for it."""

    def emit(self, record: logging.LogRecord) -> None:
        standard_error.say(self.format(record))


def _configure_logging(verbose: bool) -> None:
    handler = _Lines()
    root = logging.getLogger("nvme_mdev")
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
