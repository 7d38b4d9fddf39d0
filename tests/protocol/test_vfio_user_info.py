"""VFIO_USER_DEVICE_GET_INFO, GET_IRQ_INFO and GET_REGION_IO_FDS."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from harness import MSIX_VECTORS, four_words

from nvme_mdev.spec.vfio_user import Command, PciIrq

if TYPE_CHECKING:
    from harness import Peer

COMMANDS = [
    Command.DEVICE_GET_INFO,
    Command.DEVICE_GET_IRQ_INFO,
    Command.DEVICE_GET_REGION_IO_FDS,
]


def test_device_info_is_what_the_device_says(peer: Peer) -> None:
    reply = peer.call(Command.DEVICE_GET_INFO, four_words(16))
    assert struct.unpack("<IIII", reply.body) == (16, 3, 9, 5)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_large_argsz_does_not_make_the_reply_larger(peer: Peer, command: Command) -> None:
    reply = peer.call(command, four_words(4096))
    assert len(reply.body) == 16
    assert reply.body[:4] == struct.pack("<I", 16)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("body", [b"", four_words(16)[:-1], four_words(15), four_words(0)])
def test_a_short_request_or_argsz_is_refused(peer: Peer, command: Command, body: bytes) -> None:
    assert peer.call(command, body).error == errno.EINVAL


@pytest.mark.parametrize("command", COMMANDS)
def test_an_fd_is_refused(peer: Peer, memfd: int, command: Command) -> None:
    assert peer.call(command, four_words(16), [memfd]).error == errno.EINVAL


@pytest.mark.parametrize(
    ("index", "count"),
    [(PciIrq.INTX, 1), (PciIrq.MSI, 0), (PciIrq.MSIX, MSIX_VECTORS), (PciIrq.REQ, 1)],
)
def test_irq_info_is_what_the_device_says(peer: Peer, index: int, count: int) -> None:
    reply = peer.call(Command.DEVICE_GET_IRQ_INFO, four_words(16, 0, index))
    assert struct.unpack("<IIII", reply.body) == (16, 1, index, count)


@pytest.mark.parametrize("index", [5, 0xFFFFFFFF])
def test_an_interrupt_type_that_is_not_there_is_refused(peer: Peer, index: int) -> None:
    reply = peer.call(Command.DEVICE_GET_IRQ_INFO, four_words(16, 0, index))
    assert reply.error == errno.EINVAL


def test_there_are_no_region_io_fds(peer: Peer) -> None:
    reply = peer.call(Command.DEVICE_GET_REGION_IO_FDS, four_words(16, 0, 7))
    assert struct.unpack("<IIII", reply.body) == (16, 0, 7, 0)
    assert reply.fds == []


@pytest.mark.parametrize("body", [four_words(16, 1, 0), four_words(16, 0, 9)])
def test_region_io_fds_with_flags_or_without_region_are_refused(peer: Peer, body: bytes) -> None:
    assert peer.call(Command.DEVICE_GET_REGION_IO_FDS, body).error == errno.EINVAL
