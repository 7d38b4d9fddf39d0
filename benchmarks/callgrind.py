"""Running `paths` under callgrind, and reading the profiles that it writes.

The format is that of the Callgrind manual, "Callgrind Format Specification", with neither names
nor positions compressed. Only self cost is added up: a line after ``calls=`` is the callee's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.paths import PATHS

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
COUNTED_FUNCTION = "*8iothread_take_turns"
"""As the compiler names `take_turns` of iothread.pyx: collected while it runs, then written."""
OURS = "/nvme_mdev/datapath/"
"""In the path of our shared objects; libc's, liburing's and Python's do not count."""
_TIMEOUT = 300
"""Seconds; it takes about ten."""


class CallgrindError(Exception):
    """Valgrind is not there, failed, or wrote something else than was expected."""


class Place(NamedTuple):
    """Where an instruction comes from."""

    file: str
    line: int


def read_profile(lines: Iterable[str]) -> Counter[Place]:
    """Instructions executed in our own objects, by the source line that they come from."""
    found: Counter[Place] = Counter()
    ours = False
    file = ""
    callee = False
    for line in lines:
        key, equals, value = line.rstrip("\n").partition("=")
        if equals:
            if key == "ob":
                ours = OURS in value
            elif key in {"fl", "fi", "fe"}:
                file = value
            callee = key == "calls"
        elif line[:1].isdigit():
            position, cost = line.split()[:2]
            if ours and not callee:
                found[Place(file, int(position))] += int(cost)
            callee = False
    return found


def profile_paths() -> dict[str, Counter[Place]]:
    """Instructions of each path's counted run, by where they come from."""
    with tempfile.TemporaryDirectory(prefix="nvme-mdev-callgrind-") as folder:
        _run_callgrind(Path(folder) / "profile")
        # A file for each call of `take_turns`, in order: a path's first warms it up.
        parts = sorted(Path(folder).glob("profile.*"), key=lambda path: int(path.suffix[1:]))
        if len(parts) != 2 * sum(path.calls for path in PATHS):
            raise CallgrindError(
                f"{len(parts)} profiles for {len(PATHS)} paths: was the data path built with names?"
            )
        profiles = {}
        written = iter(parts)
        for path in PATHS:
            of_path = [next(written) for _ in range(2 * path.calls)]
            with of_path[path.counted_call].open() as lines:
                profiles[path.name] = read_profile(lines)
            if not profiles[path.name]:
                raise CallgrindError(f"{path.name}: no instruction of the data path was counted")
    return profiles


def _run_callgrind(output: Path) -> None:
    command = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={output}",
        f"--toggle-collect={COUNTED_FUNCTION}",
        f"--dump-after={COUNTED_FUNCTION}",
        "--compress-strings=no",
        "--compress-pos=no",
        *(sys.executable, "-m", "benchmarks.paths"),
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        raise CallgrindError("valgrind is not installed") from None
    if done.returncode:
        raise CallgrindError(f"valgrind failed with {done.returncode}:\n{done.stderr}")
