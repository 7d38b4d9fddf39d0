"""A namespace or partition of a drive that the kernel's NVMe driver runs, opened for passthrough.

Its block device is claimed, as for any other backend, so that the host cannot mount it meanwhile;
commands go to the namespace's character device (``/dev/ng0n1``), on which
LBAs are those of the whole namespace. Where the partition begins comes from sysfs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from nvme_mdev.datapath.backends.drive import (
    NO_LIMITS,
    CommandLimits,
    DriveNamespace,
    block_size_of,
    describe,
)
from nvme_mdev.datapath.backends.host_queues import (
    controller_of,
    give_queue,
    polled_queues,
    take_queue,
)
from nvme_mdev.datapath.backends.medium import Medium, open_medium
from nvme_mdev.spec.nvme_commands import NSID_ALL, AdminOpcode
from nvme_mdev.spec.nvme_identify import IDENTIFY_SIZE, Cns
from nvme_mdev.spec.nvme_identify_controller import IdentifyController, IdentifyControllerNvm
from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace
from nvme_mdev.spec.nvme_logs import LogPage, SmartLog

SYSFS = Path("/sys")
_NAMESPACE = re.compile(r"nvme(\d+n\d+)", re.ASCII)
_SECTOR = 512
"""The unit of a partition's start in sysfs."""
_PAGE_SIZE = 4096
_FEWEST_SEGMENTS = 3
"""With fewer there is no MDTS to tell."""
_NVME_IOCTL_ADMIN_CMD = 0xC0484E41
"""``<linux/nvme_ioctl.h>``: _IOWR('N', 0x41, struct nvme_passthru_cmd)."""
_NVME_IOCTL_ID = 0x4E40
_SMART_SIZE = ctypes.sizeof(SmartLog)


class _PassthruCommand(ctypes.Structure):
    """struct nvme_passthru_cmd of ``<linux/nvme_ioctl.h>``."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("rsvd1", ctypes.c_uint16),
        ("nsid", ctypes.c_uint32),
        ("cdw2", ctypes.c_uint32),
        ("cdw3", ctypes.c_uint32),
        ("metadata", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("metadata_len", ctypes.c_uint32),
        ("data_len", ctypes.c_uint32),
        ("cdw10", ctypes.c_uint32),
        ("cdw11", ctypes.c_uint32),
        ("cdw12", ctypes.c_uint32),
        ("cdw13", ctypes.c_uint32),
        ("cdw14", ctypes.c_uint32),
        ("cdw15", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
    )


class NoCharacterDeviceError(OSError):
    """A block device that has no NVMe character device beside it."""


@dataclass
class KernelDrive:
    """Open and claimed."""

    medium: Medium
    """The block device; what is served of it."""
    fd: int
    """The character device."""
    namespace: DriveNamespace
    controller: str | None
    """The kernel's name of it, ``nvme0``."""
    disk: str
    """The whole block device's name, ``nvme0n1``."""
    host_queues: int
    """Queues that are set aside, one for each IOThread; 0: they are the host's, and not counted."""

    @property
    def polled(self) -> bool:
        """Completions are polled for on the driver's poll queues."""
        return self.medium.polled

    def take_queue(self, owner: object) -> None:
        """Count a host queue for an IOThread; UserError: none is left."""
        if self.controller and self.host_queues:
            take_queue(self.controller, owner, self.host_queues)

    def give_queue(self, owner: object) -> None:
        """Give it back."""
        if self.controller and self.host_queues:
            give_queue(self.controller, owner)

    def current_size(self) -> int:
        """Bytes now (OSError: the drive has gone, or is not what it was)."""
        check_blocks(self.disk, self.namespace.block_size)
        return self.medium.current_size()

    def is_read_only(self) -> bool:
        """Whether it can be written to now."""
        return self.medium.is_read_only()

    def smart(self) -> bytes:
        """The drive's SMART log (OSError: it does not tell)."""
        return _admin(
            self.fd,
            AdminOpcode.GET_LOG_PAGE,
            NSID_ALL,
            _SMART_SIZE,
            LogPage.SMART | (_SMART_SIZE // 4 - 1) << 16,
        )

    def flush(self) -> None:
        """Through the block device, which is the same drive."""
        os.fdatasync(self.medium.buffered_fd)

    def close(self) -> None:
        """Give up the claim."""
        os.close(self.fd)
        self.medium.close()


def open_drive(
    path: str, *, read_only: bool, offset: int = 0, length: int | None = None
) -> KernelDrive:
    """Open ``length`` bytes from ``offset`` on of an NVMe block device or partition of one.

    OSError as of `open_medium`; NoCharacterDeviceError: it is no NVMe namespace, or the kernel is
    too old. ValueError: it cannot be served.
    """
    status = Path(path).stat()
    if not stat.S_ISBLK(status.st_mode):
        raise NoCharacterDeviceError(errno.ENOTBLK, "it is not a block device", path)
    disk, start = locate(os.major(status.st_rdev), os.minor(status.st_rdev))
    character = character_device(disk, path)
    with ExitStack() as undo:
        medium = open_medium(path, read_only=read_only, offset=offset, length=length)
        undo.callback(medium.close)
        fd = os.open(character, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        nsid = fcntl.ioctl(fd, _NVME_IOCTL_ID)
        namespace = IdentifyNamespace.from_buffer_copy(_identify(fd, Cns.NAMESPACE, nsid))
        controller = IdentifyController.from_buffer_copy(_identify(fd, Cns.CONTROLLER, 0))
        size = block_size_of(namespace)
        if (start + offset) % size or medium.size % size:
            raise ValueError(f"{path}: it does not begin and end on blocks of {size} bytes")
        described = describe(
            controller,
            namespace,
            name=path,
            identity=f"direct:{medium.identity}",
            nsid=nsid,
            start=(start + offset) // size,
            blocks=medium.size // size,
            read_only=read_only,
            limits=_command_limits(fd),
        )
        limit = transfer_limit(disk) or described.max_transfer
        described = replace(described, max_transfer=min(described.max_transfer, limit))
        undo.pop_all()
    name = controller_of(disk)
    host_queues = polled_queues(name) if medium.polled and name else 0
    return KernelDrive(medium, fd, described, name, disk, host_queues)


def locate(major: int, minor: int, sysfs: Path = SYSFS) -> tuple[str, int]:
    """Name of the disk that a block device is or lies on, and the byte of it where it begins."""
    device = (sysfs / f"dev/block/{major}:{minor}").resolve()
    if (device / "partition").exists():
        return device.parent.name, int((device / "start").read_text()) * _SECTOR
    return device.name, 0


def character_device(disk: str, path: str, dev: Path = Path("/dev")) -> Path:
    """The character device beside a disk; NoCharacterDeviceError: there is none."""
    match = _NAMESPACE.fullmatch(disk)
    if match is None:
        raise NoCharacterDeviceError(errno.ENOTTY, f"{disk} is no NVMe namespace", path)
    found = dev / f"ng{match[1]}"
    if not found.exists():
        raise NoCharacterDeviceError(errno.ENOENT, f"{disk} has no character device {found}", path)
    return found


def queue_limit(disk: str, name: str, sysfs: Path = SYSFS) -> int:
    """An attribute of the disk's request queue; 0: it does not tell."""
    try:
        return int((sysfs / "block" / disk / "queue" / name).read_text())
    except (OSError, ValueError):
        return 0


def check_blocks(disk: str, block_size: int, sysfs: Path = SYSFS) -> None:
    """OSError: it has logical blocks of another size now, so that LBAs are in other places."""
    now = queue_limit(disk, "logical_block_size", sysfs)
    if now and now != block_size:
        raise OSError(errno.ENODEV, "it was formatted with other blocks")


def transfer_limit(disk: str, sysfs: Path = SYSFS) -> int:
    """Bytes that the kernel takes in one command of passthrough; 0: it does not tell.

    Guest pages are scattered, so each is a segment; data that does not begin with a page has one
    more. What has too many is EINVAL. A power of two, as MDTS is.
    """
    size = queue_limit(disk, "max_hw_sectors_kb", sysfs) << 10
    segments = queue_limit(disk, "max_segments", sysfs)
    if not size or segments < _FEWEST_SEGMENTS:
        return 0
    most = min(size, (segments - 1) * _PAGE_SIZE)
    return 1 << most.bit_length() - 1


def _command_limits(fd: int) -> CommandLimits:
    """As the drive tells them; none, if it is older than NVMe 2.0."""
    try:
        data = _identify(fd, Cns.IOCS_CONTROLLER, 0)
    except OSError:
        return NO_LIMITS
    return CommandLimits.of(IdentifyControllerNvm.from_buffer_copy(data))


def _identify(fd: int, cns: int, nsid: int) -> bytes:
    return _admin(fd, AdminOpcode.IDENTIFY, nsid, IDENTIFY_SIZE, cns)


def _admin(fd: int, opcode: AdminOpcode, nsid: int, size: int, cdw10: int) -> bytes:
    """What an admin command returns; OSError: it fails."""
    data = ctypes.create_string_buffer(size)
    command = _PassthruCommand(
        opcode=opcode, nsid=nsid, addr=ctypes.addressof(data), data_len=size, cdw10=cdw10
    )
    status = fcntl.ioctl(fd, _NVME_IOCTL_ADMIN_CMD, command)
    if status:
        raise OSError(errno.EIO, f"{opcode.name} failed with status {status:#x}")
    return data.raw
