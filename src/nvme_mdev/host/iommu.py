"""What a PCI function behind VFIO sees of this process' memory, in the two forms the kernel has.

*iommufd* (``<linux/iommufd.h>``, Linux 6.6 and later where it is configured): the function has a
character device of its own, which is bound to a file of ``/dev/iommu`` and attached to an address
space in it. *Type 1* (``<linux/vfio.h>``), which every kernel with VFIO has so far: the function's
group is put into a container. Documentation/driver-api/vfio.rst describes both.

:func:`open_function` takes the first where the kernel has it and we may use it. What it returns is
the function's file, too: regions and interrupts are the same for both (:mod:`.vfio`).
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import struct
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.host.errors import AttachError

if TYPE_CHECKING:
    from typing import Final

SYSFS = Path("/sys")
DEV = Path("/dev")

#: Both headers number their requests _IO(';', n).
_VFIO, _IOMMUFD = 0x3B64, 0x3B80
_GET_API_VERSION, _CHECK_EXTENSION, _SET_IOMMU = _VFIO, _VFIO + 1, _VFIO + 2
_GROUP_GET_STATUS, _GROUP_SET_CONTAINER = _VFIO + 3, _VFIO + 4
_GROUP_GET_DEVICE_FD = _VFIO + 6
_MAP_DMA, _UNMAP_DMA = _VFIO + 13, _VFIO + 14
_DEVICE_BIND_IOMMUFD, _DEVICE_ATTACH_IOMMUFD_PT = _VFIO + 18, _VFIO + 19
_IOAS_ALLOC, _IOAS_MAP, _IOAS_UNMAP = _IOMMUFD + 1, _IOMMUFD + 5, _IOMMUFD + 6

_API_VERSION = 0
_TYPE1V2_IOMMU = 3
_GROUP_VIABLE = 1
_READ, _WRITE = 1, 2
_GROUP_STATUS = struct.Struct("@II")  # argsz, flags
_DMA_MAP = struct.Struct("@IIQQQ")  # argsz, flags, address, IOVA, size
_DMA_UNMAP = struct.Struct("@IIQQ")  # argsz, flags, IOVA, size

_IOAS_FIXED_IOVA, _IOAS_WRITEABLE, _IOAS_READABLE = 1, 2, 4
_BIND = struct.Struct("@IIiI")  # argsz, flags, iommufd, the device's number (out)
_ATTACH = struct.Struct("@III")  # argsz, flags, what to attach to
_ALLOC = struct.Struct("@III")  # size, flags, the address space's number (out)
_MAP = struct.Struct("@IIIIQQQ")  # size, flags, address space, 0, address, size, IOVA
_UNMAP = struct.Struct("@IIQQ")  # size, address space, IOVA, size


@dataclass(frozen=True)
class Place:
    """Where a function that vfio-pci has is found."""

    name: str
    """What messages call it."""
    address: str
    """Its PCI address."""
    group: str
    """Its IOMMU group."""
    sysfs: Path = SYSFS
    dev: Path = DEV

    @property
    def iommufd(self) -> Path:
        """What address spaces are made of, if the kernel has it (CONFIG_IOMMUFD)."""
        return self.dev / "iommu"

    @property
    def own_file(self) -> Path | None:
        """Its own character device, if the kernel makes one (CONFIG_VFIO_DEVICE_CDEV)."""
        entries = self.sysfs / "bus/pci/devices" / self.address / "vfio-dev"
        for entry in entries.glob("vfio*"):
            return self.dev / "vfio/devices" / entry.name
        return None

    @property
    def group_file(self) -> Path:
        """Its group's character device (CONFIG_VFIO_GROUP)."""
        return self.dev / "vfio" / self.group

    def held(self, path: Path) -> AttachError:
        """Somebody else has it."""
        return AttachError(f"{self.name}: another program holds it ({path}): stop that one first")

    def not_viable(self) -> AttachError:
        """A driver of the kernel's has a function that the IOMMU cannot tell from this one."""
        devices = self.sysfs / "kernel/iommu_groups" / self.group / "devices"
        members = ", ".join(sorted(path.name for path in devices.iterdir()))
        return AttachError(
            f"{self.name}: IOMMU group {self.group} is not viable: bind all its functions to"
            f" vfio-pci, or to no driver ({members})"
        )


class Function(ABC):
    """A PCI function's file, and what it may reach; released by :meth:`close`."""

    def __init__(self, opened: ExitStack, fd: int) -> None:
        self._opened = opened
        self.fd: Final = fd
        """The function's regions and interrupts (VFIO_DEVICE_*)."""

    @abstractmethod
    def map(self, address: int, iova: int, size: int, *, writable: bool) -> None:
        """Let the function see memory of this process. Raises OSError."""

    @abstractmethod
    def unmap(self, iova: int, size: int) -> None:
        """Take away what was mapped in a range of IOVAs, if anything was. Raises OSError."""

    def close(self) -> None:
        """Let go of it; the kernel resets the function and unmaps everything."""
        self._opened.close()


def open_function(place: Place) -> Function:
    """Open a function. Raises AttachError, which says what to do, or OSError."""
    own = place.own_file
    if own is not None:
        with_iommufd = _usable(own) and _usable(place.iommufd)
        if with_iommufd or not place.group_file.exists():
            return _open_with_iommufd(place, own)
    return _open_with_type1(place)


# -- iommufd -----------------------------------------------------------------------------------
class _WithIommufd(Function):
    def __init__(self, opened: ExitStack, fd: int, iommufd: int, ioas: int) -> None:
        super().__init__(opened, fd)
        self._iommufd = iommufd
        self._ioas = ioas

    def map(self, address: int, iova: int, size: int, *, writable: bool) -> None:
        flags = _IOAS_FIXED_IOVA | _IOAS_READABLE | (_IOAS_WRITEABLE if writable else 0)
        request = _MAP.pack(_MAP.size, flags, self._ioas, 0, address, size, iova)
        fcntl.ioctl(self._iommufd, _IOAS_MAP, bytearray(request))

    def unmap(self, iova: int, size: int) -> None:
        request = _UNMAP.pack(_UNMAP.size, self._ioas, iova, size)
        try:
            fcntl.ioctl(self._iommufd, _IOAS_UNMAP, bytearray(request))
        except OSError as error:
            if error.errno != errno.ENOENT:  # nothing was mapped
                raise


def _open_with_iommufd(place: Place, own: Path) -> _WithIommufd:
    with ExitStack() as opened:
        iommufd = _open(place, place.iommufd, opened)
        fd = _open(place, own, opened)
        try:
            bind = bytearray(_BIND.pack(_BIND.size, 0, iommufd, 0))
            fcntl.ioctl(fd, _DEVICE_BIND_IOMMUFD, bind)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise place.not_viable() from error
            if error.errno in (errno.EBUSY, errno.EINVAL):
                raise place.held(own) from error
            raise
        space = bytearray(_ALLOC.pack(_ALLOC.size, 0, 0))
        fcntl.ioctl(iommufd, _IOAS_ALLOC, space)
        ioas = int(_ALLOC.unpack(space)[2])
        fcntl.ioctl(fd, _DEVICE_ATTACH_IOMMUFD_PT, bytearray(_ATTACH.pack(_ATTACH.size, 0, ioas)))
        return _WithIommufd(opened.pop_all(), fd, iommufd, ioas)


# -- type 1 ------------------------------------------------------------------------------------
class _WithType1(Function):
    def __init__(self, opened: ExitStack, fd: int, container: int) -> None:
        super().__init__(opened, fd)
        self._container = container

    def map(self, address: int, iova: int, size: int, *, writable: bool) -> None:
        flags = _READ | (_WRITE if writable else 0)
        request = _DMA_MAP.pack(_DMA_MAP.size, flags, address, iova, size)
        fcntl.ioctl(self._container, _MAP_DMA, request)

    def unmap(self, iova: int, size: int) -> None:
        request = _DMA_UNMAP.pack(_DMA_UNMAP.size, 0, iova, size)
        fcntl.ioctl(self._container, _UNMAP_DMA, bytearray(request))


def _open_with_type1(place: Place) -> _WithType1:
    with ExitStack() as opened:
        container = _open(place, place.dev / "vfio/vfio", opened)
        group = _open(place, place.group_file, opened)
        _join(place, container, group)
        device = ctypes.create_string_buffer(place.address.encode())
        fd = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, device)
        opened.callback(os.close, fd)
        return _WithType1(opened.pop_all(), fd, container)


def _join(place: Place, container: int, group: int) -> None:
    """Put the group into the container, and the container to use."""
    if fcntl.ioctl(container, _GET_API_VERSION) != _API_VERSION:
        raise AttachError(f"{place.name}: this kernel speaks another version of VFIO")
    status = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
    fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    if not _GROUP_STATUS.unpack(status)[1] & _GROUP_VIABLE:
        raise place.not_viable()
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, array.array("i", [container]))
    if not fcntl.ioctl(container, _CHECK_EXTENSION, _TYPE1V2_IOMMU):
        raise AttachError(f"{place.name}: this machine's IOMMU is not one of type 1")
    fcntl.ioctl(container, _SET_IOMMU, _TYPE1V2_IOMMU)


# -- both --------------------------------------------------------------------------------------
def _usable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _open(place: Place, path: Path, opened: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise AttachError(f"{place.name}: there is no {path}: load vfio-pci") from error
    except PermissionError as error:
        raise AttachError(
            f"{place.name}: not allowed to open {path}: give yourself its group"
        ) from error
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise place.held(path) from error
    opened.callback(os.close, fd)
    return fd
