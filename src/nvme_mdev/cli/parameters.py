"""Option types, and an option, that several commands share."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, TypeVar

import click

from nvme_mdev.errors import UserError
from nvme_mdev.service.definition import MAX_IOTHREADS
from nvme_mdev.service.settings import SETTINGS
from nvme_mdev.units import parse_duration_ns, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Command = TypeVar("Command", bound="Callable[..., Any]")


def json_option(command: Command) -> Command:
    """Give a command whose tables are its own ``--json``, as ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
    return option(command)


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


class SecondsType(click.FloatRange):
    """A number of seconds; click's own lets nan and inf through."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As of click's, but finite."""
        seconds: float = super().convert(value, param, ctx)
        if not isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


SIZE = SizeType()
DURATION = DurationType()


class CpuListType(click.ParamType[int | str]):
    """CPUs, commas between them: a number where there is one, text where there are several."""

    name = "cpus"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """What `Definition.iothread_cpu` has."""
        try:
            parsed = SETTINGS["iothread_cpu"].parse("CPU", str(value))
        except UserError:
            parsed = None
        if parsed is None:
            self.fail(f"{value!r}: give a number, or several with commas between them", param, ctx)
        return parsed


CPUS = CpuListType()


class ControllerType(click.ParamType[int]):
    """A type of NVME MDEV, ``nvme-1Q_V1`` to ``nvme-16Q_V1``: its host queues."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """N of nvme-NQ_V1."""
        types = {f"nvme-{queues}Q_V1": queues for queues in range(1, MAX_IOTHREADS + 1)}
        if value not in types:
            self.fail(f"{value!r}: give nvme-1Q_V1 to nvme-{MAX_IOTHREADS}Q_V1", param, ctx)
        return types[value]


CONTROLLER_TYPE = ControllerType()
