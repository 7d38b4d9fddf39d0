"""Namespaces above NSID 256: what a guest finds, and what is kept of each, until it has gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.limits import Limit
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import MAX_NSID, SQE, AdminOpcode
from nvme_mdev.spec.nvme_features import Fid, WriteProtectionState
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_reservations import ReservationNotice, ReservationType
from nvme_mdev.spec.nvme_status import GenericStatus

from .assembly import SIZE
from .reservation_host import Entry, ReservationHost
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.controller.conftest import Served

HIGH, OTHER = 4_000_000_000, 300
NSIDS = [1, OTHER, HIGH]
KEY_A, KEY_B = 0xAAAA, 0xBBBB
PREEMPTED = ReservationNotice.REGISTRATION_PREEMPTED


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    backends = [MemoryBackend(SIZE) for _ in NSIDS]
    return serve(*backends, nsids=NSIDS, max_nsid=MAX_NSID, allow_erase=True)


def nsid_list(host: NvmeHost, cns: Cns, above: int) -> list[int]:
    data = host.admin(commands.identify(cns, above), receive=4096).data
    return [nsid for nsid in memoryview(data).cast("I") if nsid]


def replace(served: Served, host: NvmeHost, nsid: int, new: int) -> None:
    """Detach a namespace and attach another one, which has its place."""
    places = served.controller.places
    place = places[nsid]
    backend = served.run(served.controller.remove_namespace(nsid))
    served.call(served.controller.add_namespace, new, backend)
    assert places[new] == place
    assert new in host.active_namespaces()


# -- what there is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("highest", "most"), [(1, 1), (256, 256), (300, 300), (513, 512), (MAX_NSID, 512)]
)
def test_the_guest_is_told_the_highest_nsid_and_how_many_there_can_be(
    serve: Callable[..., Served], highest: int, most: int
) -> None:
    with NvmeHost(serve(max_nsid=highest).path) as host:
        data = host.identify_controller()
        assert (data.nn, data.mnan) == (highest, most)
        host.identify_namespace(highest)
        if highest < MAX_NSID:
            for nsid in (highest + 1, MAX_NSID):
                with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
                    host.identify_namespace(nsid)


@pytest.mark.parametrize("cns", [Cns.ACTIVE_NSID_LIST, Cns.ALLOCATED_NSID_LIST])
def test_the_lists_go_on_above_any_nsid(host: NvmeHost, cns: Cns) -> None:
    assert nsid_list(host, cns, 0) == NSIDS
    assert nsid_list(host, cns, OTHER - 1) == [OTHER, HIGH]
    assert nsid_list(host, cns, OTHER) == nsid_list(host, cns, HIGH - 1) == [HIGH]
    assert nsid_list(host, cns, HIGH) == []


def test_an_nsid_between_them_is_inactive(host: NvmeHost) -> None:
    for nsid in (2, 257, HIGH - 1, MAX_NSID):
        assert host.identify_namespace(nsid).nsze == 0
        with refused(GenericStatus.INVALID_FIELD):
            host.get_features(Fid.ERROR_RECOVERY, nsid=nsid)


def test_an_error_is_logged_with_the_whole_nsid(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    with refused(GenericStatus.LBA_OUT_OF_RANGE):
        queue.read(HIGH, SIZE // 512, 1, block_size=512)
    assert error_log(host)[0].nsid == HIGH


def test_they_come_and_go_and_the_guest_is_told(served: Served, host: NvmeHost) -> None:
    host.watch_namespaces()
    replace(served, host, HIGH, MAX_NSID)
    served.run(served.controller.resize_namespace(OTHER, SIZE // 2))
    host.events(5)
    page = memoryview(host.get_log_page(LogPage.CHANGED_NAMESPACES, 16)).cast("I")
    assert page.tolist() == [OTHER, HIGH, MAX_NSID, 0]
    assert host.identify_namespace(OTHER).nsze == SIZE // 1024
    assert host.active_namespaces() == [1, OTHER, MAX_NSID]


def test_256_of_them_are_the_most_and_one_that_cannot_be_had_leaves_nothing(
    served: Served, host: NvmeHost
) -> None:
    null = NullBackend(SIZE)
    served.backends.append(null)
    for nsid in range(1000, 1254):
        served.call(served.controller.add_namespace, nsid, null)
    with pytest.raises(ValueError, match="namespace 2000: 256 above 256 are possible"):
        served.call(served.controller.add_namespace, 2000, null)
    served.call(served.controller.add_namespace, 2, null)
    served.run(served.controller.remove_namespace(1100))
    unservable = Unservable(SIZE)
    served.backends.append(unservable)
    with pytest.raises(OSError, match="no memory for it"):
        served.call(served.controller.add_namespace, 2000, unservable)
    served.call(served.controller.add_namespace, 3000, null)
    active = host.active_namespaces()
    assert len(active) == 258
    assert {3000, HIGH} < set(active)
    assert not {1100, 2000} & set(active)


class Unservable(NullBackend):
    """A backend that the guest's memory does not suit."""

    def use_memory(self, _memory: object) -> None:
        raise OSError("no memory for it")


# -- what is kept of each ----------------------------------------------------------------------


def test_features_are_set_of_one_of_all_and_a_reset_clears_them(host: NvmeHost) -> None:
    def values() -> list[int]:
        return [host.get_features(Fid.ERROR_RECOVERY, nsid=nsid) for nsid in NSIDS]

    host.set_features(Fid.ERROR_RECOVERY, 7, nsid=HIGH)
    assert values() == [0, 0, 7]
    host.set_features(Fid.ERROR_RECOVERY, 9, nsid=0xFFFF_FFFF)
    assert values() == [9, 9, 9]
    host.reset()
    assert values() == [0, 0, 0]


def test_another_namespace_in_the_place_of_one_that_has_gone_has_nothing_of_it(
    served: Served, host: NvmeHost
) -> None:
    host.admin(SQE(opc=AdminOpcode.FORMAT_NVM, nsid=HIGH, cdw10=1))
    assert host.namespace(HIGH).block_size == 4096
    host.set_features(Fid.ERROR_RECOVERY, 7, nsid=HIGH)
    host.set_features(Fid.RESERVATION_NOTIFICATION_MASK, 2, nsid=HIGH)
    user = ReservationHost(host, 0xA0, KEY_A)
    user.register(HIGH)
    host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, WriteProtectionState.PROTECTED, nsid=HIGH)
    backend = served.run(served.controller.remove_namespace(HIGH))
    backend.format(512)
    served.call(served.controller.add_namespace, MAX_NSID, backend)
    assert served.controller.places[MAX_NSID] == 257
    assert host.namespace(MAX_NSID).block_size == 512
    for fid in (
        Fid.ERROR_RECOVERY,
        Fid.RESERVATION_NOTIFICATION_MASK,
        Fid.NAMESPACE_WRITE_PROTECTION,
    ):
        assert host.get_features(fid, nsid=MAX_NSID) == 0
    assert user.report(MAX_NSID).entries == []
    user.queue.write(MAX_NSID, 0, bytes(512), block_size=512)


def test_a_format_erases_the_one_with_that_nsid(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    for nsid in NSIDS:
        queue.write(nsid, 0, b"x" * 512, block_size=512)
    host.admin(SQE(opc=AdminOpcode.FORMAT_NVM, nsid=HIGH))
    data = [queue.read(nsid, 0, 1, block_size=512) for nsid in NSIDS]
    assert data == [b"x" * 512, b"x" * 512, bytes(512)]


def test_write_protection_is_of_one(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, WriteProtectionState.PROTECTED, nsid=HIGH)
    queue.write(OTHER, 0, bytes(512), block_size=512)
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        queue.write(HIGH, 0, bytes(512), block_size=512)


# -- what controllers have in common -----------------------------------------------------------


def test_a_reservation_holds_on_both_controllers_and_a_notice_has_the_whole_nsid(
    served: Served, serve: Callable[..., Served]
) -> None:
    peer = serve(peer=served, nsids=NSIDS, max_nsid=MAX_NSID)
    with NvmeHost(served.path) as first, NvmeHost(peer.path) as second:
        a, b = ReservationHost(first, 0xA0, KEY_A), ReservationHost(second, 0xB0, KEY_B)
        for host in (a, b):
            host.register(HIGH)
        a.acquire(ReservationType.WRITE_EXCLUSIVE, HIGH)
        assert b.report(HIGH).entries == [
            Entry(1, True, 0xA0, KEY_A),
            Entry(2, False, 0xB0, KEY_B),
        ]
        with refused(GenericStatus.RESERVATION_CONFLICT):
            b.queue.write(HIGH, 0, bytes(512), block_size=512)
        b.queue.write(OTHER, 0, bytes(512), block_size=512)
        a.preempt(ReservationType.WRITE_EXCLUSIVE, KEY_B, nsid=HIGH)
        assert b.notices() == [(PREEMPTED, HIGH)]
        assert b.report(HIGH).entries == [Entry(1, True, 0xA0, KEY_A)]


def test_what_is_preempted_and_aborted_is_of_the_high_namespace(
    served: Served, serve: Callable[..., Served]
) -> None:
    peer = serve(peer=served, nsids=NSIDS, max_nsid=MAX_NSID)
    served.backends[-1].set_limits({"iops": Limit(1, 1)})
    with NvmeHost(served.path) as first, NvmeHost(peer.path) as second:
        a, b = ReservationHost(first, 0xA0, KEY_A), ReservationHost(second, 0xB0, KEY_B)
        for host in (a, b):
            host.register(HIGH)
        page = second.memory.allocate(4096)
        reads = []
        for slba in range(16):
            sqe = commands.read(HIGH, slba, 1)
            sqe.prp1 = page.iova
            reads.append(b.queue.start(sqe))
        a.preempt(ReservationType.WRITE_EXCLUSIVE, KEY_B, nsid=HIGH, abort=True)
        statuses = [b.queue.finish(cid).status for cid in reads]
        assert statuses[-1].code == GenericStatus.ABORT_PREEMPT


def test_a_place_is_free_again_when_the_last_of_the_controllers_has_let_go(
    served: Served, serve: Callable[..., Served]
) -> None:
    peer = serve(peer=served, nsids=NSIDS, max_nsid=MAX_NSID)
    shared = served.controller.subsystem.shared
    served.run(served.controller.remove_namespace(HIGH))
    assert HIGH in shared.places
    peer.run(peer.controller.remove_namespace(HIGH))
    assert HIGH not in shared.places
    assert OTHER in shared.places
