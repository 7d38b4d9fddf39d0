"""Reservations, as far as one controller shows them (Base 7.5-7.8, 8.1.22).

Another host is the same controller under another Host Identifier: registrations stay with the one
that they were made with.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import NSID_ALL, SQE, NvmOpcode
from nvme_mdev.spec.nvme_features import HOST_IDENTIFIER_EXHID, Fid
from nvme_mdev.spec.nvme_identify_controller import Ctratt, Oncs
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_reservations import (
    NOTIFICATION_MASK,
    RESERVATION_IEKEY,
    AcquireAction,
    RegisterAction,
    ReleaseAction,
    Rescap,
    ReservationStatus,
    ReservationType,
)
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.conformance.check import Need
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("reservations")


def _rescap(subject: Subject) -> str | None:
    return None if subject.namespace.identify.rescap else "RESCAP of the namespace is 0"


def _rhii(subject: Subject) -> str | None:
    rhii = subject.controller.ctratt & Ctratt.RHII
    return None if rhii else "CTRATT.RHII is 0: hosts without an identifier can reserve"


def _has(kind: Rescap) -> Need:
    return lambda subject: (
        None if subject.namespace.identify.rescap & kind else f"RESCAP.{kind.name} is 0"
    )


_NEED = (needs.oncs(Oncs.RESERVS), _rescap)
_EA = _has(Rescap.EXCLUSIVE_ACCESS)
_WE = _has(Rescap.WRITE_EXCLUSIVE)
_KEY, _OTHER = 0x1122_3344_5566_7788, 0x99
_HOST, _STRANGER = bytes(range(1, 17)), bytes(range(17, 33))
_CONFLICT = GenericStatus.RESERVATION_CONFLICT
_REPORT = 4096


class _Report(NamedTuple):
    generation: int
    rtype: int
    registrants: int


def _report(subject: Subject) -> _Report:
    extended = bool(subject.controller.ctratt & Ctratt.HIDS)
    sqe = commands.reservation_report(subject.nsid, _REPORT, extended=extended)
    data = succeeds(subject.queue, sqe, receive=_REPORT).data
    status = ReservationStatus.from_buffer_copy(data)
    return _Report(status.gen, status.rtype, status.regstrnt)


def _become(subject: Subject, identifier: bytes) -> None:
    """Be another host; nothing: none that is known."""
    size = 16 if subject.controller.ctratt & Ctratt.HIDS else 8
    sqe = commands.set_features(Fid.HOST_IDENTIFIER, HOST_IDENTIFIER_EXHID if size == 16 else 0)
    succeeds(subject.host.admin_queue, sqe, send=identifier[:size].ljust(size, b"\0"))


def _register(subject: Subject, action: RegisterAction, *, iekey: bool = False) -> SQE:
    return commands.reservation_register(subject.nsid, action, iekey=iekey)


def _acquire(
    subject: Subject,
    action: AcquireAction = AcquireAction.ACQUIRE,
    rtype: ReservationType = ReservationType.WRITE_EXCLUSIVE,
) -> SQE:
    return commands.reservation_acquire(subject.nsid, action, rtype)


def _release(
    subject: Subject,
    action: ReleaseAction = ReleaseAction.RELEASE,
    rtype: ReservationType = ReservationType.WRITE_EXCLUSIVE,
) -> SQE:
    return commands.reservation_release(subject.nsid, action, rtype)


@contextmanager
def _registered(subject: Subject) -> Iterator[None]:
    """This host is registered with `_KEY` meanwhile; what it reserves is released."""
    _become(subject, _HOST)
    register = _register(subject, RegisterAction.REPLACE, iekey=True)
    succeeds(subject.queue, register, send=commands.pack_keys(0, _KEY))
    try:
        yield
    finally:
        _become(subject, _HOST)
        clear = _register(subject, RegisterAction.UNREGISTER, iekey=True)
        subject.queue.execute(clear, send=commands.pack_keys(0, 0), check=False)


# -- registering -------------------------------------------------------------------------------


@GROUP.check("Base 7.6", "Base 7.8", needs=_NEED, destructive=True)
def a_registered_host_is_in_the_report(subject: Subject) -> None:
    """Register makes a registrant, whose key the report has; unregister takes it away."""
    with _registered(subject):
        report = _report(subject)
        equal(report.registrants, 1, "registrants")
        equal(report.rtype, 0, "reservation type")
    equal(_report(subject).registrants, 0, "registrants afterwards")


@GROUP.check("Base 8.1.22.3", needs=_NEED, destructive=True)
def a_host_registers_again_with_the_same_key_only(subject: Subject) -> None:
    """Registering with the same key succeeds, with another it is Reservation Conflict."""
    sqe = _register(subject, RegisterAction.REGISTER)
    with _registered(subject):
        succeeds(subject.queue, sqe, send=commands.pack_keys(0, _KEY))
        refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(0, _OTHER))


@GROUP.check("Base 7.6", "Base 8.1.22.3", needs=_NEED, destructive=True)
def a_key_is_replaced_by_who_has_it(subject: Subject) -> None:
    """Replace needs the current key, unless IEKEY is 1; the key is another one then."""
    sqe = _register(subject, RegisterAction.REPLACE)
    with _registered(subject):
        refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(_OTHER, 1))
        succeeds(subject.queue, sqe, send=commands.pack_keys(_KEY, _OTHER))
        refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(_KEY, 1))
        sqe = _register(subject, RegisterAction.REPLACE, iekey=True)
        succeeds(subject.queue, sqe, send=commands.pack_keys(1, _KEY))


@GROUP.check("Base 7.6", "Base 8.1.22.4", needs=_NEED, destructive=True)
def unregistering_needs_the_key(subject: Subject) -> None:
    """Unregister with another key, or without a registration, is Reservation Conflict."""
    sqe = _register(subject, RegisterAction.UNREGISTER)
    with _registered(subject):
        refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(_OTHER, 0))
        succeeds(subject.queue, sqe, send=commands.pack_keys(_KEY, 0))
        refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(_KEY, 0))


@GROUP.check("Base 7.8", needs=_NEED, destructive=True)
def the_generation_counts_registrations(subject: Subject) -> None:
    """The report's Generation moves when a host registers, and when it unregisters."""
    _become(subject, _HOST)
    first = _report(subject).generation
    with _registered(subject):
        second = _report(subject).generation
        require(second != first, "registering left the Generation as it was")
    require(_report(subject).generation != second, "unregistering left the Generation as it was")


@GROUP.check("Base 8.1.22", "Base 3.7.2", needs=_NEED, destructive=True)
def a_registration_outlives_a_controller_reset(subject: Subject) -> None:
    """A registration stays through a Controller Reset."""
    with _registered(subject):
        subject.host.enable()
        _become(subject, _HOST)
        equal(_report(subject).registrants, 1, "registrants")


@GROUP.check("Base 5.1.25.1.28", "Base 8.1.22", needs=(*_NEED, _rhii))
def without_a_host_identifier_there_are_no_reservations(subject: Subject) -> None:
    """With CTRATT.RHII a host without an identifier gets Host Identifier Not Initialized."""
    _become(subject, b"")
    sqe = _register(subject, RegisterAction.REGISTER)
    status = GenericStatus.HOST_ID_NOT_INITIALIZED
    refused(subject.queue, sqe, status, send=commands.pack_keys(0, _KEY))


@GROUP.check("Base 7.8", needs=_NEED)
def the_report_has_the_format_of_the_identifier(subject: Subject) -> None:
    """EDS that does not fit the Host Identifier's size is Host Identifier Inconsistent Format."""
    _become(subject, _HOST)
    extended = bool(subject.controller.ctratt & Ctratt.HIDS)
    sqe = commands.reservation_report(subject.nsid, _REPORT, extended=not extended)
    refused(subject.queue, sqe, GenericStatus.HOST_ID_INCONSISTENT, receive=_REPORT)


# -- reserving -----------------------------------------------------------------------------------


@GROUP.check("Base 7.5", "Base 7.7", "Base 7.8", needs=(*_NEED, _WE), destructive=True)
def a_reservation_is_acquired_and_released(subject: Subject) -> None:
    """Acquire makes the host the holder, Release ends it."""
    keys = commands.pack_keys(_KEY, 0)
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=keys)
        equal(_report(subject).rtype, ReservationType.WRITE_EXCLUSIVE, "reservation type")
        succeeds(subject.queue, commands.flush(subject.nsid))
        succeeds(subject.queue, _release(subject), send=keys)
        equal(_report(subject).rtype, 0, "reservation type afterwards")


@GROUP.check("Base 7.5", needs=(*_NEED, _WE, _EA), destructive=True)
def a_holder_acquires_the_same_type_again_only(subject: Subject) -> None:
    """A holder that acquires again succeeds with the same type, and conflicts with another."""
    keys = commands.pack_keys(_KEY, 0)
    other = _acquire(subject, rtype=ReservationType.EXCLUSIVE_ACCESS)
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=keys)
        succeeds(subject.queue, _acquire(subject), send=keys)
        refused(subject.queue, other, _CONFLICT, send=keys)


@GROUP.check("Base 8.1.22.7", needs=(*_NEED, _WE, _EA), destructive=True)
def a_holder_preempts_itself(subject: Subject) -> None:
    """A holder that preempts its own key changes the type of the reservation."""
    sqe = _acquire(subject, AcquireAction.PREEMPT, ReservationType.EXCLUSIVE_ACCESS)
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=commands.pack_keys(_KEY, 0))
        succeeds(subject.queue, sqe, send=commands.pack_keys(_KEY, _KEY))
        equal(_report(subject)[1:], (ReservationType.EXCLUSIVE_ACCESS, 1), "type, registrants")


@GROUP.check("Base 8.1.22.7", needs=(*_NEED, _WE), destructive=True)
def another_host_preempts_the_holder(subject: Subject) -> None:
    """Preempt with the holder's key makes the host the holder, and unregisters the other one."""
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=commands.pack_keys(_KEY, 0))
        _become(subject, _STRANGER)
        register = _register(subject, RegisterAction.REGISTER)
        succeeds(subject.queue, register, send=commands.pack_keys(0, _OTHER))
        for action in (AcquireAction.PREEMPT_AND_ABORT, AcquireAction.PREEMPT):
            sqe = _acquire(subject, action)
            key = _KEY if action == AcquireAction.PREEMPT_AND_ABORT else _OTHER
            succeeds(subject.queue, sqe, send=commands.pack_keys(_OTHER, key))
            equal(_report(subject)[1:], (ReservationType.WRITE_EXCLUSIVE, 1), "type, registrants")
        clear = _release(subject, ReleaseAction.CLEAR)
        succeeds(subject.queue, clear, send=commands.pack_keys(_OTHER))


@GROUP.check("Base 8.1.22.7", needs=(*_NEED, _WE), destructive=True)
def a_key_that_nobody_has_preempts_nothing(subject: Subject) -> None:
    """Preempt with a key of no registrant is Reservation Conflict."""
    sqe = _acquire(subject, AcquireAction.PREEMPT)
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=commands.pack_keys(_KEY, 0))
        refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(_KEY, _OTHER))


@GROUP.check("Base 8.1.22.8", needs=(*_NEED, _WE), destructive=True)
def clear_takes_everything_away(subject: Subject) -> None:
    """Clear ends the reservation and every registration."""
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=commands.pack_keys(_KEY, 0))
        clear = _release(subject, ReleaseAction.CLEAR)
        succeeds(subject.queue, clear, send=commands.pack_keys(_KEY))
        equal(_report(subject)[1:], (0, 0), "type, registrants")


# -- conflicts -----------------------------------------------------------------------------------


@GROUP.check("Base 7.5", "Base 7.7", needs=_NEED, destructive=True)
def a_wrong_key_is_a_conflict(subject: Subject) -> None:
    """Acquire and Release with another key than the registered one are Reservation Conflict."""
    with _registered(subject):
        for sqe in (_acquire(subject), _release(subject)):
            refused(subject.queue, sqe, _CONFLICT, send=commands.pack_keys(_OTHER, 0))


@GROUP.check("Base 7.5", "Base 8.1.22", needs=_NEED, destructive=True)
def who_is_not_registered_cannot_acquire(subject: Subject) -> None:
    """Acquire by a host that is not registered is Reservation Conflict."""
    _become(subject, _HOST)
    refused(subject.queue, _acquire(subject), _CONFLICT, send=commands.pack_keys(_KEY, 0))


@GROUP.check("Base 8.1.22", needs=(*_NEED, _EA, needs.writable), destructive=True)
def exclusive_access_excludes_a_stranger(subject: Subject) -> None:
    """With Exclusive Access, Read, Write and Flush of another host are Reservation Conflict."""
    size = subject.block_size
    with _registered(subject):
        acquire = _acquire(subject, rtype=ReservationType.EXCLUSIVE_ACCESS)
        succeeds(subject.queue, acquire, send=commands.pack_keys(_KEY, 0))
        subject.queue.read(subject.nsid, 0, 1, block_size=size)
        _become(subject, _STRANGER)
        refused(subject.queue, commands.read(subject.nsid, 0, 1), _CONFLICT, receive=size)
        refused(subject.queue, commands.write(subject.nsid, 0, 1), _CONFLICT, send=bytes(size))
        refused(subject.queue, commands.flush(subject.nsid), _CONFLICT)


@GROUP.check("Base 8.1.22", needs=(*_NEED, _WE, needs.writable), destructive=True)
def write_exclusive_lets_a_stranger_read(subject: Subject) -> None:
    """With Write Exclusive, another host can read; its Write and Flush are Reservation Conflict."""
    size = subject.block_size
    with _registered(subject):
        succeeds(subject.queue, _acquire(subject), send=commands.pack_keys(_KEY, 0))
        _become(subject, _STRANGER)
        succeeds(subject.queue, commands.read(subject.nsid, 0, 1), receive=size)
        refused(subject.queue, commands.write(subject.nsid, 0, 1), _CONFLICT, send=bytes(size))
        refused(subject.queue, commands.flush(subject.nsid), _CONFLICT)


@GROUP.check("Base 8.1.22", needs=(*_NEED, _EA), destructive=True)
def a_stranger_may_register_and_report(subject: Subject) -> None:
    """Register and Report do not conflict with a reservation of another host; Release does."""
    with _registered(subject):
        acquire = _acquire(subject, rtype=ReservationType.EXCLUSIVE_ACCESS)
        succeeds(subject.queue, acquire, send=commands.pack_keys(_KEY, 0))
        _become(subject, _STRANGER)
        refused(subject.queue, _release(subject), _CONFLICT, send=commands.pack_keys(_OTHER))
        for action, keys in (
            (RegisterAction.REGISTER, (0, _OTHER)),
            (RegisterAction.UNREGISTER, (_OTHER, 0)),
        ):
            register = _register(subject, action)
            succeeds(subject.queue, register, send=commands.pack_keys(*keys))
        equal(_report(subject)[1:], (ReservationType.EXCLUSIVE_ACCESS, 1), "type, registrants")


# -- invalid fields --------------------------------------------------------------------------------


@GROUP.check("Base 7.5", needs=_NEED, destructive=True)
def a_reserved_type_is_refused(subject: Subject) -> None:
    """A reservation type that is reserved is Invalid Field in Command."""
    with _registered(subject):
        sqe = SQE(opc=NvmOpcode.RESERVATION_ACQUIRE, nsid=subject.nsid, cdw10=9 << 8)
        keys = commands.pack_keys(_KEY, 0)
        refused(subject.queue, sqe, GenericStatus.INVALID_FIELD, send=keys)


@GROUP.check("Base 7.5", "Base 7.6", "Base 7.7", needs=_NEED)
def a_reserved_action_is_refused(subject: Subject) -> None:
    """An action that is reserved is Invalid Field in Command."""
    for opcode in (
        NvmOpcode.RESERVATION_REGISTER,
        NvmOpcode.RESERVATION_ACQUIRE,
        NvmOpcode.RESERVATION_RELEASE,
    ):
        sqe = SQE(opc=opcode, nsid=subject.nsid, cdw10=7 | 1 << 8)
        keys = commands.pack_keys(_KEY, _KEY)
        refused(subject.queue, sqe, GenericStatus.INVALID_FIELD, send=keys)


@GROUP.check("Base 7.5", "Base 7.7", needs=_NEED, destructive=True)
def an_existing_key_is_not_ignored_here(subject: Subject) -> None:
    """IEKEY in Acquire and Release is Invalid Field in Command."""
    with _registered(subject):
        for sqe in (_acquire(subject), _release(subject)):
            sqe.cdw10 |= RESERVATION_IEKEY
            keys = commands.pack_keys(_KEY, 0)
            refused(subject.queue, sqe, GenericStatus.INVALID_FIELD, send=keys)


# -- notifications and persistence ---------------------------------------------------------------


@GROUP.check("Base 5.1.12.1.32", needs=_NEED)
def without_a_notification_the_page_is_empty(subject: Subject) -> None:
    """The Reservation Notification log page is all 0 where there is nothing to tell."""
    page = subject.host.get_log_page(LogPage.RESERVATION_NOTIFICATION, 64)
    equal(page, bytes(64), "the page")


@GROUP.check("Base 5.1.25.1.29", needs=_NEED)
def the_notification_mask_is_kept(subject: Subject) -> None:
    """Reservation Notification Mask is a namespace's, and keeps its bits."""
    fid = Fid.RESERVATION_NOTIFICATION_MASK
    for value in (NOTIFICATION_MASK, 1 << 2, 0):
        subject.host.set_features(fid, value, nsid=subject.nsid)
        equal(subject.host.get_features(fid, nsid=subject.nsid), value, "the mask")


@GROUP.check("Base 5.1.25.1.29", "Base 5.1.25.1.30", needs=_NEED)
def features_of_all_namespaces_cannot_be_had(subject: Subject) -> None:
    """Get Features with NSID FFFFFFFFh of a feature of reservations is Invalid Field in Command."""
    for fid in (Fid.RESERVATION_NOTIFICATION_MASK, Fid.RESERVATION_PERSISTENCE):
        sqe = commands.get_features(fid, nsid=NSID_ALL)
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.1.25.1.30", "Base 7.8", needs=_NEED, destructive=True)
def persistence_is_as_rescap_says(subject: Subject) -> None:
    """Reservation Persistence can be set to 1 where RESCAP has it, and to 0 everywhere."""
    fid, nsid = Fid.RESERVATION_PERSISTENCE, subject.nsid
    possible = bool(subject.namespace.identify.rescap & Rescap.PTPLS)
    reply = subject.host.admin(commands.set_features(fid, 1, nsid=nsid), check=False)
    equal(reply.completion.ok, possible, "setting it succeeds")
    equal(subject.host.get_features(fid, nsid=nsid), int(possible), "the value")
    subject.host.set_features(fid, 0, nsid=nsid)
    equal(subject.host.get_features(fid, nsid=nsid), 0, "the value afterwards")
