"""Sizes and offsets of ublk's structures, against <linux/ublk_cmd.h>."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from nvme_mdev.spec import ublk

HEADER = Path("/usr/include/linux/ublk_cmd.h")


@pytest.mark.parametrize(
    ("structure", "size"),
    [(ublk.ControlHeader, 32), (ublk.DeviceInfo, 64), (ublk.Params, 60 + 4)],
)
def test_the_size_is_the_headers(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        (ublk.ControlHeader, "addr", 8),
        (ublk.ControlHeader, "data", 16),
        (ublk.DeviceInfo, "max_io_buf_bytes", 8),
        (ublk.DeviceInfo, "ublksrv_pid", 16),
        (ublk.DeviceInfo, "flags", 24),
        (ublk.Params, "attrs", 8),
        (ublk.Params, "dev_sectors", 24),
        (ublk.Params, "discard_alignment", 40),
        (ublk.Params, "max_discard_segments", 56),
    ],
)
def test_fields_are_where_the_header_has_them(
    structure: type[ctypes.Structure], field: str, offset: int
) -> None:
    assert getattr(structure, field).offset == offset


@pytest.mark.skipif(not HEADER.exists(), reason="no header of the kernel's")
def test_a_commands_number_is_the_headers() -> None:
    numbers = {
        name: int(value, 0)
        for name, value in re.findall(r"#define\s+UBLK_CMD_(\w+)\s+(0x\w+)", HEADER.read_text())
    }
    # The headers of this machine may be older than the command.
    numbers.setdefault("UPDATE_SIZE", 0x15)
    for command in ublk.ControlCommand:
        assert command & 0xFF == numbers[command.name]
        assert command >> 16 & 0x3FFF == ctypes.sizeof(ublk.ControlHeader)
        assert command >> 8 & 0xFF == ord("u")
