"""The recorded budget (`budget.toml`), and whether a count is still within it.

The counts are those of one compiler: another one's code is different, not better or worse. Where
the data path was built by another major version, or for another architecture, there is nothing to
compare with.
"""

from __future__ import annotations

import platform
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paths import PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

BUDGET_FILE = Path(__file__).with_name("budget.toml")
TOLERANCE = 0.03
"""Share by which a path may grow unnoticed."""
IDLE_QUEUE = "idle_queue"
"""Derived: what one more idle queue adds to a turn."""
_COMPILER = re.compile(rb"GCC: \([^)]*\) (\d+\.\d+\.\d+)|(clang version \d+\.\d+\.\d+)")
"""As the compiler signs its objects (ELF section ``.comment``)."""
_HEADER = f"""\
# Instructions of the data path's own functions for one command (idle_*: for one turn, and for one
# queue of it), counted by callgrind: see benchmarks/__init__.py. `make budget` fails when one grows
# by more than {TOLERANCE:.0%}; a growth that is wanted is recorded with `make record-budget`, in
# the commit that makes it, with the reason.
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """Instructions by path, and what they were counted on."""

    compiler: str
    machine: str
    instructions: Mapping[str, float]

    @classmethod
    def load(cls, path: Path = BUDGET_FILE) -> Budget:
        """OSError, tomllib.TOMLDecodeError or KeyError when it is not there or not one."""
        with path.open("rb") as file:
            read = tomllib.load(file)
        return cls(read["compiler"], read["machine"], read["instructions"])

    def save(self, path: Path = BUDGET_FILE) -> None:
        """Write it for the next comparison."""
        lines = [
            _HEADER,
            f'compiler = "{self.compiler}"',
            f'machine = "{self.machine}"',
            "",
            "[instructions]",
            *(f"{name} = {count:.3f}" for name, count in self.instructions.items()),
        ]
        path.write_text("\n".join(lines) + "\n")

    def comparable(self, other: Budget) -> bool:
        """Whether both were compiled by the same compiler for the same architecture."""
        return self.machine == other.machine and _major(self.compiler) == _major(other.compiler)


def _major(compiler: str) -> str:
    return compiler.partition(".")[0]


def built_by(objects: Path) -> str:
    """The compiler of the shared object of that name, ``GCC 12.2.0``; empty when it does not say.

    FileNotFoundError: the data path is not built in place.
    """
    match = _COMPILER.search(objects.read_bytes())
    if match is None:
        return ""
    return f"GCC {match[1].decode()}" if match[1] else match[2].decode()


def counted(totals: Mapping[str, int]) -> Budget:
    """What was counted now, from each path's instructions in all."""
    from nvme_mdev.datapath import iothread

    instructions = {path.name: totals[path.name] / path.counted for path in PATHS}
    one, many = (path for path in PATHS if path.batch == 0)
    instructions[IDLE_QUEUE] = (instructions[many.name] - instructions[one.name]) / (
        many.queues - one.queues
    )
    return Budget(built_by(Path(iothread.__file__)), platform.machine(), instructions)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One path: what it may cost, and what it costs."""

    name: str
    recorded: float | None
    """None: it is not in the budget."""
    now: float | None
    """None: it is not counted any more."""

    @property
    def change(self) -> float:
        """Share by which it grew (shrank: negative); 0 when there is nothing to compare."""
        if self.recorded is None or self.now is None or not self.recorded:
            return 0.0
        return self.now / self.recorded - 1

    @property
    def problem(self) -> str:
        """Why this must not be; empty when it may."""
        if self.recorded is None:
            return f"{self.name} is not in the budget"
        if self.now is None:
            return f"{self.name} is in the budget and not counted any more"
        if self.change > TOLERANCE:
            return f"{self.name} grew by {self.change:.1%}: {self.recorded:.1f} to {self.now:.1f}"
        return ""


def compare(recorded: Budget, now: Budget) -> list[Comparison]:
    """Every path of either, in the order of the counts."""
    names = list(now.instructions) + [n for n in recorded.instructions if n not in now.instructions]
    return [
        Comparison(name, recorded.instructions.get(name), now.instructions.get(name))
        for name in names
    ]
