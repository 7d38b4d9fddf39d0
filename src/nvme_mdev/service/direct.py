"""Direct targets: namespaces and partitions of an NVMe controller, past the host's block layer.

======================================  ==========================================================
target                                  how commands reach the controller
======================================  ==========================================================
``direct:/dev/nvme0n1p3``               the queues of the kernel's driver (io_uring passthrough)
``direct:/dev/nvme0/n1p3``              the same, by the controller (or its PCI address) and number
``direct:vfio-user:SOCKET/n1p3``        queue pairs of our own, on a vfio-user controller
``direct:vfio:0000:44:00.0/n1p3``       queue pairs of our own, on a drive bound to vfio-pci
======================================  ==========================================================

With queue pairs of our own, without ``/n...`` it is namespace 1. One driver holds a controller for
all targets of this process; the controller is let go of with the last of them.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError
from nvme_mdev.service.parents import Part, is_controller

if TYPE_CHECKING:
    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.host.parent import Parent

PREFIX = "direct:"
VFIO_USER = "vfio-user:"
VFIO = "vfio:"
_PART = re.compile(r"(.+)/n([1-9]\d*)(?:p([1-9]\d*))?", re.ASCII | re.DOTALL)

_parents: dict[str, Parent] = {}
"""By address: the controllers that this process holds."""


@dataclass(frozen=True, slots=True)
class DirectName:
    """A direct target, taken apart."""

    scheme: str
    """``vfio-user:``, ``vfio:``, or empty for the kernel's driver."""
    controller: str
    """The socket's path, the PCI address, or what names a namespace of the kernel's driver."""
    nsid: int = 1
    partition: int | None = None

    @classmethod
    def parse(cls, name: str) -> DirectName:
        """Take ``direct:...`` apart; UserError: it is none of those above."""
        rest = name.removeprefix(PREFIX)
        scheme = next((one for one in (VFIO_USER, VFIO) if rest.startswith(one)), "")
        controller = rest.removeprefix(scheme)
        if not controller:
            raise UserError(
                f"{name}: write direct:/dev/nvme0n1p1, direct:vfio-user:SOCKET/n1 or"
                " direct:vfio:0000:44:00.0/n1"
            )
        if not scheme and is_controller(controller):
            raise UserError(_which_namespace(name))
        if not scheme:
            return cls(scheme, controller)
        match = _PART.fullmatch(controller)
        if match is None:
            return cls(scheme, controller)
        return cls(scheme, match[1], int(match[2]), int(match[3]) if match[3] else None)

    @property
    def absolute(self) -> DirectName:
        """With an absolute path, which means the same to every process."""
        if self.scheme == VFIO or (not self.scheme and Part.parse(self.controller)):
            return self
        return DirectName(
            self.scheme, str(Path(self.controller).absolute()), self.nsid, self.partition
        )

    @property
    def address(self) -> str:
        """The controller, as `nvme_mdev.host.driver.NvmeHost` knows it."""
        if self.scheme == VFIO_USER:
            return str(Path(self.controller).resolve())
        return self.scheme + self.controller.lower()

    def __str__(self) -> str:
        if not self.scheme:
            return f"{PREFIX}{self.controller}"
        part = "" if self.partition is None else f"p{self.partition}"
        return f"{PREFIX}{self.scheme}{self.controller}/n{self.nsid}{part}"


def check_path(name: str) -> None:
    """UserError: a target that is not direct names a controller, which is no file.

    A file of that name can be had as ``./NAME``.
    """
    if name.startswith((VFIO, VFIO_USER)):
        raise UserError(f"{name} is a controller that we drive ourselves: write {PREFIX}{name}")
    if is_controller(name):
        raise UserError(_which_namespace(name))


def _which_namespace(name: str) -> str:
    return (
        f"{name} is an NVMe controller: name a namespace of it ({name}/n1), or a partition"
        f" ({name}/n1p1)"
    )


def open_direct(
    text: str,
    name: DirectName,
    *,
    block_size: int | None,
    read_only: bool,
    offset: int,
    length: int | None,
) -> Backend:
    """Attach to the controller, unless this process holds it already, and claim the part.

    ``text``: the target as it was written. UserError: it cannot be had.
    """
    from nvme_mdev.host.errors import HostError

    if not name.scheme:
        return _open_passthrough(
            text,
            name.controller,
            block_size=block_size,
            read_only=read_only,
            offset=offset,
            length=length,
        )
    try:
        parent = _parent(name.address)
        try:
            backend = parent.open(
                text, name.nsid, name.partition, offset=offset, length=length, read_only=read_only
            )
            if block_size not in {None, backend.block_size}:
                backend.close()
                raise ValueError(
                    f"its blocks have {backend.block_size} bytes: leave block-size out"
                )
        except BaseException:
            parent.close_if_unused()
            raise
    except HostError as error:
        raise UserError(_line(text, name, str(error))) from error
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise UserError(f"{text}: {error.strerror}: a namespace needs a part of its own") from error
    except ValueError as error:
        raise UserError(f"{text}: {error}") from error
    return backend


def _open_passthrough(
    text: str,
    controller: str,
    *,
    block_size: int | None,
    read_only: bool,
    offset: int,
    length: int | None,
) -> Backend:
    """On the queues of the kernel's driver; OSError: as the kernel says."""
    from nvme_mdev.datapath.backends.kernel_drive import NoCharacterDeviceError, open_drive
    from nvme_mdev.datapath.backends.passthru import PassthruBackend

    part = Part.parse(controller)
    path = str(part.block_device()) if part is not None else controller
    try:
        drive = open_drive(path, read_only=read_only, offset=offset, length=length)
    except NoCharacterDeviceError as error:
        if Path(path).is_char_device():
            raise UserError(
                f"{text}: {error.strerror}: give that of a namespace or partition"
                " (direct:/dev/nvme0n1p1)"
            ) from error
        raise UserError(f"{text}: {error.strerror}: serve it without direct:") from error
    if block_size not in {None, drive.namespace.block_size}:
        drive.close()
        size = drive.namespace.block_size
        raise UserError(f"{text}: its blocks have {size} bytes: leave block-size out")
    return PassthruBackend(drive)


def _line(text: str, name: DirectName, error: str) -> str:
    """The driver's errors name the controller already, most of them."""
    return error if name.address in error or name.controller in error else f"{text}: {error}"


def _parent(address: str) -> Parent:
    from nvme_mdev.host.parent import Parent

    if address not in _parents:
        _parents[address] = Parent(address, on_close=_forget)
    return _parents[address]


def held_parents() -> list[Parent]:
    """The controllers whose queues this process has set aside."""
    return list(_parents.values())


def _forget(parent: Parent) -> None:
    _parents.pop(parent.address, None)
