"""Which stage of a command an instruction belongs to.

The compiler inlines a command's whole way into two or three functions, but debug information still
names the line of the generated C that an instruction comes from, and so the function that it was
written in. Those functions are grouped into the stages of docs/performance.md.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.callgrind import Place

ROOT = Path(__file__).parents[1]
DEFINITION = re.compile(r"^static .*?\b(\w+)\(.*(?:\{|[^;])$")
"""The first line of a function in Cython's C and in atomics.h."""
OTHER = "other"

STAGES: Mapping[str, frozenset[str]] = {
    "doorbell seen": frozenset(
        (
            *("take_turns", "turn", "put_last", "poll_admin"),
            *("load_acquire32", "load_relaxed32", "sq_waiting"),
        )
    ),
    "batch decided": frozenset(
        (
            *("begin", "can_fetch", "doorbell_error", "batch_size"),
            *("cq_room", "cq_used", "cq_read_head"),
        )
    ),
    "SQE fetched, slot taken": frozenset(
        ("sq_prefetch", "prefetch_lines", "sq_fetch", "sq_entry", "copy64", "publish_head")
    ),
    "batch led through": frozenset(
        (
            *("serve", "serve_one", "serve_many", "fetch_piece", "end_with", "start_piece"),
            *("fetch", "submit", "submit_batch", "complete_pair"),
            *("sq_suppress_event", "quiet_index", "store_relaxed32", "prefetch_read"),
        )
    ),
    "validation": frozenset(
        (
            *("command_parse", "parse_by_opcode", "parse_read", "parse_write", "check_lbas"),
            *("is_one_of", "look_closer", "check_range", "wants_durability", "refuse"),
            *("parse_allowed", "command_lba", "unreadable"),
        )
    ),
    "address translation": frozenset(
        (
            *("map_usual", "map_and_look", "map_data", "map_prps", "map_page", "map_two"),
            *("find_buffer", "find_buffer_of", "memory_translate", "memory_find"),
            *("prp_walk", "prp_list", "add_segment", "load_entry", "load_relaxed64"),
            *("region_next", "guest_segments", "prp_at_fault"),
        )
    ),
    "backend": frozenset(
        (
            *("null_submit", "memory_submit", "read_out", "write_in", "request_done"),
            "copy_past_caches",
        )
    ),
    "completion": frozenset(
        (
            *("reap", "post_all", "complete_done", "post_done", "post_single", "post_many"),
            *("post_run", "post_one", "record_run", "complete_compound", "note_error", "log_error"),
            *("count_end", "count_io", "count_read", "count_write", "tally", "tally_end"),
            *("end_timing", "is_timed"),
        )
    ),
    "CQE written": frozenset(
        (
            "cq_entry",
            "cq_prefetch",
            "slot_record",
            "cq_post",
            "cqe_write",
            "write_run",
            "cq_move",
            "cq_advance",
            "store_release64",
            "store_release32",
        )
    ),
    "slot released": frozenset(("release_one", "sq_release")),
    "interrupt": frozenset(
        (
            *("interrupt_for", "raise_interrupt", "pin_in_use", "pin_wanted", "signal_fd"),
            "count_interrupt",
        )
    ),
    "time-stamp counter": frozenset(("read_tsc",)),
}
"""Functions of each stage, in the order of a command's way."""

_STAGE_OF = {function: stage for stage, functions in STAGES.items() for function in functions}


def plain_name(symbol: str) -> str:
    """A function's name in its .pyx: ``__pyx_f_9nvme_mdev_8datapath_3prp_prp_walk`` to prp_walk."""
    rest = symbol.removeprefix("__pyx_f_")
    if rest == symbol:
        return symbol
    # Each part of the module's name comes after its length.
    while match := re.match(r"\d+", rest):
        rest = rest[match.end() + int(match[0]) :].removeprefix("_")
    return rest


@cache
def _functions(file: str) -> tuple[list[int], list[str]]:
    """First lines (ascending) and names of the functions of a C file."""
    starts, names = [], []
    for number, line in enumerate((ROOT / file).read_text(errors="replace").splitlines(), 1):
        if match := DEFINITION.match(line):
            starts.append(number)
            names.append(plain_name(match[1]))
    return starts, names


def function_of(place: Place) -> str:
    """The function that a line was written in; the file's name where that cannot be told."""
    try:
        starts, names = _functions(place.file)
    except OSError:
        return Path(place.file).name
    index = bisect_right(starts, place.line) - 1
    return names[index] if index >= 0 else Path(place.file).name


def by_function(profile: Mapping[Place, int]) -> Counter[str]:
    """Instructions by function."""
    found: Counter[str] = Counter()
    for place, count in profile.items():
        found[function_of(place)] += count
    return found


def by_stage(profile: Mapping[Place, int]) -> dict[str, int]:
    """Instructions by stage, in the order of a command's way; `OTHER` last."""
    found: Counter[str] = Counter()
    for function, count in by_function(profile).items():
        found[_STAGE_OF.get(function, OTHER)] += count
    return {stage: found[stage] for stage in (*STAGES, OTHER) if found[stage]}
