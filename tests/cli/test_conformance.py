"""`nvme-mdev conformance` as a user types it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunCommand, Serve


@pytest.fixture
def socket(serve: Serve, tmp_path: Path) -> Path:
    path = tmp_path / "s.sock"
    serve("memory:16M", "--socket", path)
    return path


def test_it_says_how_many_checks_passed(nvme_mdev: RunCommand, socket: Path) -> None:
    result = nvme_mdev("conformance", socket, "-k", "registers.")
    assert (result.status, result.err) == (0, "")
    assert result.out.rstrip().endswith("0 failed, 0 not applicable, 0 not run")


def test_every_check_is_told_when_asked(nvme_mdev: RunCommand, socket: Path) -> None:
    result = nvme_mdev("conformance", socket, "-k", "cap_is_read_only", "-v")
    assert "passed          registers.cap_is_read_only (Base 3.1.4.1)" in result.out
    assert "A write to CAP changes nothing." in result.out


def test_json_is_for_programs(nvme_mdev: RunCommand, socket: Path) -> None:
    result = nvme_mdev("conformance", socket, "-k", "ranges.", "--json")
    output = json.loads(result.out)
    outcomes = {one["outcome"] for one in output["checks"]}
    assert output["summary"]["not run"] > 0
    assert outcomes <= {"passed", "not applicable", "not run"}


def test_nothing_is_written_unasked(nvme_mdev: RunCommand, serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\x5a" * (1 << 20))
    serve(image, "--socket", tmp_path / "i.sock")
    result = nvme_mdev("conformance", tmp_path / "i.sock", "-k", "r")
    assert result.status == 0
    assert image.read_bytes() == b"\x5a" * (1 << 20)


def test_a_namespace_that_is_not_there_is_said_before_the_first_check(
    nvme_mdev: RunCommand, socket: Path
) -> None:
    result = nvme_mdev("conformance", socket, "--nsid", "9")
    assert (result.status, result.out) == (2, "")
    assert "there is no namespace 9: the controller has 1" in result.err


def test_a_controller_that_fails_is_exit_status_1(
    nvme_mdev: RunCommand, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A namespace that has gone meanwhile: what needs one fails.
    monkeypatch.setattr("nvme_mdev.cli.conformance._check_namespace", lambda *_, **__: None)
    result = nvme_mdev("conformance", socket, "-k", "flush_of_a_namespace", "--nsid", "9")
    assert result.status == 1
    assert "failed          read_write.flush_of_a_namespace_succeeds (Base 7.2)" in result.out
    assert "there is no namespace 9" in result.out


def test_the_checks_are_listed_without_a_controller(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("conformance", "--list")
    assert result.status == 0
    assert "registers.cap_is_read_only: A write to CAP changes nothing. Base 3.1.4.1" in result.out
    assert len(json.loads(nvme_mdev("conformance", "--list", "--json").out)) > 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which controller? give the socket that it is served on"),
        (["/nowhere"], "there is no such socket"),
        (["/nowhere", "-k", "no such"], "no check is called like no such"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    nvme_mdev: RunCommand, arguments: list[str], message: str
) -> None:
    result = nvme_mdev("conformance", *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1
