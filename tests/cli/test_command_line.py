"""The command line as a whole: what it answers when no subcommand gets to run."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.cli import main
from nvme_mdev.errors import UserError, describe_os_error

if TYPE_CHECKING:
    from tests.cli.conftest import RunCommand


def test_version_names_program_and_version(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("--version")
    assert result.status == 0
    assert result.out.split() == ["nvme-mdev", version("nvme-mdev")]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(nvme_mdev: RunCommand, option: str) -> None:
    result = nvme_mdev(option)
    assert result.status == 0
    assert all(f"  {name} " in result.out for name in main.COMMANDS)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(nvme_mdev: RunCommand, name: str) -> None:
    result = nvme_mdev(name, "--help")
    assert result.status == 0
    assert result.out.startswith(f"Usage: nvme-mdev {name} ")


def test_no_command_shows_the_help_and_fails(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev()
    assert result.status == 2
    assert "Commands:" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sevre"], "No such command 'sevre'"),
        (["--loud"], "No such option"),
        (["serve", "--loud"], "No such option"),
        (["serve"], "Missing argument 'TARGET...'"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line_with_where_to_look(
    nvme_mdev: RunCommand, arguments: list[str], message: str
) -> None:
    result = nvme_mdev(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("nvme-mdev: ")
    assert message in result.err
    assert result.err.endswith("--help)\n")
    assert result.err.count("\n") == 1


def test_an_expected_error_has_a_traceback_only_with_debug(
    nvme_mdev: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["serve", "null:none", "--socket", "/s"]
    assert nvme_mdev(*arguments).status == 2
    with pytest.raises(UserError, match="null:none"):
        nvme_mdev("--debug", *arguments)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.COMMANDS, "serve", "json")
    with pytest.raises(AttributeError):
        main.run(["serve"])


def test_the_module_runs_as_a_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "nvme_mdev.cli.main", "--version"], capture_output=True, check=True
    )
    assert result.stdout.startswith(b"nvme-mdev ")


def test_the_command_line_loads_nothing_heavy_before_it_is_needed() -> None:
    code = "import sys, nvme_mdev.cli.serve as s; print([m for m in sys.modules if m in HEAVY])"
    heavy = {"rich", "asyncio", "nvme_mdev.datapath.iothread", "hypothesis", "importlib.metadata"}
    result = subprocess.run(
        [sys.executable, "-c", code.replace("HEAVY", repr(heavy))],
        capture_output=True,
        check=True,
        text=True,
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "gone", "/a"), "/a: No such file or directory"),
        (OSError(28, "full", b"/a"), "/a: No space left on device: make room on that file system"),
        (OSError("just words"), "just words"),
    ],
)
def test_errors_of_the_kernel_name_the_file_and_what_to_do(error: OSError, line: str) -> None:
    assert describe_os_error(error) == line


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf"])
def test_seconds_are_a_number(nvme_mdev: RunCommand, seconds: str) -> None:
    for command in (("bench", "x"), ("demo",), ("bench", "scale"), ("bench", "floor")):
        result = nvme_mdev(*command, f"--runtime={seconds}")
        assert (result.status, result.err.count("\n")) == (2, 1)
