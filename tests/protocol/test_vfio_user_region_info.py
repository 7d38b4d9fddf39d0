"""VFIO_USER_DEVICE_GET_REGION_INFO: what fits into argsz, and the fd that goes with it."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest
from harness import region_info_body

from nvme_mdev.spec.vfio_user import Command, PciRegion

if TYPE_CHECKING:
    from harness import Peer

REGION_INFO = struct.Struct("<IIIIQQ")
GET = Command.DEVICE_GET_REGION_INFO


def test_enough_argsz_gives_capability_and_fd(peer: Peer) -> None:
    reply = peer.call(GET, region_info_body(PciRegion.BAR0, argsz=64))
    assert REGION_INFO.unpack(reply.body[:32]) == (64, 0xF, 0, 32, 0x2000, 0)
    assert struct.unpack("<HHIIIQQ", reply.body[32:]) == (1, 1, 0, 1, 0, 0x1000, 0x1000)
    assert len(reply.fds) == 1
    assert "doorbells" in os.readlink(f"/proc/self/fd/{reply.fds[0]}")  # noqa: PTH115


@pytest.mark.parametrize("argsz", [32, 48, 63])
def test_too_small_an_argsz_gives_the_needed_one_and_neither_capability_nor_fd(
    peer: Peer, argsz: int
) -> None:
    reply = peer.call(GET, region_info_body(PciRegion.BAR0, argsz=argsz))
    assert REGION_INFO.unpack(reply.body) == (64, 0x3, 0, 0, 0x2000, 0)
    assert reply.fds == []


def test_spdks_argsz_of_4064_bytes_with_as_much_padding_gives_the_same(peer: Peer) -> None:
    body = region_info_body(PciRegion.BAR0, argsz=4064)
    reply = peer.call(GET, body.ljust(4064, b"\0"))
    assert REGION_INFO.unpack(reply.body[:32]) == (64, 0xF, 0, 32, 0x2000, 0)
    assert len(reply.body) == 64
    assert len(reply.fds) == 1


def test_a_region_mappable_as_a_whole_needs_no_capability(peer: Peer) -> None:
    reply = peer.call(GET, region_info_body(PciRegion.BAR2))
    assert REGION_INFO.unpack(reply.body) == (32, 0x7, 2, 0, 0x1000, 0x1000)
    assert len(reply.fds) == 1


def test_a_region_that_cannot_be_mapped_has_no_fd(peer: Peer) -> None:
    reply = peer.call(GET, region_info_body(PciRegion.CONFIG, argsz=4064))
    assert REGION_INFO.unpack(reply.body) == (32, 0x3, 7, 0, 0x1000, 0)
    assert reply.fds == []


def test_a_region_that_is_not_there_has_size_0(peer: Peer) -> None:
    reply = peer.call(GET, region_info_body(PciRegion.VGA))
    assert REGION_INFO.unpack(reply.body) == (32, 0, 8, 0, 0, 0)


@pytest.mark.parametrize("index", [9, 0x80000000, 0xFFFFFFFF])
def test_an_index_beyond_the_last_is_refused(peer: Peer, index: int) -> None:
    assert peer.call(GET, region_info_body(index)).error == errno.EINVAL


@pytest.mark.parametrize("body", [b"", region_info_body(0)[:-1], region_info_body(0, argsz=31)])
def test_a_short_request_or_argsz_is_refused(peer: Peer, body: bytes) -> None:
    assert peer.call(GET, body).error == errno.EINVAL


def test_an_fd_is_refused(peer: Peer, memfd: int) -> None:
    assert peer.call(GET, region_info_body(0), [memfd]).error == errno.EINVAL


def test_the_devices_fd_stays_open_however_often_it_is_sent(peer: Peer) -> None:
    for _ in range(5):
        assert len(peer.call(GET, region_info_body(0, argsz=64)).fds) == 1
