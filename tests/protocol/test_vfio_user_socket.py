"""The socket file: where it is, who may connect, and what becomes of an old one."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from harness import FakeDevice, four_words

from nvme_mdev.spec.vfio_user import Command
from nvme_mdev.vfio_user.listener import listen
from nvme_mdev.vfio_user.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Running


def test_only_the_owner_can_connect(running: Running) -> None:
    mode = running.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_the_socket_of_a_running_server_is_refused(running: Running) -> None:
    with pytest.raises(OSError, match="in use by a running process") as caught:
        listen(running.path)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.filename == str(running.path)
    running.wait_until_idle()
    with running.negotiated() as peer:
        assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_asking_whether_a_server_runs_does_not_disturb_its_client(running: Running) -> None:
    with running.negotiated() as peer:
        with pytest.raises(OSError, match="in use"):
            listen(running.path)
        assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_the_socket_of_a_server_with_a_full_backlog_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="in use by a running process"):
            listen(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        listen(path)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        listen(tmp_path / "none" / "s")
    assert caught.value.filename == str(tmp_path / "none" / "s")


def test_a_path_too_long_for_a_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="longer than 107 bytes") as caught:
        listen(tmp_path / ("x" * 108))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_closing_removes_the_socket(tmp_path: Path) -> None:
    async def serve() -> None:
        device = FakeDevice()
        try:
            server = Server(device, tmp_path / "s")
            async with server:
                assert (tmp_path / "s").exists()
            await server.close()
        finally:
            device.close()

    asyncio.run(serve())
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_closing_leaves_the_socket_of_a_successor(tmp_path: Path) -> None:
    async def serve() -> None:
        device = FakeDevice()
        try:
            async with Server(device, tmp_path / "s"):
                (tmp_path / "s").unlink()
                listen(tmp_path / "s").close()
        finally:
            device.close()

    asyncio.run(serve())
    assert (tmp_path / "s").exists()
