"""Opening a file or block device, and finding out what it can do."""

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
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

#: <linux/stat.h>: statx reports direct I/O alignments since Linux 6.1.
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_SIZE = 256
_STATX_DIO_MEM_ALIGN_OFFSET = 152

#: <linux/falloc.h>
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

#: <linux/fs.h>
_BLKROGET = 0x125E
_BLKGETSIZE64 = 0x80081272

#: io_uring can discard since then (BLOCK_URING_CMD_DISCARD).
_DISCARD_COMMAND_SINCE = (6, 12)
_PAGE_SIZE = 4096

#: <linux/magic.h>: file systems whose files are memory (tmpfs, ramfs, hugetlbfs).
_MEMORY_FILE_SYSTEMS = frozenset({0x01021994, 0x858458F6, 0x958458F6})
_STATFS_SIZE = 256
#: Reads that tell whether a medium answers at once, and the longest that a quarter of them may take.
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
    """A file that is memory: buffered I/O is all there is."""
    answers_at_once: bool = False
    """Reads were seen to be done within the system call, without a wait."""

    def current_size(self) -> int:
        """Bytes of the file or device now, which others may have changed (OSError: gone)."""
        status = os.fstat(self.buffered_fd)
        return status.st_size if stat.S_ISREG(status.st_mode) else _device_size(self.buffered_fd)

    def resize(self, size: int) -> None:
        """Make the file so many bytes long; OSError ENOTSUP for a device."""
        if not stat.S_ISREG(os.fstat(self.buffered_fd).st_mode):
            raise OSError(errno.ENOTSUP, "a block device is resized by its owner", self.path)
        os.ftruncate(self.buffered_fd, size)

    def close(self) -> None:
        """Close both descriptors, which gives up the lock or claim."""
        os.close(self.buffered_fd)
        if self.direct_fd is not None:
            os.close(self.direct_fd)


def open_medium(path: str, *, read_only: bool) -> Medium:
    """Open, claim and examine a file or block device.

    A block device is claimed with O_EXCL, so that the host cannot mount it meanwhile; a file is
    locked with flock(2), exclusively unless read-only. OSError: as the kernel says (EBUSY: in use);
    EINVAL: neither file nor block device.
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    kind = Path(path).stat().st_mode
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, "is a directory", path)
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        raise OSError(errno.EINVAL, "neither a file nor a block device", path)
    exclusive = os.O_EXCL if stat.S_ISBLK(kind) else 0
    fd = os.open(path, mode | os.O_CLOEXEC | exclusive)
    try:
        if stat.S_ISBLK(kind):
            return _examine_device(path, fd, read_only=read_only)
        _lock(path, fd, shared=read_only)
        return _examine_file(path, fd, read_only=read_only)
    except BaseException:
        os.close(fd)
        raise


def _absolute(path: str) -> str:
    """The path from the root, links not followed: /dev/disk/by-id/... is the lasting name."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.resolve() follows links


def _lock(path: str, fd: int, *, shared: bool) -> None:
    """Keep another process from serving the same image (OSError EBUSY)."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "the image is being served already", path) from None


def _examine_file(path: str, fd: int, *, read_only: bool) -> Medium:
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
    medium.in_memory = _is_memory(fd)
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
    )
    medium.memory_alignment, medium.offset_alignment = _alignments(fd, logical)
    medium.can_deallocate = not read_only and _queue_limit(status, "discard_max_bytes") > 0
    medium.discard_command = _kernel_version() >= _DISCARD_COMMAND_SINCE
    # Without the command a deallocation is a zeroing hole, or fails where the device has none.
    medium.deallocate_zeroes = medium.can_deallocate and not medium.discard_command
    medium.answers_at_once = _has_no_queue(status) and _try_reads(medium)
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


def _is_memory(fd: int) -> bool:
    """Whether the file lives in a file system that is memory; also tmpfs, which can be swapped."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.fstatfs(fd, buffer) != 0:
        return False
    (kind,) = struct.unpack_from("l", buffer)
    return kind in _MEMORY_FILE_SYSTEMS


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


def _kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
