"""`nvme-mdev demo`: what it shows, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvme_mdev.cli.demo import Interrupts, qemu_lines

PATIENCE = 100


def start(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nvme_mdev.cli.main", "demo", "--runtime", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "100"},
    )


def served_from(folder: Path) -> list[str]:
    """Processes that have the folder on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in line:
            found.append(process.name)
    return found


def test_it_shows_the_main_job(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert "Wrote 256 MiB and verified all of it" in out
    for what in ("image", "null"):
        for depth in (1, 32):
            for verb in ("read", "write"):
                assert f"{what}, 4k random {verb}, depth {depth} " in out
    assert "commands translated" in out
    assert out.rstrip().endswith(qemu_lines().splitlines()[-1])
    assert list(tmp_path.iterdir()) == []
    assert served_from(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "delay"),
    [
        (signal.SIGINT, 0.3),
        (signal.SIGTERM, 0.6),
        (signal.SIGHUP, 0.9),
        (signal.SIGINT, 1.2),
        (signal.SIGTERM, 1.6),
        (signal.SIGINT, 2.2),
    ],
)
def test_an_interruption_at_any_moment_leaves_nothing(
    tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    process = start(tmp_path)
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    # By the signal itself before our handler is there and after it is gone; by SIGINT when it
    # comes during an import that runs code from a string, which CPython takes for unhandled.
    assert process.returncode in {130, -number, -signal.SIGINT, 0}, err
    assert list(tmp_path.iterdir()) == []
    assert served_from(tmp_path) == []


def test_a_demo_that_is_killed_takes_its_daemon_with_it(tmp_path: Path) -> None:
    process = start(tmp_path)
    while not served_from(tmp_path):
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while served_from(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_signals_wait_while_something_must_be_whole() -> None:
    done = []

    def whole(interrupts: Interrupts) -> None:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("whole")

    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            whole(interrupts)
        # The second one is no longer of interest: the first is being dealt with.
        os.kill(os.getpid(), signal.SIGINT)
    assert done == ["whole"]


def test_an_interruption_comes_at_once_otherwise() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
