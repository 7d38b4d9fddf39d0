"""What the controllers of a subsystem know of a namespace in common, in memory that outlives us.

Write protection and reservations belong to the namespace, whichever controller they were set on. A
change is written beside what is valid, and made valid by one store of 8 bytes, which counts the
changes, too: whoever is killed in between leaves things as they were.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nvme_mdev.controller.reservations import MAX_REGISTRANTS, Reservations
from nvme_mdev.controller.settings import MAX_NSID
from nvme_mdev.spec.nvme_features import WriteProtectionState
from nvme_mdev.spec.nvme_reservations import ReservationType

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 0x3130_5953_4255_534E  # "NSUBSY01"
"""Changes with the layout."""
_HEADER = struct.Struct("<Q20s")
_WORDS = 2048
"""Where a word for each NSID begins: how often it was changed, and whose lowest bit is its slot."""
_WORD = struct.Struct("<Q")
_SLOTS = 4096
"""Where the slots begin: two for each NSID."""
_SLOT_SIZE = 4096
#: Generation; registrants; index of the holder; reservation type; PTPL; write protection.
_STATE = struct.Struct("<IHhBBB")
_REGISTRANTS = 64
_REGISTRANT = struct.Struct("<16sQ")
_NO_HOLDER = -1

SHARED_STATE_SIZE = _SLOTS + 2 * MAX_NSID * _SLOT_SIZE
"""Bytes; what was never used takes no memory."""


@dataclass(frozen=True, slots=True)
class NamespaceState:
    """What is known of a namespace."""

    protection: WriteProtectionState = WriteProtectionState.NONE
    reservations: Reservations = field(default_factory=Reservations)

    def after_power_loss(self) -> NamespaceState:
        """What is left of it."""
        protection = self.protection
        if protection == WriteProtectionState.UNTIL_POWER_CYCLE:
            protection = WriteProtectionState.NONE
        return NamespaceState(protection, self.reservations.after_power_loss())


class SharedState:
    """The state of all namespaces of a subsystem, by NSID."""

    def __init__(self, fd: int | None = None, serial: str = "") -> None:
        """``fd``: memory to keep it in, whose contents are gone on with if there are any; None: it
        ends with this process. ``serial``: whose it is. ValueError: it is of another version."""
        if fd is None:
            self._memory = mmap.mmap(-1, SHARED_STATE_SIZE)
        else:
            self._memory = mmap.mmap(fd, SHARED_STATE_SIZE)
        found, name = _HEADER.unpack_from(self._memory)
        if found not in (0, FORMAT):
            raise ValueError("what its namespaces have in common is of another version")
        if not found:
            _HEADER.pack_into(self._memory, 0, FORMAT, serial.encode("ascii"))
        self.serial = serial if not found else name.rstrip(b"\0").decode("ascii")
        self._words = memoryview(self._memory)[_WORDS : _WORDS + MAX_NSID * _WORD.size].cast("Q")
        self._known: dict[int, NamespaceState] = {}

    def __iter__(self) -> Iterator[int]:
        """The NSIDs that anything was ever known of."""
        return iter([nsid for nsid in range(1, MAX_NSID + 1) if self.changes(nsid)])

    def __getitem__(self, nsid: int) -> NamespaceState:
        if nsid not in self._known:
            self._known[nsid] = self._read(nsid) if self.changes(nsid) else NamespaceState()
        return self._known[nsid]

    def __setitem__(self, nsid: int, state: NamespaceState) -> None:
        changes = self.changes(nsid) + 1
        self._write(_slot(nsid, changes), state)
        self._words[nsid - 1] = changes
        self._known[nsid] = state

    def changes(self, nsid: int) -> int:
        """How often the state of a namespace has changed."""
        return self._words[nsid - 1]

    def protect(self, nsid: int, protection: WriteProtectionState) -> None:
        """Change the write protection of a namespace."""
        self[nsid] = replace(self[nsid], protection=protection)

    def reserve(self, nsid: int, reservations: Reservations) -> None:
        """Change the reservations of a namespace."""
        self[nsid] = replace(self[nsid], reservations=reservations)

    def _write(self, start: int, state: NamespaceState) -> None:
        reservations = state.reservations
        hosts = [host for host, _ in reservations.keys]
        holder = hosts.index(reservations.holder) if reservations.holder else _NO_HOLDER
        _STATE.pack_into(
            self._memory,
            start,
            reservations.generation,
            len(hosts),
            holder,
            reservations.rtype,
            reservations.ptpl,
            state.protection,
        )
        for index, (host, key) in enumerate(reservations.keys):
            _REGISTRANT.pack_into(
                self._memory, start + _REGISTRANTS + index * _REGISTRANT.size, host, key
            )

    def _read(self, nsid: int) -> NamespaceState:
        start = _slot(nsid, self.changes(nsid))
        generation, count, holder, rtype, ptpl, protection = _STATE.unpack_from(self._memory, start)
        keys = tuple(
            _REGISTRANT.unpack_from(self._memory, start + _REGISTRANTS + index * _REGISTRANT.size)
            for index in range(min(count, MAX_REGISTRANTS))
        )
        return NamespaceState(
            WriteProtectionState(protection),
            Reservations(
                generation,
                keys,
                ReservationType(rtype),
                keys[holder][0] if holder != _NO_HOLDER else b"",
                bool(ptpl),
            ),
        )


def _slot(nsid: int, changes: int) -> int:
    return _SLOTS + (2 * (nsid - 1) + changes % 2) * _SLOT_SIZE
