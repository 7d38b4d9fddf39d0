"""Sizes and durations as people write and read them.

K, M, G, T, P and E are powers of 1024, as in qemu-img.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from fractions import Fraction

_SUFFIXES = "KMGTPE"
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?(?:([{_SUFFIXES}])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
_NANOSECONDS = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ns|us|ms|s)", re.ASCII)
#: Files and devices are no larger: off_t is a signed 64-bit number.
MAX_SIZE = 2**63 - 1


def _exact(number: str) -> int | Fraction:
    """Most numbers are whole ones; the others wait for what calculates with them to be loaded."""
    if "." not in number:
        return int(number)
    from fractions import Fraction

    return Fraction(number)


def parse_size(text: str) -> int:
    """Bytes for ``512``, ``4K``, ``1.5G``, ``10GiB``; UserError when it is not a positive size."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UserError(f"{text!r} is not a size: write bytes, or a number with K, M, G or T (10G)")
    number, suffix = match.groups()
    size = _exact(number) * 1024 ** (_SUFFIXES.index(suffix.upper()) + 1 if suffix else 0)
    if size.denominator != 1:
        raise UserError(f"{text!r} is not a whole number of bytes: use a smaller unit")
    if not 0 < size <= MAX_SIZE:
        raise UserError(f"{text!r} is out of range: a size is at least 1 and less than 8E bytes")
    return int(size)


def parse_duration_ns(text: str) -> int:
    """Nanoseconds for ``6.4us``, ``80ns``, ``1ms``; UserError when it is none, or above 1 s."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise UserError(f"{text!r} is not a duration: write a number with ns, us or ms (6.4us)")
    number, unit = match.groups()
    nanoseconds = round(_exact(number) * _NANOSECONDS[unit])
    if not 0 < nanoseconds <= _NANOSECONDS["s"]:
        raise UserError(f"{text!r} is out of range: a duration is at least 1 ns and at most 1 s")
    return nanoseconds


def format_size(size: int) -> str:
    """``1 GiB``, ``1.5 MiB``, ``512 B``: at most two decimals, in the largest unit that fits."""
    value, unit = float(size), "B"
    for suffix in _SUFFIXES:
        if value < 1024:
            break
        value, unit = value / 1024, f"{suffix}iB"
    number = f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{number} {unit}"
