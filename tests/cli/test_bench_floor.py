"""`nvme-mdev bench floor`, and how it shares `bench` with a socket's path."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from nvme_mdev import __version__
from nvme_mdev.cli import bench

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunCommand

QUICK = ("--rounds", "2", "--runtime", "0.001")

needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a controller and its host need a CPU each"
)


@needs_two_cpus
def test_json_has_median_and_ends_of_every_limit_and_nothing_else(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "floor", *QUICK, "--json")
    assert (result.status, result.err) == (0, "")
    output = json.loads(result.out)
    assert output["nvme-mdev version"] == __version__
    assert output["command line"] == "nvme-mdev bench floor --rounds 2 --runtime 0.001 --json"
    assert output["time"]
    assert len(set(output["cpus"])) == 2
    for limit in output["limits"].values():
        assert 0 < limit["min"] <= limit["median"] <= limit["max"]
        assert len(limit["values"]) == 2


@needs_two_cpus
def test_the_table_says_what_was_measured_where(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "floor", *QUICK)
    assert result.status == 0
    assert "host on CPU" in result.out
    for words in ("median", "cache line", "SQE/CQE, depth 128", "eventfd write", "io_uring"):
        assert words in result.out


@needs_two_cpus
def test_it_runs_on_the_processors_that_are_asked_for(nvme_mdev: RunCommand) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    asked = [cpus[-1], cpus[0]]
    result = nvme_mdev("bench", "floor", *QUICK, "--json", "--cpu", ",".join(map(str, asked)))
    assert json.loads(result.out)["cpus"] == asked


def test_one_processor_is_not_enough(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "floor", "--cpu", str(min(os.sched_getaffinity(0))))
    assert result.status == 2
    assert "--cpu A,B" in result.err
    assert result.err.count("\n") == 1


def test_a_processor_that_is_not_there_is_refused(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "floor", "--cpu", "0,4095")
    assert result.status == 2
    assert "--cpu 4095" in result.err


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--rw", "read", "--help")])
def test_bench_without_a_subcommand_is_about_a_socket(
    nvme_mdev: RunCommand, arguments: tuple[str, ...]
) -> None:
    result = nvme_mdev("bench", *arguments)
    if arguments:
        assert result.out.startswith("Usage: nvme-mdev bench [OPTIONS] SOCKET\n")
        assert all(f"  {name} " in result.out for name in bench.SUBCOMMANDS)
    else:
        assert "Missing argument 'SOCKET' (see nvme-mdev bench --help)" in result.err


@pytest.mark.parametrize("name", bench.SUBCOMMANDS)
def test_every_subcommand_of_bench_has_help(nvme_mdev: RunCommand, name: str) -> None:
    result = nvme_mdev("bench", name, "--help")
    assert result.status == 0
    assert result.out.startswith(f"Usage: nvme-mdev bench {name} ")


def test_options_may_come_before_the_socket(nvme_mdev: RunCommand, tmp_path: Path) -> None:
    result = nvme_mdev("bench", "--rw", "read", "--qd", "4", tmp_path / "none")
    assert result.status == 2
    assert "there is no such socket" in result.err


def test_a_socket_called_like_a_subcommand_is_written_as_a_path(
    nvme_mdev: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("floor")
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        hangs_up = threading.Thread(target=hang_up)
        hangs_up.start()
        result = nvme_mdev("bench", "./floor")
        hangs_up.join()
    assert result.status == 2
    assert "not a vfio-user server" in result.err
