"""Results as tables on the terminal, in the columns of the original's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.bench.counters import DeviceCounters
    from nvme_mdev.bench.histogram import Histogram
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
    """``0.523 µs``, ``61.2 µs``, ``1.25 ms``."""
    if value < 999_500:
        micro = value / 1e3
        return f"{micro:.{3 if micro < 10 else 1 if micro < 100 else 0}f} µs"
    return f"{value / 1e6:.2f} ms"


def _mean(histogram: Histogram) -> str:
    return f"{format_ns(histogram.mean)} ± {format_ns(histogram.stddev)}"


def directions(result: BenchResult) -> list[tuple[str, Direction]]:
    """What a benchmark moved, under its names."""
    return [
        (name, direction)
        for name, direction in (("read", result.read), ("write", result.write))
        if direction.commands
    ]


def result_table(results: Sequence[tuple[str, BenchResult]]) -> Table:
    """A row for each direction of each labelled result."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns = ("IOPS", "BW", "SLAT", "CLAT", "LAT", *(f"p{p:g}" for p in _PERCENTILES))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, result in results:
        for name, direction in directions(result):
            percentiles = direction.clat.percentiles(_PERCENTILES)
            table.add_row(
                f"{label} {name}".strip(),
                format_count(direction.iops),
                format_bandwidth(direction.bandwidth),
                _mean(direction.slat),
                _mean(direction.clat),
                _mean(direction.lat),
                *(format_ns(percentiles[p]) for p in _PERCENTILES),
            )
    return table


def summary_table(results: Sequence[tuple[str, BenchResult]]) -> Table:
    """The narrow one: a row for each result and direction with IOPS, bandwidth and latency."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("IOPS", "bandwidth", "mean latency", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, result in results:
        for _name, direction in directions(result):
            table.add_row(
                label,
                format_count(direction.iops),
                format_bandwidth(direction.bandwidth),
                format_ns(direction.lat.mean),
                format_ns(direction.clat.percentiles((99.0,))[99.0]),
            )
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
