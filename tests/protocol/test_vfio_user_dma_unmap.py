"""VFIO_USER_DMA_UNMAP: ranges, everything, and ranges in which there is nothing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from harness import dma_unmap_body

from nvme_mdev.spec.vfio_user import Command
from nvme_mdev.vfio_user.device import DeviceError

if TYPE_CHECKING:
    from harness import Peer, Running


def test_the_reply_repeats_the_request(running: Running, peer: Peer) -> None:
    body = dma_unmap_body(0x100000, 0x2000)
    assert peer.call(Command.DMA_UNMAP, body).body == body
    assert running.device.named("dma_unmap") == [(0x100000, 0x2000)]


def test_a_range_larger_than_any_memory_is_taken(running: Running, peer: Peer) -> None:
    body = dma_unmap_body(0xFEEFFFFF, 0xFFFFFFFF01100000)
    assert peer.call(Command.DMA_UNMAP, body).error == 0
    assert running.device.named("dma_unmap") == [(0xFEEFFFFF, 0xFFFFFFFF01100000)]


def test_all_memory_is_unmapped_with_the_all_flag(running: Running, peer: Peer) -> None:
    body = dma_unmap_body(0, 0, flags=2)
    assert peer.call(Command.DMA_UNMAP, body).body == body
    assert running.device.named("dma_unmap_all") == [()]


def test_an_fd_is_taken_and_closed(running: Running, peer: Peer, memfd: int) -> None:
    assert peer.call(Command.DMA_UNMAP, dma_unmap_body(0, 0x1000), [memfd]).error == 0
    assert running.device.named("dma_unmap") == [(0, 0x1000)]


def test_an_argsz_with_room_to_spare_is_fine(peer: Peer) -> None:
    assert peer.call(Command.DMA_UNMAP, dma_unmap_body(0, 0x1000, argsz=4096)).error == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        dma_unmap_body(0, 0x1000)[:-1],
        dma_unmap_body(0, 0x1000, argsz=23),
        dma_unmap_body(0, 0x1000, flags=4),
        dma_unmap_body(0, 0),
        dma_unmap_body(0x1000, (1 << 64) - 0xFFF),
        dma_unmap_body((1 << 64) - 1, 2),
        dma_unmap_body(0x1000, 0, flags=2),
        dma_unmap_body(0, 0x1000, flags=2),
    ],
)
def test_a_malformed_request_is_refused(running: Running, peer: Peer, body: bytes) -> None:
    assert peer.call(Command.DMA_UNMAP, body).error == errno.EINVAL
    assert running.device.calls == [("attached",)]


def test_dirty_pages_are_not_supported(peer: Peer) -> None:
    body = dma_unmap_body(0, 0x1000, flags=1)
    assert peer.call(Command.DMA_UNMAP, body).error == errno.ENOTSUP


def test_the_devices_refusal_reaches_the_client(running: Running, peer: Peer) -> None:
    running.device.fails["dma_unmap"] = DeviceError(errno.ENOENT)
    assert peer.call(Command.DMA_UNMAP, dma_unmap_body(0, 1)).error == errno.ENOENT
