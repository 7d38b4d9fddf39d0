"""Reservations of a namespace that two controllers share: who may do what, and who is told."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.controller import ptpl
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import NSID_ALL, SQE, AdminOpcode, Fuse, NvmOpcode
from nvme_mdev.spec.nvme_features import Fid, Select, WriteProtectionState
from nvme_mdev.spec.nvme_identify_controller import Ctratt, Oncs
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_reservations import (
    AcquireAction,
    RegisterAction,
    ReleaseAction,
    ReservationNotice,
    ReservationType,
)
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

from .assembly import SIZE
from .reservation_host import Entry, ReservationHost
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvme_mdev.controller.reservations import Reservations
    from tests.controller.conftest import Served

A, B = 0xA0, 0xB0
KEY_A, KEY_B = 0xAAAA, 0xBBBB
WE, EA = ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS
WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
EA_RO = ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
WE_AR = ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS
EA_AR = ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
TYPES = (WE, EA, WE_RO, EA_RO, WE_AR, EA_AR)
CONFLICT = GenericStatus.RESERVATION_CONFLICT
AVAILABLE = AsyncEvent(6, 0, LogPage.RESERVATION_NOTIFICATION)
REGISTRATION_PREEMPTED = ReservationNotice.REGISTRATION_PREEMPTED
RELEASED = ReservationNotice.RESERVATION_RELEASED
PREEMPTED = ReservationNotice.RESERVATION_PREEMPTED


@pytest.fixture
def pair(serve: Callable[..., Served]) -> tuple[Served, Served]:
    """Two controllers that share two namespaces, each with an IOThread of its own."""
    first = serve(MemoryBackend(SIZE), MemoryBackend(SIZE))
    return first, serve(peer=first)


@pytest.fixture
def hosts(pair: tuple[Served, Served]) -> Iterator[tuple[ReservationHost, ReservationHost]]:
    """Hosts A and B, which have said who they are, and registered nothing."""
    with NvmeHost(pair[0].path) as a, NvmeHost(pair[1].path) as b:
        yield ReservationHost(a, A, KEY_A), ReservationHost(b, B, KEY_B)


@pytest.fixture
def a(hosts: tuple[ReservationHost, ReservationHost]) -> ReservationHost:
    return hosts[0]


@pytest.fixture
def b(hosts: tuple[ReservationHost, ReservationHost]) -> ReservationHost:
    return hosts[1]


READS: dict[str, tuple[SQE, int, bytes]] = {
    "read": (commands.read(1, 0, 1), 512, b""),
    "compare": (commands.compare(1, 0, 1), 0, bytes(512)),
    "verify": (commands.verify(1, 0, 1), 0, b""),
}
WRITES: dict[str, tuple[SQE, int, bytes]] = {
    "write": (commands.write(1, 0, 1), 0, bytes(512)),
    "write zeroes": (commands.write_zeroes(1, 0, 1), 0, b""),
    "dataset management": (
        commands.dataset_management(1, 1, 4),
        0,
        commands.pack_ranges([(0, 1)]),
    ),
    "copy": (commands.copy(1, 8, 1), 0, commands.pack_copy_ranges([(0, 1)])),
    "write uncorrectable": (commands.write_uncorrectable(1, 100, 1), 0, b""),
    "flush": (commands.flush(1), 0, b""),
    "flush of all": (commands.flush(NSID_ALL), 0, b""),
}


def with_data(driver: NvmeHost, sqe: SQE) -> SQE:
    """The command with a page of zeroes."""
    sqe.prp1 = driver.memory.allocate(4096).iova
    return sqe


def refusals(host: ReservationHost, group: dict[str, tuple[SQE, int, bytes]]) -> set[str]:
    """The commands of a group that conflict with a reservation."""
    found = set()
    for name, (sqe, receive, send) in group.items():
        status = host.queue.execute(sqe, send=send, receive=receive, check=False).completion.status
        if status.code == CONFLICT:
            assert status.dnr
            found.add(name)
        else:
            assert status.success, (name, status)
    return found


# -- what is there -----------------------------------------------------------------------------


def test_the_controller_says_that_there_are_reservations_of_every_type(a: ReservationHost) -> None:
    controller = a.host.identify_controller()
    assert controller.oncs & Oncs.RESERVS
    assert controller.ctratt & Ctratt.RHII
    assert a.host.identify_namespace(1).rescap == 0xFE
    assert a.report() == (0, ReservationType.NONE, False, [])


def test_a_registrant_is_in_the_report_of_every_controller(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    assert b.report() == (1, 0, False, [Entry(1, False, A, KEY_A)])
    b.register()
    entries = [Entry(1, False, A, KEY_A), Entry(2, False, B, KEY_B)]
    assert a.report() == b.report() == (2, 0, False, entries)
    assert a.report(2) == (0, 0, False, [])


def test_a_registrant_on_two_controllers_has_two_entries_and_one_right(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    b.identify(A)
    a.acquire(EA)
    assert b.report().entries == [Entry(1, True, A, KEY_A), Entry(2, True, A, KEY_A)]
    assert not refusals(b, READS)
    assert not refusals(b, WRITES)


def test_identifiers_of_64_bits_have_a_report_of_their_own(
    a: ReservationHost, b: ReservationHost
) -> None:
    b.identify(0)
    a.identify(A, size=8)
    b.identify(B, size=8)
    a.register()
    a.acquire(WE)
    assert b.report().entries == [Entry(1, True, A, KEY_A)]


def test_a_report_is_cut_where_the_guest_has_no_room(a: ReservationHost) -> None:
    a.register()
    whole = a.queue.execute(commands.reservation_report(1, 8192), receive=8192).data
    for size in (4, 24, 68, 8192):
        part = a.queue.execute(commands.reservation_report(1, size), receive=size).data
        assert part == whole[:size]
    assert whole[128:] == bytes(8192 - 128)


# -- who may do what ---------------------------------------------------------------------------


@pytest.mark.parametrize("rtype", TYPES)
@pytest.mark.parametrize("registered", [True, False], ids=["registrant", "stranger"])
def test_commands_conflict_as_the_specification_has_it(
    a: ReservationHost, b: ReservationHost, *, rtype: ReservationType, registered: bool
) -> None:
    a.register()
    if registered:
        b.register()
    a.acquire(rtype)
    allowed = registered and rtype not in (WE, EA)
    writes = set() if allowed else set(WRITES)
    reads = set() if allowed or rtype in (WE, WE_RO, WE_AR) else set(READS)
    assert (refusals(b, READS), refusals(b, WRITES)) == (reads, writes)
    assert (refusals(a, READS), refusals(a, WRITES)) == (set(), set())
    a.release(rtype)
    assert (refusals(b, READS), refusals(b, WRITES)) == (set(), set())


def test_other_namespaces_are_as_free_as_before(a: ReservationHost, b: ReservationHost) -> None:
    a.register()
    a.acquire(EA)
    b.queue.write(2, 0, bytes(512), block_size=512)
    b.queue.read(2, 0, 1, block_size=512)
    assert b.host.identify_namespace(1).nsze == SIZE // 512


def test_a_conflict_is_in_the_error_log_and_blames_no_field(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    a.acquire(WE)
    with refused(CONFLICT):
        b.queue.write(1, 7, bytes(512), block_size=512)
    entry = error_log(b.host)[0]
    assert (entry.sqid, entry.peloc, entry.nsid, entry.lba) == (1, 0xFFFF, 1, 7)
    assert entry.sts >> 1 & 0x7FF == CONFLICT


def test_a_fused_pair_conflicts_as_its_commands_do(serve: Callable[..., Served]) -> None:
    first = serve()
    second = serve(peer=first, iothread=first.iothread)
    with NvmeHost(first.path) as one, NvmeHost(second.path) as other:
        a, b = ReservationHost(one, A, KEY_A), ReservationHost(other, B, KEY_B)
        a.register()
        a.acquire(WE)
        first_sqe = with_data(other, commands.compare(1, 0, 1))
        second_sqe = with_data(other, commands.write(1, 0, 1))
        first_sqe.flags, second_sqe.flags = Fuse.FIRST, Fuse.SECOND
        cids = b.queue.start_pair(first_sqe, second_sqe)
        statuses = [b.queue.finish(cid).status.code for cid in cids]
        assert statuses == [GenericStatus.ABORT_FAILED_FUSED, CONFLICT]


def test_reserving_what_is_reserved_conflicts_but_for_the_holder(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(WE_RO)
    a.acquire(WE_RO)
    with refused(CONFLICT):
        a.acquire(WE)
    for rtype in TYPES:
        with refused(CONFLICT):
            b.acquire(rtype)
    assert b.report().entries == [Entry(1, True, A, KEY_A), Entry(2, False, B, KEY_B)]


def test_all_registrants_hold_a_reservation_of_that_type(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(WE_AR)
    b.acquire(WE_AR)
    assert [entry.holds for entry in a.report().entries] == [True, True]
    a.unregister()
    assert a.report() == (3, WE_AR, False, [Entry(2, True, B, KEY_B)])
    assert refusals(a, WRITES) == set(WRITES)
    b.release(WE_AR)
    assert a.report().rtype == ReservationType.NONE


def test_the_last_registrant_takes_the_reservation_with_it(
    a: ReservationHost, b: ReservationHost
) -> None:
    b.register()
    a.register()
    a.acquire(EA_AR)
    b.unregister()
    assert a.report().rtype == EA_AR
    a.unregister()
    assert b.report()[1:] == (0, False, [])
    assert not refusals(b, WRITES)


# -- registering -------------------------------------------------------------------------------


def test_registering_again_succeeds_with_the_same_key_only(a: ReservationHost) -> None:
    a.register()
    a.register()
    a.key = 7
    with refused(CONFLICT):
        a.register()
    assert a.report().entries == [Entry(1, False, A, KEY_A)]


def test_a_key_is_replaced_by_who_knows_it(a: ReservationHost, b: ReservationHost) -> None:
    a.register()
    a.acquire(WE)
    with refused(CONFLICT):
        a.replace(5, key=6)
    a.replace(5)
    assert a.report() == (2, WE, False, [Entry(1, True, A, 5)])
    a.replace(9, key=0, iekey=True)
    a.release(WE)
    with refused(CONFLICT):
        b.replace(3)
    b.replace(3, key=0, iekey=True)
    assert [entry.key for entry in a.report().entries] == [9, 3]


def test_unregistering_needs_the_key_unless_it_is_ignored(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    with refused(CONFLICT):
        a.unregister(key=1)
    with refused(CONFLICT):
        b.unregister(iekey=True)
    a.unregister(key=1, iekey=True)
    assert a.report() == (2, 0, False, [])


def test_no_host_registers_with_the_key_0(a: ReservationHost) -> None:
    a.key = 0
    with refused(GenericStatus.INVALID_FIELD):
        a.register()
    a.key = 1
    a.register()
    with refused(GenericStatus.INVALID_FIELD):
        a.replace(0)


def test_there_is_room_for_128_registrants(a: ReservationHost) -> None:
    for identifier in range(1, 129):
        a.identify(identifier)
        a.register()
    a.identify(129)
    with refused(GenericStatus.INTERNAL_ERROR, dnr=False):
        a.register()
    a.identify(5)
    a.unregister()
    a.identify(129)
    a.register()
    entries = a.queue.execute(commands.reservation_report(1, 16384), receive=16384).data
    assert int.from_bytes(entries[5:7], "little") == 128


# -- releasing ---------------------------------------------------------------------------------


def test_releasing_needs_the_key_and_the_type(a: ReservationHost, b: ReservationHost) -> None:
    a.register()
    a.release(WE)
    a.acquire(WE)
    with refused(CONFLICT):
        a.release(WE, key=1)
    with refused(CONFLICT):
        b.release(WE)
    with refused(GenericStatus.INVALID_FIELD):
        a.release(EA)
    assert error_log(a.host)[0].peloc == 41
    b.register()
    b.release(WE)
    assert b.report().rtype == WE
    a.release(WE)
    assert b.report() == (2, 0, False, [Entry(1, False, A, KEY_A), Entry(2, False, B, KEY_B)])


def test_clearing_ends_the_reservation_and_all_registrations(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(EA)
    b.clear()
    assert a.report() == (3, 0, False, [])
    assert a.notices() == [(PREEMPTED, 1)]
    assert b.notices() == []


# -- preempting --------------------------------------------------------------------------------


@pytest.mark.parametrize("abort", [False, True])
def test_a_holder_is_preempted_and_has_no_rights_left(
    a: ReservationHost, b: ReservationHost, *, abort: bool
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(EA)
    b.preempt(WE, KEY_A, abort=abort)
    assert b.report() == (3, WE, False, [Entry(2, True, B, KEY_B)])
    assert refusals(a, WRITES) == set(WRITES)
    assert not refusals(a, READS)
    assert a.notices() == [(REGISTRATION_PREEMPTED, 1)]
    assert b.notices() == []
    with refused(CONFLICT):
        a.preempt(WE, KEY_B)


def test_a_holder_preempts_itself_to_change_the_type(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(WE)
    a.preempt(EA_RO, KEY_A)
    assert a.report()[1:] == (
        EA_RO,
        False,
        [Entry(1, True, A, KEY_A), Entry(2, False, B, KEY_B)],
    )
    assert b.notices() == [(RELEASED, 1)]


def test_a_registrant_that_does_not_hold_it_is_preempted_alone(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(WE_RO)
    a.preempt(EA, KEY_B)
    assert a.report() == (3, WE_RO, False, [Entry(1, True, A, KEY_A)])
    assert b.notices() == [(REGISTRATION_PREEMPTED, 1)]


def test_all_registrants_are_preempted_by_the_key_0(a: ReservationHost, b: ReservationHost) -> None:
    for host in (a, b):
        host.register()
    b.acquire(WE_AR)
    a.preempt(EA, 0)
    assert a.report() == (3, EA, False, [Entry(1, True, A, KEY_A)])
    assert b.notices() == [(REGISTRATION_PREEMPTED, 1)]
    with refused(GenericStatus.INVALID_FIELD):
        a.preempt(EA, 0)


def test_a_key_that_nobody_has_preempts_nothing(a: ReservationHost) -> None:
    a.register()
    with refused(CONFLICT):
        a.preempt(WE, 1)
    a.acquire(WE)
    with refused(CONFLICT):
        a.preempt(WE, 1)
    assert a.report() == (1, WE, False, [Entry(1, True, A, KEY_A)])


def test_preempt_and_abort_ends_what_the_preempted_host_has_in_flight(
    serve: Callable[..., Served],
) -> None:
    first = serve(NullBackend(SIZE, 512, 500_000_000))
    second = serve(peer=first)
    with NvmeHost(first.path) as one, NvmeHost(second.path) as other:
        a, b = ReservationHost(one, A, KEY_A), ReservationHost(other, B, KEY_B)
        a.register()
        b.register()
        a.acquire(WE)
        cid = a.queue.start(with_data(one, commands.write(1, 0, 1)))
        while not first.call(first.controller.queues.inflight):
            pass
        b.preempt(WE, KEY_A, abort=True)
        assert first.call(first.controller.queues.inflight) == 0
        completion = a.queue.finish(cid)
        assert completion.status.success or completion.status.code == GenericStatus.ABORT_PREEMPT
        with refused(CONFLICT):
            a.queue.write(1, 0, bytes(512), block_size=512)


# -- notifications -----------------------------------------------------------------------------


@pytest.mark.parametrize("rtype", TYPES)
def test_others_are_told_of_a_release_where_it_concerns_them(
    a: ReservationHost, b: ReservationHost, *, rtype: ReservationType
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(rtype)
    a.release(rtype)
    told = [] if rtype in (WE, EA) else [(RELEASED, 1)]
    assert (a.notices(), b.notices()) == ([], told)


@pytest.mark.parametrize("held", [True, False])
def test_a_type_that_does_not_exist_is_not_released(a: ReservationHost, held: bool) -> None:
    a.register()
    if held:
        a.acquire(WE)
    with refused(GenericStatus.INVALID_FIELD):
        a.release(9)
    assert a.report().rtype == (WE if held else ReservationType.NONE)


def test_a_holder_that_unregisters_releases_and_others_are_told(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    a.acquire(WE_RO)
    a.unregister()
    assert b.report().rtype == ReservationType.NONE
    assert b.notices() == [(RELEASED, 1)]


def test_a_notification_is_an_event_until_all_are_read(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.host.request_events()
    for nsid in (1, 2):
        a.register(nsid)
        b.register(nsid)
        sqe = commands.reservation_release(nsid, ReleaseAction.CLEAR)
        b.queue.execute(sqe, send=commands.pack_keys(KEY_B))
    assert a.host.events(30) == [AVAILABLE]
    first = a.notice()
    assert (first.lpc, first.rnlpt, first.nalp, first.nsid) == (1, PREEMPTED, 1, 1)
    a.host.request_events()
    assert a.host.events(30) == [AVAILABLE]
    second = a.notice()
    assert (second.lpc, second.rnlpt, second.nalp, second.nsid) == (2, PREEMPTED, 0, 2)
    assert bytes(a.notice()) == bytes(64)


def test_retain_asynchronous_event_leaves_the_notification(
    a: ReservationHost, b: ReservationHost
) -> None:
    for host in (a, b):
        host.register()
    b.clear()
    sqe = commands.get_log_page(LogPage.RESERVATION_NOTIFICATION, 64, rae=True)
    for _ in range(2):
        assert a.host.admin(sqe, receive=64).data[8] == PREEMPTED
    assert a.notices() == [(PREEMPTED, 1)]


def test_masked_notifications_do_not_come(a: ReservationHost, b: ReservationHost) -> None:
    fid = Fid.RESERVATION_NOTIFICATION_MASK
    a.host.set_features(fid, 0xFFFF_FFFF, nsid=1)
    assert a.host.get_features(fid, nsid=1) == 0b1110
    assert a.host.get_features(fid, nsid=2) == 0
    for host in (a, b):
        host.register()
    b.clear()
    assert a.notices() == []
    a.host.set_features(fid, 0b0110, nsid=NSID_ALL)
    assert a.host.get_features(fid, nsid=2) == 0b0110
    for host in (a, b):
        host.register()
    b.clear()
    assert a.notices() == [(PREEMPTED, 1)]
    a.host.reset()
    assert a.host.get_features(fid, nsid=1) == 0


def test_more_notifications_than_there_is_room_for_show_as_a_gap(
    a: ReservationHost, b: ReservationHost
) -> None:
    for _ in range(40):
        a.register()
        b.register()
        b.clear()
    counts = []
    while (page := a.notice()).lpc:
        counts.append(page.lpc)
    assert counts == [*range(1, 32), 40]


# -- host identifiers --------------------------------------------------------------------------


def test_without_a_host_identifier_there_are_no_reservations(pair: tuple[Served, Served]) -> None:
    with NvmeHost(pair[0].path) as host:
        nobody = ReservationHost(host, key=1)
        for attempt in (
            nobody.register,
            lambda: nobody.acquire(WE),
            lambda: nobody.release(WE),
            nobody.report,
        ):
            with refused(GenericStatus.HOST_ID_NOT_INITIALIZED):
                attempt()


def test_a_host_without_an_identifier_meets_the_reservations_of_others(
    pair: tuple[Served, Served], a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    a.acquire(EA)
    b.identify(0)
    assert refusals(b, READS) == set(READS)


def test_registrations_stay_with_the_identifier_they_were_made_with(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    a.acquire(EA)
    a.identify(0xC0)
    assert refusals(a, READS) == set(READS)
    assert b.report().entries == [Entry(0xFFFF, True, A, KEY_A)]
    with refused(CONFLICT):
        a.release(EA)
    a.identify(A)
    assert not refusals(a, READS)
    a.release(EA)


def test_identifiers_of_both_sizes_do_not_go_together(
    a: ReservationHost, b: ReservationHost
) -> None:
    with refused(GenericStatus.HOST_ID_INCONSISTENT):
        a.identify(A, size=8)
    assert error_log(a.host)[0].peloc == 44
    with refused(GenericStatus.HOST_ID_INCONSISTENT):
        a.queue.execute(commands.reservation_report(1, 64, extended=False), receive=64)
    b.identify(0)
    a.identify(A, size=8)
    with refused(GenericStatus.HOST_ID_INCONSISTENT):
        b.identify(B)
    with refused(GenericStatus.HOST_ID_INCONSISTENT):
        a.queue.execute(commands.reservation_report(1, 64), receive=64)


def test_a_reset_forgets_the_host_and_not_its_reservation(
    a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    a.acquire(EA)
    a.host.reset()
    a.queue = a.host.create_queue_pair()
    assert refusals(a, READS) == set(READS)
    assert b.report().entries == [Entry(0xFFFF, True, A, KEY_A)]
    a.identify(A)
    assert not refusals(a, WRITES)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "cdw10", "peloc"),
    [
        (NvmOpcode.RESERVATION_REGISTER, 3, 40),
        (NvmOpcode.RESERVATION_REGISTER, 7, 40),
        (NvmOpcode.RESERVATION_REGISTER, 1 << 30, 40),
        (NvmOpcode.RESERVATION_REGISTER, 3 << 30, 40),
        (NvmOpcode.RESERVATION_ACQUIRE, 3 | 1 << 8, 40),
        (NvmOpcode.RESERVATION_ACQUIRE, 1 << 3 | 1 << 8, 40),
        (NvmOpcode.RESERVATION_ACQUIRE, 0, 41),
        (NvmOpcode.RESERVATION_ACQUIRE, 7 << 8, 41),
        (NvmOpcode.RESERVATION_RELEASE, 2, 40),
        (NvmOpcode.RESERVATION_RELEASE, 1 << 3 | 1 << 8, 40),
    ],
)
def test_reserved_values_are_an_invalid_field(
    a: ReservationHost, *, opcode: NvmOpcode, cdw10: int, peloc: int
) -> None:
    a.register()
    with refused(GenericStatus.INVALID_FIELD):
        a.queue.execute(SQE(opc=opcode, nsid=1, cdw10=cdw10), send=commands.pack_keys(KEY_A, KEY_A))
    assert error_log(a.host)[0].peloc == peloc
    assert a.report() == (1, 0, False, [Entry(1, False, A, KEY_A)])


def test_a_namespace_is_needed(a: ReservationHost) -> None:
    for nsid, status in (
        (0, GenericStatus.INVALID_NAMESPACE_OR_FORMAT),
        (NSID_ALL, GenericStatus.INVALID_FIELD),
        (3, GenericStatus.INVALID_FIELD),
    ):
        with refused(status):
            a.register(nsid)
        assert error_log(a.host)[0].peloc == 4


def test_data_out_of_memory_ends_the_command(a: ReservationHost) -> None:
    for sqe in (
        commands.reservation_register(1, RegisterAction.REGISTER),
        commands.reservation_acquire(1, AcquireAction.ACQUIRE, WE),
        commands.reservation_release(1, ReleaseAction.RELEASE, WE),
        commands.reservation_report(1, 4096),
    ):
        sqe.prp1 = 1 << 50
        status = a.queue.finish(a.queue.start(sqe)).status
        assert status.code == GenericStatus.DATA_TRANSFER_ERROR
    limit = commands.reservation_report(1, 2 << 20)
    limit.prp1 = a.host.memory.allocate(4096).iova
    assert a.queue.finish(a.queue.start(limit)).status.code == GenericStatus.INVALID_FIELD
    assert error_log(a.host)[0].peloc == 40


@pytest.mark.parametrize(
    "fid",
    [Fid.RESERVATION_NOTIFICATION_MASK, Fid.RESERVATION_PERSISTENCE],
    ids=lambda fid: fid.name,
)
def test_the_features_are_set_of_all_namespaces_and_had_of_one(
    a: ReservationHost, fid: Fid
) -> None:
    a.host.set_features(fid, 0, nsid=NSID_ALL)
    for nsid in (0, 3, 257, NSID_ALL):
        for select in (Select.CURRENT, Select.DEFAULT, Select.SAVED):
            with refused(GenericStatus.INVALID_FIELD):
                a.host.get_features(fid, select=select, nsid=nsid)
            assert error_log(a.host)[0].peloc == 4
        if nsid != NSID_ALL:
            with refused(GenericStatus.INVALID_FIELD):
                a.host.set_features(fid, 0, nsid=nsid)
    assert a.host.get_features(fid, nsid=1) == a.host.get_features(fid, nsid=2) == 0


# -- persistence without a place for it --------------------------------------------------------


def test_without_a_file_nothing_persists(a: ReservationHost) -> None:
    assert a.host.get_features(Fid.RESERVATION_PERSISTENCE, nsid=1) == 0
    a.host.set_features(Fid.RESERVATION_PERSISTENCE, 0, nsid=1)
    with refused(CommandStatus.FEATURE_NOT_CHANGEABLE):
        a.host.set_features(Fid.RESERVATION_PERSISTENCE, 1, nsid=1)
    with refused(GenericStatus.INVALID_FIELD):
        a.register(cptpl=3)
    a.register(cptpl=2)


def test_the_last_client_that_leaves_is_a_power_cycle(pair: tuple[Served, Served]) -> None:
    with NvmeHost(pair[1].path) as other:
        b = ReservationHost(other, B, KEY_B)
        b.register()
        b.acquire(WE_RO)
        with NvmeHost(pair[0].path) as one:
            ReservationHost(one, A, KEY_A).register()
        assert [entry.host for entry in b.report().entries] == [B, A]
        with NvmeHost(pair[0].path) as one:
            assert ReservationHost(one, A, KEY_A).report().rtype == WE_RO
    with NvmeHost(pair[0].path) as one:
        assert ReservationHost(one, A, KEY_A).report() == (0, 0, False, [])


# -- all at once -------------------------------------------------------------------------------


def test_one_of_many_that_reserve_at_the_same_time_gets_it(serve: Callable[..., Served]) -> None:
    first = serve()
    served = [first, *(serve(peer=first) for _ in range(3))]
    drivers = [NvmeHost(one.path) for one in served]
    hosts = [ReservationHost(one, 1 + index, 1 + index) for index, one in enumerate(drivers)]
    for host in hosts:
        host.register()
    for _ in range(10):
        won: list[ReservationHost] = []

        def try_it(host: ReservationHost, won: list[ReservationHost] = won) -> None:
            keys = commands.pack_keys(host.key, 0)
            sqe = commands.reservation_acquire(1, AcquireAction.ACQUIRE, EA)
            status = host.queue.execute(sqe, send=keys, check=False).completion.status
            if status.success:
                won.append(host)
            else:
                assert status.code == CONFLICT

        threads = [threading.Thread(target=try_it, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        holders = [entry.host for entry in hosts[0].report().entries if entry.holds]
        assert holders == [won[0].key]
        won[0].release(EA)
    for driver in drivers:
        driver.close()


def test_a_reset_in_the_middle_of_reservation_commands_ends(pair: tuple[Served, Served]) -> None:
    with NvmeHost(pair[0].path) as one:
        for _ in range(5):
            a = ReservationHost(one, A, KEY_A)
            report = with_data(one, commands.reservation_report(1, 4096))
            for _ in range(30):
                a.queue.start(report)
            one.reset()
        ReservationHost(one, A, KEY_A).register()


# -- erasing and write protection, which all controllers see -----------------------------------


def test_erasing_is_writing(serve: Callable[..., Served]) -> None:
    served = serve(MemoryBackend(SIZE), allow_erase=True)
    with NvmeHost(served.path) as one:
        a = ReservationHost(one, A, KEY_A)
        a.register()
        a.acquire(WE)
        a.identify(B)
        for sqe in (
            SQE(opc=AdminOpcode.FORMAT_NVM, nsid=1),
            SQE(opc=AdminOpcode.FORMAT_NVM, nsid=NSID_ALL),
            SQE(opc=AdminOpcode.SANITIZE, cdw10=2),
        ):
            with refused(CONFLICT):
                one.admin(sqe)
        a.identify(A)
        one.admin(SQE(opc=AdminOpcode.FORMAT_NVM, nsid=1))
        assert a.report().rtype == WE


def test_write_protection_is_the_namespaces_on_every_controller(
    pair: tuple[Served, Served], a: ReservationHost, b: ReservationHost
) -> None:
    fid = Fid.NAMESPACE_WRITE_PROTECTION
    a.host.set_features(fid, WriteProtectionState.UNTIL_POWER_CYCLE, nsid=1)
    assert b.host.get_features(fid, nsid=1) == WriteProtectionState.UNTIL_POWER_CYCLE
    assert b.host.identify_namespace(1).nsattr == 1
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        b.queue.write(1, 0, bytes(512), block_size=512)
    with refused(CommandStatus.FEATURE_NOT_CHANGEABLE):
        b.host.set_features(fid, WriteProtectionState.NONE, nsid=1)
    a.host.close()
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        b.queue.write(1, 0, bytes(512), block_size=512)
    b.host.close()
    with NvmeHost(pair[1].path) as host:
        assert host.get_features(fid, nsid=1) == WriteProtectionState.NONE
        host.create_queue_pair().write(1, 0, bytes(512), block_size=512)


def test_a_controller_that_joins_finds_what_the_namespace_is_under(
    serve: Callable[..., Served],
) -> None:
    first = serve(MemoryBackend(SIZE), MemoryBackend(SIZE))
    with NvmeHost(first.path) as one:
        a = ReservationHost(one, A, KEY_A)
        a.register()
        a.acquire(WE)
        one.set_features(Fid.NAMESPACE_WRITE_PROTECTION, 1, nsid=2)
        with NvmeHost(serve(peer=first).path) as other:
            b = ReservationHost(other, B, KEY_B)
            with refused(CONFLICT):
                b.queue.write(1, 0, bytes(512), block_size=512)
            with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
                b.queue.write(2, 0, bytes(512), block_size=512)


def test_a_namespace_that_comes_again_begins_anew(
    pair: tuple[Served, Served], a: ReservationHost, b: ReservationHost
) -> None:
    a.register()
    a.acquire(EA)
    first = pair[0].run(pair[0].controller.remove_namespace(1))
    assert b.report().rtype == EA
    pair[1].run(pair[1].controller.remove_namespace(1))
    for served in pair:
        served.call(served.controller.add_namespace, 1, first)
    assert b.report() == (0, 0, False, [])
    assert not refusals(b, WRITES)


def test_a_reset_while_persistence_is_being_set_leaves_file_and_feature_the_same(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reservations"
    begun, opened, save = threading.Event(), threading.Event(), ptpl.save

    def gated_save(path: str, reservations: Reservations) -> None:
        begun.set()
        opened.wait(60)
        save(path, reservations)

    monkeypatch.setattr(ptpl, "save", gated_save)
    backend = MemoryBackend(SIZE)
    backend.ptpl_file = str(file)
    with NvmeHost(serve(backend).path) as host:
        sqe = commands.set_features(Fid.RESERVATION_PERSISTENCE, 1)
        sqe.nsid = 1
        host.admin_queue.start(sqe)
        assert begun.wait(60)
        host.reset()
        opened.set()
        deadline = time.monotonic() + 10
        while not host.get_features(Fid.RESERVATION_PERSISTENCE, nsid=1):
            assert time.monotonic() < deadline
        assert file.exists()
