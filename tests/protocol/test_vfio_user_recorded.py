"""What QEMU 11.1.3 and SPDK's host driver were seen to send, byte for byte where it matters."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest
from harness import (
    HEADER,
    QEMU_JSON,
    access_body,
    dma_map_body,
    dma_unmap_body,
    four_words,
    region_info_body,
    set_irqs_body,
)

from nvme_mdev.spec.vfio_user import Command, DmaMapFlags, PciIrq, PciRegion
from nvme_mdev.vfio_user.device import DmaMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Peer, Running

RW = DmaMapFlags.READ | DmaMapFlags.WRITE
DOORBELLS = 0xFE801000


@pytest.fixture
def eventfd(no_fd_is_left: None) -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_qemus_start(running: Running, memfd: int, eventfd: int) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, struct.pack("<HH", 0, 0) + QEMU_JSON)
        assert reply.body[-1] == 0
        # RAM and BIOS ROM, the second without fd and before the reply to the first.
        peer.send(Command.DMA_MAP, dma_map_body(0, 512 << 20), [memfd])
        peer.send(Command.DMA_MAP, dma_map_body(0xFFFC0000, 0x40000, flags=1))
        assert [peer.receive().error for _ in range(2)] == [0, 0]

        info = peer.call(Command.DEVICE_GET_INFO, four_words(16))
        assert struct.unpack("<IIII", info.body) == (16, 3, 9, 5)

        first = peer.call(Command.DEVICE_GET_REGION_INFO, region_info_body(0, argsz=32))
        (argsz,) = struct.unpack("<I", first.body[:4])
        assert (argsz, len(first.body), first.fds) == (64, 32, [])
        second = peer.call(Command.DEVICE_GET_REGION_INFO, region_info_body(0, argsz=argsz))
        flags, _, cap_offset = struct.unpack("<III", second.body[4:16])
        assert (flags, cap_offset, len(second.body)) == (0xF, 32, 64)
        assert len(second.fds) == 1
        for index in (1, 2, 3, 4, 5, 7):
            reply = peer.call(Command.DEVICE_GET_REGION_INFO, region_info_body(index))
            assert len(reply.body) == 32

        assert peer.call(Command.DEVICE_GET_IRQ_INFO, four_words(16, 0, PciIrq.ERR)).error == 0
        config = peer.call(Command.REGION_READ, access_body(0, PciRegion.CONFIG, 4096))
        assert len(config.body) == 16 + 4096
        sizing = access_body(0x30, PciRegion.CONFIG, 4, b"\xff\xff\xff\xff")
        assert peer.call(Command.REGION_WRITE, sizing).error == 0
        assert peer.call(Command.DEVICE_GET_IRQ_INFO, four_words(16, 0, PciIrq.MSIX)).error == 0
        for index in (PciIrq.INTX, PciIrq.ERR):
            body = set_irqs_body(0x24, index, 0, 1)
            assert peer.call(Command.DEVICE_SET_IRQS, body, [eventfd]).error == 0


def test_qemus_machine_reset(running: Running, peer: Peer, eventfd: int) -> None:
    for _ in range(3):
        peer.call(Command.DEVICE_SET_IRQS, set_irqs_body(0x21, PciIrq.INTX, 0, 0))
        peer.call(Command.REGION_WRITE, access_body(4, PciRegion.CONFIG, 2, b"\0\0"))
        assert peer.call(Command.DEVICE_RESET).error == 0
        body = set_irqs_body(0x24, PciIrq.INTX, 0, 1)
        assert peer.call(Command.DEVICE_SET_IRQS, body, [eventfd]).error == 0
        for bar in range(6):
            body = access_body(0x10 + 4 * bar, PciRegion.CONFIG, 4, bytes(4))
            assert peer.call(Command.REGION_WRITE, body).error == 0
    assert len(running.device.named("reset")) == 3


def test_qemu_remaps_ram_in_pieces_without_waiting(
    running: Running, peer: Peer, memfd: int
) -> None:
    """A memory transaction of SeaBIOS: eight messages back to back, one piece without fd."""
    pieces = [
        (0, 0xC0000, 3, 0, True),
        (0xC0000, 0x3000, 1, 0xC0000, True),
        (0xC3000, 0x15000, 3, 0xC3000, True),
        (0xE8000, 0x8000, 3, 0xE8000, True),
        (0xF0000, 0x10000, 1, 0, False),
        (0x100000, 0x100000, 3, 0x100000, True),
        (DOORBELLS, 0x1000, 3, 0, False),
    ]
    peer.send(Command.DMA_UNMAP, dma_unmap_body(0, 512 << 20))
    for address, size, flags, offset, shared in pieces:
        body = dma_map_body(address, size, flags=flags, offset=offset)
        peer.send(Command.DMA_MAP, body, [memfd] if shared else [])
    assert [peer.receive().error for _ in range(8)] == [0] * 8
    assert running.device.named("dma_map") == [
        (DmaMap(address, size, offset, DmaMapFlags(flags)), shared)
        for address, size, flags, offset, shared in pieces
    ]


def test_qemu_with_intx_writes_doorbells_through_the_socket_and_unmasks(
    running: Running, peer: Peer
) -> None:
    peer.call(Command.DMA_UNMAP, dma_unmap_body(DOORBELLS, 0x1000))
    body = access_body(0x1000, PciRegion.BAR0, 4, b"\1\0\0\0")
    assert peer.call(Command.REGION_WRITE, body).error == 0
    assert peer.call(Command.DEVICE_SET_IRQS, set_irqs_body(0x11, 0, 0, 1)).error == 0
    assert running.device.named("region_write") == [(0, 0x1000, b"\1\0\0\0")]


def test_linux_sets_up_msix_a_message_a_vector(running: Running, peer: Peer, eventfd: int) -> None:
    peer.call(Command.DEVICE_SET_IRQS, set_irqs_body(0x21, PciIrq.INTX, 0, 0))
    assert peer.call(Command.DEVICE_SET_IRQS, set_irqs_body(0x24, PciIrq.MSIX, 0, 1)).error == 0
    for vector in range(3):
        body = set_irqs_body(0x24, PciIrq.MSIX, vector, 1)
        assert peer.call(Command.DEVICE_SET_IRQS, body, [eventfd]).error == 0
    calls = running.device.named("set_irqs")
    assert [(r.index, r.start, r.count, fds) for r, fds in calls] == [
        (0, 0, 0, 0),
        (2, 0, 1, 0),
        (2, 0, 1, 1),
        (2, 1, 1, 1),
        (2, 2, 1, 1),
    ]


def test_qemu_goes_without_goodbye(running: Running) -> None:
    with running.negotiated() as peer:
        peer.call(Command.REGION_WRITE, access_body(0x14, 0, 4, b"\1\x40\x46\0"))
    running.wait_until_idle()
    assert running.device.calls[-1] == ("detached",)


def test_qemus_iommu_unmaps_ranges_in_which_there_is_nothing(
    running: Running, peer: Peer, memfd: int
) -> None:
    for page in (0xFFFFF000, 0xFFFFE000):
        peer.call(Command.DMA_MAP, dma_map_body(page, 0x1000, offset=0x3000), [memfd])
        assert peer.call(Command.DMA_UNMAP, dma_unmap_body(page, 0x1000)).error == 0
    for address, size in [(0, 1 << 63), (1 << 63, 1 << 63), (0xFEF00000, 0xFFFFFFFF01100000)]:
        assert peer.call(Command.DMA_UNMAP, dma_unmap_body(address, size)).error == 0
    assert len(running.device.named("dma_unmap")) == 5


def test_spdks_session(running: Running, memfd: int) -> None:
    """Message id 0 throughout, 4064 bytes of region info, an fd with DMA_UNMAP."""
    iova = 0x200000200000

    def call(
        peer: Peer, command: int, body: bytes = b"", fds: tuple[int, ...] = ()
    ) -> tuple[int, bytes, int]:
        peer.send_raw(HEADER.pack(0, command, 16 + len(body), 0, 0) + body, fds)
        reply = peer.receive()
        assert (reply.message_id, reply.command) == (0, command)
        return reply.error, reply.body, len(reply.fds)

    with running.peer() as peer:
        assert call(peer, Command.VERSION, struct.pack("<HH", 0, 1)) == (0, b"\0\0\1\0", 0)
        assert call(peer, Command.DEVICE_GET_INFO, four_words(16))[0] == 0
        for index in range(9):
            body = region_info_body(index, argsz=4064).ljust(4064, b"\0")
            error, reply, fds = call(peer, Command.DEVICE_GET_REGION_INFO, body)
            assert error == 0
            assert len(reply) <= 4064
            assert fds == (index in (0, 2))
        map_body = dma_map_body(iova, 2 << 20)
        assert call(peer, Command.DMA_MAP, map_body, (memfd,)) == (0, b"", 0)
        call(peer, Command.REGION_WRITE, access_body(4, PciRegion.CONFIG, 2, b"\4\4"))
        assert len(call(peer, Command.REGION_READ, access_body(0, 0, 8))[1]) == 24
        call(peer, Command.REGION_WRITE, access_body(0x28, 0, 8, struct.pack("<Q", iova)))
        call(peer, Command.REGION_WRITE, access_body(0x14, 0, 4, b"\1\x40\x46\0"))
        unmap = dma_unmap_body(iova, 2 << 20)
        assert call(peer, Command.DMA_UNMAP, unmap, (memfd,)) == (0, unmap, 0)
    running.wait_until_idle()
    assert running.device.named("dma_map") == [(DmaMap(iova, 2 << 20, 0, RW), True)]
    assert running.device.named("set_irqs") == []


def test_migration_as_qemu_would_ask_for_it_is_refused(peer: Peer) -> None:
    body = struct.pack("<II", 8, 1 << 16 | 1)
    assert peer.call(Command.DEVICE_FEATURE, body).error == errno.ENOTSUP
