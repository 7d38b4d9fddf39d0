"""What controllers can be made of, of which types, and how many more: ``nvme-mdev types``.

As NVME MDEV's ``mdev_supported_types`` and ``available_instances``: a controller of type
``nvme-NQ_V1`` takes N host queues of its parent. What a host queue is depends on the parent:

==========================  =================================================================
parent                      its host queues
==========================  =================================================================
a drive of the kernel's     the queues that its driver polls (``nvme.poll_queues``)
``vfio:ADDRESS``            its I/O queue pairs, but for the one that is ours
``vfio-user:SOCKET``        likewise
a block device, a file      none: threads share what the kernel has
==========================  =================================================================
"""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient
from nvme_mdev.service.definition import MAX_IOTHREADS
from nvme_mdev.service.direct import VFIO, VFIO_USER, DirectName
from nvme_mdev.service.parents import SYSFS, controller_path
from nvme_mdev.service.runtime import entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_KERNEL_PARENT = re.compile(
    r"/dev/nvme\d+|[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]", re.ASCII
)


def type_name(host_queues: int) -> str:
    """The type of a controller that takes so many host queues."""
    return f"nvme-{host_queues}Q_V1"


def parent_types(names: Sequence[str], sysfs: Path = SYSFS) -> api.ParentTypes:
    """These parents; none given: the host's drives, and what daemons of this user have taken.

    UserError, HostError: one of them is not there, or does not answer.
    """
    held = {one.parent: one for one in _held_parents()}
    if names:
        return api.ParentTypes([_parent(name, held, sysfs) for name in names])
    drives = sorted((sysfs / "class/nvme").glob("nvme*"), key=lambda path: (len(path.name), path))
    return api.ParentTypes(
        [
            *(_kernel_drive(f"/dev/{drive.name}", drive.name, sysfs) for drive in drives),
            *(_own_queues(one) for _, one in sorted(held.items())),
        ]
    )


def _parent(name: str, held: dict[str, api.ParentQueues], sysfs: Path) -> api.ParentInfo:
    if name.startswith((VFIO, VFIO_USER)):
        address = DirectName.parse(name).address
        written = _written(address)
        return _own_queues(held.get(written) or _ask(address, written))
    if _KERNEL_PARENT.fullmatch(name):
        return _kernel_drive(name, controller_path(name, sysfs).name, sysfs)
    try:
        mode = Path(name).stat().st_mode
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    if stat.S_ISBLK(mode) or stat.S_ISREG(mode):
        return _info(name, "block" if stat.S_ISBLK(mode) else "file", None, 0)
    raise UserError(
        f"{name} is no parent: give an NVMe controller (/dev/nvme0, a PCI address, vfio:...,"
        " vfio-user:SOCKET), a block device or a file"
    )


def _kernel_drive(name: str, controller: str, sysfs: Path) -> api.ParentInfo:
    from nvme_mdev.datapath.backends.host_queues import polled_queues, taken_queues

    total = polled_queues(controller, sysfs)
    try:
        taken = taken_queues(controller, total) if total else 0
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    # Without polled queues direct mode shares those that the host uses itself.
    return _info(name, "nvme", total or None, taken)


def _own_queues(queues: api.ParentQueues) -> api.ParentInfo:
    kind = VFIO if queues.parent.startswith(VFIO) else VFIO_USER
    return _info(queues.parent, kind.rstrip(":"), queues.host_queues or 0, queues.taken)


def _info(parent: str, kind: str, total: int | None, taken: int) -> api.ParentInfo:
    left = None if total is None else max(total - taken, 0)
    most = MAX_IOTHREADS if total is None else min(total, MAX_IOTHREADS)
    return api.ParentInfo(
        parent,
        kind,
        total,
        left,
        [
            api.TypeInfo(type_name(queues), queues, None if left is None else left // queues)
            for queues in range(1, most + 1)
        ],
    )


def _ask(address: str, written: str) -> api.ParentQueues:
    """A controller that no daemon of ours holds: attach to it for a moment."""
    from nvme_mdev.host.driver import NvmeHost
    from nvme_mdev.host.parent import settable_aside

    with NvmeHost(address) as host:
        return api.ParentQueues(written, settable_aside(host), 0)


def _held_parents() -> Iterable[api.ParentQueues]:
    """Of every daemon that this user can ask, each once."""
    for control in {entry.control for entry in entries()}:
        with suppress(UserError), ControlClient(control) as client:
            yield from client.call(api.PARENT_LIST, api.NoParams()).parents


def _written(address: str) -> str:
    """A controller that our driver knows by this address, as targets name it."""
    return address if address.startswith(VFIO) else VFIO_USER + address


def held_here() -> api.ParentList:
    """The controllers whose queues this process has set aside."""
    from nvme_mdev.host.errors import HostError
    from nvme_mdev.service.direct import held_parents

    found = []
    for parent in held_parents():
        total: int | None = None
        with suppress(HostError):
            total = parent.host_queues
        found.append(api.ParentQueues(_written(parent.address), total, parent.taken_queues))
    return api.ParentList(found)
