"""What one `nvme-mdev serve` serves: everything the user decided, checked as far as that goes
without opening anything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from nvme_mdev.errors import UserError
from nvme_mdev.service.targets import Access, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nvme_mdev.service.record import Option

#: Bytes of the serial number in Identify Controller (NVMe Base, Identify Controller, bytes 23:04).
SERIAL_LENGTH = 20
_SERIAL_PREFIX = "MDEV"

#: Defaults of the settings, those of NVME MDEV where it had them.
DEFAULT_POLL_TIMEOUT_MS = 500
DEFAULT_IO_TIMEOUT_MS = 30000
DEFAULT_QUEUES = 64
#: Most I/O queue pairs and namespaces: `MAX_IO_QUEUES` of `nvme_mdev.datapath.state` and
#: `MAX_NSID` of `nvme_mdev.controller.settings`, which are not loaded before the arguments are
#: known to be good.
MAX_QUEUES = 128
MAX_NAMESPACES = 256

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
    iothread_cpu: int | None = None
    shadow_doorbell: bool = True
    mapped_doorbells: bool = True
    poll_timeout_ms: int = DEFAULT_POLL_TIMEOUT_MS
    io_timeout_ms: int = DEFAULT_IO_TIMEOUT_MS

    def __post_init__(self) -> None:
        """Refuse what no controller can have (UserError)."""
        if len(self.targets) > MAX_NAMESPACES:
            raise UserError(f"{len(self.targets)} targets: give at most {MAX_NAMESPACES}")
        if self.serial is not None:
            _check_serial(self.serial)

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
        if first is None or first.kind != "path":
            identity += f"@{self.socket.resolve()}"
        digest = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8)
        return _SERIAL_PREFIX + digest.hexdigest().upper()


def options(definition: Definition) -> dict[str, Option]:
    """Its fields that are plain values, by name, the serial number as it has come out."""
    plain = {
        one.name: getattr(definition, one.name)
        for one in fields(definition)
        if one.name not in _NOT_OPTIONS
    }
    return {**plain, "serial": definition.serial_number}


def from_options(socket: Path, name: str, chosen: Mapping[str, Option]) -> Definition:
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
