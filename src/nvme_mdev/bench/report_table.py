"""A report's tables as rows of text, the first of which are the headings: for terminal and page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.bench.spread import Spread
from nvme_mdev.bench.table import format_bandwidth, format_count, format_ns, format_short_ns

if TYPE_CHECKING:
    from nvme_mdev.bench.histogram import Histogram
    from nvme_mdev.bench.limits import Floor
    from nvme_mdev.bench.report import Point, Report

_NONE = "-"


def _ratio(spread: Spread | None) -> str:
    return _NONE if spread is None else f"{spread.median:.3g}"


def rate_rows(report: Report, point: Point) -> list[list[str]]:
    """IOPS."""
    rows = [["", "IOPS", "min", "max", "IOPS/host"]]
    for name in report.subjects:
        if cell := report.cell(point, name):
            iops = Spread(tuple(cell.iops))
            rows.append(
                [
                    name,
                    f"{format_count(iops.median)} ± {format_count(iops.stddev)}",
                    *map(format_count, (iops.least, iops.most)),
                    _ratio(report.against_host(point, name)),
                ]
            )
    return rows


def bandwidth_rows(report: Report, point: Point) -> list[list[str]]:
    """Bandwidth."""
    rows = [["", "BW", "min", "max"]]
    for name in report.subjects:
        if cell := report.cell(point, name):
            spread = Spread(tuple(cell.bandwidth))
            middle = f"{format_bandwidth(spread.median)} ± {format_bandwidth(spread.stddev)}"
            rows.append([name, middle, *map(format_bandwidth, (spread.least, spread.most))])
    return rows


def _mean(histogram: Histogram) -> str:
    return f"{format_ns(histogram.mean)} ± {format_ns(histogram.stddev)}"


def latency_rows(report: Report, point: Point) -> list[list[str]]:
    """SLAT, CLAT and LAT."""
    return [
        ["", "SLAT", "CLAT", "LAT"],
        *(
            [name, *map(_mean, (cell.slat, cell.clat, cell.lat))]
            for name in report.subjects
            if (cell := report.cell(point, name))
        ),
    ]


def round_rows(report: Report, point: Point) -> list[list[str]]:
    """The mean latency of a round."""
    rows = [["", "LAT of a round", "min", "max", "LAT/floor"]]
    for name in report.subjects:
        if cell := report.cell(point, name):
            means = Spread(tuple(cell.lat_means))
            ratio = _ratio(report.against_floor(point, name))
            rows.append([name, *map(format_ns, (means.median, means.least, means.most)), ratio])
    return rows


def counter_rows(report: Report, point: Point) -> list[list[str]]:
    """Our daemon's three counters, over all rounds; only headings where there are none."""
    rows = [["", "counted", "number", "mean cycles", "mean time"]]
    for name in report.subjects:
        cell = report.cell(point, name)
        if cell is None or cell.counters is None:
            continue
        for what, counter in cell.counters.named().items():
            if counter.count:
                mean_ns = cell.counters.mean_ns(counter)
                cycles = f"{counter.mean_cycles:.0f}"
                rows.append([name, what, f"{counter.count:,}", cycles, f"{mean_ns:.0f} ns"])
    return rows


def floor_rows(floor: Floor) -> list[list[str]]:
    """The machine's limits."""
    rows = [["", "median", "min", "max"]]
    for limit, spread in floor.spreads.items():
        show = format_count if limit.unit == "IOPS" else format_short_ns
        rows.append([limit.label, *map(show, (spread.median, spread.least, spread.most))])
    return rows


POINT_TABLES = (rate_rows, bandwidth_rows, latency_rows, round_rows, counter_rows)
"""What is shown of a test, in this order."""
