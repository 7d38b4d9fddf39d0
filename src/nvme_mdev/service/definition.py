"""What one `nvme-mdev serve` serves: everything the user decided, checked as far as that goes
without opening anything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError
from nvme_mdev.service.targets import Access, Target

if TYPE_CHECKING:
    from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Definition:
    """One controller: its namespaces, its socket and its settings."""

    targets: tuple[Target, ...]
    """Namespace 1 to n."""
    socket: Path
    name: str | None = None
    """The controller's name; None: derived from the socket's."""
    control: Path | None = None
    """The control socket; None: there is none."""
    access: Access = field(default_factory=Access)
    serial: str | None = None
    """None: derived from the first target, see `serial_number`."""
    queues: int = DEFAULT_QUEUES
    """I/O queue pairs offered to the guest."""
    iothread_cpu: int | None = None
    shadow_doorbell: bool = True
    mapped_doorbells: bool = True
    poll_timeout_ms: int = DEFAULT_POLL_TIMEOUT_MS
    io_timeout_ms: int = DEFAULT_IO_TIMEOUT_MS

    def __post_init__(self) -> None:
        """Refuse what no controller can have (UserError)."""
        if not self.targets:
            raise UserError("no target: give at least one image file or block device")
        if len(self.targets) > MAX_NAMESPACES:
            raise UserError(f"{len(self.targets)} targets: give at most {MAX_NAMESPACES}")
        if self.serial is not None:
            _check_serial(self.serial)

    @property
    def serial_number(self) -> str:
        """The serial given, or one that is the same whenever the same first target is served.

        A null or memory target has no identity of its own and takes that of the socket, so that
        two of them in one guest are two drives.
        """
        if self.serial is not None:
            return self.serial
        first = self.targets[0]
        identity = first.identity
        if first.kind in {"null", "memory"}:
            identity += f"@{self.socket.resolve()}"
        digest = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8)
        return _SERIAL_PREFIX + digest.hexdigest().upper()


def _check_serial(serial: str) -> None:
    if not serial or len(serial) > SERIAL_LENGTH:
        raise UserError(f"--serial {serial!r}: a serial number has 1 to {SERIAL_LENGTH} characters")
    if not (serial.isascii() and serial.isprintable()) or serial != serial.strip():
        raise UserError(
            f"--serial {serial!r}: use printable ASCII characters, without a space at either end"
        )
