"""What one `nvme-mdev serve` serves: everything the user decided, checked as far as that goes
without opening anything."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from nvme_mdev.errors import UserError
from nvme_mdev.service.targets import Access, Target
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nvme_mdev.service.record import Option

#: Bytes of the serial number in Identify Controller (NVMe Base, Identify Controller, bytes 23:04).
SERIAL_LENGTH = 20
_SERIAL_PREFIX = "MDEV"

#: Defaults of the settings, those of NVME MDEV where it had them.
DEFAULT_POLL_TIMEOUT_MS = 500
DEFAULT_IO_TIMEOUT_MS = 30000
DEFAULT_QUEUES = 63
"""The most whose doorbells each have a cache line in the page (`ControllerSettings.dstrd`)."""
DEFAULT_QUEUE_ENTRIES = 1024
MAX_QUEUE_ENTRIES = 65536
DEFAULT_MDTS = 1 << 20
MAX_MDTS = 32 << 20
"""65536 blocks of 512 bytes, more than which no command names."""
#: Most I/O queue pairs and namespaces: `MAX_IO_QUEUES` of `nvme_mdev.datapath.state` and
#: `PLACES` of `nvme_mdev.controller.places`, which are not loaded before the arguments are
#: known to be good.
MAX_QUEUES = 128
MAX_NAMESPACES = 512
DEFAULT_MAX_NSID = 256
MAX_NSID = 0xFFFF_FFFE
"""Likewise those of `nvme_mdev.controller.settings` and `nvme_mdev.spec.nvme_commands`."""
MAX_IOTHREADS = 16
"""Likewise `MAX_IOTHREADS`."""
_PAGE_SIZE = 4096
_IOTHREAD_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_NOT_OPTIONS = frozenset({"targets", "socket", "name", "control", "access"})


@dataclass(frozen=True, slots=True)
class Definition:
    """One controller: its namespaces, its socket and its settings."""

    targets: tuple[Target, ...]
    """Namespace 1 to n; none: namespaces come later, or are those of another controller."""
    socket: Path
    name: str | None = None
    """The controller's name; None: derived from the socket's."""
    control: Path | None = None
    """The control socket; None: there is none."""
    access: Access = field(default_factory=Access)
    serial: str | None = None
    """None: derived from the first target, see `serial_number`."""
    cntlid: int = 1
    """Identifier of the controller in its NVM subsystem: the daemon's controllers that have the
    same serial number."""
    queues: int = DEFAULT_QUEUES
    """I/O queue pairs offered to the guest."""
    queue_entries: int = DEFAULT_QUEUE_ENTRIES
    """Most entries of an I/O queue."""
    mdts: int = DEFAULT_MDTS
    """Most bytes that a command moves."""
    max_nsid: int | None = None
    """The highest NSID. None: that of the controller it shares with, or 256."""
    host_queues: int | None = None
    """N of the type nvme-NQ_V1: IOThreads that its queues are spread over. None: as many as are
    named, or one."""
    iothread: str | None = None
    """Names of IOThreads that controllers share, commas between them. None: it has its own."""
    iothread_cpu: int | str | None = None
    """The processor of each IOThread, commas between them. None: any."""
    shadow_doorbell: bool = True
    mapped_doorbells: bool = True
    poll_timeout_ms: int = DEFAULT_POLL_TIMEOUT_MS
    io_timeout_ms: int = DEFAULT_IO_TIMEOUT_MS
    allow_erase: bool = False
    """Let the guest format and sanitize its namespaces."""

    def __post_init__(self) -> None:
        """Refuse what no controller can have (UserError)."""
        self._check_namespaces()
        if self.serial is not None:
            _check_serial(self.serial)
        self._check_iothreads()
        pages = self.mdts // _PAGE_SIZE
        if self.mdts % _PAGE_SIZE or pages < 2 or pages & (pages - 1) or self.mdts > MAX_MDTS:
            raise UserError(
                f"--mdts {format_size(self.mdts)}: give 8K, 16K, 32K, ... up to"
                f" {format_size(MAX_MDTS)}"
            )

    def _check_namespaces(self) -> None:
        if not 1 <= self.highest_nsid <= MAX_NSID:
            raise UserError(f"--max-nsid {self.max_nsid}: give a number from 1 to {MAX_NSID}")
        count = len(self.targets)
        if count > MAX_NAMESPACES:
            raise UserError(f"{count} targets: give at most {MAX_NAMESPACES}")
        if count > self.highest_nsid:
            raise UserError(
                f"{count} targets, and NSIDs end at {self.highest_nsid}: give --max-nsid {count}"
            )

    def _check_iothreads(self) -> None:
        names = self.iothread_names
        if len(set(names)) < len(names) or not all(map(_IOTHREAD_NAME.fullmatch, names)):
            raise UserError(
                f"--iothread {self.iothread}: give different names of letters, digits, - and _"
            )
        if names and self.host_queues not in (None, len(names)):
            raise UserError(
                f"--iothread {self.iothread}: type nvme-{self.host_queues}Q_V1 has"
                f" {self.host_queues} IOThreads: give as many names"
            )
        if not 1 <= self.threads <= MAX_IOTHREADS:
            raise UserError(f"{self.threads} IOThreads: a controller has 1 to {MAX_IOTHREADS}")
        spread_cpus(self.iothread_cpu, self.threads)

    @property
    def highest_nsid(self) -> int:
        """NN of a controller that shares with no other."""
        return DEFAULT_MAX_NSID if self.max_nsid is None else self.max_nsid

    @property
    def threads(self) -> int:
        """How many IOThreads serve its queues."""
        return self.host_queues or len(self.iothread_names) or 1

    @property
    def type(self) -> str:
        """As NVME MDEV called it."""
        return f"nvme-{self.threads}Q_V1"

    @property
    def iothread_names(self) -> list[str]:
        """The names of shared IOThreads; none: they are dedicated."""
        return self.iothread.split(",") if self.iothread is not None else []

    @property
    def cpus(self) -> list[int | None]:
        """The processor of each IOThread, None: any."""
        return spread_cpus(self.iothread_cpu, self.threads)

    @property
    def serial_number(self) -> str:
        """The serial given, or one that is the same whenever the same first target is served.

        A null or memory target has no identity of its own and takes that of the socket, so that
        two of them in one guest are two drives; so does a controller without a target.
        """
        if self.serial is not None:
            return self.serial
        first = self.targets[0] if self.targets else None
        identity = first.identity if first is not None else ""
        if first is None or first.kind in {"null", "memory"}:
            identity += f"@{self.socket.resolve()}"
        digest = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8)
        return _SERIAL_PREFIX + digest.hexdigest().upper()


def spread_cpus(cpus: int | str | None, threads: int) -> list[int | None]:
    """A processor for each of so many IOThreads; one that is given alone is that of all of them.

    UserError: there are too many, or too few.
    """
    given: list[int | None] = [None]
    if cpus is not None:
        given = [int(one) for one in str(cpus).split(",")]
    if len(given) == 1:
        return given * threads
    if len(given) != threads:
        raise UserError(f"{cpus}: give one CPU, or {threads}, as many as there are IOThreads")
    return given


def join_cpus(cpus: Sequence[int | None]) -> int | str | None:
    """The other way round; None where they are pinned to none."""
    if len(set(cpus)) == 1:
        return cpus[0]
    return ",".join("any" if cpu is None else str(cpu) for cpu in cpus)


def options(definition: Definition) -> dict[str, Option]:
    """Its fields that are plain values, by name; what was derived as it has come out."""
    plain = {
        one.name: getattr(definition, one.name)
        for one in fields(definition)
        if one.name not in _NOT_OPTIONS
    }
    return {**plain, "serial": definition.serial_number, "max_nsid": definition.highest_nsid}


def from_options(socket: Path, name: str | None, chosen: Mapping[str, Option]) -> Definition:
    """The controller of a record; options that this version does not know are left out."""
    known = {one.name for one in fields(Definition)} - _NOT_OPTIONS
    given: dict[str, Any] = {key: value for key, value in chosen.items() if key in known}
    return Definition((), socket, name, **given)


def _check_serial(serial: str) -> None:
    if not serial or len(serial) > SERIAL_LENGTH:
        raise UserError(f"--serial {serial!r}: a serial number has 1 to {SERIAL_LENGTH} characters")
    if not (serial.isascii() and serial.isprintable()) or serial != serial.strip():
        raise UserError(
            f"--serial {serial!r}: use printable ASCII characters, without a space at either end"
        )
