"""ublk, Linux' block devices in user space: structures and constants of its control commands.

``<linux/ublk_cmd.h>`` as of Linux 6.4, where commands got the encoding of ioctl(2); the kernel's
Documentation/block/ublk.rst tells how they belong together. What happens per I/O is in
`nvme_mdev.host.ublk`.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64


class ControlCommand(enum.IntEnum):
    """Of ``/dev/ublk-control``: _IOR and _IOWR('u', number, struct ublksrv_ctrl_cmd)."""

    GET_DEV_INFO = 0x80207502
    ADD_DEV = 0xC0207504
    DEL_DEV = 0xC0207505
    START_DEV = 0xC0207506
    STOP_DEV = 0xC0207507
    SET_PARAMS = 0xC0207508
    START_USER_RECOVERY = 0xC0207510
    END_USER_RECOVERY = 0xC0207511
    UPDATE_SIZE = 0xC0207515
    """Linux 6.16."""


NEW_DEVICE = 0xFFFF_FFFF
"""The identifier of a device that is to have one that is free."""
NO_QUEUE = 0xFFFF
MAX_QUEUE_DEPTH = 4096
"""Of any device: where a queue's descriptors are follows from it."""
IO_DESC_SIZE = 24
"""Of struct ublksrv_io_desc."""


class DeviceFlag(enum.IntFlag):
    """``flags`` of `DeviceInfo`."""

    USER_RECOVERY = 1 << 3
    """The device stays when its process ends, and waits for the next."""
    USER_RECOVERY_REISSUE = 1 << 4
    """What the process had not finished is given to the next."""


class DeviceState(enum.IntEnum):
    """``state`` of `DeviceInfo`."""

    DEAD = 0
    LIVE = 1
    QUIESCED = 2
    """Its process has ended; requests wait for the next."""


class ControlHeader(ctypes.LittleEndianStructure):
    """struct ublksrv_ctrl_cmd: which device, and where more of it is."""

    _fields_ = (
        ("dev_id", c_uint32),
        ("queue_id", c_uint16),
        ("len", c_uint16),
        ("addr", c_uint64),
        ("data", c_uint64),
        ("dev_path_len", c_uint16),
        ("pad", c_uint16),
        ("reserved", c_uint32),
    )


class DeviceInfo(ctypes.LittleEndianStructure):
    """struct ublksrv_ctrl_dev_info."""

    _fields_ = (
        ("nr_hw_queues", c_uint16),
        ("queue_depth", c_uint16),
        ("state", c_uint16),
        ("pad0", c_uint16),
        ("max_io_buf_bytes", c_uint32),
        ("dev_id", c_uint32),
        ("ublksrv_pid", c_int32),
        ("pad1", c_uint32),
        ("flags", c_uint64),
        ("ublksrv_flags", c_uint64),
        ("owner_uid", c_uint32),
        ("owner_gid", c_uint32),
        ("reserved1", c_uint64),
        ("reserved2", c_uint64),
    )
    nr_hw_queues: int
    queue_depth: int
    state: int
    max_io_buf_bytes: int
    dev_id: int
    ublksrv_pid: int
    flags: int
    ublksrv_flags: int


class ParamType(enum.IntFlag):
    """``types`` of `Params`: which of its parts are there."""

    BASIC = 1 << 0
    DISCARD = 1 << 1


class Attribute(enum.IntFlag):
    """``attrs`` of `Params`."""

    READ_ONLY = 1 << 0
    VOLATILE_CACHE = 1 << 2
    FUA = 1 << 3


class Params(ctypes.LittleEndianStructure):
    """struct ublk_params, as far as `ParamType` goes; sectors have 512 bytes."""

    _fields_ = (
        ("len", c_uint32),
        ("types", c_uint32),
        # struct ublk_param_basic
        ("attrs", c_uint32),
        ("logical_bs_shift", c_uint8),
        ("physical_bs_shift", c_uint8),
        ("io_opt_shift", c_uint8),
        ("io_min_shift", c_uint8),
        ("max_sectors", c_uint32),
        ("chunk_sectors", c_uint32),
        ("dev_sectors", c_uint64),
        ("virt_boundary_mask", c_uint64),
        # struct ublk_param_discard
        ("discard_alignment", c_uint32),
        ("discard_granularity", c_uint32),
        ("max_discard_sectors", c_uint32),
        ("max_write_zeroes_sectors", c_uint32),
        ("max_discard_segments", c_uint16),
        ("reserved0", c_uint16),
    )
