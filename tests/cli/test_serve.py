"""`serve` from its first line to its last."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import HostError, NvmeStatusError
from nvme_mdev.spec.nvme_identify_controller import Oacs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import RunCommand, Serve

MIB = 1 << 20
COUNTER = r"nvme-mdev: ([a-z ]+): (\d+), average (\d+) cycles, (\d+) ns\n"
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


def test_a_signal_that_comes_twice_is_one(serve: Serve, tmp_path: Path) -> None:
    """timeout(1) sends it to the process, and to its group."""
    for _ in range(3):
        daemon = serve("null:1G", "--socket", tmp_path / "s")
        # At whatever moment of its end the second one comes.
        while daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.0005)
        assert daemon.process.returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_it_can_be_stopped_where_stop_signals_were_blocked(serve: Serve, tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        daemon = serve("null:1G", "--socket", tmp_path / "s", "--no-keeper")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert daemon.stop().status == 0


@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- <&-"])
def test_it_serves_with_a_standard_stream_closed(tmp_path: Path, closed: str) -> None:
    serve = f'exec "$0" -m nvme_mdev.cli.main serve null:1M --socket s {closed}'
    with subprocess.Popen(
        ["sh", "-c", serve, sys.executable], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "ready" in process.stderr.readline()
        finally:
            process.terminate()
    assert process.returncode == 0


def test_it_goes_on_without_its_terminal_under_nohup(serve: Serve, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        daemon = serve("null:1G", "--socket", tmp_path / "s")
    finally:
        signal.signal(signal.SIGHUP, before)
    daemon.process.send_signal(signal.SIGHUP)
    with NvmeHost(tmp_path / "s") as host:
        assert host.active_namespaces() == [1]


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


def test_an_ordinary_user_serves_an_image(
    nvme_mdev: RunCommand, ordinary_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(ordinary_user / "run"))
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


# -- what a guest sees of the options -----------------------------------------------------------


def test_a_guest_sees_the_namespaces_the_serial_and_the_block_size(
    serve: Serve, tmp_path: Path
) -> None:
    arguments = ["memory:1M", "memory:2M", "--serial", "A1", "--block-size", "4096"]
    serve(*arguments, "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        assert host.identify_controller().sn.rstrip() == b"A1"
        assert [host.namespace(nsid).size for nsid in host.active_namespaces()] == [MIB, 2 * MIB]
        assert host.namespace(1).block_size == 4096


def test_a_guest_gets_as_many_queues_as_were_asked_for(serve: Serve, tmp_path: Path) -> None:
    serve("null:1M", "--queues", "3", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        assert host.queue_counts == (3, 3)


@pytest.mark.parametrize("offered", [True, False])
def test_doorbells_are_offered_as_the_options_say(
    serve: Serve, tmp_path: Path, offered: bool
) -> None:
    options = [] if offered else ["--no-shadow-doorbell", "--no-mapped-doorbells"]
    serve("null:1M", *options, "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        assert host.doorbells_mapped is offered
        assert bool(host.identify_controller().oacs & Oacs.DBCS) is offered


def test_what_a_guest_writes_is_in_the_image_and_there_again_the_next_time(
    serve: Serve, tmp_path: Path
) -> None:
    data = os.urandom(4096)
    daemon = serve(tmp_path / "vm1.img", "--size", "1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair().write(1, 8, data, block_size=512)
    assert daemon.stop().status == 0
    assert (tmp_path / "vm1.img").read_bytes()[4096:8192] == data
    serve(tmp_path / "vm1.img", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        assert host.create_queue_pair().read(1, 8, 8, block_size=512) == data


def test_a_read_only_image_is_not_written(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "vm1.img"
    image.write_bytes(bytes(MIB))
    serve(image, "--read-only", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        with pytest.raises(NvmeStatusError, match="WRITE_PROTECTED"):
            queue.write(1, 0, b"\xff" * 512, block_size=512)
    assert not any(image.read_bytes())


def test_the_three_counters_are_told_at_exit(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair(interrupts=True)
        for _ in range(5):
            queue.flush(1)
    told = re.findall(COUNTER, daemon.stop().err)
    assert [name for name, *_ in told] == [
        "commands translated",
        "commands completed",
        "interrupts sent",
    ]
    translated, completed, interrupts = (int(count) for _, count, *_ in told)
    assert translated == completed == 5
    # The admin queue's completions raise interrupts, too.
    assert interrupts >= 5
    assert all(int(cycles) > 0 and int(ns) > 0 for *_, cycles, ns in told)


def test_a_stop_signal_ends_it_while_a_client_is_connected(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s")
    host = NvmeHost(tmp_path / "s")
    try:
        assert daemon.stop().status == 0
        assert not (tmp_path / "s").exists()
    finally:
        with suppress(HostError):
            host.close()
