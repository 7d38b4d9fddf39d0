"""Limits of a namespace as people write them: ``iops=1000``, ``read-bps=100M:1G``.

A rate a second, and, behind a colon, the burst: what can be used at once after a rest. Commands are
numbers, bytes are sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.datapath.limits import LIMIT_NAMES, Limit, check_limit, default_burst
from nvme_mdev.errors import UserError
from nvme_mdev.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LIMIT_OPTIONS = tuple(name.replace("_", "-") for name in LIMIT_NAMES)
"""As options have them."""
NO_LIMIT = "off"


def _number(name: str, text: str) -> int:
    if name.endswith("bps"):
        return parse_size(text)
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{text!r} is not a number of commands")
    return int(text)


def parse_limit(name: str, text: str) -> Limit | None:
    """``RATE[:BURST]``; None: it is ``off``. UserError: it is neither, or no such limit is."""
    option, name = name.replace("_", "-"), name.replace("-", "_")
    if name not in LIMIT_NAMES:
        raise UserError(f"{option!r} is not a limit: there are {', '.join(LIMIT_OPTIONS)}")
    if text.lower() == NO_LIMIT:
        return None
    rate, colon, burst = text.partition(":")
    try:
        each_second = _number(name, rate)
        limit = Limit(each_second, _number(name, burst) if colon else default_burst(each_second))
        check_limit(name, limit)
    except (UserError, ValueError) as error:
        raise UserError(
            f"{option}={text}: {error}: write RATE or RATE:BURST (iops=1000:5000, bps=100M), or off"
        ) from None
    return limit


def parse_limits(changes: Mapping[str, int | str | None]) -> dict[str, Limit | None]:
    """By name, with underscores: the limit, None where there is to be none; UserError as below."""
    found: dict[str, Limit | None] = {}
    for text, value in changes.items():
        name = text.replace("-", "_")
        limit = parse_limit(text, NO_LIMIT if value is None else str(value))
        if name in found:
            raise UserError(_twice(name))
        found[name] = limit
    return found


def _twice(name: str) -> str:
    return f"the limit {name.replace('_', '-')} is given twice: give it once"


def split_limits(texts: Iterable[str]) -> dict[str, str]:
    """``NAME=RATE[:BURST]`` each, as typed, by option; UserError: one is wrong, or given twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is not a limit: write NAME=RATE (iops=1000)")
        parse_limit(name, value)
        option = name.replace("_", "-")
        if option in found:
            raise UserError(_twice(option))
        found[option] = value
    return found


def change_limits(
    limits: Mapping[str, Limit], changes: Mapping[str, Limit | None]
) -> dict[str, Limit]:
    """Limits after changes to some of them."""
    after = {**limits, **changes}
    return {name: limit for name, limit in after.items() if limit is not None}


def limit_texts(limits: Mapping[str, Limit]) -> dict[str, str]:
    """For `parse_limits` of another process."""
    return {name: f"{limit.rate}:{limit.burst}" for name, limit in limits.items()}


def describe_limit(name: str, rate: int, burst: int) -> str:
    """For people."""
    if name.endswith("bps"):
        return f"{name.replace('_', '-')} {format_size(rate)}/s, burst {format_size(burst)}"
    return f"{name.replace('_', '-')} {rate}, burst {burst}"
