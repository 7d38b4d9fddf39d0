"""What the user decides about a controller."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev import __version__
from nvme_mdev.controller.places import DIRECT_PLACES, PLACES
from nvme_mdev.datapath.state import MAX_IO_QUEUES
from nvme_mdev.spec.nvme_commands import MAX_NSID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvme_mdev.datapath.backends.base import Backend

PCI_VENDOR_ID = 0x6E6D
"""PCI vendor and subsystem vendor: "nm". No vendor has it (PCI ID database, 2025), and no driver
has a quirk for it; every driver binds to the class code. QEMU's 1B36:0010 is not ours to use: Linux
takes its identifiers for bogus and its Write Zeroes for broken."""

MODEL_NUMBER = "nvme-mdev"
"""MN of Identify Controller."""

DEFAULT_MAX_NSID = DIRECT_PLACES
"""NN where the user does not say: firmware asks for every NSID up to it, one after the other."""

NQN_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"
"""An NQN made of a UUID (Base 4.7)."""

NAMESPACE_UUID = uuid.UUID("5d8b9a2e-63f1-5f04-9d2a-1f5a6b0c7e42")
"""Root of all the name-based UUIDs (RFC 9562, version 5) of this program; arbitrary, never to
change: guests find their disks by what is derived from it."""

MAX_CNTLID = 0xFFEF
"""The highest CNTLID of a controller (Base 5.1.13.2.1)."""

DEFAULT_MAX_TRANSFER = 1 << 20
"""Bytes of a command, where no backend has a lower limit."""

_SERIAL_LENGTH = 20
_MIN_QUEUE_ENTRIES = 2
_MAX_QUEUE_ENTRIES = 65536
_PAGE_SIZE = 4096
_MIN_TRANSFER_PAGES = 2
"""MDTS is a power of two, and one page, 0, would mean no limit."""
MAX_TRANSFER = 32 << 20
"""Most bytes of any command: 65536 blocks of 512 bytes."""
_DOORBELL_PAGE = 4096
"""Bytes of doorbells: what clients map (SPDK's driver insists on it), and a shadow page."""
_MAX_DSTRD = 3
"""A queue pair's two doorbells, 32 bytes apart, are a cache line then."""


def fitting_transfer(wanted: int, backends: Iterable[Backend]) -> int:
    """Bytes that a command can move on each of these backends, at most ``wanted``."""
    limits = [backend.transfer_limit for backend in backends if backend.transfer_limit]
    return min([wanted, *limits])


def firmware_revision() -> str:
    """FR of Identify Controller: this package's version, as much of it as 8 characters hold."""
    return __version__[:8]


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """One controller's settings; ValueError when they cannot be had."""

    serial: str
    """SN of Identify Controller: 1 to 20 printable ASCII characters; the same at each start."""
    cntlid: int = 1
    """CNTLID of Identify Controller: 0 to FFEFh, unique in the NVM subsystem."""
    io_queues: int = 63
    """I/O queue pairs offered; the most whose doorbells have a cache line each (see `dstrd`)."""
    queue_entries: int = 1024
    """Most entries of an I/O queue (CAP.MQES + 1)."""
    max_transfer: int = DEFAULT_MAX_TRANSFER
    """Most bytes a command moves: 8192 times a power of two; the queue table has the same."""
    shadow_doorbell: bool = True
    """Offer Doorbell Buffer Config."""
    max_nsid: int = DEFAULT_MAX_NSID
    """The highest NSID, NN: 1 to FFFFFFFEh, the same for all controllers of the NVM subsystem."""
    allow_erase: bool = False
    """Offer Format NVM and Sanitize."""
    io_timeout_ms: int = 30_000
    """Cancel I/O that its backend has not completed by then (milliseconds)."""
    vendor_id: int = PCI_VENDOR_ID
    """PCI vendor and subsystem vendor; Identify Controller repeats it."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.serial) <= _SERIAL_LENGTH or not (
            self.serial.isascii() and self.serial.isprintable()
        ):
            raise ValueError(f"serial {self.serial!r}: use 1 to 20 printable ASCII characters")
        if not 0 <= self.cntlid <= MAX_CNTLID:
            raise ValueError(f"controller identifier {self.cntlid}: 0 to {MAX_CNTLID} are possible")
        if not 1 <= self.io_queues <= MAX_IO_QUEUES:
            raise ValueError(f"{self.io_queues} I/O queues: 1 to {MAX_IO_QUEUES} are possible")
        if not _MIN_QUEUE_ENTRIES <= self.queue_entries <= _MAX_QUEUE_ENTRIES:
            raise ValueError(f"{self.queue_entries} queue entries: 2 to 65536 are possible")
        if not 1 <= self.max_nsid <= MAX_NSID:
            raise ValueError(f"highest NSID {self.max_nsid}: 1 to {MAX_NSID} are possible")
        pages, rest = divmod(self.max_transfer, _PAGE_SIZE)
        if rest or pages < _MIN_TRANSFER_PAGES or pages & (pages - 1):
            raise ValueError(f"maximum transfer {self.max_transfer}: use 8192 times a power of two")
        if self.max_transfer > MAX_TRANSFER:
            raise ValueError(f"maximum transfer {self.max_transfer}: {MAX_TRANSFER} is the most")

    @property
    def vectors(self) -> int:
        """MSI-X vectors: one for the admin queue, one for each I/O queue pair."""
        return self.io_queues + 1

    @property
    def max_namespaces(self) -> int:
        """MNAN: most namespaces that there can be at a time."""
        return min(self.max_nsid, PLACES)

    @property
    def dstrd(self) -> int:
        """CAP.DSTRD: doorbells are ``4 << dstrd`` bytes apart, as far as the page has room for it.

        Two vCPUs that ring doorbells in one cache line slow each other down.
        """
        return next(
            dstrd
            for dstrd in range(_MAX_DSTRD, -1, -1)
            if 2 * (self.io_queues + 1) * (4 << dstrd) <= _DOORBELL_PAGE or dstrd == 0
        )

    @property
    def nqn(self) -> str:
        """SUBNQN: of the NVM subsystem, as the serial number is, so it follows from that."""
        return NQN_PREFIX + str(uuid.uuid5(NAMESPACE_UUID, f"subsystem:{self.serial}"))
