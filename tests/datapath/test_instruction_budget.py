"""The regression guard: that it counts what it says, and refuses what grew.

The counting itself is a stage of its own of `make test`; here its parts are held to what callgrind
and the compiler write.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from benchmarks import page, stages
from benchmarks.__main__ import EXIT_GREW, report
from benchmarks.budget import BUDGET_FILE, IDLE_QUEUE, Budget, compare, counted
from benchmarks.callgrind import Place, read_profile
from benchmarks.paths import PATHS, take
from benchmarks.stages import OTHER, STAGES, by_function, by_stage, function_of, plain_name
from benchmarks.timing import TIMED, time_path

SOURCES = {".pyx", ".pxd", ".h"}
PROFILE = """\
version: 1
creator: callgrind-3.19.0
desc: Trigger: --dump-after=*8iothread_take_turns
positions: line
events: Ir
summary: 9999

ob=/src/nvme_mdev/datapath/iothread.so
fl=iothread.c
fn=__pyx_f_serve
10 5
12 7
fi=atomics.h
3 2
fe=iothread.c
14 1
cob=/lib/libc.so.6
cfi=memcpy.c
cfn=memcpy
calls=4 0
14 4000
15 6

ob=/lib/libc.so.6
fl=memcpy.c
fn=memcpy
0 4000

ob=/src/nvme_mdev/datapath/iothread.so
fl=iothread.c
fn=__pyx_f_turn
10 1

totals: 9999
"""


def test_only_what_our_own_functions_execute_themselves_is_counted():
    assert read_profile(PROFILE.splitlines(keepends=True)) == {
        Place("iothread.c", 10): 6,
        Place("iothread.c", 12): 7,
        Place("atomics.h", 3): 2,
        Place("iothread.c", 14): 1,
        Place("iothread.c", 15): 6,
    }


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_command_of_a_path_completes_without_error(path):
    take(path)


@pytest.mark.parametrize("path", TIMED, ids=lambda path: path.name)
def test_the_batches_of_a_path_can_be_timed(path):
    # So many that the queues below and above wrap.
    timing = time_path(path, 100)
    assert timing.least <= timing.median <= timing.tenth


def test_paths_take_whole_rounds_of_the_admin_poll():
    # Those with somebody below take the first turns of their thread, none of which looks.
    below = [path for path in PATHS if path.direct or path.calls == 2]
    assert [path.name for path in PATHS if path.turns % 16 and path not in below] == []
    assert {path.turns for path in below} == {1}


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("__pyx_f_9nvme_mdev_8datapath_3prp_prp_walk", "prp_walk"),
        ("__pyx_f_9nvme_mdev_8datapath_8backends_4null_null_submit", "null_submit"),
        ("read_tsc", "read_tsc"),
    ],
)
def test_a_function_is_called_as_in_its_source(symbol, name):
    assert plain_name(symbol) == name


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    (tmp_path / "a.c").write_text(
        "#include <x.h>\n"
        "static int __pyx_f_1a_early(int, int); /* proto */\n"
        "static CYTHON_INLINE uint32_t __pyx_f_1a_sq_fetch(struct x *__pyx_v_sq) {\n"
        "  return later(1);\n"
        "}\n"
        "static int __pyx_f_1a_later(int __pyx_v_a) {\n"
        "}\n"
    )
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    stages._functions.cache_clear()
    yield tmp_path
    stages._functions.cache_clear()


@pytest.mark.parametrize(
    ("file", "line", "function"),
    [
        ("a.c", 4, "sq_fetch"),
        ("a.c", 7, "later"),
        ("a.c", 1, "a.c"),
        ("elsewhere/b.c", 4, "b.c"),
    ],
)
def test_a_line_belongs_to_the_function_that_it_was_written_in(source, file, line, function):
    assert function_of(Place(file, line)) == function


def test_stages_add_up_to_what_was_counted(source):
    profile = {Place("a.c", 4): 10, Place("a.c", 7): 5}
    assert by_function(profile) == {"sq_fetch": 10, "later": 5}
    assert by_stage(profile) == {"SQE fetched, slot taken": 10, OTHER: 5}


def test_a_function_is_in_one_stage_only():
    functions = [function for group in STAGES.values() for function in group]
    assert len(functions) == len(set(functions))


def test_every_function_of_a_stage_is_in_the_source():
    folder = Path(stages.ROOT) / "src/nvme_mdev/datapath"
    text = "".join(path.read_text() for path in folder.rglob("*") if path.suffix in SOURCES)
    names = {name for group in STAGES.values() for name in group}
    assert {name for name in names if not re.search(rf"\b{name}\(", text)} == set()


def budget(compiler: str = "GCC 12.2.0", **instructions: float) -> Budget:
    return Budget(compiler, "x86_64", instructions)


@pytest.mark.parametrize(
    ("now", "status", "said"),
    [
        ({"null_1": 100.0}, 0, ""),
        ({"null_1": 102.9}, 0, ""),
        ({"null_1": 50.0}, 0, ""),
        ({"null_1": 103.1}, EXIT_GREW, "null_1 grew by 3.1%: 100.0 to 103.1"),
        ({"null_1": 100.0, "new": 1.0}, EXIT_GREW, "new is not in the budget"),
        ({}, EXIT_GREW, "null_1 is in the budget and not counted any more"),
    ],
)
def test_a_path_may_not_grow_by_more_than_three_percent(capsys, now, status, said):
    assert report(budget(null_1=100.0), budget(**now)) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("compiler", ["GCC 14.2.0", "clang version 12.0.1", ""])
def test_counts_of_another_compiler_are_not_compared_and_that_is_said(capsys, compiler):
    assert report(budget(null_1=100.0), budget(compiler, null_1=900.0)) == 0
    assert "not compared" in capsys.readouterr().err


def test_a_minor_version_of_the_compiler_is_compared():
    assert report(budget(null_1=100.0), budget("GCC 12.3.0", null_1=900.0)) == EXIT_GREW


def test_what_was_recorded_is_read_again(tmp_path):
    recorded = budget(null_1=465.578, idle_1=31.5)
    recorded.save(tmp_path / "budget.toml")
    assert Budget.load(tmp_path / "budget.toml") == recorded


def test_an_idle_queue_costs_what_more_of_them_add_to_a_turn():
    totals = {path.name: 100 * path.counted for path in PATHS}
    one, many = (path for path in PATHS if path.batch == 0)
    totals[many.name] = (100 + 9 * (many.queues - one.queues)) * many.counted
    now = counted(totals)
    assert now.instructions[IDLE_QUEUE] == 9
    assert now.instructions["null_32"] == 100
    assert now.compiler


def test_the_budget_has_every_path():
    recorded = tomllib.loads(BUDGET_FILE.read_text())["instructions"]
    assert list(recorded) == [*(path.name for path in PATHS), IDLE_QUEUE]
    assert compare(budget(**recorded), budget(**recorded))[0].problem == ""


def test_the_page_tells_what_the_budget_has():
    recorded = Budget.load()
    text = page.PAGE.read_text()
    counted = text[text.index(page.BEGIN) : text.index(page.END)]
    assert counted.strip().endswith("\n".join(page.path_table(recorded)))
    (total,) = re.findall(r"^\| \*\*all\*\* \|(.*)\|$", counted, re.MULTILINE)
    assert [float(cell.strip(" *")) for cell in total.split("|")] == [
        round(recorded.instructions[name], 1) for name in page.COLUMNS
    ]


def test_only_what_is_between_the_marks_of_the_page_is_written():
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    written = page.with_tables(text, [["| a |", "| b |"], ["| c |"]])
    assert written == f"before\n{page.BEGIN}\n\n| a |\n| b |\n\n| c |\n\n{page.END}\nafter\n"
    with pytest.raises(ValueError, match="does not have both marks"):
        page.with_tables("nothing", [])
