"""VFIO_USER_REGION_READ and REGION_WRITE: bounds first, then the device."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from harness import HEADER, access_body, four_words

from nvme_mdev.spec.vfio_user import Command, HeaderFlags, PciRegion
from nvme_mdev.vfio_user.device import DeviceError

if TYPE_CHECKING:
    from harness import Peer, Running

READ, WRITE = Command.REGION_READ, Command.REGION_WRITE
CONFIG = PciRegion.CONFIG
MAX = 1 << 20


def test_what_was_written_is_read(peer: Peer) -> None:
    reply = peer.call(WRITE, access_body(0x10, CONFIG, 4, b"abcd"))
    assert reply.body == access_body(0x10, CONFIG, 4)
    reply = peer.call(READ, access_body(0x0E, CONFIG, 8))
    assert reply.body == access_body(0x0E, CONFIG, 8, b"\0\0abcd\0\0")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 4096])
def test_every_size_up_to_the_regions_end_reaches_the_device(
    running: Running, peer: Peer, size: int
) -> None:
    peer.call(READ, access_body(4096 - size, CONFIG, size))
    assert running.device.named("region_read") == [(CONFIG, 4096 - size, size)]


def test_one_mebibyte_is_the_most_at_a_time(peer: Peer) -> None:
    data = bytes(range(256)) * (MAX // 256)
    assert peer.call(WRITE, access_body(0, PciRegion.BAR1, MAX, data)).error == 0
    assert peer.call(READ, access_body(0, PciRegion.BAR1, MAX)).body[16:] == data
    body = access_body(0, PciRegion.BAR1, MAX + 1)
    assert peer.call(READ, body).error == errno.EINVAL


def test_a_write_above_one_mebibyte_closes_the_connection(running: Running, peer: Peer) -> None:
    body = access_body(0, PciRegion.BAR1, MAX + 1)
    header = b"\x07\0\x0a\0" + (16 + len(body) + MAX + 1).to_bytes(4, "little") + bytes(8)
    peer.send_raw(header + body)
    assert peer.receive().error == errno.EINVAL
    assert peer.closed()
    assert running.device.named("region_write") == []


@pytest.mark.parametrize(
    ("offset", "region", "count"),
    [
        (4096, CONFIG, 1),
        (4093, CONFIG, 4),
        (0, CONFIG, 4097),
        ((1 << 64) - 1, CONFIG, 1),
        ((1 << 64) - 4, CONFIG, 8),
        (0, PciRegion.BAR3, 1),
        (0, 9, 1),
        (0, 0xFFFFFFFF, 1),
        (0, CONFIG, 0),
        (0, CONFIG, 0xFFFFFFFF),
    ],
)
def test_an_access_outside_of_a_region_is_refused(
    running: Running, peer: Peer, offset: int, region: int, count: int
) -> None:
    assert peer.call(READ, access_body(offset, region, count)).error == errno.EINVAL
    data = bytes(count if count < MAX else 0)
    assert peer.call(WRITE, access_body(offset, region, count, data)).error == errno.EINVAL
    assert running.device.calls == [("attached",)]


def test_reading_what_can_only_be_written_is_refused(peer: Peer) -> None:
    assert peer.call(READ, access_body(0, PciRegion.BAR5, 4)).error == errno.EPERM
    assert peer.call(WRITE, access_body(0, PciRegion.BAR5, 4, b"1234")).error == 0


def test_writing_what_can_only_be_read_is_refused(peer: Peer) -> None:
    assert peer.call(WRITE, access_body(0, PciRegion.BAR4, 4, b"1234")).error == errno.EPERM
    assert peer.call(READ, access_body(0, PciRegion.BAR4, 4)).error == 0


@pytest.mark.parametrize("data", [b"", b"123", b"12345"])
def test_data_that_is_not_as_long_as_count_is_refused(
    running: Running, peer: Peer, data: bytes
) -> None:
    assert peer.call(WRITE, access_body(0, CONFIG, 4, data)).error == errno.EINVAL
    assert running.device.named("region_write") == []


@pytest.mark.parametrize("command", [READ, WRITE])
def test_a_short_request_is_refused(peer: Peer, command: Command) -> None:
    assert peer.call(command, access_body(0, CONFIG, 4)[:-1]).error == errno.EINVAL


@pytest.mark.parametrize("command", [READ, WRITE])
def test_an_fd_is_refused(peer: Peer, memfd: int, command: Command) -> None:
    body = access_body(0, CONFIG, 4, b"1234" if command == WRITE else b"")
    assert peer.call(command, body, [memfd]).error == errno.EINVAL


def test_a_posted_write_is_done_and_not_answered(running: Running, peer: Peer) -> None:
    peer.send(WRITE, access_body(0, CONFIG, 4, b"1234"), flags=HeaderFlags.NO_REPLY)
    assert peer.call(READ, access_body(0, CONFIG, 4)).body[16:] == b"1234"


def test_not_even_an_error_of_a_posted_write_is_answered(peer: Peer) -> None:
    peer.send(WRITE, access_body(1 << 40, CONFIG, 4, b"1234"), flags=HeaderFlags.NO_REPLY)
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_the_devices_refusal_reaches_the_client(running: Running, peer: Peer) -> None:
    running.device.fails["region_read"] = DeviceError(errno.EAGAIN)
    running.device.fails["region_write"] = OSError(errno.ENOSPC, "full")
    assert peer.call(READ, access_body(0, CONFIG, 4)).error == errno.EAGAIN
    assert peer.call(WRITE, access_body(0, CONFIG, 1, b"x")).error == errno.ENOSPC


def test_a_device_that_gives_the_wrong_number_of_bytes_costs_an_io_error(
    running: Running, peer: Peer
) -> None:
    running.device.memory[CONFIG] = bytearray(2)
    assert peer.call(READ, access_body(0, CONFIG, 4)).error == errno.EIO


def test_a_client_that_always_has_a_next_message_does_not_keep_others_from_their_turn(
    running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 300
    written: list[bytes] = []
    turns: list[int] = []

    def write(_index: int, _offset: int, data: bytes) -> None:
        if not written:
            running.loop.call_soon(lambda: turns.append(len(written)))
        written.append(data)

    monkeypatch.setattr(running.device, "region_write", write)
    body = access_body(0, CONFIG, 4, b"1234")
    header = HEADER.pack(1, WRITE, HEADER.size + len(body), HeaderFlags.NO_REPLY, 0)
    peer.send_raw((header + body) * count)
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0
    assert len(written) == count
    assert turns[0] < count
