"""``nvme-mdev host-attach`` and ``host-detach``: a namespace as a block device of this host."""

from __future__ import annotations

import ctypes
import re
import signal
import threading
from typing import TYPE_CHECKING

import click

from nvme_mdev.errors import UserError
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from nvme_mdev.host.block_device import BlockDevice

_DEVICE = re.compile(r"(?:/dev/ublkb)?(\d+)", re.ASCII)
_LOOK_S = 0.5
"""Between two looks whether the device and its controller are still there."""
_PR_SET_IO_FLUSHER = 57
_MEMORY = 16 << 20
"""Bytes for queues and admin data; requests have memory of their own."""


@click.command("host-attach")
@click.argument("controller")
@click.option(
    "--nsid", type=click.IntRange(min=1), default=1, show_default=True, help="The namespace."
)
@click.option(
    "--id",
    "number",
    type=click.IntRange(0, 1 << 20),
    metavar="N",
    help="Be /dev/ublkbN, or go on with the one that waits.  [default: the lowest free one]",
)
@click.option(
    "--queues",
    type=click.IntRange(1, 128),
    default=1,
    metavar="N",
    show_default=True,
    help="Queue pairs, each with a thread.",
)
@click.option(
    "--depth",
    type=click.IntRange(1, 4095),
    default=128,
    metavar="N",
    show_default=True,
    help="Requests of a queue at a time.",
)
@click.option("--read-only", is_flag=True, help="The host cannot write to it.")
def host_attach(
    *,
    controller: str,
    nsid: int,
    number: int | None,
    queues: int,
    depth: int,
    read_only: bool,
) -> None:
    """Give a namespace of CONTROLLER to this host, as the block device /dev/ublkbN.

    CONTROLLER is a controller's name (see list), the path of its socket, or vfio:0000:44:00.0, a
    drive bound to vfio-pci. It runs until Ctrl-C, or until host-detach. When it is killed, or the
    controller goes away, the device waits for the next host-attach with its --id.
    """
    from nvme_mdev.host.block_device import BlockDevice
    from nvme_mdev.host.driver import NvmeHost

    with NvmeHost(_address(controller), memory_size=_MEMORY, shadow_doorbells=False) as host:
        device = BlockDevice(host, nsid)
        try:
            _flush_io()
            resized = device.attach(number=number, queues=queues, depth=depth, read_only=read_only)
            size = format_size(device.namespace.size)
            click.echo(
                f"nvme-mdev: {device.path}: ready (namespace {nsid} of {controller}, {size})",
                err=True,
            )
            _say(resized)
            _until_detached(device)
        finally:
            device.leave()


@click.command("host-detach")
@click.argument("device")
def host_detach(device: str) -> None:
    """Take the block device DEVICE (/dev/ublkbN, or N) away again; it must not be in use."""
    from nvme_mdev.host.block_device import detach

    match = _DEVICE.fullmatch(device)
    if match is None:
        raise UserError(f"{device}: give /dev/ublkbN, or N")
    detach(int(match[1]))


def _address(controller: str) -> str:
    """What the host driver attaches to: a name is that of a controller that is served."""
    from nvme_mdev.service import api
    from nvme_mdev.service.client import ControlClient
    from nvme_mdev.service.direct import VFIO
    from nvme_mdev.service.runtime import runtime_directory

    directory = runtime_directory()
    if controller.startswith(VFIO) or "/" in controller or directory is None:
        return controller
    link = directory / controller
    if not link.exists():
        return controller
    with ControlClient(link) as client:
        found = client.call(api.CONTROLLER_SHOW, api.OfController(controller))
    return found.summary.socket


def _flush_io() -> None:
    """Memory that this process needs must not be made by writing to its own device (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def _say(line: str | None) -> None:
    if line is not None:
        click.echo(f"nvme-mdev: {line}", err=True)


class _Signals:
    """How often this process was asked to end."""

    def __init__(self) -> None:
        self.count = 0
        self.changed = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.count += 1
        self.changed.set()

    def wait(self) -> int:
        """The number, after a moment or when it has changed."""
        self.changed.wait(_LOOK_S)
        self.changed.clear()
        return self.count


def _until_detached(device: BlockDevice) -> None:
    """Until the device is stopped; a signal stops it, the second leaves one that is in use."""
    from nvme_mdev.host.block_device import detach, is_in_use
    from nvme_mdev.host.errors import HostError

    waits = (
        f"{device.path} waits for `nvme-mdev host-attach ... --id {device.number}`, or for"
        " host-detach"
    )
    signals = _Signals()
    seen = 0
    try:
        while device.is_served():
            _say(device.follow())
            count = signals.wait()
            if count == seen:
                continue
            seen = count
            if not is_in_use(device.number):
                threading.Thread(target=detach, args=[device.number], daemon=True).start()
            elif count > 1:
                raise UserError(waits)
            else:
                _say(f"{device.path} is in use: unmount it, or stop the program that holds it")
    except HostError as error:
        raise UserError(f"{error}: {waits}") from error
