"""Results as tables on the terminal, in the columns of the original's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.bench.counters import DeviceCounters
    from nvme_mdev.bench.results import BenchResult, Direction

_PERCENTILES = (50.0, 99.0, 99.9)


def format_count(value: float) -> str:
    """``1,234``, ``85.3k``, ``1.25M``: three significant digits from a thousand on."""
    if value < 10_000:
        return f"{value:,.0f}"
    if value < 999_500:
        return f"{value / 1e3:.{1 if value < 99_950 else 0}f}k"
    return f"{value / 1e6:.{2 if value < 9.995e6 else 1}f}M"


def format_bandwidth(value: float) -> str:
    """Bytes a second as ``1.23 GiB/s``."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.3g} {unit}/s"
        value /= 1024
    return f"{value:.2f} GiB/s"


def format_ns(value: float) -> str:
    """``523 ns``, ``6.12 µs``, ``1.25 ms``: three significant digits from a microsecond on."""
    for unit, scale in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        number = value / scale
        if number < 999.5:
            decimals = 0 if unit == "ns" or number >= 99.95 else 1 if number >= 9.995 else 2
            return f"{number:.{decimals}f} {unit}"
    return f"{value / 1e9:.2f} s"


def format_short_ns(value: float) -> str:
    """Like `format_ns`, with a decimal for what takes a few nanoseconds."""
    return f"{value:.1f} ns" if value < 99.95 else format_ns(value)


def directions(result: BenchResult) -> list[tuple[str, Direction]]:
    """What a benchmark moved, under its names."""
    return [
        (name, direction)
        for name, direction in (("read", result.read), ("write", result.write))
        if direction.commands
    ]


def direction_line(name: str, direction: Direction) -> str:
    """``read: 1.23M IOPS, 4.69 GiB/s, 6,150,000 commands in 5.00 s``."""
    return (
        f"{name}: {format_count(direction.iops)} IOPS, {format_bandwidth(direction.bandwidth)},"
        f" {direction.commands:,} commands in {direction.elapsed_ns / 1e9:.2f} s"
    )


def latency_table(direction: Direction) -> Table:
    """Submission, completion and total latency with deviation and percentiles."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("mean", "± stddev", "min", *(f"p{p:g}" for p in _PERCENTILES), "max"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, histogram in (
        ("SLAT", direction.slat),
        ("CLAT", direction.clat),
        ("LAT", direction.lat),
    ):
        percentiles = histogram.percentiles(_PERCENTILES)
        values = (
            histogram.mean,
            histogram.stddev,
            histogram.least,
            *(percentiles[p] for p in _PERCENTILES),
            histogram.most,
        )
        table.add_row(name, *(format_ns(value) for value in values))
    return table


def summary_table(results: Sequence[tuple[str, BenchResult]]) -> Table:
    """The narrow one: a row for each result and direction with IOPS and latency."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("IOPS", "mean latency", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, result in results:
        for _name, direction in directions(result):
            table.add_row(
                label,
                format_count(direction.iops),
                format_ns(direction.lat.mean),
                format_ns(direction.lat.percentiles((99.0,))[99.0]),
            )
    return table


def text_table(rows: Sequence[Sequence[str]]) -> Table:
    """Rows of text, the first of which are the headings.

    What begins a row is on the left, and goes on in the next line where the terminal is too narrow.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(rows[0][0], overflow="fold")
    for heading in rows[0][1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def counter_table(counters: DeviceCounters) -> Table:
    """The three counters of the daemon."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("daemon", "count", "average cycles", "average time"):
        table.add_column(column, justify="left" if column == "daemon" else "right")
    for name, counter in counters.named().items():
        table.add_row(
            name,
            f"{counter.count:,}",
            f"{counter.mean_cycles:.0f}" if counter.count else "-",
            f"{counters.mean_ns(counter):.0f} ns" if counter.count else "-",
        )
    return table
