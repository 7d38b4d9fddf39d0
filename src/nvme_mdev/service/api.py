"""The control socket's methods: names, parameters and results, as clients and the daemon use them.

A method is a :class:`Method` in :data:`METHODS`, with a dataclass for its parameters and one for
its result; what it does is the function for it in :mod:`nvme_mdev.service.methods`. Nothing here
loads the data path, so that a client starts at once.

Sizes are bytes, times are in the unit that the name ends with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

P = TypeVar("P")
R = TypeVar("R")

DEFAULT_UNPLUG_TIMEOUT_S = 30.0
DEFAULT_DRAIN_TIMEOUT_S = 10.0

SettingValue = int | bool | str | None


@dataclass(frozen=True, slots=True)
class Method(Generic[P, R]):
    """A method of the service."""

    name: str
    params: type[P]
    result: type[R]
    summary: str


# -- parameters ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoParams:
    """Nothing."""


@dataclass(frozen=True, slots=True)
class OfController:
    """Which controller."""

    controller: str | None = None
    """Its name; None: the only one that the daemon serves."""


@dataclass(frozen=True, slots=True)
class NamespaceAdd:
    """A namespace to be."""

    target: str
    """An absolute path, ``null:SIZE`` or ``memory:SIZE``."""
    nsid: int | None = None
    """None: the lowest that is free."""
    create_size: int | None = None
    """Size of an image file that is made when it is not there."""
    block_size: int | None = None
    """512 or 4096; None: what fits the medium."""
    read_only: bool = False
    shared: bool = False
    """Attach it to every controller of the NVM subsystem."""
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class NamespaceAttach:
    """A namespace to share."""

    nsid: int
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class NamespaceRemove:
    """A namespace to go."""

    nsid: int
    everywhere: bool = False
    """From every controller that shares it."""
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class NamespaceResize:
    """A namespace to have another size."""

    nsid: int
    size: int
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class NamespaceSet:
    """A namespace to have other limits."""

    nsid: int
    limits: dict[str, int | str | None]
    """By name (``iops``, ``read_bps``, ...): a rate a second, ``RATE:BURST``, null for none."""
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class ControllerAdd:
    """A controller to be."""

    socket: str
    """Absolute path of its vfio-user socket."""
    targets: list[str] = field(default_factory=list)
    """Absolute paths and the like: its namespaces 1, 2, ..."""
    share: str | None = None
    """The controller whose namespaces it shares, instead of targets of its own."""
    name: str | None = None
    """None: derived from the socket's."""
    create_size: int | None = None
    block_size: int | None = None
    read_only: bool = False
    options: dict[str, int | bool | str | None] = field(default_factory=dict)
    """Settings, and what is decided once: ``serial``, ``queues``, ..., as `serve` has them."""


@dataclass(frozen=True, slots=True)
class ControllerRemove:
    """A controller to go."""

    force: bool = False
    """Disconnect its client."""
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class ControllerSet:
    """Settings by name, see `nvme_mdev.service.settings`."""

    settings: dict[str, int | bool | str | None]
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class Unplug:
    """How patiently to ask for the controller back."""

    timeout_s: float = DEFAULT_UNPLUG_TIMEOUT_S
    force: bool = False
    """Disconnect a client that does not go by itself in that time."""
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """How patiently to wait for what is in flight."""

    timeout_s: float = DEFAULT_DRAIN_TIMEOUT_S


# -- results -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LimitInfo:
    """A limit of a namespace."""

    name: str
    rate: int
    """Commands or bytes a second."""
    burst: int
    """What can be used at once after a rest."""


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """A namespace."""

    nsid: int
    target: str
    """As it was given; the path of an image file or device is absolute."""
    size: int
    block_size: int
    read_only: bool
    uuid: str
    state: str
    """``active``, or ``lost``: its file or device has gone, and the guest sees no namespace."""
    limits: list[LimitInfo] = field(default_factory=list)
    """Of all controllers that share it together."""
    encrypted: bool = False
    """With the key in the target's ``key-file``."""


@dataclass(frozen=True, slots=True)
class NamespaceList:
    """The namespaces of a controller, by NSID."""

    namespaces: list[NamespaceInfo]


@dataclass(frozen=True, slots=True)
class ControllerSummary:
    """A controller in a list."""

    name: str
    socket: str
    """Path of the vfio-user socket."""
    serial: str
    state: str
    """``disabled``, ``ready``, ...: the life cycle's state, as the guest drives it."""
    paused: bool
    client_pid: int | None
    """Process of the client; None: nobody is connected."""
    namespaces: int
    size: int
    """Of all namespaces together."""


@dataclass(frozen=True, slots=True)
class ControllerList:
    """What a daemon serves."""

    controllers: list[ControllerSummary]


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """A setting as it is."""

    name: str
    value: int | bool | str | None
    pending: bool
    """It was changed and takes effect at the next reset of the controller."""


@dataclass(frozen=True, slots=True)
class SettingList:
    """All settings of a controller."""

    settings: list[SettingInfo]


@dataclass(frozen=True, slots=True)
class ControllerInfo:
    """Everything about a controller but its numbers."""

    summary: ControllerSummary
    nqn: str
    cntlid: int
    """Its identifier in the NVM subsystem."""
    sharing: list[str]
    """The other controllers of the subsystem."""
    io_queues: int
    """I/O queue pairs offered."""
    max_nsid: int
    """The highest NSID that a namespace can have (NN)."""
    settings: list[SettingInfo]
    namespaces: list[NamespaceInfo]


@dataclass(frozen=True, slots=True)
class PathCounterInfo:
    """One of the original's three counters."""

    count: int
    mean_cycles: float
    """Time-stamp counter cycles, of those that were timed (one turn in 16); 0 when none was."""
    mean_ns: float


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Commands that succeeded, and what they moved."""

    read_commands: int
    """Compare among them, as in the SMART log."""
    write_commands: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """An I/O submission queue."""

    qid: int
    cqid: int
    entries: int
    inflight: int
    held: bool
    """Nothing is fetched from it at the moment."""


@dataclass(frozen=True, slots=True)
class NamespaceData:
    """What was moved for a namespace since it was attached by this daemon."""

    nsid: int
    data: DataInfo
    throttled: int = 0
    """Commands that wait for its limits now."""
    throttled_total: int = 0
    """Commands that ever had to."""


@dataclass(frozen=True, slots=True)
class IOThreadInfo:
    """A polling thread."""

    name: str
    cpu: int | None
    """The processor that it is pinned to."""
    asleep: bool
    poll_timeout_ms: int
    queues: int
    """Submission queues that it serves, of all its controllers."""
    translated: PathCounterInfo
    """What it did for this controller."""
    completed: PathCounterInfo
    interrupts: PathCounterInfo


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers of a controller since it was made."""

    controller: str
    translated: PathCounterInfo
    """Commands fetched, checked and handed to a backend."""
    completed: PathCounterInfo
    interrupts: PathCounterInfo
    data: DataInfo
    errors: int
    """Entries ever made in the error log."""
    inflight: int
    queues: list[QueueInfo]
    namespaces: list[NamespaceData]
    iothreads: list[IOThreadInfo]


@dataclass(frozen=True, slots=True)
class PauseState:
    """Whether the I/O queues are held."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Unplugged:
    """How it went."""

    was_connected: bool
    forced: bool
    """The client did not go by itself and was disconnected."""


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """The process that serves."""

    pid: int
    version: str
    kept: bool
    """It is started again when it is killed, and can be restarted."""
    controllers: list[str]
    """Their names."""


@dataclass(frozen=True, slots=True)
class ParentQueues:
    """A controller that a daemon drives itself, for direct namespaces."""

    parent: str
    """``vfio:`` and its PCI address, or the path of a vfio-user socket."""
    host_queues: int | None
    """Queue pairs that can be set aside; None: it does not answer at the moment."""
    taken: int
    """Queue pairs that are, one for each polling thread."""


@dataclass(frozen=True, slots=True)
class ParentList:
    """The controllers whose queues a daemon has set aside."""

    parents: list[ParentQueues]


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A type of controller on a parent."""

    name: str
    """``nvme-NQ_V1``: it takes N host queues."""
    host_queues: int
    available_instances: int | None
    """How many more there can be; None: as many as you like."""


@dataclass(frozen=True, slots=True)
class ParentInfo:
    """What controllers can be made of: a drive, a block device or a file."""

    parent: str
    kind: str
    """``nvme``: by the kernel's driver; ``vfio``, ``vfio-user``; ``block``, ``file``."""
    host_queues: int | None
    """Queues that were set aside; None: they are not counted."""
    left: int | None
    """How many of them nobody has taken."""
    types: list[TypeInfo]


@dataclass(frozen=True, slots=True)
class ParentTypes:
    """Parents, and the types of each."""

    parents: list[ParentInfo]


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A method as `rpc.discover` tells of it."""

    name: str
    summary: str
    params: list[dict[str, str | bool]]
    result: list[dict[str, str | bool]]


@dataclass(frozen=True, slots=True)
class MethodList:
    """All methods, and the daemon's version."""

    version: str
    methods: list[MethodInfo] = field(default_factory=list)


# -- the table -----------------------------------------------------------------------------------

DISCOVER = Method("rpc.discover", NoParams, MethodList, "the methods, their parameters and results")
DAEMON_SHOW = Method("daemon.show", NoParams, DaemonInfo, "the process that serves")
DAEMON_RESTART = Method(
    "daemon.restart",
    Restart,
    DaemonInfo,
    "finish what is in flight, and end to be started again; the answer is of the old process",
)
PARENT_LIST = Method(
    "parent.list", NoParams, ParentList, "the controllers whose queues the daemon has set aside"
)
CONTROLLER_LIST = Method("controller.list", NoParams, ControllerList, "what the daemon serves")
CONTROLLER_SHOW = Method(
    "controller.show", OfController, ControllerInfo, "a controller, its settings and namespaces"
)
CONTROLLER_ADD = Method(
    "controller.add",
    ControllerAdd,
    ControllerInfo,
    "make a controller, with targets of its own or sharing another's namespaces",
)
CONTROLLER_REMOVE = Method(
    "controller.remove", ControllerRemove, ControllerSummary, "take a controller down"
)
CONTROLLER_SET = Method(
    "controller.set", ControllerSet, SettingList, "change settings, all of them or none"
)
CONTROLLER_STATS = Method(
    "controller.stats", OfController, Stats, "counters, queues, the IOThreads"
)
CONTROLLER_PAUSE = Method(
    "controller.pause",
    OfController,
    PauseState,
    "hold the I/O queues; answers when nothing is in flight",
)
CONTROLLER_RESUME = Method(
    "controller.resume", OfController, PauseState, "serve the I/O queues again"
)
CONTROLLER_UNPLUG = Method(
    "controller.unplug",
    Unplug,
    Unplugged,
    "ask the client to give the controller back; answers when it is gone",
)
NAMESPACE_LIST = Method("namespace.list", OfController, NamespaceList, "the namespaces")
NAMESPACE_ADD = Method(
    "namespace.add", NamespaceAdd, NamespaceInfo, "open a target and attach it while the guest runs"
)
NAMESPACE_ATTACH = Method(
    "namespace.attach",
    NamespaceAttach,
    NamespaceInfo,
    "share a namespace of another controller of the subsystem",
)
NAMESPACE_REMOVE = Method(
    "namespace.remove",
    NamespaceRemove,
    NamespaceInfo,
    "detach a namespace; answers when its I/O is done and it is closed",
)
NAMESPACE_RESIZE = Method(
    "namespace.resize",
    NamespaceResize,
    NamespaceInfo,
    "change the size of a namespace and of its image file",
)

NAMESPACE_SET = Method(
    "namespace.set",
    NamespaceSet,
    NamespaceInfo,
    "change limits of a namespace, those that are named",
)

METHODS: tuple[Method[Any, Any], ...] = (
    DISCOVER,
    DAEMON_SHOW,
    DAEMON_RESTART,
    PARENT_LIST,
    CONTROLLER_LIST,
    CONTROLLER_SHOW,
    CONTROLLER_ADD,
    CONTROLLER_REMOVE,
    CONTROLLER_SET,
    CONTROLLER_STATS,
    CONTROLLER_PAUSE,
    CONTROLLER_RESUME,
    CONTROLLER_UNPLUG,
    NAMESPACE_LIST,
    NAMESPACE_ADD,
    NAMESPACE_ATTACH,
    NAMESPACE_REMOVE,
    NAMESPACE_RESIZE,
    NAMESPACE_SET,
)
"""Every method, in the order in which they are shown."""
