"""A host that registers and reserves, on one controller; keys and reports as plain values."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_features import HOST_IDENTIFIER_EXHID, Fid
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_reservations import (
    EXTENDED_STATUS_SIZE,
    AcquireAction,
    ExtendedRegistrant,
    RegisterAction,
    Registrant,
    ReleaseAction,
    ReservationNotice,
    ReservationNotificationLog,
    ReservationStatus,
    ReservationType,
)

if TYPE_CHECKING:
    from nvme_mdev.host.driver import NvmeHost

_REPORT = 8192


class Entry(NamedTuple):
    """A registrant in a report."""

    cntlid: int
    holds: bool
    host: int
    key: int


class Report(NamedTuple):
    """What Reservation Report returns."""

    generation: int
    rtype: ReservationType
    ptpl: bool
    entries: list[Entry]


class ReservationHost:
    """Namespace 1, unless said otherwise, over one driver."""

    def __init__(self, host: NvmeHost, identifier: int = 0, key: int = 0) -> None:
        """``identifier``: set as Host Identifier; 0: none is. ``key``: what it registers with."""
        self.host = host
        self.queue = host.create_queue_pair()
        self.key = key
        self.size = 16
        if identifier:
            self.identify(identifier)

    def identify(self, identifier: int, *, size: int = 16) -> None:
        self.size = size
        exhid = HOST_IDENTIFIER_EXHID if size == 16 else 0
        sqe = commands.set_features(Fid.HOST_IDENTIFIER, exhid)
        self.host.admin(sqe, send=identifier.to_bytes(size, "little"))

    def register(self, nsid: int = 1, *, cptpl: int = 0) -> None:
        sqe = commands.reservation_register(nsid, RegisterAction.REGISTER, cptpl=cptpl)
        self.queue.execute(sqe, send=commands.pack_keys(0, self.key))

    def unregister(self, nsid: int = 1, *, key: int | None = None, iekey: bool = False) -> None:
        sqe = commands.reservation_register(nsid, RegisterAction.UNREGISTER, iekey=iekey)
        self.queue.execute(sqe, send=commands.pack_keys(self.key if key is None else key, 0))

    def replace(self, new: int, *, key: int | None = None, iekey: bool = False) -> None:
        sqe = commands.reservation_register(1, RegisterAction.REPLACE, iekey=iekey)
        self.queue.execute(sqe, send=commands.pack_keys(self.key if key is None else key, new))
        self.key = new

    def acquire(self, rtype: int, nsid: int = 1, *, key: int | None = None) -> None:
        sqe = commands.reservation_acquire(nsid, AcquireAction.ACQUIRE, rtype)
        self.queue.execute(sqe, send=commands.pack_keys(self.key if key is None else key, 0))

    def preempt(self, rtype: int, key: int, nsid: int = 1, *, abort: bool = False) -> None:
        action = AcquireAction.PREEMPT_AND_ABORT if abort else AcquireAction.PREEMPT
        sqe = commands.reservation_acquire(nsid, action, rtype)
        self.queue.execute(sqe, send=commands.pack_keys(self.key, key))

    def release(self, rtype: int, *, key: int | None = None) -> None:
        sqe = commands.reservation_release(1, ReleaseAction.RELEASE, rtype)
        self.queue.execute(sqe, send=commands.pack_keys(self.key if key is None else key))

    def clear(self) -> None:
        sqe = commands.reservation_release(1, ReleaseAction.CLEAR)
        self.queue.execute(sqe, send=commands.pack_keys(self.key))

    def report(self, nsid: int = 1) -> Report:
        extended = self.size == 16
        sqe = commands.reservation_report(nsid, _REPORT, extended=extended)
        data = self.queue.execute(sqe, receive=_REPORT).data
        status = ReservationStatus.from_buffer_copy(data)
        kind = ExtendedRegistrant if extended else Registrant
        start = EXTENDED_STATUS_SIZE if extended else ctypes.sizeof(ReservationStatus)
        found = [
            kind.from_buffer_copy(data, start + index * ctypes.sizeof(kind))
            for index in range(status.regstrnt)
        ]
        return Report(
            status.gen,
            ReservationType(status.rtype),
            bool(status.ptpls),
            [
                Entry(
                    one.cntlid,
                    bool(one.rcsts & 1),
                    int.from_bytes(bytes(one.hostid), "little"),
                    one.rkey,
                )
                for one in found
            ],
        )

    def notices(self) -> list[tuple[ReservationNotice, int]]:
        """All that wait, with their NSIDs."""
        found = []
        while (page := self.notice()).lpc:
            found.append((ReservationNotice(page.rnlpt), page.nsid))
        return found

    def notice(self) -> ReservationNotificationLog:
        """The oldest."""
        page = self.host.get_log_page(LogPage.RESERVATION_NOTIFICATION, 64)
        return ReservationNotificationLog.from_buffer_copy(page)
