"""The command line as a whole: what it answers when no subcommand gets to run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.cli import main
from nvme_mdev.cli.standard_output import OutputError, standard_output
from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.service.definition import DEFAULT_MAX_NSID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import RunCommand, Serve


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


def test_the_help_of_namespace_add_says_which_nsids_there_are(nvme_mdev: RunCommand) -> None:
    assert f"1 to {DEFAULT_MAX_NSID}, or" in nvme_mdev("namespace", "add", "--help").out


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


# -- standard output that takes nothing ----------------------------------------------------------

#: Those that answer without a controller, by click, by echo and by rich, at length and in short.
PRINTING = ("", "--help", "--version", "bench --help", "list", "list -o json", "types")
PRINTING += ("conformance --list", "conformance --list --json")
#: Those that a controller named vm is needed for.
ASKING = ("list", "list -o json", "show vm", "stats vm", "stats vm -o json", "namespace list vm")
ASKING += ("bench {} --runtime 0.01", "conformance {} -k registers. -v")

NO_ROOM = "nvme-mdev: standard output: No space left on device: make room on that file system\n"


def run_to(stdout: int, words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nvme_mdev.cli.main", *words.split()]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    """A file whose file system is full."""
    fd = os.open("/dev/full", os.O_WRONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("words", PRINTING)
def test_a_reader_that_has_gone_ends_a_command_quietly(unread: int, words: str) -> None:
    result = run_to(unread, words)
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize("words", PRINTING)
def test_output_that_finds_no_room_is_one_line_and_status_2(full: int, words: str) -> None:
    result = run_to(full, words)
    assert (result.returncode, result.stderr) == (2, NO_ROOM)


def test_no_command_on_a_controller_minds_who_reads_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int, full: int
) -> None:
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path / "run"))
    serve("memory:1M", "--socket", tmp_path / "s", "--name", "vm")
    for words in ASKING:
        command = words.format(tmp_path / "s")
        result = run_to(unread, command)
        assert (result.returncode, result.stderr) == (-signal.SIGPIPE, ""), command
        result = run_to(full, command)
        assert (result.returncode, result.stderr) == (2, NO_ROOM), command


def test_an_error_in_printing_that_somebody_caught_is_told_at_the_end(
    full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @standard_output()
    def print_and_go_on() -> None:
        for text in ("caught", "dropped"):
            with suppress(OutputError):
                print(text, flush=True)

    with open(full, "w", closefd=False, encoding="utf-8") as before:
        monkeypatch.setattr(sys, "stdout", before)
        with pytest.raises(OutputError, match="No space left"):
            print_and_go_on()
