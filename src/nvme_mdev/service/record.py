"""What the daemon serves at this moment, written down for the process that follows it.

The record is a versioned JSON text in a memfd of the FD store. A change is written whole beside the
text that is valid, and then made valid by one small write, which happens or does not: whoever is
killed in between leaves the record as it was. A change made through the control socket is in the
record before it is answered.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass, field

from nvme_mdev.service.schema import SchemaError, from_json, to_json
from nvme_mdev.service.targets import Access  # noqa: TC001 (from_json reads the annotations)

FORMAT = 1
"""Changes whenever a record of the version before cannot be read any more."""

_MAGIC = 0x3130_4452_4345_524E  # "NRECRD01"
#: Magic; offset and length of the valid text, bytes; its CRC-32.
_HEADER = struct.Struct("<QQQI4x")
_TEXT = 4096
"""Where texts begin: the header has a page of its own, so that no write of it is torn."""

Option = int | bool | str | None


@dataclass(frozen=True, slots=True)
class BackingRecord:
    """An open target: what namespaces are made of."""

    number: int
    """The daemon's own; names what is kept of it in the FD store."""
    target: str
    """As the user wrote it, paths absolute."""
    access: Access
    size: int
    """Bytes that are served."""
    limits: dict[str, str] = field(default_factory=dict)
    """RATE:BURST by name."""


@dataclass(frozen=True, slots=True)
class ControllerRecord:
    """A controller and its namespaces."""

    number: int
    """The daemon's own; names what is kept of it in the FD store."""
    name: str
    socket: str
    """Path of the vfio-user socket."""
    options: dict[str, Option]
    """The fields of its `Definition` that are plain values, by name."""
    namespaces: dict[str, int]
    """NSID (JSON's keys are text) to the number of its backing."""
    untold: list[int] = field(default_factory=list)
    """NSIDs that are being changed: the guest may not have been told yet."""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything."""

    format: int
    controllers: list[ControllerRecord]
    backings: list[BackingRecord]


class RecordFile:
    """The record in its memfd."""

    def __init__(self, fd: int | None = None) -> None:
        """``fd``: that of a process before us; None: make an empty one."""
        self.fd = os.memfd_create("nvme-mdev-record") if fd is None else fd
        self._start = self._end = _TEXT

    def write(self, record: Record) -> None:
        """Make this the record."""
        text = json.dumps(to_json(record)).encode()
        # Not over the text that is valid: before it where there is room, else behind it.
        start = _TEXT if _TEXT + len(text) <= self._start else self._end
        _write_all(self.fd, text, start)
        os.pwrite(self.fd, _HEADER.pack(_MAGIC, start, len(text), zlib.crc32(text)), 0)
        self._start, self._end = start, start + len(text)

    def read(self) -> Record:
        """The record; ValueError: it is of another version of nvme-mdev, or none."""
        magic, start, length, checksum = _HEADER.unpack(
            os.pread(self.fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        )
        text = os.pread(self.fd, length, start)
        if magic != _MAGIC or zlib.crc32(text) != checksum:
            raise ValueError("the record of what is served is damaged")
        self._start, self._end = start, start + length
        decoded = json.loads(text)
        try:
            if decoded.get("format") != FORMAT:
                raise ValueError("the record of what is served is of another version of nvme-mdev")
            return from_json(Record, decoded)
        except SchemaError as error:
            raise ValueError(f"the record of what is served cannot be read: {error}") from error

    def close(self) -> None:
        """Close our descriptor; what is stored stays."""
        os.close(self.fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
