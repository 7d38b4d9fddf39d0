"""Running the command line: in this process for answers, as a process of its own to serve."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nvme_mdev.cli.main import run

#: Seconds after which a process that should end is killed, and the test fails.
PATIENCE = 60
#: The user without rights that Debian gives everybody.
NOBODY = 65534


class Result(NamedTuple):
    """What a command line said."""

    status: int
    out: str
    err: str


RunCommand = Callable[..., Result]


@pytest.fixture
def nvme_mdev(capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command line in this process: `serve` without the keeper, who would start another."""

    def run_command(*arguments: str | Path) -> Result:
        capfd.readouterr()
        without = ["--no-keeper"] if arguments[:1] == ("serve",) else []
        root = logging.getLogger("nvme_mdev")
        handlers, level = list(root.handlers), root.level
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            status = run([str(argument) for argument in [*arguments[:1], *without, *arguments[1:]]])
        finally:
            # Its log goes to a stream that ends with this test.
            root.handlers[:] = handlers
            root.setLevel(level)
            # `serve` leaves stop signals blocked for the end of its process, which is not this one.
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return Result(status, *capfd.readouterr())

    return run_command


@dataclass
class Daemon:
    """A `nvme-mdev serve` that has said that it is ready."""

    process: subprocess.Popen[str]
    ready: str
    """Its first line."""

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Result:
        """Send a signal and wait for the end; what it wrote after its first line."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return Result(self.process.returncode, out, err)


Serve = Callable[..., Daemon]


@contextmanager
def _daemon(arguments: list[str]) -> Iterator[Daemon]:
    process = subprocess.Popen(
        [sys.executable, "-m", "nvme_mdev.cli.main", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        ready = process.stderr.readline()
        assert "ready" in ready, ready + process.stderr.read()
        yield Daemon(process, ready)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def ask(nvme_mdev: RunCommand) -> Callable[..., Any]:
    """Run a command that must succeed with -o json; its result."""

    def run(*arguments: object) -> Any:
        result = nvme_mdev(*map(str, arguments), "-o", "json")
        assert (result.status, result.err) == (0, "")
        return json.loads(result.out)

    return run


@pytest.fixture
def refuse(nvme_mdev: RunCommand) -> Callable[..., str]:
    """Run a command that must be refused in one line with status 2; the line."""

    def run(*arguments: object) -> str:
        result = nvme_mdev(*map(str, arguments))
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("nvme-mdev: ")
        assert result.err.count("\n") == 1
        return result.err

    return run


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start daemons; those that still run at the end of the test are killed."""
    with ExitStack() as daemons:
        yield lambda *arguments: daemons.enter_context(_daemon([str(one) for one in arguments]))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory of an ordinary user, whom this process is for the test if it is root."""
    # Modules that are loaded on the way may be where only root can read them.
    import nvme_mdev.datapath.backends.uring
    import nvme_mdev.service.daemon  # noqa: F401

    directory = Path(tempfile.mkdtemp(prefix="nvme-mdev-"))
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(directory, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield directory
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(directory)
