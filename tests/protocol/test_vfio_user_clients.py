"""Clients come and go: one at a time, and whatever they leave behind is cleaned up."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING

from harness import HEADER, dma_map_body, four_words, open_fds, set_irqs_body

from nvme_mdev.spec.vfio_user import Command
from nvme_mdev.vfio_user import client_session

if TYPE_CHECKING:
    import pytest
    from harness import Peer, Running

INFO = Command.DEVICE_GET_INFO


def test_a_second_client_is_refused_while_the_first_goes_on(running: Running, peer: Peer) -> None:
    for _ in range(3):
        with running.peer() as second:
            assert second.closed()
        assert peer.call(INFO, four_words(16)).error == 0
    assert running.device.named("detached") == []


def test_the_next_client_finds_the_device_ready(running: Running) -> None:
    for _ in range(3):
        with running.negotiated() as peer:
            assert peer.call(INFO, four_words(16)).error == 0
    running.wait_until_idle()
    assert running.device.calls == [("attached",), ("detached",)] * 3


def test_the_device_may_poll_the_socket_of_the_client_that_is_there(running: Running) -> None:
    for _ in range(2):
        assert running.device.heard == set()
        with running.negotiated():
            (fd,) = running.device.heard
            assert stat.S_ISSOCK(os.fstat(fd).st_mode)
        running.wait_until_idle()
    assert running.device.heard == set()


def test_a_client_that_says_nothing_is_not_attached(running: Running) -> None:
    running.peer().close()
    running.wait_until_idle()
    assert running.device.calls == []


def test_a_client_that_goes_in_the_middle_of_a_header_is_cleaned_up(
    running: Running, memfd: int
) -> None:
    with running.negotiated() as peer:
        peer.send_raw(HEADER.pack(1, Command.DMA_MAP, 48, 0, 0)[:9], [memfd])
    running.wait_until_idle()
    assert running.device.calls == [("attached",), ("detached",)]


def test_a_client_that_goes_in_the_middle_of_a_body_is_cleaned_up(
    running: Running, memfd: int
) -> None:
    with running.negotiated() as peer:
        peer.send_raw(HEADER.pack(1, Command.DMA_MAP, 48, 0, 0), [memfd])
        peer.send_raw(dma_map_body(0, 0x1000)[:20])
    running.wait_until_idle()
    assert running.device.calls == [("attached",), ("detached",)]


def test_what_a_client_sent_before_it_went_is_done(running: Running, memfd: int) -> None:
    with running.negotiated() as peer:
        peer.send(Command.DMA_MAP, dma_map_body(0, 0x1000), [memfd])
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.receive().error == 0
    running.wait_until_idle()
    assert [call[0] for call in running.device.calls] == ["attached", "dma_map", "detached"]


def test_a_client_that_goes_with_replies_unread_is_cleaned_up(running: Running, memfd: int) -> None:
    with running.negotiated() as peer:
        for i in range(50):
            peer.send(Command.DMA_MAP, dma_map_body(i << 20, 0x1000), [memfd])
    running.wait_until_idle()
    assert running.device.calls[-1] == ("detached",)


def test_a_client_comes_while_the_device_is_still_busy_with_the_one_before(
    running: Running,
) -> None:
    running.device.gate = threading.Event()
    with running.negotiated() as first:
        first.send(Command.DEVICE_RESET)
        # Its session goes on until the reset is done, but nobody waits for it any more.
    with running.peer() as second:
        second.send(Command.VERSION, b"\0\0\1\0")
        running.device.gate.set()
        assert second.receive().error == 0
    running.wait_until_idle()
    assert [call[0] for call in running.device.calls] == [
        "attached",
        "reset",
        "detached",
        "attached",
        "detached",
    ]


def test_a_session_leaves_no_fd_behind_in_the_server(running: Running, memfd: int) -> None:
    before = set(open_fds())
    with running.negotiated() as peer:
        for _ in range(10):
            peer.call(Command.DMA_MAP, dma_map_body(0, 0x1000), [memfd])
            peer.call(Command.DMA_MAP, dma_map_body(0, 0), [memfd])
            peer.call(Command.DEVICE_SET_IRQS, set_irqs_body(0x24, 2, 0, 2), [memfd, memfd])
            peer.call(Command.DEVICE_SET_IRQS, set_irqs_body(0x24, 2, 0, 1), [memfd, memfd])
            peer.call(0x404, b"", [memfd])
    running.wait_until_idle()
    assert set(open_fds()) == before


def test_a_device_that_fails_to_detach_does_not_stop_the_daemon(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.device.fails["detached"] = RuntimeError("stuck")
    with running.negotiated():
        pass
    running.wait_until_idle()
    assert "stuck" in caplog.text
    with running.negotiated() as peer:
        assert peer.call(INFO, four_words(16)).error == 0


def test_coming_and_going_is_logged_with_the_process(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        with running.negotiated():
            pass
        running.wait_until_idle()
    assert f"client connected (pid {os.getpid()})" in caplog.text
    assert "client disconnected" in caplog.text


def test_a_session_cannot_fill_the_log(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        peer.call(0x404)
    assert caplog.text.count("unknown command") == 10


def test_a_client_that_never_says_a_word_does_not_keep_others_out(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "_NEGOTIATION_TIMEOUT_SECONDS", 0.02)
    with running.peer() as peer:
        assert peer.closed()


def test_closing_the_server_sends_the_client_away(running: Running, peer: Peer) -> None:
    running.run(running.server.close())
    assert peer.closed()
    assert running.device.calls == [("attached",), ("detached",)]
    assert not running.path.exists()
