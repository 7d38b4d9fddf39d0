"""Features that are data: Timestamp, Host Identifier, Host Behavior Support."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_features import Fid, Select, Timestamp
from nvme_mdev.spec.nvme_identify_controller import Ctratt, Oncs
from nvme_mdev.spec.nvme_status import GenericStatus

from .statuses import error_log, refused

if TYPE_CHECKING:
    from nvme_mdev.host.driver import NvmeHost

SIZES = [(Fid.TIMESTAMP, 0, 8), (Fid.HOST_IDENTIFIER, 0, 8), (Fid.HOST_IDENTIFIER, 1, 16)]
SIZES += [(Fid.HOST_BEHAVIOR_SUPPORT, 0, 512)]


def get(host: NvmeHost, fid: int, size: int, value: int = 0, select: int = 0) -> bytes:
    sqe = commands.get_features(fid, value=value, select=select)
    return host.admin(sqe, receive=size).data


def put(host: NvmeHost, fid: int, data: bytes, value: int = 0) -> None:
    host.admin(commands.set_features(fid, value), send=data)


def clock(host: NvmeHost) -> tuple[int, int]:
    data = Timestamp.from_buffer_copy(get(host, Fid.TIMESTAMP, 8))
    return int.from_bytes(bytes(data.timestamp), "little"), data.attributes


def test_they_are_offered(host: NvmeHost) -> None:
    data = host.identify_controller()
    assert data.oncs & Oncs.TSS
    assert data.ctratt & Ctratt.HIDS


def test_a_timestamp_goes_on(host: NvmeHost) -> None:
    put(host, Fid.TIMESTAMP, (1_700_000_000_000).to_bytes(6, "little") + bytes(2))
    first, attributes = clock(host)
    time.sleep(0.02)
    second, _ = clock(host)
    assert attributes == 1 << 1
    assert first >= 1_700_000_000_000
    assert second >= first + 20


def test_a_timestamp_has_48_bits(host: NvmeHost) -> None:
    put(host, Fid.TIMESTAMP, bytes([0xFF] * 6 + [0, 0]))
    time.sleep(0.005)
    assert clock(host)[0] < 1 << 40


def test_a_reset_takes_the_timestamp_to_zero(host: NvmeHost) -> None:
    put(host, Fid.TIMESTAMP, (1 << 47).to_bytes(6, "little") + bytes(2))
    host.reset()
    value, attributes = clock(host)
    assert value < 1 << 47
    assert attributes == 0


def test_a_host_identifier_has_64_or_128_bits(host: NvmeHost) -> None:
    put(host, Fid.HOST_IDENTIFIER, bytes(range(1, 17)), 1)
    assert get(host, Fid.HOST_IDENTIFIER, 16, 1) == bytes(range(1, 17))
    put(host, Fid.HOST_IDENTIFIER, bytes([9] * 8))
    assert get(host, Fid.HOST_IDENTIFIER, 16, 1) == bytes([9] * 8) + bytes(8)
    host.reset()
    assert get(host, Fid.HOST_IDENTIFIER, 16, 1) == bytes(16)


def test_what_the_host_can_do_is_kept(host: NvmeHost) -> None:
    data = bytes([1, 0, 1]).ljust(512, b"\0")
    put(host, Fid.HOST_BEHAVIOR_SUPPORT, data)
    assert get(host, Fid.HOST_BEHAVIOR_SUPPORT, 512) == data


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_what_is_neither_yes_nor_no_is_an_invalid_field(host: NvmeHost, position: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        put(host, Fid.HOST_BEHAVIOR_SUPPORT, bytes([0] * position + [2]).ljust(512, b"\0"))
    assert error_log(host)[0].peloc == 24
    assert get(host, Fid.HOST_BEHAVIOR_SUPPORT, 512) == bytes(512)


@pytest.mark.parametrize(("fid", "value", "size"), SIZES)
@pytest.mark.parametrize("select", [Select.DEFAULT, Select.SAVED])
def test_the_default_is_zero(host: NvmeHost, fid: int, value: int, size: int, select: int) -> None:
    put(host, fid, bytes([1]).ljust(size, b"\0"), value)
    assert get(host, fid, size, value, select) == bytes(size)


@pytest.mark.parametrize(("fid", "value", "size"), SIZES)
def test_data_that_is_nowhere_is_a_data_transfer_error(
    host: NvmeHost, fid: int, value: int, size: int
) -> None:
    for sqe in (commands.set_features(fid, value), commands.get_features(fid, value=value)):
        sqe.prp1 = 0x7777_0000_0000
        with refused(GenericStatus.DATA_TRANSFER_ERROR, dnr=True):
            host.admin(sqe)
