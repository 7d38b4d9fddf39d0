"""What each method of :mod:`nvme_mdev.service.api` does: a function of its parameters.

To add one: its dataclasses and its `Method` in `api`, and here a function under
``@implements(api.…)``. Everything else (checking parameters, `rpc.discover`, the table in
``docs/control.md``) follows from these.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from nvme_mdev import __version__
from nvme_mdev.errors import UserError
from nvme_mdev.service import api
from nvme_mdev.service.controllers import add_controller, remove_controller
from nvme_mdev.service.definition import (
    MAX_IOTHREADS,
    MAX_MDTS,
    MAX_NSID,
    MAX_QUEUE_ENTRIES,
    MAX_QUEUES,
    from_options,
)
from nvme_mdev.service.endpoint import socket_path
from nvme_mdev.service.parent_types import held_here
from nvme_mdev.service.restart import prepare
from nvme_mdev.service.rpc import ErrorCode, RpcError
from nvme_mdev.service.runtime import check_name
from nvme_mdev.service.schema import SchemaError, describe, from_json, to_json
from nvme_mdev.service.settings import SETTINGS, Setting, When
from nvme_mdev.service.targets import BLOCK_SIZES, Access, Target
from nvme_mdev.units import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nvme_mdev.controller.namespaces import Namespace
    from nvme_mdev.datapath.iothread import IOThread
    from nvme_mdev.datapath.statistics import IoCounters, PathCounter, PathStatistics
    from nvme_mdev.service.record import Option
    from nvme_mdev.service.registry import Registry
    from nvme_mdev.service.served import ServedController

P = TypeVar("P")
R = TypeVar("R")

_TEXTS = ("serial", "iothread")
_NUMBERS = {
    "queues": Setting(When.AT_ONCE, "I/O queue pairs offered", 1, MAX_QUEUES),
    "queue_entries": Setting(When.AT_ONCE, "most entries of a queue", 2, MAX_QUEUE_ENTRIES),
    "mdts": Setting(When.AT_ONCE, "most data of a command, bytes", 1, MAX_MDTS),
    "max_nsid": Setting(When.AT_ONCE, "the highest NSID", 1, MAX_NSID),
    "host_queues": Setting(When.AT_ONCE, "N of the type nvme-NQ_V1", 1, MAX_IOTHREADS),
}
"""What is decided once about a controller, besides its settings."""
_UNIT = 512
"""Bytes in a unit of the controller's own counters."""
_MAX_TIMEOUT_S = 3600.0

_HANDLERS: dict[str, Callable[[Registry, Any], Awaitable[Any]]] = {}


def implements(
    method: api.Method[P, R],
) -> Callable[[Callable[[Registry, P], Awaitable[R]]], Callable[[Registry, P], Awaitable[R]]]:
    """Make a function what a method does."""

    def register(
        function: Callable[[Registry, P], Awaitable[R]],
    ) -> Callable[[Registry, P], Awaitable[R]]:
        _HANDLERS[method.name] = function
        return function

    return register


async def handle(registry: Registry, name: str, params: dict[str, Any]) -> Any:
    """Carry out a request; its result as JSON. RpcError: no such method, or not its parameters."""
    method = next((method for method in api.METHODS if method.name == name), None)
    if method is None:
        raise RpcError(ErrorCode.METHOD_NOT_FOUND, f"no method {name[:80]!r}: see rpc.discover")
    try:
        decoded = from_json(method.params, params)
    except SchemaError as error:
        raise RpcError(ErrorCode.INVALID_PARAMS, str(error)) from error
    return to_json(await _HANDLERS[name](registry, decoded))


@implements(api.DISCOVER)
async def discover(_registry: Registry, _params: api.NoParams) -> api.MethodList:
    """The methods, as the table has them."""
    return api.MethodList(
        __version__,
        [
            api.MethodInfo(
                method.name, method.summary, describe(method.params), describe(method.result)
            )
            for method in api.METHODS
        ],
    )


# -- the daemon ----------------------------------------------------------------------------------


def _daemon(registry: Registry) -> api.DaemonInfo:
    return api.DaemonInfo(
        os.getpid(),
        __version__,
        registry.kept is not None,
        [served.name for served in registry],
    )


@implements(api.DAEMON_SHOW)
async def daemon_show(registry: Registry, _params: api.NoParams) -> api.DaemonInfo:
    """This process."""
    return _daemon(registry)


@implements(api.DAEMON_RESTART)
async def daemon_restart(registry: Registry, params: api.Restart) -> api.DaemonInfo:
    """Get ready, answer, end."""
    if not 0 <= params.timeout_s <= _MAX_TIMEOUT_S:
        raise RpcError(ErrorCode.INVALID_PARAMS, f"timeout_s must be 0 to {_MAX_TIMEOUT_S:g}")
    await prepare(registry, params.timeout_s)
    registry.restart_asked.set()
    return _daemon(registry)


# -- controllers ---------------------------------------------------------------------------------


@implements(api.PARENT_LIST)
async def parent_list(_registry: Registry, _params: api.NoParams) -> api.ParentList:
    """Those of this process."""
    return held_here()


@implements(api.CONTROLLER_LIST)
async def controller_list(registry: Registry, _params: api.NoParams) -> api.ControllerList:
    """All of them, in short."""
    return api.ControllerList([_summary(served) for served in registry])


@implements(api.CONTROLLER_SHOW)
async def controller_show(registry: Registry, params: api.OfController) -> api.ControllerInfo:
    """One of them, at length."""
    return _info(registry, registry.get(params.controller))


def _info(registry: Registry, served: ServedController) -> api.ControllerInfo:
    return api.ControllerInfo(
        _summary(served),
        served.controller.settings.nqn,
        served.controller.settings.cntlid,
        [one.name for one in registry.peers(served) if one is not served],
        served.controller.settings.io_queues,
        served.controller.settings.max_nsid,
        _settings(served),
        _namespaces(served),
    )


@implements(api.CONTROLLER_ADD)
async def controller_add(registry: Registry, params: api.ControllerAdd) -> api.ControllerInfo:
    """Make one."""
    share = registry.get(params.share) if params.share is not None else None
    targets = tuple(Target.parse(text).absolute for text in params.targets)
    access = _access(params)
    path = socket_path(params.socket)
    if not path.is_absolute():
        raise UserError(f"{path}: give an absolute path, the daemon has a directory of its own")
    name = None if params.name is None else check_name(params.name)
    definition = from_options(path, name, _checked(params.options))
    definition = replace(definition, targets=targets, access=access)
    return _info(registry, await add_controller(registry, definition, share))


def _access(params: api.ControllerAdd | api.NamespaceAdd) -> Access:
    """How the targets are opened; UserError: with a size that none can have."""
    # Zero is given, too: further on it would be taken for a size that was left out.
    if params.block_size is not None and str(params.block_size) not in BLOCK_SIZES:
        raise UserError(f"block_size {params.block_size}: give {' or '.join(BLOCK_SIZES)}")
    if params.create_size is not None and not 0 < params.create_size <= MAX_SIZE:
        raise UserError(f"create_size {params.create_size}: give at least 1, less than 8E bytes")
    return Access(params.create_size, params.block_size, params.read_only)


def _checked(options: dict[str, Option]) -> dict[str, Option]:
    """Options of a new controller; UserError: there is none of that name, or not of that value."""
    numbers = {**_NUMBERS, **SETTINGS}
    for name, value in options.items():
        if name in numbers:
            numbers[name].check(name, value)
        elif name not in _TEXTS:
            known = ", ".join((*_TEXTS, *numbers))
            raise UserError(f"{name!r} is not an option: there are {known}")
        elif not isinstance(value, str):
            raise UserError(f"{name}: give a text")
    return options


@implements(api.CONTROLLER_REMOVE)
async def controller_remove(
    registry: Registry, params: api.ControllerRemove
) -> api.ControllerSummary:
    """Take one down; what it was."""
    served = registry.get(params.controller)
    removed = _summary(served)
    await remove_controller(registry, served, force=params.force)
    return removed


@implements(api.CONTROLLER_SET)
async def controller_set(registry: Registry, params: api.ControllerSet) -> api.SettingList:
    """Change settings."""
    served = registry.get(params.controller)
    served.change_settings(params.settings)
    return api.SettingList(_settings(served))


@implements(api.CONTROLLER_STATS)
async def controller_stats(registry: Registry, params: api.OfController) -> api.Stats:
    """All numbers at one time."""
    served = registry.get(params.controller)
    controller = served.controller
    path = controller.queues.statistics()
    queues = [api.QueueInfo(*queue) for queue in controller.queues.submission_queues()]
    return api.Stats(
        controller=served.name,
        translated=_path_counter(path.translated),
        completed=_path_counter(path.completed),
        interrupts=_path_counter(path.interrupts),
        data=_all_data(controller.state.counters()),
        errors=controller.state.error_count,
        inflight=sum(queue.inflight for queue in queues),
        queues=queues,
        namespaces=[
            api.NamespaceData(
                namespace.nsid,
                _data(controller.queues.namespaces.counters(namespace.nsid)),
                *controller.queues.namespaces.throttled(namespace.nsid),
            )
            for namespace in controller.namespaces
        ],
        iothreads=[
            _iothread(thread, part)
            for thread, part in zip(
                served.iothreads, controller.queues.thread_statistics(), strict=True
            )
        ],
    )


def _iothread(thread: IOThread, part: PathStatistics) -> api.IOThreadInfo:
    return api.IOThreadInfo(
        thread.name,
        thread.cpu,
        thread.asleep,
        thread.poll_timeout_ms,
        thread.queue_count,
        _path_counter(part.translated),
        _path_counter(part.completed),
        _path_counter(part.interrupts),
    )


@implements(api.CONTROLLER_PAUSE)
async def controller_pause(registry: Registry, params: api.OfController) -> api.PauseState:
    """Hold the queues and wait."""
    controller = registry.get(params.controller).controller
    await controller.pause()
    return api.PauseState(controller.paused)


@implements(api.CONTROLLER_RESUME)
async def controller_resume(registry: Registry, params: api.OfController) -> api.PauseState:
    """Let the queues go."""
    controller = registry.get(params.controller).controller
    controller.resume()
    return api.PauseState(controller.paused)


@implements(api.CONTROLLER_UNPLUG)
async def controller_unplug(registry: Registry, params: api.Unplug) -> api.Unplugged:
    """Ask, wait, insist."""
    served = registry.get(params.controller)
    if not 0 <= params.timeout_s <= _MAX_TIMEOUT_S:
        raise RpcError(ErrorCode.INVALID_PARAMS, f"timeout_s must be 0 to {_MAX_TIMEOUT_S:g}")
    return api.Unplugged(*await served.unplug(params.timeout_s, force=params.force))


# -- namespaces ----------------------------------------------------------------------------------


@implements(api.NAMESPACE_LIST)
async def namespace_list(registry: Registry, params: api.OfController) -> api.NamespaceList:
    """The active namespaces."""
    return api.NamespaceList(_namespaces(registry.get(params.controller)))


@implements(api.NAMESPACE_ADD)
async def namespace_add(registry: Registry, params: api.NamespaceAdd) -> api.NamespaceInfo:
    """Open and attach."""
    served = registry.get(params.controller)
    target = Target.parse(params.target).absolute
    access = _access(params)
    return _namespace(
        served, await served.add_namespace(target, access, params.nsid, shared=params.shared)
    )


@implements(api.NAMESPACE_ATTACH)
async def namespace_attach(registry: Registry, params: api.NamespaceAttach) -> api.NamespaceInfo:
    """Share."""
    served = registry.get(params.controller)
    return _namespace(served, served.attach_namespace(params.nsid))


@implements(api.NAMESPACE_REMOVE)
async def namespace_remove(registry: Registry, params: api.NamespaceRemove) -> api.NamespaceInfo:
    """Detach and close; what it was."""
    served = registry.get(params.controller)
    removed = _namespace(served, served.namespace(params.nsid))
    await served.remove_namespace(params.nsid, everywhere=params.everywhere)
    return removed


@implements(api.NAMESPACE_RESIZE)
async def namespace_resize(registry: Registry, params: api.NamespaceResize) -> api.NamespaceInfo:
    """Another size."""
    served = registry.get(params.controller)
    return _namespace(served, await served.resize_namespace(params.nsid, params.size))


@implements(api.NAMESPACE_SET)
async def namespace_set(registry: Registry, params: api.NamespaceSet) -> api.NamespaceInfo:
    """Other limits."""
    served = registry.get(params.controller)
    return _namespace(served, served.limit_namespace(params.nsid, params.limits))


# -- from the objects to the results ---------------------------------------------------------------


def _summary(served: ServedController) -> api.ControllerSummary:
    controller = served.controller
    return api.ControllerSummary(
        name=served.name,
        socket=str(served.definition.socket.absolute()),
        serial=controller.settings.serial,
        state=controller.life_cycle.state.name.lower(),
        paused=controller.paused,
        client_pid=served.server.client_pid,
        namespaces=len(controller.namespaces),
        size=sum(namespace.backend.size for namespace in controller.namespaces),
    )


def _settings(served: ServedController) -> list[api.SettingInfo]:
    return [
        api.SettingInfo(name, value, pending)
        for name, (value, pending) in served.settings().items()
    ]


def _namespaces(served: ServedController) -> list[api.NamespaceInfo]:
    namespaces = served.controller.namespaces
    there = sorted([*namespaces, *namespaces.lost.values()], key=lambda one: one.nsid)
    return [_namespace(served, namespace) for namespace in there]


def _namespace(served: ServedController, namespace: Namespace) -> api.NamespaceInfo:
    backend = namespace.backend
    return api.NamespaceInfo(
        nsid=namespace.nsid,
        target=served.backings[namespace.nsid].target.text,
        size=backend.size,
        block_size=backend.block_size,
        read_only=backend.read_only,
        uuid=str(namespace.uuid),
        state="lost" if namespace.nsid in served.controller.namespaces.lost else "active",
        limits=[api.LimitInfo(name, *limit) for name, limit in sorted(backend.limits.items())],
        encrypted=backend.encrypted,
    )


def _path_counter(counter: PathCounter) -> api.PathCounterInfo:
    return api.PathCounterInfo(counter.count, counter.mean_cycles, counter.mean_ns)


def _data(counters: IoCounters) -> api.DataInfo:
    return api.DataInfo(*counters)


def _all_data(counters: dict[str, int]) -> api.DataInfo:
    return api.DataInfo(
        counters["read_commands"],
        counters["write_commands"],
        counters["read_units"] * _UNIT,
        counters["write_units"] * _UNIT,
    )
