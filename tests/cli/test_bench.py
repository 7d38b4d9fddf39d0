"""`nvme-mdev bench` against the daemon, and what it says when it cannot measure."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host.workload import block_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunCommand, Serve

COUNT = ("--number-ios", "500")


@pytest.fixture
def null(serve: Serve, tmp_path: Path) -> Path:
    """A served null namespace's socket."""
    path = tmp_path / "null.sock"
    serve("null:1G", "--socket", path)
    return path


def test_json_is_as_fio_names_it_and_nothing_else(nvme_mdev: RunCommand, null: Path) -> None:
    result = nvme_mdev("bench", null, *COUNT, "--jobs", "2", "--qd", "8", "--json")
    assert (result.status, result.err) == (0, "")
    output = json.loads(result.out)
    assert [job["jobname"] for job in output["jobs"]] == ["randread", "randread"]
    for job in output["jobs"]:
        read = job["read"]
        assert read["total_ios"] == read["lat_ns"]["N"] == 500
        assert read["io_bytes"] == 500 * 4096
        assert read["iops"] > 0
        assert read["lat_ns"]["mean"] == pytest.approx(
            read["slat_ns"]["mean"] + read["clat_ns"]["mean"], abs=2
        )
        assert job["write"]["total_ios"] == 0
    assert output["nvme-mdev"]["controller"]["doorbells"] == "mapped"


def test_the_table_is_for_people(nvme_mdev: RunCommand, null: Path) -> None:
    result = nvme_mdev("bench", null, *COUNT, "--rw", "randrw", "--rwmixread", "30")
    assert result.status == 0
    assert result.out.startswith("nvme-mdev ")
    for word in ("4k randrw QD1", "read: ", "write: ", "IOPS", "SLAT", "CLAT", "p99.9"):
        assert word in result.out


def test_our_daemon_tells_its_counters(nvme_mdev: RunCommand, null: Path) -> None:
    result = nvme_mdev("bench", null, *COUNT, "--interrupts", "--json")
    counters = json.loads(result.out)["nvme-mdev"]["counters"]
    assert counters["commands_translated"]["count"] == 500
    assert counters["commands_completed"]["count"] == 500
    assert counters["commands_completed"]["mean_ns"] > 0
    assert 0 < counters["interrupts_sent"]["count"] <= 500 + 2


@pytest.mark.parametrize(
    ("options", "doorbells"),
    [
        (["--shadow-doorbell"], "shadow"),
        (["--no-mapped-doorbells"], "shadow"),
        (["--no-mapped-doorbells", "--no-shadow-doorbell"], "socket"),
        (["--no-shadow-doorbell", "--interrupts"], "mapped"),
    ],
)
def test_every_way_to_ring_works(
    nvme_mdev: RunCommand, null: Path, options: list[str], doorbells: str
) -> None:
    result = nvme_mdev("bench", null, *COUNT, "--qd", "4", "--json", *options)
    assert result.status == 0, result.err
    output = json.loads(result.out)
    assert output["nvme-mdev"]["controller"]["doorbells"] == doorbells
    assert output["jobs"][0]["read"]["total_ios"] == 500


def test_shadow_doorbells_that_are_not_there_cannot_be_asked_for(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    serve("null:1G", "--socket", path, "--no-shadow-doorbell")
    result = nvme_mdev("bench", path, *COUNT, "--shadow-doorbell")
    assert result.status == 2
    assert "has no shadow doorbells" in result.err


def test_a_server_that_maps_no_doorbells_is_rung_through_shadow_doorbells(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    serve("null:1G", "--socket", path, "--no-mapped-doorbells")
    output = json.loads(nvme_mdev("bench", path, *COUNT, "--json").out)
    assert output["nvme-mdev"]["controller"]["doorbells"] == "shadow"


@pytest.mark.parametrize("rw", ["write", "randwrite", "randrw"])
@pytest.mark.parametrize("bs", ["512", "4k", "64k", "1m"])
def test_what_it_writes_is_verified(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path, rw: str, bs: str
) -> None:
    path, image = tmp_path / "s", tmp_path / "disk.img"
    serve(image, "--size", "32M", "--socket", path)
    options = ("--rw", rw, "--bs", bs, "--qd", "8", "--number-ios", "64")
    result = nvme_mdev("bench", path, *options, "--verify", "--seed", "7", "--json")
    assert result.status == 0, result.err
    (job,) = json.loads(result.out)["jobs"]
    assert job["verified_blocks"] > 0
    assert job["mismatches"] == 0
    if rw == "write":
        assert image.read_bytes()[5 * 512 : 6 * 512] == block_pattern(5, 7, 512)


def test_data_written_by_one_run_is_verified_by_another(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    path, image = tmp_path / "s", tmp_path / "disk.img"
    serve(image, "--size", "1M", "--socket", path)
    written = nvme_mdev(
        "bench", path, "--rw", "write", "--number-ios", "256", "--verify", "--seed", "7"
    )
    assert "2,048 blocks verified, 0 wrong (seed 7)" in written.out
    reading = ("bench", path, "--rw", "read", "--number-ios", "256", "--verify")
    assert nvme_mdev(*reading, "--seed", "7").status == 0
    with image.open("r+b") as file:
        file.seek(100 * 512 + 17)
        file.write(b"!")
    result = nvme_mdev(*reading, "--seed", "7")
    assert result.status == 1
    assert result.err == "nvme-mdev: job 0: block 100 does not hold what was written (1 bad)\n"
    assert "--seed" in nvme_mdev(*reading).err


def test_a_write_to_a_read_only_namespace_fails_in_one_line(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    path, image = tmp_path / "s", tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    serve(image, "--read-only", "--socket", path)
    result = nvme_mdev("bench", path, "--rw", "randwrite", *COUNT, "--json")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "write at block" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bs", "1000"], "--bs 1000 is not a multiple of the logical block size"),
        (["--bs", "1G"], "is more than the controller takes in one command: use at most"),
        (["--qd", "65535"], "is more than a queue of the controller holds: use at most"),
        (["--jobs", "1000"], "I/O queues at most"),
        (["--nsid", "9"], "there is no namespace 9: the controller has 1"),
        (["--size", "2G"], "reach past the end of namespace 1"),
        (["--cpu", "9999"], "--cpu 9999: this process may use the CPUs"),
        (["--bs", "many"], "'many' is not a size"),
        (["--cpu", "a"], "'a' is not a list of CPUs"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    nvme_mdev: RunCommand, null: Path, options: list[str], message: str
) -> None:
    result = nvme_mdev("bench", null, *COUNT, *options)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("nvme-mdev: ")
    assert result.err.count("\n") == 1
    assert message in result.err


def test_a_socket_that_is_not_there(nvme_mdev: RunCommand, tmp_path: Path) -> None:
    result = nvme_mdev("bench", tmp_path / "nothing")
    assert result.status == 2
    assert "there is no such socket: start the server, or check the path" in result.err


def test_a_directory_stands_for_the_socket_in_it(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    serve("null:1G", "--socket", f"{tmp_path}/")
    assert nvme_mdev("bench", tmp_path, *COUNT).status == 0
    assert str(tmp_path / "cntrl") in nvme_mdev("bench", tmp_path, *COUNT, "--json").out


def test_a_file_is_not_a_socket(nvme_mdev: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = nvme_mdev("bench", tmp_path / "file")
    assert result.status == 2
    assert "nobody serves this socket" in result.err or "not a socket" in result.err


@contextmanager
def stranger(path: Path, answer: bytes) -> Iterator[None]:
    """A server of something else: says `answer` to the first one who talks to it, and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve_one() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve_one)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize("answer", [b"", b"220 mail.example.org ESMTP\r\n" * 4])
def test_a_server_of_something_else(nvme_mdev: RunCommand, tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "s"
    with stranger(path, answer):
        result = nvme_mdev("bench", path)
    assert result.status == 2
    assert "not a vfio-user server" in result.err
    assert result.err.count("\n") == 1


def test_a_server_that_has_a_client_already(nvme_mdev: RunCommand, null: Path) -> None:
    from nvme_mdev.host.driver import NvmeHost

    with NvmeHost(null):
        result = nvme_mdev("bench", null)
    assert result.status == 2
    assert "another client" in result.err


def test_a_server_that_dies_meanwhile(nvme_mdev: RunCommand, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    daemon = serve("null:1G", "--socket", path)
    timer = threading.Timer(3.0, daemon.process.kill)
    timer.start()
    result = nvme_mdev("bench", path, "--runtime", "60")
    timer.join()
    assert result.status == 2
    assert "the server has gone away" in result.err


def test_an_interruption_ends_it_at_once(null: Path) -> None:
    bench = [sys.executable, "-m", "nvme_mdev.cli.main", "bench", str(null), "--runtime", "600"]
    process = subprocess.Popen(
        # In the background of a script the signal is ignored, by all that are started there.
        ["env", "--default-signal=INT", *bench],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Its second thread is the one that measures.
    while len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")
