"""Opening a file or block device, or a part of one, and finding out what it can do.

Who serves what is claimed, so that nobody else uses it meanwhile:

- a block device with O_EXCL, as file systems claim theirs; parts of it are told apart by this
  process, which holds the one claim for all of them;
- a file with a lock on the bytes that are served (fcntl(2), open file description locks): parts of
  one file can be served by several processes. QEMU's image locks are of the same kind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import stat
import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nvme_mdev.datapath.backends.locks import lock_range

_libc = ctypes.CDLL(None, use_errno=True)

#: <linux/stat.h>: statx reports direct I/O alignments since Linux 6.1.
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_SIZE = 256
_STATX_DIO_MEM_ALIGN_OFFSET = 152
_STATX_ATTRIBUTES_OFFSET = 8
_STATX_ATTR_DAX = 0x200000

#: <linux/falloc.h>
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

#: <linux/fs.h>
_BLKROGET = 0x125E
_BLKGETSIZE64 = 0x80081272

#: io_uring can discard since then (BLOCK_URING_CMD_DISCARD).
_DISCARD_COMMAND_SINCE = (6, 12)
_PAGE_SIZE = 4096
_NO_END = 1 << 64
"""Beyond every device."""

#: <linux/magic.h>: file systems whose files are memory (tmpfs, ramfs, hugetlbfs).
_HUGETLBFS = 0x958458F6
_MEMORY_FILE_SYSTEMS = frozenset({0x01021994, 0x858458F6, _HUGETLBFS})
_STATFS_SIZE = 256
#: Reads that tell whether a medium answers at once, how long a quarter of them may take, and how
#: many may sleep.
_TRIAL_READS = 32
_TRIAL_NS = 20_000
_TRIAL_SLEEPS = 4


@dataclass
class Medium:
    """An open file or block device. All sizes are in bytes, 0 where there is no preference."""

    path: str
    identity: str
    size: int
    read_only: bool
    buffered_fd: int
    #: None where the medium has no direct I/O.
    direct_fd: int | None
    #: The part that is served: its first byte, and how many (None: to the end).
    offset: int = 0
    length: int | None = None
    memory_alignment: int = _PAGE_SIZE
    offset_alignment: int = _PAGE_SIZE
    #: The smallest block that can be served.
    logical_block_size: int = 512
    #: What a guest is offered when the user does not say.
    default_block_size: int = 512
    can_deallocate: bool = False
    deallocate_zeroes: bool = False
    discard_command: bool = False
    optimal_io_boundary: int = 0
    preferred_write: int = 0
    preferred_deallocate: int = 0
    in_memory: bool = False
    """A file that is memory: in tmpfs, or on a DAX file system (its cache is the medium)."""
    dax: bool = False
    """Its blocks are memory that its file system lets programs map."""
    mappable: bool = False
    """A file in memory, of ordinary pages, that tells us where it has holes."""
    answers_at_once: bool = False
    """Reads were seen to be done within the system call, without a wait."""
    polled: bool = False
    """Its driver has queues without interrupts that io_uring can poll (nvme.poll_queues)."""
    #: Where a partition begins on its disk.
    partition_start: int = 0
    #: What keeps others from a block device; a file's lock is that of its descriptor.
    claim: Claim | None = None

    def part_of(self, whole: int) -> int:
        """Bytes of the served part while the file or device has so many."""
        rest = max(whole - self.offset, 0)
        return rest if self.length is None else min(rest, self.length)

    def current_size(self) -> int:
        """Bytes that are served now; others may have changed the file or device (OSError: gone)."""
        status = os.fstat(self.buffered_fd)
        regular = stat.S_ISREG(status.st_mode)
        whole = status.st_size if regular else _device_size(self.buffered_fd)
        if whole == 0:
            # A file that was emptied, or a device whose medium or driver has gone.
            raise OSError(errno.ENODEV, "nothing is left of it", self.path)
        return self.part_of(whole)

    def is_read_only(self) -> bool:
        """Whether it can be written to now: devices and file systems become read-only."""
        if self.read_only:
            return True
        if stat.S_ISREG(os.fstat(self.buffered_fd).st_mode):
            return bool(os.fstatvfs(self.buffered_fd).f_flag & os.ST_RDONLY)
        return bool(_ioctl_int(self.buffered_fd, _BLKROGET))

    def resize(self, size: int) -> None:
        """Make the file as long as the part needs to have so many bytes.

        OSError ENOTSUP: it is a device, or a part of a length of its own.
        """
        if not stat.S_ISREG(os.fstat(self.buffered_fd).st_mode):
            raise OSError(errno.ENOTSUP, "a block device is resized by its owner", self.path)
        if self.length is not None:
            raise OSError(errno.ENOTSUP, "this part of the file has a length of its own", self.path)
        os.ftruncate(self.buffered_fd, self.offset + size)

    def close(self) -> None:
        """Close both descriptors, which gives up the lock or claim."""
        os.close(self.buffered_fd)
        if self.direct_fd is not None:
            os.close(self.direct_fd)
        if self.claim is not None:
            self.claim.release()
            self.claim = None


class Claim:
    """A share in this process' claim on a block device: the bytes [start, end) of it."""

    _claims: ClassVar[dict[int, list[Claim]]] = {}
    """By device number. The first one of a list opened the device with O_EXCL."""

    def __init__(self, path: str, *, read_only: bool, start: int, length: int | None) -> None:
        """OSError: as opening says, EBUSY: it is mounted, held by another, or its part is taken."""
        self._device = Path(path).stat().st_rdev
        self.start = start
        self.end = start + length if length is not None else _NO_END
        others = self._claims.get(self._device, [])
        if any(self.start < other.end and other.start < self.end for other in others):
            raise OSError(errno.EBUSY, "this part of the device is being served already", path)
        mode = os.O_RDONLY if read_only else os.O_RDWR
        if others:
            self.fd: int = os.dup(others[0].fd)
        else:
            self.fd = os.open(path, mode | os.O_CLOEXEC | os.O_EXCL)
        self._claims.setdefault(self._device, []).append(self)

    def release(self) -> None:
        """Give it up; the device is free again with the last one."""
        self._claims[self._device].remove(self)
        if not self._claims[self._device]:
            del self._claims[self._device]
        os.close(self.fd)


def open_medium(
    path: str, *, read_only: bool, offset: int = 0, length: int | None = None
) -> Medium:
    """Open, claim and examine a file or block device, or ``length`` bytes of it from ``offset`` on.

    OSError: as the kernel says (EBUSY: in use); EINVAL: neither file nor block device. ValueError:
    the part does not lie in it, or its file system has no write(2).
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    kind = Path(path).stat().st_mode
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, "is a directory", path)
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        raise OSError(errno.EINVAL, "neither a file nor a block device", path)
    with ExitStack() as undo:
        claim = None
        if stat.S_ISBLK(kind):
            claim = Claim(path, read_only=read_only, start=offset, length=length)
            undo.callback(claim.release)
        fd = os.open(path, mode | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        if claim is not None:
            medium = _examine_device(path, fd, read_only=read_only)
        else:
            _lock(path, fd, shared=read_only, start=offset, length=length or 0)
            medium = _examine_file(path, fd, read_only=read_only)
        medium.claim = claim
        if medium.direct_fd is not None:
            undo.callback(os.close, medium.direct_fd)
        _narrow(medium, offset, length)
        undo.pop_all()
    return medium


def _narrow(medium: Medium, offset: int, length: int | None) -> None:
    """Serve a part only; ValueError: it does not lie in the file or device."""
    if offset >= medium.size or (length is not None and length > medium.size - offset):
        raise ValueError(
            f"{medium.path} has {medium.size} bytes: offset and length do not lie within"
        )
    medium.offset, medium.length = offset, length
    medium.size = medium.part_of(medium.size)
    if offset:
        medium.identity += f"@{offset}"
    if medium.optimal_io_boundary and (
        (medium.partition_start + offset) % medium.optimal_io_boundary
    ):
        # The guest counts from the namespace's first block, which is on no such boundary.
        medium.optimal_io_boundary = 0


def _absolute(path: str) -> str:
    """The path from the root, links not followed: /dev/disk/by-id/... is the lasting name."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.resolve() follows links


def _lock(path: str, fd: int, *, shared: bool, start: int, length: int) -> None:
    """Keep others from serving the same bytes of an image (OSError EBUSY); 0: all from there on."""
    if not lock_range(fd, start, length, shared=shared):
        raise OSError(errno.EBUSY, "the image is being served already", path)


def _examine_file(path: str, fd: int, *, read_only: bool) -> Medium:
    file_system = _file_system(fd)
    if file_system == _HUGETLBFS and not read_only:
        raise ValueError(
            f"{path} is in hugetlbfs, whose files are not written to: serve it read-only,"
            " or use memory:SIZE,huge-pages"
        )
    status = os.fstat(fd)
    medium = Medium(
        path=path,
        identity=f"file:{_absolute(path)}",
        size=status.st_size,
        read_only=read_only,
        buffered_fd=fd,
        direct_fd=_open_direct(fd, read_only=read_only),
        preferred_write=status.st_blksize,
        preferred_deallocate=status.st_blksize,
    )
    medium.memory_alignment, medium.offset_alignment = _alignments(fd, 512)
    medium.default_block_size = 4096 if medium.offset_alignment > 512 else 512
    medium.can_deallocate = medium.deallocate_zeroes = not read_only and _can_punch(fd, medium.size)
    medium.dax = _is_dax(fd)
    medium.in_memory = medium.dax or file_system in _MEMORY_FILE_SYSTEMS
    # mincore(2) tells owners and writers; everybody else hears that every page is there.
    told = not read_only or os.geteuid() in {0, status.st_uid}
    medium.mappable = medium.dax or (medium.in_memory and file_system != _HUGETLBFS and told)
    medium.answers_at_once = medium.in_memory and _try_reads(medium)
    return medium


def _examine_device(path: str, fd: int, *, read_only: bool) -> Medium:
    status = os.fstat(fd)
    if not read_only and _ioctl_int(fd, _BLKROGET):
        raise OSError(errno.EROFS, "the device is read-only", path)
    logical = _queue_limit(status, "logical_block_size") or 512
    medium = Medium(
        path=path,
        identity=f"block:{_absolute(path)}",
        size=_device_size(fd),
        read_only=read_only,
        buffered_fd=fd,
        direct_fd=_open_direct(fd, read_only=read_only),
        logical_block_size=logical,
        default_block_size=logical,
        optimal_io_boundary=_queue_limit(status, "chunk_sectors") * 512,
        preferred_write=_queue_limit(status, "minimum_io_size"),
        preferred_deallocate=_queue_limit(status, "discard_granularity"),
        partition_start=_partition_start(status),
    )
    medium.memory_alignment, medium.offset_alignment = _alignments(fd, logical)
    medium.can_deallocate = not read_only and _queue_limit(status, "discard_max_bytes") > 0
    medium.discard_command = _kernel_version() >= _DISCARD_COMMAND_SINCE
    # Without the command a deallocation is a zeroing hole, or fails where the device has none.
    medium.deallocate_zeroes = medium.can_deallocate and not medium.discard_command
    medium.answers_at_once = _has_no_queue(status) and _try_reads(medium)
    medium.polled = _queue_limit(status, "io_poll") == 1
    return medium


def _open_direct(fd: int, *, read_only: bool) -> int | None:
    """The same inode again, for direct I/O; None where its file system has none."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    try:
        return os.open(f"/proc/self/fd/{fd}", mode | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _alignments(fd: int, logical: int) -> tuple[int, int]:
    """Alignment of memory, and of offsets and lengths, for direct I/O."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) == 0:
        (mask,) = struct.unpack_from("<I", buffer, 0)
        memory, offset = struct.unpack_from("<II", buffer, _STATX_DIO_MEM_ALIGN_OFFSET)
        if mask & _STATX_DIOALIGN and memory and offset:
            return memory, max(offset, logical)
    # An older kernel does not tell. These suit nearly everything; EINVAL finds the exceptions.
    return 512, logical


def _can_punch(fd: int, size: int) -> bool:
    """Whether the file system can punch holes: tried past the end, where there is nothing."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    past_end = (size + _PAGE_SIZE - 1) // _PAGE_SIZE * _PAGE_SIZE
    return bool(_libc.fallocate(fd, mode, ctypes.c_long(past_end), ctypes.c_long(_PAGE_SIZE)) == 0)


def _file_system(fd: int) -> int:
    """The magic number of the file system that the file lives in; 0: not told."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.fstatfs(fd, buffer) != 0:
        return 0
    (kind,) = struct.unpack_from("l", buffer)
    return int(kind)


def _is_dax(fd: int) -> bool:
    """Whether the file's blocks are memory that its file system lets programs map."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, 0, buffer) != 0:
        return False
    (attributes,) = struct.unpack_from("<Q", buffer, _STATX_ATTRIBUTES_OFFSET)
    return bool(attributes & _STATX_ATTR_DAX)


def _has_no_queue(status: os.stat_result) -> bool:
    """Whether the device's driver takes each I/O directly and is no layer over other devices.

    zram, brd, pmem and null_blk's first mode are such. A driver with a queue has an interrupt, or
    a worker, to wait for; what lies below device mapper or md can change at any time.
    """
    device = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
    disk = device if (device / "queue").exists() else device.parent
    try:
        return not (disk / "mq").exists() and not any((disk / "slaves").iterdir())
    except OSError:
        return False


def _try_reads(medium: Medium) -> bool:
    """Read here and there: hardly ever asleep, and quick, is what `inline_io.pxd` wants.

    Another thread of ours, or a busy machine, can get in the way of a few. A slow medium sleeps
    each time, and is not asked much. Errors do not matter here: the guest will get them.
    """
    fd = medium.buffered_fd if medium.direct_fd is None else medium.direct_fd
    pages = medium.size // _PAGE_SIZE
    took: list[int] = []
    slept = 0
    with mmap.mmap(-1, _PAGE_SIZE) as buffer, contextlib.suppress(OSError):
        for number in range(min(_TRIAL_READS, pages)):
            sleeps, before = _sleeps(), time.monotonic_ns()
            os.preadv(fd, [buffer], pages * number // _TRIAL_READS * _PAGE_SIZE)
            took.append(time.monotonic_ns() - before)
            slept += _sleeps() != sleeps
            if slept > _TRIAL_SLEEPS:
                return False
    return bool(took) and sorted(took)[len(took) // 4] < _TRIAL_NS


def _sleeps() -> int:
    """How often this thread has waited for something."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _ioctl_int(fd: int, request: int) -> int:
    (value,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def _device_size(fd: int) -> int:
    (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(size)


def _queue_limit(status: os.stat_result, name: str) -> int:
    """A limit of the device's request queue from sysfs; a partition has its disk's. 0: not told."""
    device = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    for queue in (device / "queue", device.resolve().parent / "queue"):
        with contextlib.suppress(OSError, ValueError):
            return int((queue / name).read_text())
    return 0


def _partition_start(status: os.stat_result) -> int:
    """Byte of the disk at which a partition begins, 0 for a whole disk."""
    device = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    try:
        return int((device / "start").read_text()) * 512
    except (OSError, ValueError):
        return 0


def _kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
