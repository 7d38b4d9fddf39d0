"""The tables of docs/performance.md that are counted: between two marks, never written by hand."""

from __future__ import annotations

from pathlib import Path as File
from typing import TYPE_CHECKING

from benchmarks.budget import IDLE_QUEUE
from benchmarks.paths import PATHS
from benchmarks.stages import OTHER, STAGES, by_stage

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from benchmarks.budget import Budget
    from benchmarks.callgrind import Place

PAGE = File(__file__).parents[1] / "docs/performance.md"
BEGIN, END = "<!-- counted by `make record-budget` -->", "<!-- end of what is counted -->"
COLUMNS = {
    "null_1": "null, one a turn",
    "null_32": "null, 32 a turn",
    "null_1_shadow": "shadow doorbells",
    "null_1_interrupt": "with interrupt",
    "memory_read": "memory, read",
    "memory_write": "memory, write",
}
"""Paths whose stages are shown."""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def stage_table(profiles: Mapping[str, Counter[Place]]) -> list[str]:
    """Instructions of each stage of a command, and of all."""
    counted = {path.name: path.counted for path in PATHS}
    columns = {
        name: {stage: count / counted[name] for stage, count in by_stage(profiles[name]).items()}
        for name in COLUMNS
    }
    return [
        _line(["stage", *COLUMNS.values()]),
        "|---|" + "---:|" * len(COLUMNS),
        *(
            _line([stage, *(f"{one.get(stage, 0):.1f}" for one in columns.values())])
            for stage in (*STAGES, OTHER)
        ),
        _line(["**all**", *(f"**{sum(one.values()):.1f}**" for one in columns.values())]),
    ]


def path_table(budget: Budget) -> list[str]:
    """Instructions of every path."""
    what = {path.name: path.what for path in PATHS} | {IDLE_QUEUE: "one more queue in such a turn"}
    return [
        _line(["path", "what", "instructions"]),
        "|---|---|---:|",
        *(
            _line([f"`{name}`", what[name], f"{count:.1f}"])
            for name, count in budget.instructions.items()
        ),
    ]


def with_tables(text: str, tables: Sequence[Sequence[str]]) -> str:
    """The page's text with these tables between its marks; ValueError: it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} does not have both marks, {BEGIN} and {END}")
    between = "\n\n".join("\n".join(table) for table in tables)
    return f"{before}{BEGIN}\n\n{between}\n\n{END}{after}"


def write(profiles: Mapping[str, Counter[Place]], budget: Budget, page: File = PAGE) -> None:
    """Put what was counted into the page; OSError, ValueError: that cannot be."""
    tables = [stage_table(profiles), path_table(budget)]
    page.write_text(with_tables(page.read_text(), tables))
