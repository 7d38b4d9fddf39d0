"""`nvme-mdev bench idle`: what a resting controller costs, and how soon it answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host.driver import NvmeHost

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import RunCommand, Serve

QUICK = ("--rests", "2", "--rest", "0.1")


@pytest.mark.parametrize(
    ("option", "doorbells"), [("--mapped-doorbells", "mapped"), ("--no-mapped-doorbells", "socket")]
)
def test_json_tells_both_latencies_and_the_load(
    serve: Serve, tmp_path: Path, nvme_mdev: RunCommand, option: str, doorbells: str
) -> None:
    serve("null:1G", "--socket", tmp_path / "s", "--poll-timeout-ms", "1", option)
    result = nvme_mdev("bench", "idle", tmp_path / "s", *QUICK, "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["doorbells"] == doorbells
    for name in ("first_ns", "next_ns"):
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
        assert len(found[name]["values"]) == 2
    assert found["server_percent_of_cpu"]["min"] >= 0
    assert 0 < found["bare_naps_percent_of_cpu"] < 100


def test_a_person_reads_a_line_for_each(
    serve: Serve, tmp_path: Path, nvme_mdev: RunCommand
) -> None:
    serve("null:1G", "--socket", tmp_path / "s")
    out = nvme_mdev("bench", "idle", tmp_path / "s", *QUICK).out
    assert "doorbells are mapped" in out
    assert "first read after a rest:" in out
    assert "server's processor time:" in out
    assert "1 ms sleeps cost anybody:" in out


def test_a_read_that_fails_is_one_line(serve: Serve, tmp_path: Path, nvme_mdev: RunCommand) -> None:
    serve("memory:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair().write_uncorrectable(1, 0, 1)
    result = nvme_mdev("bench", "idle", tmp_path / "s", *QUICK)
    assert result.status == 2
    assert result.err == "nvme-mdev: the controller does not complete a read: status\n"


def test_a_socket_that_is_not_there_is_one_line(tmp_path: Path, nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "idle", tmp_path / "missing", *QUICK)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
