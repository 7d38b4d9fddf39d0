"""Reservations, as far as one host sees them (Base 7.5-7.8, 8.1.22)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import equal, refused, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode, NvmOpcode
from nvme_mdev.spec.nvme_features import HOST_IDENTIFIER_EXHID, Fid
from nvme_mdev.spec.nvme_identify import Ctratt, Oncs
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.conformance.subject import Subject

from contextlib import contextmanager

GROUP = Group("reservations")


def _rescap(subject: Subject) -> str | None:
    return None if subject.namespace.identify.rescap else "RESCAP of the namespace is 0"


_NEED = (needs.oncs(Oncs.RESERVS), _rescap)
_KEY, _OTHER = 0x1122_3344_5566_7788, 0x99
_WRITE_EXCLUSIVE = 1
_IEKEY = 1 << 3


def _command(subject: Subject, opcode: NvmOpcode, action: int, kind: int = 0) -> SQE:
    return SQE(opc=opcode, nsid=subject.nsid, cdw10=action | kind << 8)


def _keys(current: int, new: int = 0) -> bytes:
    return current.to_bytes(8, "little") + new.to_bytes(8, "little")


def _register(subject: Subject, action: int) -> SQE:
    return _command(subject, NvmOpcode.RESERVATION_REGISTER, action)


def _acquire(subject: Subject, action: int, kind: int = _WRITE_EXCLUSIVE) -> SQE:
    return _command(subject, NvmOpcode.RESERVATION_ACQUIRE, action, kind)


def _release(subject: Subject, action: int, kind: int = _WRITE_EXCLUSIVE) -> SQE:
    return _command(subject, NvmOpcode.RESERVATION_RELEASE, action, kind)


def _report(subject: Subject) -> bytes:
    extended = bool(subject.controller.ctratt & Ctratt.HIDS)
    sqe = SQE(opc=NvmOpcode.RESERVATION_REPORT, nsid=subject.nsid, cdw10=1023, cdw11=int(extended))
    return succeeds(subject.queue, sqe, receive=4096).data


@contextmanager
def _registered(subject: Subject) -> Iterator[None]:
    """This host is registered with `_KEY` meanwhile."""
    exhid = HOST_IDENTIFIER_EXHID if subject.controller.ctratt & Ctratt.HIDS else 0
    sqe = SQE(opc=AdminOpcode.SET_FEATURES, cdw10=Fid.HOST_IDENTIFIER, cdw11=exhid)
    subject.host.admin(sqe, send=bytes(range(1, 17))[: 16 if exhid else 8], check=False)
    succeeds(subject.queue, _register(subject, 0 | _IEKEY), send=_keys(0, _KEY))
    try:
        yield
    finally:
        succeeds(subject.queue, _register(subject, 1 | _IEKEY), send=_keys(_KEY))


@GROUP.check("Base 7.6", "Base 7.8", needs=_NEED, destructive=True)
def a_registered_host_is_in_the_report(subject: Subject) -> None:
    """Register makes a registrant, whose key the report has; unregister takes it away."""
    with _registered(subject):
        data = _report(subject)
        equal(int.from_bytes(data[5:7], "little"), 1, "registrants")
        equal(data[4], 0, "reservation type")
    equal(int.from_bytes(_report(subject)[5:7], "little"), 0, "registrants afterwards")


@GROUP.check("Base 7.5", "Base 7.7", "Base 7.8", needs=_NEED, destructive=True)
def a_reservation_is_acquired_and_released(subject: Subject) -> None:
    """Acquire makes the host the holder, Release ends it."""
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject, 0), send=_keys(_KEY))
        equal(_report(subject)[4], _WRITE_EXCLUSIVE, "reservation type")
        succeeds(subject.queue, commands.flush(subject.nsid))
        succeeds(subject.queue, _release(subject, 0), send=_keys(_KEY))
        equal(_report(subject)[4], 0, "reservation type afterwards")


@GROUP.check("Base 7.5", "Base 7.7", needs=_NEED, destructive=True)
def a_wrong_key_is_a_conflict(subject: Subject) -> None:
    """Acquire and Release with another key than the registered one are Reservation Conflict."""
    with _registered(subject):
        for sqe in (_acquire(subject, 0), _release(subject, 0)):
            refused(subject.queue, sqe, GenericStatus.RESERVATION_CONFLICT, send=_keys(_OTHER))


@GROUP.check("Base 7.5", "Base 8.1.22", needs=_NEED, destructive=True)
def who_is_not_registered_cannot_acquire(subject: Subject) -> None:
    """Acquire by a host that is not registered is Reservation Conflict."""
    refused(
        subject.queue,
        _acquire(subject, 0),
        GenericStatus.RESERVATION_CONFLICT,
        send=_keys(_KEY),
    )


@GROUP.check("Base 7.5", needs=_NEED, destructive=True)
def a_reserved_type_is_refused(subject: Subject) -> None:
    """A reservation type that is reserved is Invalid Field in Command."""
    with _registered(subject):
        sqe = _acquire(subject, 0, kind=9)
        refused(subject.queue, sqe, GenericStatus.INVALID_FIELD, send=_keys(_KEY))


@GROUP.check("Base 7.5", "Base 7.6", "Base 7.7", needs=_NEED)
def a_reserved_action_is_refused(subject: Subject) -> None:
    """An action that is reserved is Invalid Field in Command."""
    for sqe in (_register(subject, 7), _acquire(subject, 7), _release(subject, 7)):
        refused(subject.queue, sqe, GenericStatus.INVALID_FIELD, send=_keys(_KEY, _KEY))


@GROUP.check("Base 8.1.22", "Base 3.7.2", needs=_NEED, destructive=True)
def a_registration_outlives_a_controller_reset(subject: Subject) -> None:
    """A registration stays through a Controller Reset."""
    with _registered(subject):
        subject.host.enable()
        equal(int.from_bytes(_report(subject)[5:7], "little"), 1, "registrants")
