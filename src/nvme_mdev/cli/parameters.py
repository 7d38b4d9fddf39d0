"""Option types that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nvme_mdev.errors import UserError
from nvme_mdev.units import parse_duration_ns, parse_size

if TYPE_CHECKING:
    from typing import Any


class SizeType(click.ParamType[int]):
    """A size in bytes, written as ``512``, ``4K`` or ``10G``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; click's own error, which names the option, when it is none."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[int]):
    """A duration in nanoseconds, written as ``6.4us`` or ``80ns``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds; click's own error, which names the option, when it is none."""
        if isinstance(value, int):
            return value
        try:
            return parse_duration_ns(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()
DURATION = DurationType()
