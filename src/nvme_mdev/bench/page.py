"""A report as one HTML file: tables and plots, nothing from the network, light and dark."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nvme_mdev.bench.histogram import bucket_value
from nvme_mdev.bench.machine import machine_line
from nvme_mdev.bench.report_table import POINT_TABLES, floor_rows
from nvme_mdev.bench.svg import COLOURS, Axis, Series, decades, line_chart
from nvme_mdev.bench.table import format_count, format_ns
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.bench.histogram import Histogram
    from nvme_mdev.bench.report import Point, Report, Sweep
    from nvme_mdev.bench.scale import Scale

_LIGHT = ("#1f6feb", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#0e7490", "#a16207", "#be185d")
_DARK = ("#79b8ff", "#fb923c", "#4ade80", "#c4b5fd", "#f87171", "#67e8f9", "#facc15", "#f9a8d4")
_TAIL = 0.9999
"""A distribution is drawn up to here: the rest is a few single commands, far to the right."""


def _style() -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(f"--s{number}:{colour};" for number, colour in enumerate(palette))

    classes = "".join(
        f".s{n} path{{stroke:var(--s{n})}}.s{n} circle{{fill:var(--s{n})}}"
        f".legend .s{n}::before{{background:var(--s{n})}}"
        for n in range(COLOURS)
    )
    return (
        ":root{color-scheme:light dark;--ink:#1c1917;--paper:#fff;--line:#d6d3d1;"
        f"{colours(_LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{:root{{--ink:#e7e5e4;--paper:#171717;--line:#44403c;"
        f"{colours(_DARK)}}}}}"
        "body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);"
        "max-width:72rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
        "th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--line)}"
        "th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}"
        "svg{width:100%;max-width:44rem;height:auto;display:block}"
        "svg text{font-size:11px;fill:var(--ink)}.end{text-anchor:end}.middle{text-anchor:middle}"
        "svg path{fill:none;stroke-width:2}svg .grid{stroke:var(--line);stroke-width:1}"
        ".legend span{margin-right:1.2rem;white-space:nowrap}"
        ".legend span::before{content:'';display:inline-block;width:.8em;height:.8em;"
        "border-radius:50%;margin-right:.4em}" + classes
    )


def html_page(report: Report) -> str:
    """The whole file."""
    body = [
        "<h1>nvme-mdev bench report</h1>",
        f"<p>{escape(machine_line())}; {report.rounds} rounds of {report.runtime:g} s each.</p>",
        *_about(report),
        *(f"<p>{escape(note)}</p>" for note in report.notes),
    ]
    for name, point in report.tests.items():
        body.append(f"<h2>{escape(name.capitalize())}</h2>")
        body += [_table(rows(report, point)) for rows in POINT_TABLES]
        body += ["<h3>Latency distribution</h3>", _distribution(report, point)]
    for sweep in report.sweeps:
        body += [f"<h2>IOPS against {escape(sweep.title)}</h2>", _sweep(report, sweep)]
    if report.scale:
        body += [
            "<h2>IOPS against number of controllers</h2>",
            f"<p>On one IOThread, null namespaces, depth {report.scale.depth}.</p>",
            _scale(report.scale),
            *map(_table, (report.scale.rows(), report.scale.light_rows())),
            f"<p>{escape(report.scale.light_note())}</p>",
        ]
    if report.floor:
        body += ["<h2>The machine's own limits</h2>", _table(floor_rows(report.floor))]
    if report.left_out:
        items = "".join(f"<li>{escape(line)}</li>" for line in report.left_out)
        body.append(f"<h2>Left out</h2><ul>{items}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>nvme-mdev bench report</title><style>{_style()}</style></head>\n"
        "<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _about(report: Report) -> list[str]:
    """The command line, when and with which version; what is behind each row."""
    lines = []
    if run := report.run:
        version, when = escape(str(run["nvme-mdev version"])), escape(str(run["time"]))
        command = escape(str(run["command line"]))
        lines.append(f"<p>nvme-mdev {version}, {when}: <code>{command}</code></p>")
    items = (f"<li>{escape(name)}: {escape(what)}</li>" for name, what in report.measured.items())
    if report.measured:
        lines.append(f"<ul>{''.join(items)}</ul>")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> str:
    if len(rows) < 2:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _distribution(report: Report, point: Point) -> str:
    """The share of commands that completed within a time, against that time."""
    series = [
        Series(name, cumulative(cell.clat))
        for name in report.subjects
        if (cell := report.cell(point, name))
    ]
    times = [time for one in series for time, _ in one.points]
    ticks = decades(min(times), max(times)) if times else []
    within = Axis("completion latency", format_ns)
    return line_chart(series, within, Axis("share of commands", "{:.0%}".format), ticks, 1.0)


def cumulative(histogram: Histogram) -> tuple[tuple[float, float], ...]:
    """(nanoseconds, share of the samples that do not exceed it), up to `_TAIL`."""
    points: list[tuple[float, float]] = []
    seen = 0
    total = sum(histogram.buckets)
    for index, number in enumerate(histogram.buckets):
        if number:
            seen += number
            points.append((max(bucket_value(index), 1), seen / total))
            if seen >= _TAIL * total:
                break
    return tuple(points)


def _scale(scale: Scale) -> str:
    series = [Series(name, tuple(points)) for name, points in scale.lines()]
    x, y = Axis("controllers", "{:g}".format), Axis("IOPS", format_count)
    return line_chart(series, x, y, list(scale.counts))


def _sweep(report: Report, sweep: Sweep) -> str:
    series = [
        Series(
            name,
            tuple(
                (getattr(point, sweep.axis), sorted(cell.iops)[len(cell.iops) // 2])
                for point in sweep.points
                if (cell := report.cell(point, name))
            ),
        )
        for name in report.subjects
    ]
    show = (lambda value: format_size(int(value))) if sweep.axis == "bs" else "{:g}".format
    ticks = [getattr(point, sweep.axis) for point in sweep.points]
    return line_chart(series, Axis(sweep.title, show), Axis("IOPS", format_count), ticks)
