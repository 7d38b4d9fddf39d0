"""`nvme-mdev bench report`: rows, outputs, refusals, and that nothing is left of its daemon."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunCommand, Serve

QUICK = ("--quick", "--rounds", "1", "--runtime", "0.01")
pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a controller and its host need a CPU each"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(4 << 20))
    return path


def test_the_rows_are_the_bare_target_ours_and_the_peers(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path, image: Path
) -> None:
    peer, page = tmp_path / "peer.sock", tmp_path / "report.html"
    serve("null:1G", "--socket", peer)
    before = image.read_bytes()
    result = nvme_mdev(
        "bench", "report", image, "--peer", f"other={peer}", "--html", page, *QUICK, "--json"
    )
    assert (result.status, result.err) == (0, "")
    output = json.loads(result.out)
    rows = ["mdev/block", "null", "memory", "other"]
    if shutil.which("fio"):
        rows.insert(0, "host")
    for test in output["tests"].values():
        assert list(test) == rows
        assert all(row["iops"]["median"] > 0 for row in test.values())
        assert test["null"]["counters"]["commands_translated"]["count"] > 0
        assert test["null"]["lat_to_floor"]["median"] > 0
    assert output["tests"]["interrupt test"]["null"]["counters"]["interrupts_sent"]["count"] > 0
    assert [one["controllers"] for one in output["scale"]["controllers"]] == [1, 4]
    text = page.read_text()
    for plot in ("queue depth", "block size", "queues", "controllers"):
        assert f'aria-label="IOPS against {plot}"' in text
    assert image.read_bytes() == before


def test_direct_mode_is_compared_with_the_hardware_below_it(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "report", "--hardware", "100us", *QUICK, "--json")
    assert (result.status, result.err) == (0, "")
    for test in json.loads(result.out)["tests"].values():
        assert list(test) == ["null", "memory", "hardware", "mdev/direct"]
        for row in ("hardware", "mdev/direct"):
            assert test[row]["lat_mean_ns"]["min"] >= 100_000
        assert test["hardware"]["iops_to_host"]["median"] == 1
        assert test["mdev/direct"]["iops_to_host"]["median"] > 0
        assert test["null"]["iops_to_host"] is None


def test_the_tables_fit_a_terminal_and_say_what_they_are(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "report", *QUICK)
    assert result.status == 0
    for words in ("polling test", "interrupt test", "SLAT", "LAT/floor", "commands translated"):
        assert words in result.out
    assert "…" not in result.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["null:1G"], "null and memory are measured anyway"),
        (["/nonexistent/disk"], "there is no such file"),
        (["--html", "/nonexistent/report.html"], "there is no such folder"),
        (["--peer", "name"], "'name' is not NAME=SOCKET"),
        (["--cpu", "0"], "--cpu A,B"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    nvme_mdev: RunCommand, arguments: list[str], said: str
) -> None:
    result = nvme_mdev("bench", "report", *arguments)
    assert result.status == 2
    assert result.out == ""
    assert said in result.err
    assert result.err.count("\n") == 1


def test_a_peer_that_is_not_there_is_named(nvme_mdev: RunCommand, tmp_path: Path) -> None:
    result = nvme_mdev("bench", "report", "--peer", f"other={tmp_path / 'none'}", *QUICK)
    assert result.status == 2
    assert "there is no such socket" in result.err


def test_more_than_the_target_has_cannot_be_read(nvme_mdev: RunCommand, image: Path) -> None:
    result = nvme_mdev("bench", "report", image, "--size", "1G", *QUICK)
    assert result.status == 2
    assert "--size" in result.err


def test_nothing_is_left_of_its_daemon(
    nvme_mdev: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert nvme_mdev("bench", "report", *QUICK).status == 0
    assert list(tmp_path.iterdir()) == []
