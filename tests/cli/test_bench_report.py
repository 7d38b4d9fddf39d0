"""`nvme-mdev bench report`: rows, outputs, refusals, and that nothing is left of its daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from html import escape
from typing import TYPE_CHECKING

import pytest

from nvme_mdev import __version__

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
    assert output["nvme-mdev version"] == __version__
    assert output["command line"].startswith(f"nvme-mdev bench report {image} --peer other=")
    for said in (output["command line"], output["time"], str(peer)):
        assert escape(said) in text
    assert output["measured"]["other"] == f"{peer}, namespace 1"
    assert output["measured"]["mdev/block"] == str(image)
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


def test_a_controller_is_compared_with_direct_mode_on_it(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    socket = tmp_path / "hardware.sock"
    serve("memory:1M", "null:1G,latency=100us", "--socket", socket)
    result = nvme_mdev("bench", "report", f"vfio-user:{socket}/n2", *QUICK, "--json")
    assert (result.status, result.err) == (0, "")
    report = json.loads(result.out)
    # The controller has one driver at a time, and nobody was refused.
    assert report["left_out"] == []
    for test in report["tests"].values():
        assert list(test) == ["host", "mdev/direct", "null", "memory"]
        for row in ("host", "mdev/direct"):
            assert test[row]["lat_mean_ns"]["min"] >= 100_000
            assert test[row]["counters"]["commands_translated"]["count"] > 0
        assert test["host"]["iops_to_host"]["median"] == 1
        assert test["mdev/direct"]["iops_to_host"]["median"] > 0
    assert report["measured"]["host"] == f"vfio-user:{socket}/n2"
    assert report["measured"]["mdev/direct"] == f"direct:vfio-user:{socket}/n2"


def test_a_controller_that_cannot_be_measured_is_left_with_one_line(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path
) -> None:
    socket = tmp_path / "hardware.sock"
    serve("memory:1M", "memory:32k", "--socket", socket)
    for part, options, said in (
        ("/n3", (), "there is no namespace 3: the controller has 1, 2"),
        ("/n2", (), f"vfio-user:{socket}/n2 has 32768: commands of up to 64 KiB are measured"),
        ("", ("--size", "2M"), f"--size 2097152 is more than vfio-user:{socket} has: 1048576"),
    ):
        result = nvme_mdev("bench", "report", f"vfio-user:{socket}{part}", *options, *QUICK)
        assert (result.status, result.out) == (2, "")
        assert said in result.err
        assert result.err.count("\n") == 1


def test_the_tables_fit_a_terminal_and_say_what_they_are(
    nvme_mdev: RunCommand, serve: Serve, tmp_path: Path, image: Path
) -> None:
    peer = tmp_path / "peer.sock"
    serve("null:1G", "--socket", peer)
    others = ("--peer", f"a-peer-with-quite-a-long-name={peer}", "--hardware", "10us")
    result = nvme_mdev("bench", "report", image, *others, *QUICK)
    assert result.status == 0
    for words in ("polling test", "interrupt test", "SLAT", "LAT/floor", "commands translated"):
        assert words in result.out
    assert "IOPS/host" in result.out
    assert "…" not in result.out
    # Below the tables are sentences, which a terminal wraps.
    tables = result.out.split("\n", 1)[1].partition("4 KiB random reads at depth 1")[0]
    assert max(map(len, tables.splitlines())) <= 80


def test_a_target_that_can_only_be_read_is_measured(nvme_mdev: RunCommand, tmp_path: Path) -> None:
    # The kernel lets nobody, root neither, open a program that runs for writing (ETXTBSY).
    image = tmp_path / "sleep"
    shutil.copy("/bin/sleep", image)
    os.truncate(image, 4 << 20)
    with subprocess.Popen([image, "600"]) as program:
        try:
            result = nvme_mdev("bench", "report", image, *QUICK, "--json")
        finally:
            program.kill()
    assert (result.status, result.err) == (0, "")
    assert "mdev/block" in json.loads(result.out)["tests"]["polling test"]


def test_a_page_that_cannot_be_written_after_all_costs_no_result(
    nvme_mdev: RunCommand,
) -> None:
    # It can be opened, and holds nothing.
    result = nvme_mdev("bench", "report", "--html", "/dev/full", *QUICK, "--json")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert json.loads(result.out)["tests"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["null:1G"], "null and memory are measured anyway"),
        (["/nonexistent/disk"], "there is no such file"),
        (["vfio:"], "write vfio:0000:44:00.0/n1 or vfio-user:SOCKET/n1"),
        (["vfio:0000:44:00.0/n1p2"], "all of a namespace is measured: leave p2 out"),
        (["vfio:0000:44:00.0", "--hardware", "1us"], "each has a row mdev/direct"),
        (["--html", "/nonexistent/report.html"], "there is no such folder"),
        (["--html", "/proc/report.html"], "/proc/report.html"),
        (["--peer", "null=a.sock"], "the report has a row of that name already"),
        (["--peer", "mdev/block=a.sock"], "the report has a row of that name already"),
        (["--peer", "a=a.sock", "--peer", "a=b.sock"], "--peer a=... is given twice"),
        (["--size", "1"], "--size 1: commands of up to 128 KiB are measured"),
        (["--size", "32k", "--quick"], "--size 32768: commands of up to 64 KiB are measured"),
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


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("vfio-user:/nonexistent", "there is no such socket"),
        ("vfio:ffff:1f:1f.7", "there is no such PCI function"),
        ("vfio:44", "write a PCI address as lspci -D does"),
    ],
)
def test_a_controller_that_is_not_there_is_said(
    nvme_mdev: RunCommand, target: str, said: str
) -> None:
    result = nvme_mdev("bench", "report", target, *QUICK)
    assert (result.status, result.out) == (2, "")
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


def test_a_target_of_less_than_a_command_is_refused(nvme_mdev: RunCommand, tmp_path: Path) -> None:
    small = tmp_path / "small.img"
    small.write_bytes(bytes(32 << 10))
    result = nvme_mdev("bench", "report", small, *QUICK)
    assert (result.status, result.out) == (2, "")
    assert result.err == (f"nvme-mdev: {small} has 32768: commands of up to 64 KiB are measured\n")


def test_nothing_is_left_of_its_daemon(
    nvme_mdev: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert nvme_mdev("bench", "report", *QUICK).status == 0
    assert list(tmp_path.iterdir()) == []
