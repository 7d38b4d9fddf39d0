"""What a namespace is made of: a target as the user writes it, checked and opened.

A target is ``null:SIZE``, ``memory:SIZE``, or the path of an image file or block device (write
``./null:1G`` for a file of that name). Everything that can be wrong with one becomes a
`UserError` here; the backends below raise what the kernel told them.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nvme_mdev.datapath.backends.base import Backend

#: The smallest logical block, and what is assumed where the user and the medium do not say.
DEFAULT_BLOCK_SIZE = 512


@dataclass(frozen=True, slots=True)
class Target:
    """One namespace's target, as it was written."""

    text: str
    """The argument itself; for error messages and log lines."""
    kind: str
    """``null``, ``memory``, or ``path`` for an image file or block device."""
    size: int = 0
    """Bytes of a null or memory target."""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read an argument; UserError when its size is none. A path is not looked at yet."""
        kind, colon, size = text.partition(":")
        if colon and kind in {"null", "memory"}:
            try:
                return cls(text, kind, parse_size(size))
            except UserError as error:
                raise UserError(f"{text}: {error}") from None
        if not text:
            raise UserError("a target is empty: give an image file or block device")
        return cls(text, "path")

    @property
    def absolute(self) -> Target:
        """With an absolute path, which means the same to every process."""
        return Target(str(Path(self.text).absolute()), "path") if self.kind == "path" else self

    @property
    def identity(self) -> str:
        """The same at each start: the absolute path, or the argument where there is no path.

        Links are not followed: /dev/disk/by-id/... stays what it is when the device is sdb one day
        and sdc the next.
        """
        return os.path.abspath(self.text) if self.kind == "path" else self.text  # noqa: PTH100


@dataclass(frozen=True, slots=True)
class Access:
    """How targets are opened; the same for all namespaces of a controller."""

    create_size: int | None = None
    """Bytes of an image that is made when it is not there yet."""
    block_size: int | None = None
    """Logical block size in bytes; None: what fits the medium."""
    read_only: bool = False


def open_targets(
    targets: Sequence[Target],
    access: Access,
    rollback: ExitStack,
    memory: Mapping[int, int] | None = None,
) -> list[Backend]:
    """Open all targets, in order, or none; UserError for what the user can put right.

    The caller closes the backends. ``rollback`` learns how to remove the images that were created.
    ``memory``: by NSID, the memory of memory targets that a process before us has served.
    """
    _check_access(targets, access)
    backends: list[Backend] = []
    seen: dict[tuple[int, int, int], Target] = {}
    with ExitStack() as opened:
        for nsid, target in enumerate(targets, 1):
            if target.kind == "path":
                _prepare_path(target, access, rollback)
                first = seen.setdefault(_file_identity(target), target)
                if first is not target:
                    raise UserError(_twice(first, target))
            backends.append(_open(target, access, (memory or {}).get(nsid)))
            opened.callback(backends[-1].close)
        opened.pop_all()
    return backends


def _twice(first: Target, second: Target) -> str:
    names = second.text if first.text == second.text else f"{first.text} and {second.text}"
    return f"{names}: the same file or device twice: a namespace needs one of its own"


def _check_access(targets: Sequence[Target], access: Access) -> None:
    paths = [target for target in targets if target.kind == "path"]
    block_size = access.block_size or DEFAULT_BLOCK_SIZE
    for target in targets:
        if target.kind != "path" and target.size % block_size:
            raise UserError(f"{target.text}: the size must be a multiple of {block_size} bytes")
        if target.kind != "path" and access.read_only:
            raise UserError(f"{target.text}: --read-only is for image files and block devices")
    if access.create_size is None:
        return
    if not paths:
        raise UserError(f"--size makes image files, and {targets[0].text} is none: leave it out")
    if access.create_size % block_size:
        raise UserError(
            f"--size {access.create_size} is not a multiple of the block size,"
            f" {block_size} bytes: round it up"
        )


def _prepare_path(target: Target, access: Access, rollback: ExitStack) -> None:
    """Look at what is there, and make the image if it is not there and a size was given."""
    path = Path(target.text)
    try:
        status = path.stat()
    except FileNotFoundError:
        _create_image(path, access, rollback)
        return
    except (OSError, ValueError) as error:
        raise UserError(_why_not_opened(target, access, error)) from error
    _check_type(target, status)
    if stat.S_ISREG(status.st_mode):
        _check_image_size(target, access, status.st_size)
    elif access.create_size is not None:
        raise UserError(f"{path} is a block device, its size is given: leave --size out")


def _check_type(target: Target, status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    if stat.S_ISDIR(mode):
        what = "a directory"
    elif stat.S_ISCHR(mode):
        what = "a character device"
    else:
        what = "neither a file nor a block device"
    raise UserError(f"{target.text} is {what}: give an image file or a block device")


def _check_image_size(target: Target, access: Access, size: int) -> None:
    block_size = access.block_size or DEFAULT_BLOCK_SIZE
    if access.create_size is not None and access.create_size != size:
        raise UserError(
            f"{target.text} exists with {size} bytes, not {access.create_size}: leave --size out,"
            " or resize it first (truncate, qemu-img)"
        )
    if size < block_size:
        raise UserError(
            f"{target.text} is too small: {size} bytes are less than one block of {block_size}:"
            " make it larger (truncate) or give another file"
        )


def _create_image(path: Path, access: Access, rollback: ExitStack) -> None:
    if access.create_size is None:
        raise UserError(f"{path} does not exist: give --size to create it (such as --size 10G)")
    if access.read_only:
        raise UserError(f"{path} does not exist and --read-only cannot create it: leave one out")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        raise UserError(f"{path.parent} does not exist: create that directory first") from None
    except OSError as error:
        raise UserError(f"cannot create {describe_os_error(error)}") from error
    rollback.callback(path.unlink, missing_ok=True)
    try:
        os.ftruncate(fd, access.create_size)
    except OSError as error:
        if error.errno not in {errno.EFBIG, errno.EINVAL}:
            raise
        size = format_size(access.create_size)
        raise UserError(
            f"{path}: its file system holds no file of {size}: give a smaller --size"
        ) from error
    finally:
        os.close(fd)


def _file_identity(target: Target) -> tuple[int, int, int]:
    """Equal for two names of one file or one device."""
    status = Path(target.text).stat()
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev, 0, stat.S_IFBLK)
    return (status.st_dev, status.st_ino, stat.S_IFREG)


def _open(target: Target, access: Access, memory: int | None) -> Backend:
    """Open the backend; the modules are imported as they are used."""
    try:
        if target.kind == "null":
            from nvme_mdev.datapath.backends.null import NullBackend

            return NullBackend(target.size, access.block_size or DEFAULT_BLOCK_SIZE)
        if target.kind == "memory":
            from nvme_mdev.datapath.backends.memory import MemoryBackend

            return MemoryBackend(target.size, access.block_size or DEFAULT_BLOCK_SIZE, memory)
        from nvme_mdev.datapath.backends.uring import UringBackend

        return UringBackend(target.text, block_size=access.block_size, read_only=access.read_only)
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise UserError(_why_not_opened(target, access, error)) from error


def _why_not_opened(target: Target, access: Access, error: Exception) -> str:
    """What to tell the user about an error that opening a target raised."""
    name = target.text
    if target.kind == "memory" and not isinstance(error, ValueError):
        return f"{name}: there is not that much memory: give a smaller size"
    if not isinstance(error, OSError):
        return str(error) if name in str(error) else f"{name}: {error}"
    match error.errno:
        case errno.EBUSY if Path(name).is_block_device():
            return f"{name} is in use: unmount it, or stop the program that holds it"
        case errno.EBUSY:
            return f"{name} is in use by another nvme-mdev: stop that one first"
        case errno.EACCES | errno.EPERM | errno.EROFS if not access.read_only:
            if os.access(name, os.R_OK):
                return f"{name} is not writable: change its mode, or serve it with --read-only"
        case errno.ENXIO | errno.ENODEV:
            return f"{name}: there is no device behind this node: check the name"
        case errno.ENOTDIR:
            return f"{name}: a part of the path is not a directory: check the name"
        case _:
            pass
    return describe_os_error(OSError(error.errno, error.strerror or str(error), name))
