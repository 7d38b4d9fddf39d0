"""What a namespace is made of: a target as the user writes it, checked and opened.

A target is ``null:SIZE``, ``memory:SIZE``, the path of an image file or block device (write
``./null:1G`` for a file of that name), or a namespace or partition of one of the host's NVMe
controllers (``/dev/nvme0/n1p3``, ``0000:44:00.0/n1``; `nvme_mdev.service.parents`). Options follow
it, as in ``disk.img,offset=1G,length=4G,read-only``. Everything that can be wrong with one becomes
a `UserError` here; the backends below raise what the kernel told them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.controller import ptpl
from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.service.direct import PREFIX as DIRECT
from nvme_mdev.service.direct import DirectName, check_path, open_direct
from nvme_mdev.service.limits import LIMIT_OPTIONS, change_limits, parse_limits
from nvme_mdev.service.parents import Part
from nvme_mdev.units import MAX_SIZE, format_size, parse_duration_ns, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.limits import Limit

#: The smallest logical block, and what is assumed where the user and the medium do not say.
DEFAULT_BLOCK_SIZE = 512
BLOCK_SIZES = ("512", "4096")
SWITCH = {"on": True, "off": False}
_HUGE_PAGES = "{}: huge-pages is for memory targets"
_NO_KEY = "{}: key-file is for image files and block devices, whose data it encrypts: leave it out"

_OPTION = re.compile(
    r"(.*),(?:(read-only|huge-pages)"
    r"|(offset|length|block-size|inline-io|latency|ptpl-file|key-file"
    rf"|{'|'.join(LIMIT_OPTIONS)})=([^,]*))",
    re.DOTALL,
)
"""The last option of a target; what does not end so is a name to the end."""
_LOOKS_LIKE_OPTION = re.compile(r",([a-z-]+)(?:=[^,]*)?$")


@dataclass(frozen=True, slots=True)
class Options:
    """What follows a target's name; None: not given."""

    offset: int | None = None
    """Byte of the file or device that is the namespace's first."""
    length: int | None = None
    """Bytes of it that are the namespace; None: all to its end, wherever that is."""
    block_size: int | None = None
    read_only: bool = False
    inline_io: bool | None = None
    """Short I/O is done within the system call; None: where the medium answers at once."""
    huge_pages: bool = False
    """A memory target is in huge pages that were reserved."""
    latency_ns: int = 0
    """How long a null namespace takes for a command."""
    ptpl_file: str | None = None
    """Where reservations are kept through a stop of the daemon."""
    key_file: str | None = None
    """Where the key is with which the data is encrypted; None: it is not."""
    limits: tuple[tuple[str, Limit | None], ...] = ()
    """By name; None: none, whatever the others have."""

    @classmethod
    def split(cls, text: str) -> tuple[str, Options]:
        """A target without its options, and these; UserError: one that makes no sense."""
        found: dict[str, str] = {}
        while match := _OPTION.fullmatch(text):
            text, flag, name, value = match.groups()
            if (flag or name) in found:
                raise UserError(f"{text}: {flag or name} is given twice")
            found[flag or name] = value or ""
        block_size = found.get("block-size")
        if block_size is not None and block_size not in BLOCK_SIZES:
            raise UserError(f"{text}: block-size={block_size}: use 512 or 4096")
        inline_io = found.get("inline-io")
        if inline_io is not None and inline_io not in SWITCH:
            raise UserError(f"{text}: inline-io={inline_io}: use on or off")
        if found.get("ptpl-file") == "":
            raise UserError(
                f"{text}: ptpl-file= names no file: give one for the reservations, or leave it out"
            )
        if found.get("key-file") == "":
            raise UserError(f"{text}: key-file= names no file: give one, or leave it out")
        if inline_io == "on" and "key-file" in found:
            raise UserError(
                f"{text}: inline-io=on is not for encrypted namespaces (key-file): leave one out"
            )
        offset = found.get("offset")
        length = found.get("length")
        return text, cls(
            None if offset is None else _parse_option(text, "offset", offset),
            None if length is None else _parse_option(text, "length", length),
            None if block_size is None else int(block_size),
            "read-only" in found,
            None if inline_io is None else SWITCH[inline_io],
            "huge-pages" in found,
            _parse_latency(text, found["latency"]) if "latency" in found else 0,
            found.get("ptpl-file"),
            found.get("key-file"),
            tuple(_parse_limits(text, found).items()),
        )

    @property
    def is_range(self) -> bool:
        """A part of the file or device."""
        return self.offset is not None or self.length is not None


def _parse_option(target: str, name: str, value: str) -> int:
    if name == "offset" and value == "0":
        return 0
    try:
        return parse_size(value)
    except UserError as error:
        raise UserError(f"{target}: {name}={error}") from None


def _parse_limits(target: str, found: Mapping[str, str]) -> dict[str, Limit | None]:
    try:
        return parse_limits({name: found[name] for name in LIMIT_OPTIONS if name in found})
    except UserError as error:
        raise UserError(f"{target}: {error}") from None


def _parse_latency(target: str, value: str) -> int:
    if not target.startswith("null:"):
        raise UserError(
            f"{target}: latency is for null targets: they have no medium that takes time"
        )
    try:
        return parse_duration_ns(value)
    except UserError as error:
        raise UserError(f"{target}: latency={error}") from None


def _absolute_option(text: str, name: str, path: str | None) -> tuple[str, str | None]:
    """A target, and the option's path, with that path from the root."""
    if path is None:
        return text, None
    absolute = str(Path(path).absolute())
    return text.replace(f",{name}={path}", f",{name}={absolute}"), absolute


@dataclass(frozen=True, slots=True)
class Target:
    """One namespace's target, as it was written."""

    text: str
    """The argument itself; for error messages and log lines."""
    kind: str
    """``null``, ``memory``, ``direct``, or ``path`` for an image file or block device."""
    size: int = 0
    """Bytes of a null or memory target."""
    name: str = ""
    """The argument without its options: the path of a file or device."""
    options: Options = field(default_factory=Options)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read an argument; UserError when its size is none. A path is not looked at yet."""
        name, options = Options.split(text)
        kind, colon, size = name.partition(":")
        if colon and kind in {"null", "memory"}:
            if options.is_range or options.read_only or options.inline_io is not None:
                raise UserError(
                    f"{text}: offset, length, read-only and inline-io are for files and devices"
                )
            if options.huge_pages and kind == "null":
                raise UserError(_HUGE_PAGES.format(text))
            if options.key_file is not None:
                raise UserError(_NO_KEY.format(text))
            try:
                return cls(text, kind, parse_size(size), name, options)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        if options.huge_pages:
            raise UserError(_HUGE_PAGES.format(text))
        if name.startswith(DIRECT):
            DirectName.parse(name)
            if options.key_file is not None:
                raise UserError(_NO_KEY.format(text))
            if options.inline_io is not None:
                raise UserError(
                    f"{text}: inline-io is for files and block devices, and direct: goes past that:"
                    " leave it out"
                )
            return cls(text, "direct", 0, name, options)
        check_path(name)
        if not name:
            raise UserError("a target is empty: give an image file or block device")
        if "\0" in name:
            # Said here, since each version of Python words it in its own way.
            raise UserError(f"{name!r} has a null byte, which no path can: leave it out")
        return cls(text, "path", 0, name, options)

    @property
    def absolute(self) -> Target:
        """With an absolute path, which means the same to every process."""
        name, options = self.name, self.options
        if self.kind == "direct":
            name = str(DirectName.parse(self.name).absolute)
        elif self.kind == "path" and not Part.parse(self.name):
            name = str(Path(self.name).absolute())
        text = name + self.text[len(self.name) :]
        text, ptpl_file = _absolute_option(text, "ptpl-file", options.ptpl_file)
        text, key_file = _absolute_option(text, "key-file", options.key_file)
        options = replace(options, ptpl_file=ptpl_file, key_file=key_file)
        return replace(self, text=text, name=name, options=options)

    @property
    def identity(self) -> str:
        """The same at each start: the absolute path, or the argument where there is no path.

        Links are not followed: /dev/disk/by-id/... stays what it is when the device is sdb one day
        and sdc the next.
        """
        if self.kind in {"null", "memory"} or Part.parse(self.name):
            return self.name
        if self.kind == "direct":
            path = str(DirectName.parse(self.name).absolute)
        else:
            path = os.path.abspath(self.name)  # noqa: PTH100
        return f"{path}@{self.options.offset}" if self.options.offset else path

    @property
    def path(self) -> Path:
        """The file or device; UserError: a parent has no such part."""
        part = Part.parse(self.name)
        return Path(self.name) if part is None else part.block_device()


@dataclass(frozen=True, slots=True)
class Access:
    """How targets are opened; the same for all namespaces of a controller."""

    create_size: int | None = None
    """Bytes of an image that is made when it is not there yet."""
    block_size: int | None = None
    """Logical block size in bytes; None: what fits the medium."""
    read_only: bool = False
    limits: dict[str, str] = field(default_factory=dict)
    """Of each namespace, as typed: RATE[:BURST] by name."""

    def limits_of(self, target: Target) -> dict[str, Limit]:
        """Those of one target: its own come before those of all."""
        return change_limits({}, {**parse_limits(self.limits), **dict(target.options.limits)})

    def of(self, target: Target) -> Access:
        """How one target is opened: its own options come before those of all."""
        return replace(
            self,
            block_size=target.options.block_size or self.block_size,
            read_only=target.options.read_only or self.read_only,
        )


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
    for target in targets:
        _check_access(target, access)
    _check_creation(targets, access)
    backends: list[Backend] = []
    seen: list[_Place] = []
    with ExitStack() as opened:
        for nsid, target in enumerate(targets, 1):
            own = access.of(target)
            if target.kind == "path":
                _prepare_path(target, own, rollback)
                place = _Place.of(target)
                for other in seen:
                    if place.overlaps(other):
                        raise UserError(_twice(other.target, target))
                seen.append(place)
            backends.append(_open(target, own, (memory or {}).get(nsid)))
            opened.callback(backends[-1].close)
            backends[-1].ptpl_file = target.absolute.options.ptpl_file
        opened.pop_all()
    return backends


def check_ptpl_files(targets: Sequence[Target], served: Sequence[Target] = ()) -> None:
    """UserError: a file is not to be had for a namespace's reservations."""
    taken = {one.absolute.options.ptpl_file for one in served}
    for target in targets:
        path = target.absolute.options.ptpl_file
        if path is None:
            continue
        if path in taken:
            raise UserError(f"{target.text}: ptpl-file is another namespace's: give each its own")
        taken.add(path)
        _check_ptpl_file(target, Path(path))


def _check_ptpl_file(target: Target, path: Path) -> None:
    try:
        ptpl.load(str(path))
        if not path.parent.exists():
            raise UserError(
                f"{target.text}: ptpl-file: the directory {path.parent} does not exist: make it"
                " first, or give a file in another"
            )
        if not os.access(path.parent, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    except ValueError:
        raise UserError(
            f"{target.text}: ptpl-file={path} is no file of reservations: remove it, or give"
            " another"
        ) from None
    except OSError as error:
        raise UserError(
            f"{target.text}: ptpl-file: {describe_os_error(error)}: give a file in a directory that"
            " can be written"
        ) from error


@dataclass(frozen=True, slots=True)
class _Place:
    """The bytes of a file or device that a target takes."""

    target: Target
    identity: tuple[int, int, int]
    """Equal for two names of one file or one device."""
    start: int
    end: float

    @classmethod
    def of(cls, target: Target) -> _Place:
        status = target.path.stat()
        if stat.S_ISBLK(status.st_mode):
            identity = (status.st_rdev, 0, stat.S_IFBLK)
        else:
            identity = (status.st_dev, status.st_ino, stat.S_IFREG)
        start = target.options.offset or 0
        length = target.options.length
        return cls(target, identity, start, float("inf") if length is None else start + length)

    def overlaps(self, other: _Place) -> bool:
        return self.identity == other.identity and self.start < other.end and other.start < self.end


def _twice(first: Target, second: Target) -> str:
    names = second.text if first.text == second.text else f"{first.text} and {second.text}"
    if first.options.is_range or second.options.is_range:
        return f"{names} overlap: a namespace needs a part of its own"
    return f"{names}: the same file or device twice: a namespace needs one of its own"


def _check_access(target: Target, access: Access) -> None:
    """What can be seen to be wrong without looking at any file."""
    block_size = access.of(target).block_size or DEFAULT_BLOCK_SIZE
    made_up = target.kind in {"null", "memory"}
    if made_up and target.size % block_size:
        raise UserError(f"{target.text}: the size must be a multiple of {block_size} bytes")
    if made_up and access.read_only:
        raise UserError(f"{target.text}: --read-only is for image files and block devices")
    for name, value in (("offset", target.options.offset), ("length", target.options.length)):
        if value is not None and value % block_size:
            raise UserError(f"{target.text}: {name} must be a multiple of {block_size} bytes")


def _check_creation(targets: Sequence[Target], access: Access) -> None:
    if access.create_size is None:
        return
    if not 0 < access.create_size <= MAX_SIZE:
        raise UserError(f"--size {access.create_size}: a size is at least 1 and less than 8E bytes")
    images = [target for target in targets if target.kind == "path"]
    if not images:
        raise UserError(f"--size makes image files, and {targets[0].text} is none: leave it out")
    for target in images:
        if target.options.is_range:
            raise UserError(
                f"{target.text}: --size makes whole image files: make it first (truncate), or leave"
                " offset and length out"
            )
        block_size = access.of(target).block_size or DEFAULT_BLOCK_SIZE
        if access.create_size % block_size:
            raise UserError(
                f"--size {access.create_size} is not a multiple of the block size,"
                f" {block_size} bytes: round it up"
            )


def _prepare_path(target: Target, access: Access, rollback: ExitStack) -> None:
    """Look at what is there, and make the image if it is not there and a size was given."""
    path = target.path
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
    raise UserError(f"{target.name} is {what}: give an image file or a block device")


def _check_image_size(target: Target, access: Access, size: int) -> None:
    block_size = access.block_size or DEFAULT_BLOCK_SIZE
    if access.create_size is not None and access.create_size != size:
        raise UserError(
            f"{target.name} exists with {size} bytes, not {access.create_size}: leave --size out,"
            " or resize it first (truncate, qemu-img)"
        )
    if size < block_size:
        raise UserError(
            f"{target.name} is too small: {size} bytes are less than one block of {block_size}:"
            " make it larger (truncate) or give another file"
        )


def _create_image(path: Path, access: Access, rollback: ExitStack) -> None:
    if mistyped := _LOOKS_LIKE_OPTION.search(path.name):
        raise UserError(
            f"{path} does not exist, and {mistyped[1]} is no option of a target: there are offset=,"
            f" length=, block-size=, read-only, {'=, '.join(LIMIT_OPTIONS)}=, inline-io=,"
            " ptpl-file= and key-file="
        )
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


def _open(target: Target, access: Access, memory: int | None) -> Backend:
    """Open the backend; the modules are imported as they are used."""
    try:
        if target.kind == "null":
            from nvme_mdev.datapath.backends.null import NullBackend

            block_size = access.block_size or DEFAULT_BLOCK_SIZE
            return NullBackend(target.size, block_size, target.options.latency_ns)
        if target.kind == "memory":
            from nvme_mdev.datapath.backends.memory import MemoryBackend

            block_size = access.block_size or DEFAULT_BLOCK_SIZE
            return MemoryBackend(target.size, block_size, memory, target.options.huge_pages)
        if target.kind == "direct":
            return open_direct(
                target.text,
                DirectName.parse(target.name),
                block_size=access.block_size,
                read_only=access.read_only,
                offset=target.options.offset or 0,
                length=target.options.length,
            )
        if target.options.key_file is not None:
            return _open_encrypted(target, access, target.options.key_file)
        from nvme_mdev.datapath.backends.uring import UringBackend

        return UringBackend(
            str(target.path),
            block_size=access.block_size,
            read_only=access.read_only,
            offset=target.options.offset or 0,
            length=target.options.length,
            inline_io=target.options.inline_io,
        )
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise UserError(_why_not_opened(target, access, error)) from error


def _open_encrypted(target: Target, access: Access, key_file: str) -> Backend:
    """Only this needs libcrypto."""
    try:
        from nvme_mdev.datapath.backends.encrypted import EncryptedBackend
    except ImportError as error:
        raise UserError(
            f"{target.text}: key-file needs libcrypto ({error}): install it (apt install libssl3)"
        ) from error
    return EncryptedBackend(
        str(target.path),
        key_file,
        block_size=access.block_size,
        read_only=access.read_only,
        offset=target.options.offset or 0,
        length=target.options.length,
    )


def _why_not_opened(target: Target, access: Access, error: Exception) -> str:
    """What to tell the user about an error that opening a target raised."""
    name = str(target.path) if target.kind == "path" else target.name
    if target.kind == "direct" and isinstance(error, OSError) and error.filename:
        name = os.fspath(error.filename)
    key_file = target.options.key_file
    if isinstance(error, OSError) and key_file and error.filename == os.path.realpath(key_file):
        return f"{target.text}: key-file is another namespace's: give each its own"
    if target.options.huge_pages and not isinstance(error, ValueError):
        return (
            f"{target.text}: there are not so many free huge pages: reserve them (sysctl"
            " vm.nr_hugepages=N), or leave huge-pages out"
        )
    if target.kind == "memory" and not isinstance(error, ValueError):
        return f"{name}: there is not that much memory: give a smaller size"
    if not isinstance(error, OSError):
        return str(error) if name in str(error) else f"{name}: {error}"
    match error.errno:
        case errno.EBUSY if Path(name).is_block_device():
            return f"{name} is in use: unmount it, or stop the program that holds it"
        case errno.EBUSY:
            return (
                f"{name} is in use, by a namespace here, by another nvme-mdev, or by QEMU: give"
                " another, or stop that one first"
            )
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
