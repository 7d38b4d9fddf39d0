"""Line charts as inline SVG: for a page that needs nothing but itself, in light and in dark.

Colours are classes (``s0``, ``s1``, ...), which the page's style sheet fills in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS = 8
"""Classes that the style sheet has; more series use them again."""
_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
"""Margins around the plot, in the same units."""
_Y_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """A line; x must be positive, since its axis is logarithmic."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis is called, and how its values are written."""

    label: str
    show: Callable[[float], str]


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))


def decades(least: float, most: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two positive numbers."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps = (step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5))
    return [tick for tick in steps if least <= tick <= most]


def line_chart(
    series: Sequence[Series], x: Axis, y: Axis, x_ticks: Sequence[float], y_most: float = 0.0
) -> str:
    """An ``<svg>`` with a legend below; an empty string when there is nothing to draw."""
    values = [point for one in series for point in one.points]
    if not values:
        return ""
    low, high = min(v for v, _ in values), max(v for v, _ in values)
    y_top = y_most or nice_ceiling(max(v for _, v in values))
    span = math.log(high / low) or 1.0

    def at(x_value: float, y_value: float) -> tuple[float, float]:
        along = math.log(x_value / low) / span if high > low else 0.5
        return (
            _LEFT + along * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y_value / y_top * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        *_horizontal(at, y, y_top, low),
        *_ticks(at, x, [tick for tick in x_ticks if low <= tick <= high]),
        *(_line(number % COLOURS, one, at, x, y) for number, one in enumerate(series)),
    ]
    legend = "".join(
        f'<span class="s{number % COLOURS}">{escape(one.name)}</span>'
        for number, one in enumerate(series)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(y.label)} against {escape(x.label)}">{"".join(parts)}</svg>'
        f'<p class="legend">{legend}</p>'
    )


def _horizontal(
    at: Callable[[float, float], tuple[float, float]], y: Axis, y_top: float, low: float
) -> list[str]:
    parts = []
    for step in range(_Y_TICKS + 1):
        value = y_top * step / _Y_TICKS
        _, height = at(low, value)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" class="end">{escape(y.show(value))}</text>'
        )
    return parts


def _ticks(
    at: Callable[[float, float], tuple[float, float]], x: Axis, ticks: Sequence[float]
) -> list[str]:
    parts = []
    for tick in ticks:
        along, _ = at(tick, 0)
        parts.append(
            f'<text x="{along:.1f}" y="{_HEIGHT - _BOTTOM + 16}" class="middle">'
            f"{escape(x.show(tick))}</text>"
        )
    middle = (_WIDTH + _LEFT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" class="middle">{escape(x.label)}</text>')
    return parts


def _line(
    colour: int,
    series: Series,
    at: Callable[[float, float], tuple[float, float]],
    x: Axis,
    y: Axis,
) -> str:
    places = [(at(*point), point) for point in series.points]
    path = "L".join(f"{left:.1f} {top:.1f}" for (left, top), _ in places)
    marks = ""
    # Marks tell single measurements; a distribution has too many.
    if len(places) <= 16:
        marks = "".join(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3"><title>{escape(series.name)}, '
            f"{escape(x.show(point[0]))}: {escape(y.show(point[1]))}</title></circle>"
            for (left, top), point in places
        )
    return f'<g class="s{colour}"><path d="M{path}"/>{marks}</g>' if places else ""
