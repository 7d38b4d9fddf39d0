"""`serve` from its first line to its last."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import RunCommand, Serve

SERIAL = re.compile(r"serial (\S+)\n")


def _serial(ready: str) -> str:
    match = SERIAL.search(ready)
    assert match
    return match[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_it_cleanly(
    serve: Serve, tmp_path: Path, number: signal.Signals
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    assert tuple(daemon.stop(number)) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_ready_names_socket_namespaces_sizes_and_serial(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(
        "null:1G", "memory:1536K", "--socket", tmp_path / "s", "--serial", "A1", "--block-size=4096"
    )
    assert daemon.ready == (
        f"nvme-mdev: ready on {tmp_path}/s:"
        " namespace 1 null:1G (1 GiB, 4096 B blocks),"
        " namespace 2 memory:1536K (1.5 MiB, 4096 B blocks), serial A1\n"
    )


def test_ready_means_that_a_client_can_connect(serve: Serve, tmp_path: Path) -> None:
    serve("null:1G", "--socket", tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(tmp_path / "s"))


def test_a_directory_gets_a_socket_named_cntrl(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1G", "--socket", f"{tmp_path}/")
    assert stat.S_ISSOCK((tmp_path / "cntrl").stat().st_mode)
    daemon.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_new_image_is_sparse_and_stays(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "vm1.img"
    daemon = serve(image, "--size", "1G", "--socket", tmp_path / "s")
    assert f"namespace 1 {image} (1 GiB, " in daemon.ready
    assert daemon.stop().status == 0
    assert image.stat().st_size == 1 << 30
    assert image.stat().st_blocks == 0


def test_an_image_of_that_size_may_be_there_already(serve: Serve, tmp_path: Path) -> None:
    for _ in range(2):
        daemon = serve(tmp_path / "vm1.img", "--size", "1M", "--socket", tmp_path / "s")
        assert daemon.stop().status == 0


def test_a_read_only_image_is_said_to_be_so_and_may_be_served_twice(
    serve: Serve, tmp_path: Path
) -> None:
    image = tmp_path / "vm1.img"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o400)
    for name in "ab":
        daemon = serve(image, "--read-only", "--socket", tmp_path / name)
        assert "read-only" in daemon.ready


def test_the_serial_belongs_to_the_image(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    serials = []
    for target in ["vm1.img", f"{tmp_path}/vm1.img", "vm2.img"]:
        daemon = serve(target, "--size", "1M", "--socket", "s")
        serials.append(_serial(daemon.ready))
        daemon.stop()
    first, same, other = serials
    assert first == same != other
    assert len(first) == 20


def test_null_controllers_on_two_sockets_are_two_drives(serve: Serve, tmp_path: Path) -> None:
    serials = {_serial(serve("null:1G", "--socket", tmp_path / name).ready) for name in "ab"}
    assert len(serials) == 2


def test_the_socket_of_a_killed_daemon_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    serve("null:1G", "--socket", tmp_path / "s").stop(signal.SIGKILL)
    assert (tmp_path / "s").exists()
    assert serve("null:1G", "--socket", tmp_path / "s").stop().status == 0


def test_an_ordinary_user_serves_an_image(nvme_mdev: RunCommand, ordinary_user: Path) -> None:
    path = ordinary_user / "s"

    def stop_when_ready() -> None:
        while threading.main_thread().is_alive() and not over.is_set():
            with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
                client.connect(os.fspath(path))
                signal.raise_signal(signal.SIGTERM)
                return

    over = threading.Event()
    stopper = threading.Thread(target=stop_when_ready)
    stopper.start()
    try:
        result = nvme_mdev("serve", ordinary_user / "vm1.img", "--size", "1M", "--socket", path)
    finally:
        over.set()
        stopper.join()
    assert result.status == 0, result
    assert result.err.startswith("nvme-mdev: ready")
    assert (ordinary_user / "vm1.img").stat().st_uid == os.geteuid()
