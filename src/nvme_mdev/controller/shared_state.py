"""What the controllers of a subsystem know of a namespace in common, in memory that outlives us.

Write protection and reservations belong to the namespace, whichever controller they were set on. A
change is written beside what is valid, and made valid by one store of 8 bytes, which counts the
changes, too: whoever is killed in between leaves things as they were.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nvme_mdev.controller.places import HIGH_PLACES, PLACES, Places
from nvme_mdev.controller.reservations import MAX_REGISTRANTS, Reservations
from nvme_mdev.spec.nvme_features import WriteProtectionState
from nvme_mdev.spec.nvme_reservations import ReservationType

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 0x3230_5953_4255_534E  # "NSUBSY02"
"""Changes with the layout."""
_HEADER = struct.Struct("<Q20s")
_WORD = struct.Struct("<Q")
_HIGH_NSIDS = 2048
"""Where the words of the places begin."""
_CHANGES = _HIGH_NSIDS + HIGH_PLACES * _WORD.size
"""Where a word for each place begins: how often it was changed; the lowest bit is its slot."""
_SLOTS = _CHANGES + PLACES * _WORD.size
"""Where the slots begin, at a page: two for each place."""
_SLOT_SIZE = 4096
#: Generation; registrants; index of the holder; reservation type; PTPL; write protection.
_STATE = struct.Struct("<IHhBBB")
_REGISTRANTS = 64
_REGISTRANT = struct.Struct("<16sQ")
_NO_HOLDER = -1

SHARED_STATE_SIZE = _SLOTS + 2 * PLACES * _SLOT_SIZE
"""Bytes; what was never used takes no memory."""


_OTHER_VERSION = "what its namespaces have in common is of another version"


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
        elif os.fstat(fd).st_size == SHARED_STATE_SIZE:
            self._memory = mmap.mmap(fd, SHARED_STATE_SIZE)
        else:
            raise ValueError(_OTHER_VERSION)
        found, name = _HEADER.unpack_from(self._memory)
        if found not in (0, FORMAT):
            raise ValueError(_OTHER_VERSION)
        if not found:
            _HEADER.pack_into(self._memory, 0, FORMAT, serial.encode("ascii"))
        self.serial = serial if not found else name.rstrip(b"\0").decode("ascii")
        words = memoryview(self._memory)[:_SLOTS].cast("Q")
        self.places = Places(words, _HIGH_NSIDS // _WORD.size)
        self._changes = words[_CHANGES // _WORD.size :]
        self._known: dict[int, NamespaceState] = {}

    def __iter__(self) -> Iterator[int]:
        """The NSIDs that anything was ever known of."""
        return iter([nsid for nsid in self.places if self.changes(nsid)])

    def __getitem__(self, nsid: int) -> NamespaceState:
        if nsid not in self._known:
            self._known[nsid] = self._read(nsid) if self.changes(nsid) else NamespaceState()
        return self._known[nsid]

    def __setitem__(self, nsid: int, state: NamespaceState) -> None:
        if nsid not in self.places:
            # It has gone while this was decided, and its state with it.
            return
        place, changes = self.places[nsid], self.changes(nsid) + 1
        self._write(_slot(place, changes), state)
        self._changes[place] = changes
        self._known[nsid] = state

    def forget(self, nsid: int) -> None:
        """There is no such namespace any more: another one begins anew."""
        if self.changes(nsid):
            self[nsid] = NamespaceState()
        self.places.give(nsid)
        self._known.pop(nsid, None)

    def changes(self, nsid: int) -> int:
        """How often the state of a namespace, or of those before in its place, has changed."""
        return self._changes[self.places[nsid]] if nsid in self.places else 0

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
        start = _slot(self.places[nsid], self.changes(nsid))
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


def _slot(place: int, changes: int) -> int:
    return _SLOTS + (2 * place + changes % 2) * _SLOT_SIZE
