"""Host queues of a drive that the kernel's driver runs, and how many of them are taken.

A queue that the driver polls (``nvme.poll_queues``) is one host queue, as in NVME MDEV, where such
queues were reserved. The kernel keeps no account of who polls, so that the daemons do: each
IOThread that serves direct namespaces of a drive locks a byte of the controller's character device,
byte n for host queue n. The locks end with the process; whoever may open the device can look.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nvme_mdev.datapath.backends.locks import is_locked, lock_range
from nvme_mdev.errors import UserError

SYSFS = Path("/sys")
DEV = Path("/dev")
_CONTROLLER = re.compile(r"nvme\d+", re.ASCII)
_OTHER_QUEUES = 2
"""The admin queue, and one I/O queue that is not polled: the driver keeps these in any case."""


def controller_of(disk: str, sysfs: Path = SYSFS) -> str | None:
    """The kernel's name of the controller that has a disk (``nvme0``), of several the first."""
    device = (sysfs / "block" / disk / "device").resolve()
    if _CONTROLLER.fullmatch(device.name):
        return device.name
    # With native multipath it is the subsystem, and the controllers are in it.
    names = [path.name for path in device.glob("nvme*") if _CONTROLLER.fullmatch(path.name)]
    return min(names, default=None)


def polled_queues(controller: str, sysfs: Path = SYSFS) -> int:
    """Queues of the controller that the driver polls."""
    folder = sysfs / "class/nvme" / controller
    wanted = _number(sysfs / "module/nvme/parameters/poll_queues")
    there = _number(folder / "queue_count")
    return max(0, min(wanted, there - _OTHER_QUEUES))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def taken_queues(controller: str, total: int, dev: Path = DEV) -> int:
    """How many of the host queues are taken (OSError: this user may not look)."""
    fd = os.open(dev / controller, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sum(is_locked(fd, number) for number in range(total))
    finally:
        os.close(fd)


@dataclass
class _Claim:
    fd: int
    users: int = 1


_claims: dict[tuple[str, object], _Claim] = {}
"""What this process has taken, by controller and owner."""


def take_queue(controller: str, owner: object, total: int, dev: Path = DEV) -> None:
    """Take one of ``total`` host queues for ``owner``, who keeps the one it has already.

    UserError: none is left. A user who may not open the controller's device is not counted.
    """
    claim = _claims.get((controller, owner))
    if claim is not None:
        claim.users += 1
        return
    fd = -1
    with suppress(OSError):
        fd = os.open(dev / controller, os.O_RDWR | os.O_CLOEXEC)
    if fd >= 0 and not any(lock_range(fd, number, 1) for number in range(total)):
        os.close(fd)
        raise UserError(
            f"no queue of {dev / controller} is left: all {total} that its driver polls are taken"
            " (nvme-mdev types): share an --iothread, give a smaller --type, or boot with a larger"
            " nvme.poll_queues"
        )
    _claims[controller, owner] = _Claim(fd)


def give_queue(controller: str, owner: object) -> None:
    """One use less; with the last it can be taken by others."""
    claim = _claims[controller, owner]
    claim.users -= 1
    if claim.users:
        return
    del _claims[controller, owner]
    if claim.fd >= 0:
        os.close(claim.fd)
