"""Reservations of a namespace as a value, and what each command makes of it (Base 8.1.22).

Nothing here has an effect: a function takes how things stand, and returns how they stand after the
command and whom to tell, or raises the status that the command ends with. Hosts are their Host
Identifiers; what a controller may do follows from that of its host.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.spec.nvme_reservations import (
    AcquireAction,
    RegisterAction,
    ReleaseAction,
    ReservationNotice,
    ReservationType,
)
from nvme_mdev.spec.nvme_status import GenericStatus

MAX_REGISTRANTS = 128
"""Of a namespace: arbitrary; what a host has registered stays, whether it comes back or not."""

_GENERATIONS = 1 << 32

_WRITE_EXCLUSIVE = frozenset(
    {
        ReservationType.WRITE_EXCLUSIVE,
        ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
        ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    }
)
_HOLDER_ALONE = frozenset({ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS})
_ALL_REGISTRANTS = frozenset(
    {
        ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    }
)


class CommandGroup(enum.IntFlag):
    """Commands that a reservation allows or refuses together; the data path has the same bits."""

    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Reservations:
    """The registrants of a namespace, and its reservation."""

    generation: int = 0
    """Counts registrations and what takes them away, modulo 2**32."""
    keys: tuple[tuple[bytes, int], ...] = ()
    """Each registrant's Host Identifier (16 bytes, one of 64 bits padded) and its key."""
    rtype: ReservationType = ReservationType.NONE
    holder: bytes = b""
    """The host that holds it; empty without a reservation, and where all registrants hold it."""
    ptpl: bool = False
    """Persist Through Power Loss State."""

    def key(self, host: bytes) -> int | None:
        """A host's key, None: it is not registered."""
        return dict(self.keys).get(host)

    def holds(self, host: bytes) -> bool:
        """Whether the host holds the reservation, perhaps with others."""
        if self.rtype in _ALL_REGISTRANTS:
            return self.key(host) is not None
        return self.rtype != ReservationType.NONE and host == self.holder

    def refused(self, host: bytes) -> CommandGroup:
        """The commands of a host that conflict with the reservation."""
        if self.rtype == ReservationType.NONE or self.holds(host):
            return CommandGroup(0)
        if self.rtype not in _HOLDER_ALONE and self.key(host) is not None:
            return CommandGroup(0)
        if self.rtype in _WRITE_EXCLUSIVE:
            return CommandGroup.WRITE
        return CommandGroup.READ | CommandGroup.WRITE

    def after_power_loss(self) -> Reservations:
        """What is left of it: all or nothing, as the Persist Through Power Loss State says."""
        return self if self.ptpl else Reservations()

    def others(self, host: bytes) -> list[bytes]:
        """The registrants but for one host."""
        return [one for one, _ in self.keys if one != host]

    @property
    def is_sound(self) -> bool:
        """Whether it can be: what a file says need not."""
        hosts = [host for host, _ in self.keys]
        if len(set(hosts)) != len(hosts) or len(hosts) > MAX_REGISTRANTS:
            return False
        if self.rtype == ReservationType.NONE or self.rtype in _ALL_REGISTRANTS:
            return not self.holder and (bool(hosts) or self.rtype == ReservationType.NONE)
        return self.holder in hosts

    def without(self, gone: set[bytes]) -> Reservations:
        """Registrants are gone, and the reservation with the last that has held it."""
        left = replace(self, keys=tuple(entry for entry in self.keys if entry[0] not in gone))
        if self.holder in gone or not left.keys:
            return replace(left, rtype=ReservationType.NONE, holder=b"")
        return left

    def with_key(self, host: bytes, key: int) -> Reservations:
        """A host is registered, perhaps with another key; NvmeError: there are too many."""
        keys = dict(self.keys)
        keys[host] = key
        if len(keys) > MAX_REGISTRANTS:
            raise NvmeError(GenericStatus.INTERNAL_ERROR, dnr=False)
        return replace(self, keys=tuple(keys.items()))

    def reserved(self, rtype: ReservationType, host: bytes) -> Reservations:
        """The host holds a reservation."""
        return replace(self, rtype=rtype, holder=b"" if rtype in _ALL_REGISTRANTS else host)

    def next_generation(self) -> Reservations:
        """Registrations have changed."""
        return replace(self, generation=(self.generation + 1) % _GENERATIONS)


Notices: TypeAlias = tuple[tuple[bytes, ReservationNotice], ...]
"""The hosts to tell, on each of their controllers that the namespace is attached to."""


class Change(NamedTuple):
    """What a command does."""

    after: Reservations
    notices: Notices = ()
    preempted: tuple[bytes, ...] = ()
    """Hosts that were registered and, because of a preemption, are not any more."""


def _conflict() -> NvmeError:
    return NvmeError(GenericStatus.RESERVATION_CONFLICT)


def _notify(hosts: list[bytes], notice: ReservationNotice) -> Notices:
    return tuple((host, notice) for host in hosts)


# --- Reservation Register (Base 7.6, 8.1.22.3, 8.1.22.4) ---


def register(
    before: Reservations,
    host: bytes,
    action: RegisterAction,
    *,
    current: int,
    new: int,
    ignore_existing: bool,
    ptpl: bool | None,
) -> Change:
    """Register, unregister, or replace a key.

    ``current`` and ``new``: CRKEY and NRKEY; ``ignore_existing``: IEKEY; ``ptpl``: the new Persist
    Through Power Loss State, None to leave it.
    """
    if action != RegisterAction.UNREGISTER and not new:
        # A key of 0 stands for none.
        raise NvmeError(GenericStatus.INVALID_FIELD)
    if ptpl is not None:
        before = replace(before, ptpl=ptpl)
    key = before.key(host)
    match action:
        case RegisterAction.REGISTER:
            if key not in (None, new):
                raise _conflict()
            return Change(before.with_key(host, new).next_generation())
        case RegisterAction.UNREGISTER:
            if key is None or (key != current and not ignore_existing):
                raise _conflict()
            return _unregister(before, host)
        case RegisterAction.REPLACE:
            # With IEKEY the absence of a key is no error, either.
            if key != current and not ignore_existing:
                raise _conflict()
            return Change(before.with_key(host, new).next_generation())


def _unregister(before: Reservations, host: bytes) -> Change:
    after = before.without({host}).next_generation()
    released = before.rtype != after.rtype and before.rtype not in _HOLDER_ALONE
    others = before.others(host) if released else []
    return Change(after, _notify(others, ReservationNotice.RESERVATION_RELEASED))


# --- Reservation Acquire (Base 7.5, 8.1.22.5, 8.1.22.7) ---


def acquire(
    before: Reservations,
    host: bytes,
    action: AcquireAction,
    rtype: ReservationType,
    *,
    current: int,
    preempt: int,
) -> Change:
    """Acquire a reservation, or preempt one, or registrants; ``preempt``: PRKEY."""
    if before.key(host) != current or before.key(host) is None:
        raise _conflict()
    if action != AcquireAction.ACQUIRE:
        return _preempt(before, host, rtype, preempt)
    if before.rtype == ReservationType.NONE:
        return Change(before.reserved(rtype, host))
    if before.holds(host) and before.rtype == rtype:
        return Change(before)
    raise _conflict()


def _preempt(before: Reservations, host: bytes, rtype: ReservationType, key: int) -> Change:
    if before.rtype in _ALL_REGISTRANTS:
        if not key:
            return _take_over(before, host, rtype, set(before.others(host)))
    elif before.rtype != ReservationType.NONE:
        if not key:
            raise NvmeError(GenericStatus.INVALID_FIELD)
        if key == before.key(before.holder):
            return _take_over(before, host, rtype, _with(before, key) - {host})
    gone = _with(before, key)
    if not gone:
        raise _conflict()
    return _preempted(before, before.without(gone), host, gone)


def _with(before: Reservations, key: int) -> set[bytes]:
    """The registrants with a key."""
    return {host for host, its in before.keys if its == key}


def _take_over(
    before: Reservations, host: bytes, rtype: ReservationType, gone: set[bytes]
) -> Change:
    """The reservation goes to the host, in one step; who loses it is not registered any more."""
    return _preempted(before, before.without(gone).reserved(rtype, host), host, gone)


def _preempted(before: Reservations, after: Reservations, host: bytes, gone: set[bytes]) -> Change:
    told = [one for one in before.others(host) if one in gone]
    left = after.others(host) if before.rtype not in (ReservationType.NONE, after.rtype) else []
    return Change(
        after.next_generation(),
        _notify(told, ReservationNotice.REGISTRATION_PREEMPTED)
        + _notify(left, ReservationNotice.RESERVATION_RELEASED),
        tuple(told),
    )


# --- Reservation Release (Base 7.7, 8.1.22.6, 8.1.22.8) ---


def release(
    before: Reservations,
    host: bytes,
    action: ReleaseAction,
    rtype: int,
    *,
    current: int,
) -> Change:
    """Release the reservation, or clear it and all registrations; ``rtype``: of the command."""
    if before.key(host) != current or before.key(host) is None:
        raise _conflict()
    others = before.others(host)
    if action == ReleaseAction.CLEAR:
        after = Reservations(before.generation, ptpl=before.ptpl).next_generation()
        return Change(after, _notify(others, ReservationNotice.RESERVATION_PREEMPTED))
    if not before.holds(host):
        return Change(before)
    if before.rtype != rtype:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10 + 1)
    after = replace(before, rtype=ReservationType.NONE, holder=b"")
    told = [] if before.rtype in _HOLDER_ALONE else others
    return Change(after, _notify(told, ReservationNotice.RESERVATION_RELEASED))
