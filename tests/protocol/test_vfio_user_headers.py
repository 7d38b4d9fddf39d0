"""Message headers, and streams that do not follow the rules."""

from __future__ import annotations

import errno
import random
import socket
from typing import TYPE_CHECKING

import pytest
from harness import HEADER, access_body, four_words, region_info_body

from nvme_mdev.spec.vfio_user import Command, HeaderFlags, PciRegion

if TYPE_CHECKING:
    from harness import Peer, Running

INFO = Command.DEVICE_GET_INFO
TOO_LARGE = 16 + 16 + (1 << 20) + 1


@pytest.mark.parametrize("size", [0, 1, 15, TOO_LARGE, 0xFFFFFFFF])
def test_an_impossible_size_is_answered_and_closes_the_connection(peer: Peer, size: int) -> None:
    peer.send_raw(HEADER.pack(9, INFO, size, 0, 0))
    reply = peer.receive()
    assert (reply.message_id, reply.command, reply.error) == (9, INFO, errno.EINVAL)
    assert peer.closed()


@pytest.mark.parametrize("flags", [2, 3, 0xF])
def test_an_unknown_message_type_closes_the_connection(peer: Peer, flags: int) -> None:
    peer.send_raw(HEADER.pack(9, INFO, 32, flags, 0) + four_words(16))
    with pytest.raises(EOFError):
        peer.receive()


@pytest.mark.parametrize("flags", [0x40, 0x80000000])
def test_reserved_flags_are_answered_and_close_the_connection(peer: Peer, flags: int) -> None:
    peer.send_raw(HEADER.pack(9, INFO, 32, flags, 0) + four_words(16))
    assert peer.receive().error == errno.EINVAL
    assert peer.closed()


def test_a_reply_that_nobody_asked_for_closes_the_connection(peer: Peer) -> None:
    peer.send_raw(HEADER.pack(9, INFO, 32, 1, 0) + four_words(16))
    with pytest.raises(EOFError):
        peer.receive()


def test_a_command_with_the_error_flag_is_refused(peer: Peer) -> None:
    peer.send(INFO, four_words(16), flags=HeaderFlags.ERROR)
    assert peer.receive().error == errno.EINVAL
    assert peer.call(INFO, four_words(16)).error == 0


def test_the_error_field_of_a_command_is_ignored(peer: Peer) -> None:
    peer.send_raw(HEADER.pack(9, INFO, 32, 0, 77) + four_words(16))
    assert peer.receive().error == 0


def test_message_ids_are_repeated_and_need_not_differ(peer: Peer) -> None:
    for message_id in (0, 0, 0xFFFF, 7):
        peer.send_raw(HEADER.pack(message_id, INFO, 32, 0, 0) + four_words(16))
    assert [peer.receive().message_id for _ in range(4)] == [0, 0, 0xFFFF, 7]


def test_commands_sent_back_to_back_are_answered_in_order(peer: Peer) -> None:
    for i in range(100):
        peer.send(Command.REGION_WRITE, access_body(i, PciRegion.CONFIG, 1, bytes([i & 0xFF])))
        peer.send(Command.REGION_READ, access_body(i, PciRegion.CONFIG, 1))
    for i in range(100):
        assert peer.receive().command == Command.REGION_WRITE
        assert peer.receive().body[16:] == bytes([i & 0xFF])


def test_a_message_may_come_a_byte_at_a_time(peer: Peer) -> None:
    message = HEADER.pack(5, INFO, 32, 0, 0) + four_words(16)
    for byte in message:
        peer.send_raw(bytes([byte]))
    assert peer.receive().message_id == 5


def test_a_partial_message_does_not_stop_the_daemon(running: Running, peer: Peer) -> None:
    peer.send_raw(HEADER.pack(5, INFO, 32, 0, 0)[:7])
    running.wait_until(lambda: True)
    assert running.server.connected


def test_a_client_that_does_not_read_stops_only_itself(running: Running, peer: Peer) -> None:
    """2 GiB are asked for; what is not read is neither computed nor kept."""
    peer.sock.setblocking(False)
    body = access_body(0, PciRegion.BAR1, 1 << 20)
    request = HEADER.pack(1, Command.REGION_READ, 16 + len(body), 0, 0) + body
    sent = 0
    try:
        while sent < 2048:
            peer.sock.send(request)
            sent += 1
    except BlockingIOError:
        pass
    running.wait_until(lambda: len(running.device.named("region_read")) > 0)
    running.wait_until(lambda: True)
    assert len(running.device.named("region_read")) < sent
    peer.close()
    running.wait_until_idle()


@pytest.mark.parametrize("seed", range(20))
def test_noise_never_stops_the_daemon(running: Running, memfd: int, seed: int) -> None:
    noise = random.Random(seed)
    with running.negotiated() as peer:
        for _ in range(50):
            body = noise.randbytes(noise.choice([0, 4, 16, 20, 24, 32, 64]))
            if noise.random() < 0.5:
                body = noise.choice([four_words(16), region_info_body(0), body])
            header = HEADER.pack(1, noise.randrange(20), 16 + len(body), noise.choice([0, 16]), 0)
            fds = [memfd] * noise.randrange(3)
            try:
                peer.send_raw(header + body, fds)
            except (BrokenPipeError, ConnectionResetError):
                break
        try:
            peer.send_raw(noise.randbytes(4096))
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        assert peer.closed()
    with running.negotiated() as peer:
        assert peer.call(INFO, four_words(16)).error == 0
