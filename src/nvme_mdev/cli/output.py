"""Results of the control socket on the terminal: a table for people, JSON for programs.

JSON is the method's result as it is (docs/control.md). Tables are made by the function for the
result's type in :data:`_TABLES`; rich is imported when one is drawn.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nvme_mdev.service import api
from nvme_mdev.service.limits import describe_limit
from nvme_mdev.service.schema import to_json
from nvme_mdev.service.settings import SETTINGS
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvme_mdev.service.api import SettingValue

#: Shows a result in the format that was asked for.
Show = Callable[[Any], None]
_RIGHT_ALIGNED = frozenset({"nsid", "namespaces", "size", "blocks of", "count", "mean cycles",
                            "mean time", "reads", "writes", "read", "written", "queue", "CQ",
                            "entries", "in flight", "client", "host queues", "left", "instances",
                            "throttled", "ever"})  # fmt: skip

_LONG = frozenset({"target", "socket", "what it does", "limits"})
"""Columns that are broken into lines where the terminal is too narrow."""
_PIPE_WIDTH = 240
"""Columns of a table that does not go to a terminal: grep wants a row on a line."""


def output_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``-o`` and, as ``show``, the function that shows its result so."""

    @click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="How to show the result.",
    )
    @functools.wraps(command)
    def with_output(*args: Any, output: str, **options: Any) -> None:
        command(*args, show=_show_json if output == "json" else _show_tables, **options)

    return with_output


def _show_json(result: Any) -> None:
    click.echo(json.dumps(to_json(result), indent=2))


def _show_tables(result: Any) -> None:
    _TABLES[type(result)](result)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; nothing in it is taken for markup, and nothing is cut off."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in _RIGHT_ALIGNED else "left",
            no_wrap=column not in _LONG,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_printable(str(cell))) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)


def _printable(text: str) -> str:
    """Without control characters and lone surrogates, which a file's name can have."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _value(value: SettingValue) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "any" if value is None else str(value)


# -- a function a result ---------------------------------------------------------------------


def _controllers(result: api.ControllerList) -> None:
    if not result.controllers:
        click.echo("No controller is served (that this user can see).")
        return
    _table(
        ("name", "state", "client", "namespaces", "size", "serial", "socket"),
        [
            (one.name, _state(one), one.client_pid or "-", one.namespaces, format_size(one.size),
             one.serial, one.socket)
            for one in result.controllers
        ],
    )  # fmt: skip


def _state(summary: api.ControllerSummary) -> str:
    state = summary.state.replace("_", " ")
    return f"{state}, paused" if summary.paused else state


def _controller(result: api.ControllerInfo) -> None:
    summary = result.summary
    client = "not connected" if summary.client_pid is None else f"process {summary.client_pid}"
    for name, value in (
        ("name", summary.name),
        ("state", _state(summary)),
        ("client", client),
        ("socket", summary.socket),
        ("serial", summary.serial),
        ("NQN", result.nqn),
        ("CNTLID", result.cntlid),
        ("shares with", ", ".join(result.sharing) or "-"),
        ("I/O queues", result.io_queues),
        ("max NSID", result.max_nsid),
    ):
        click.echo(f"{name + ':':<12} {_printable(str(value))}")
    _settings(api.SettingList(result.settings))
    _namespaces(api.NamespaceList(result.namespaces))


def _settings(result: api.SettingList) -> None:
    _table(
        ("setting", "value", "what it does"),
        [
            (
                one.name,
                _value(one.value) + (" (pending)" if one.pending else ""),
                SETTINGS[one.name].summary if one.name in SETTINGS else "",
            )
            for one in result.settings
        ],
    )


def _namespaces(result: api.NamespaceList) -> None:
    if not result.namespaces:
        click.echo("No namespaces.")
        return
    _table(
        ("nsid", "target", "size", "blocks of", "access", "limits", "UUID"),
        [
            (one.nsid, one.target, format_size(one.size), f"{one.block_size} B",
             _access(one), _limits(one.limits), one.uuid)
            for one in result.namespaces
        ],
    )  # fmt: skip


def _access(namespace: api.NamespaceInfo) -> str:
    if namespace.state != "active":
        return namespace.state
    access = "read-only" if namespace.read_only else "read-write"
    return f"{access}, encrypted" if namespace.encrypted else access


def _limits(limits: Sequence[api.LimitInfo]) -> str:
    return "; ".join(describe_limit(one.name, one.rate, one.burst) for one in limits) or "-"


def _namespace(result: api.NamespaceInfo) -> None:
    _namespaces(api.NamespaceList([result]))


def _stats(result: api.Stats) -> None:
    _table(
        ("path", "count", "mean cycles", "mean time"),
        [
            (name, counter.count, f"{counter.mean_cycles:.0f}", f"{counter.mean_ns:.0f} ns")
            for name, counter in (
                ("commands translated", result.translated),
                ("commands completed", result.completed),
                ("interrupts sent", result.interrupts),
            )
        ],
    )
    everything = [
        ("all", result.data, "-", "-"),
        *((one.nsid, one.data, one.throttled, one.throttled_total) for one in result.namespaces),
    ]
    _table(
        ("namespace", "reads", "read", "writes", "written", "throttled", "ever"),
        [
            (name, data.read_commands, format_size(data.read_bytes), data.write_commands,
             format_size(data.write_bytes), throttled, ever)
            for name, data, throttled, ever in everything
        ],
    )  # fmt: skip
    if result.queues:
        _table(
            ("queue", "CQ", "entries", "in flight", "state"),
            [
                (one.qid, one.cqid, one.entries, one.inflight, "held" if one.held else "served")
                for one in result.queues
            ],
        )
    click.echo(f"{result.errors} errors logged, {result.inflight} commands in flight")
    for thread in result.iothreads:
        click.echo(
            f"{thread.name}: {'asleep' if thread.asleep else 'polling'} on CPU"
            f" {_value(thread.cpu)}, {thread.queues} queues, {thread.translated.count} commands,"
            f" sleeps after {thread.poll_timeout_ms} ms"
        )


def _parent_types(result: api.ParentTypes) -> None:
    if not result.parents:
        click.echo("There is no NVMe drive here (that this user can see); any file can be served.")
        return
    _table(
        ("parent", "by", "host queues", "left", "type", "instances"),
        [
            (*_parent(parent), one.name, _count(one.available_instances))
            for parent in result.parents
            for one in parent.types
        ],
    )
    for parent in result.parents:
        if not parent.types:
            click.echo(f"{_printable(parent.parent)} has no queue that could be set aside")


def _parent(parent: api.ParentInfo) -> tuple[str, str, str, str]:
    total = "shared" if parent.host_queues is None else str(parent.host_queues)
    return parent.parent, parent.kind, total, _count(parent.left)


def _count(number: int | None) -> str:
    return "any" if number is None else str(number)


def _pause_state(result: api.PauseState) -> None:
    click.echo("paused" if result.paused else "running")


def _unplugged(result: api.Unplugged) -> None:
    if not result.was_connected:
        click.echo("no client was connected")
    else:
        click.echo("the client was disconnected" if result.forced else "the client has gone")


def _daemon(result: api.DaemonInfo) -> None:
    names = ", ".join(result.controllers) or "nothing"
    click.echo(f"process {result.pid} (nvme-mdev {result.version}) serves {_printable(names)}")


def _summary(result: api.ControllerSummary) -> None:
    _controllers(api.ControllerList([result]))


_TABLES: dict[type, Callable[[Any], None]] = {
    api.ControllerList: _controllers,
    api.ControllerSummary: _summary,
    api.ControllerInfo: _controller,
    api.SettingList: _settings,
    api.NamespaceList: _namespaces,
    api.NamespaceInfo: _namespace,
    api.Stats: _stats,
    api.ParentTypes: _parent_types,
    api.PauseState: _pause_state,
    api.Unplugged: _unplugged,
    api.DaemonInfo: _daemon,
}
