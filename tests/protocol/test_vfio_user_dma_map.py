"""VFIO_USER_DMA_MAP: memory of the client, with a file descriptor or without."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest
from harness import dma_map_body, dma_unmap_body, four_words

from nvme_mdev.spec.vfio_user import Command, DmaMapFlags
from nvme_mdev.vfio_user.device import DeviceError, DmaMap

if TYPE_CHECKING:
    from harness import Peer, Running

RW = DmaMapFlags.READ | DmaMapFlags.WRITE
UNSHARED = "start QEMU with a memory backend with share=on"


def test_memory_with_an_fd_reaches_the_device(running: Running, peer: Peer, memfd: int) -> None:
    reply = peer.call(Command.DMA_MAP, dma_map_body(0x100000, 0x2000, offset=0x1000), [memfd])
    assert reply.body == b""
    assert running.device.named("dma_map") == [(DmaMap(0x100000, 0x2000, 0x1000, RW), True)]
    assert running.device.fd_names == ["/memfd:ram (deleted)"]


def test_memory_without_an_fd_is_no_error(running: Running, peer: Peer) -> None:
    assert peer.call(Command.DMA_MAP, dma_map_body(0xFFFC0000, 0x40000, flags=1)).error == 0
    assert running.device.named("dma_map") == [
        (DmaMap(0xFFFC0000, 0x40000, 0, DmaMapFlags.READ), False)
    ]


def test_memory_up_to_the_last_byte_is_taken(running: Running, peer: Peer) -> None:
    assert peer.call(Command.DMA_MAP, dma_map_body((1 << 64) - 0x1000, 0x1000)).error == 0
    assert len(running.device.named("dma_map")) == 1


def test_memory_without_any_permission_is_taken(peer: Peer) -> None:
    assert peer.call(Command.DMA_MAP, dma_map_body(0, 0x1000, flags=0)).error == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        dma_map_body(0, 0x1000)[:-1],
        dma_map_body(0, 0x1000, argsz=31),
        dma_map_body(0, 0x1000, argsz=0),
        dma_map_body(0, 0x1000, flags=4),
        dma_map_body(0, 0x1000, flags=0x80000003),
        dma_map_body(0x1000, 0),
        dma_map_body((1 << 64) - 0x1000, 0x1001),
        dma_map_body((1 << 64) - 1, (1 << 64) - 1),
        dma_map_body(0, 0x1000, offset=(1 << 63) - 0xFFF),
        dma_map_body(0, 0x1000, offset=(1 << 64) - 0x1000),
    ],
)
def test_a_malformed_request_is_refused_and_its_fd_closed(
    running: Running, peer: Peer, memfd: int, body: bytes
) -> None:
    assert peer.call(Command.DMA_MAP, body, [memfd]).error == errno.EINVAL
    assert running.device.named("dma_map") == []
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_two_fds_are_refused(running: Running, peer: Peer, memfd: int) -> None:
    body = dma_map_body(0, 0x1000)
    assert peer.call(Command.DMA_MAP, body, [memfd, memfd]).error == errno.EINVAL
    assert running.device.named("dma_map") == []


def test_the_devices_refusal_reaches_the_client(running: Running, peer: Peer, memfd: int) -> None:
    running.device.fails["dma_map"] = DeviceError(errno.EEXIST)
    assert peer.call(Command.DMA_MAP, dma_map_body(0, 0x1000), [memfd]).error == errno.EEXIST


def test_a_device_that_fails_costs_an_io_error_and_nothing_else(
    running: Running, peer: Peer, memfd: int, caplog: pytest.LogCaptureFixture
) -> None:
    running.device.fails["dma_map"] = ZeroDivisionError()
    assert peer.call(Command.DMA_MAP, dma_map_body(0, 0x1000), [memfd]).error == errno.EIO
    assert "ZeroDivisionError" in caplog.text
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_fds_of_messages_that_come_back_to_back_go_to_the_right_message(
    running: Running, peer: Peer
) -> None:
    fds = [os.memfd_create(f"ram{i}") for i in range(4)]
    try:
        for i, fd in enumerate(fds):
            peer.send(Command.DMA_UNMAP, dma_unmap_body(i << 20, 1 << 20))
            peer.send(Command.DMA_MAP, dma_map_body(i << 20, 1 << 20), [fd])
            peer.send(Command.DMA_MAP, dma_map_body(i << 40, 0x1000, flags=1))
        for _ in range(12):
            assert peer.receive().error == 0
    finally:
        for fd in fds:
            os.close(fd)
    assert running.device.fd_names == [f"/memfd:ram{i} (deleted)" for i in range(4)]
    with_fd = [mapping.iova for mapping, fd in running.device.named("dma_map") if fd]
    assert with_fd == [i << 20 for i in range(4)]


def test_an_fd_that_comes_with_the_body_is_taken_too(
    running: Running, peer: Peer, memfd: int
) -> None:
    body = dma_map_body(0, 0x1000)
    peer.send_raw(b"\x07\0\x02\0\x30\0\0\0\0\0\0\0\0\0\0\0")
    peer.send_raw(body, [memfd])
    reply = peer.receive()
    assert (reply.message_id, reply.error) == (7, 0)
    assert running.device.named("dma_map") == [(DmaMap(0, 0x1000, 0, RW), True)]


def test_ram_that_is_not_shared_is_said_in_the_log_at_once_and_once(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        peer.call(Command.DMA_MAP, dma_map_body(0, 1 << 20))
        assert UNSHARED in caplog.text
        peer.call(Command.DMA_MAP, dma_map_body(1 << 30, 1 << 30))
    assert caplog.text.count(UNSHARED) == 1


@pytest.mark.parametrize(
    "body",
    [dma_map_body(0xFFFC0000, 0x400000, flags=1), dma_map_body(0xFE801000, 0x1000)],
    ids=["bios rom", "doorbell page"],
)
def test_what_is_never_shared_is_not_complained_about(
    peer: Peer, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        peer.call(Command.DMA_MAP, body)
    assert UNSHARED not in caplog.text
