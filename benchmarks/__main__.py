"""``python -m benchmarks``: count, and compare with the budget, record it, show stages or times.

Exit status: 0 within the budget (or not comparable), 1 a path grew, 2 nothing could be counted.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from benchmarks.budget import BUDGET_FILE, Budget, Comparison, compare, counted
from benchmarks.callgrind import CallgrindError, Place, profile_paths
from benchmarks.mapping import measure as measure_mapping
from benchmarks.page import PAGE
from benchmarks.page import write as write_page
from benchmarks.paths import PATHS
from benchmarks.stages import by_function, by_stage
from benchmarks.timing import TIMED, time_idle, time_path

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    from nvme_mdev.bench.spread import Spread

EXIT_GREW, EXIT_NOT_COUNTED = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--record", action="store_true", help="write the budget anew, and the page")
    action.add_argument(
        "--page", action="store_true", help="write what is counted into docs/performance.md"
    )
    action.add_argument("--stages", action="store_true", help="show where the instructions are")
    action.add_argument(
        "--time",
        action="store_true",
        help="time paths of 32 commands a turn and of one, and idle turns",
    )
    action.add_argument("--mapping", action="store_true", help="time memory in many pieces")
    options = parser.parse_args(arguments)
    if options.time:
        print_times()
        return 0
    if options.mapping:
        print_mapping()
        return 0
    try:
        profiles = profile_paths()
    except CallgrindError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return EXIT_NOT_COUNTED
    if options.stages:
        print_stages(profiles)
        return 0
    now = counted({name: profile.total() for name, profile in profiles.items()})
    if options.record:
        now.save()
        print(f"{BUDGET_FILE.name}: {len(now.instructions)} paths recorded, {now.compiler}")
    if options.record or options.page:
        write_page(profiles, now)
        print(f"{PAGE.name}: written")
        return 0
    return report(Budget.load(), now)


def print_times() -> None:
    """Nanoseconds of a command: a clock is read for each batch."""
    print(f"{'ns a command':<18} {'median':>8} {'min':>8} {'p90':>8}")
    for path in TIMED:
        numbers = " ".join(f"{nanoseconds:>8.1f}" for nanoseconds in time_path(path))
        print(f"{path.name:<18} {numbers}")
    print("ns an idle turn")
    for controllers in (1, 8, 64, 256):
        numbers = " ".join(f"{nanoseconds:>8.1f}" for nanoseconds in time_idle(controllers))
        print(f"{controllers:>4} controllers   {numbers}")


def print_mapping() -> None:
    """What guest memory in many pieces costs."""
    print(f"{'median (min to max)':<46} {'map, us':>22} {'unmap, us':>22} {'a command, ns':>22}")
    for row in measure_mapping():
        cells = " ".join(_spread(one) for one in (row.map_us, row.unmap_us, row.command_ns))
        print(f"{row.name:<46} {cells}")


def _spread(spread: Spread) -> str:
    numbers = f"{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})"
    return f"{numbers:>22}"


def report(recorded: Budget, now: Budget) -> int:
    """Say what changed; the exit status."""
    if not recorded.comparable(now):
        print(
            f"benchmarks: not compared: the budget is of {recorded.compiler} on"
            f" {recorded.machine}, the data path was built by {now.compiler} for {now.machine}",
            file=sys.stderr,
        )
        return 0
    comparisons = compare(recorded, now)
    for one in comparisons:
        print(_line(one))
    problems = [one.problem for one in comparisons if one.problem]
    for problem in problems:
        print(f"benchmarks: {problem}", file=sys.stderr)
    if problems:
        print("benchmarks: if that is wanted, `make record-budget`, and say why", file=sys.stderr)
    return EXIT_GREW if problems else 0


def _line(one: Comparison) -> str:
    recorded, now = ("-" if count is None else f"{count:.1f}" for count in (one.recorded, one.now))
    # The budget is rounded: what that makes is no change.
    change = round(one.change, 3) + 0.0
    return f"{one.name:<18} {recorded:>8} {now:>8} {change:>7.1%}"


def print_stages(profiles: Mapping[str, Counter[Place]]) -> None:
    """Each path's instructions by stage, and by function."""
    for path in PATHS:
        profile = profiles[path.name]
        print(f"{path.name} ({path.what}): {profile.total() / path.counted:.1f}")
        for stage, count in by_stage(profile).items():
            print(f"  {stage:<26} {count / path.counted:8.1f}")
        functions = (f"{f} {c / path.counted:.1f}" for f, c in by_function(profile).most_common())
        print(f"  ({', '.join(functions)})")


if __name__ == "__main__":
    sys.exit(main())
