"""Namespace write protection: the states, and that the data path refuses to write."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import DsmAttribute
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid, WriteProtectionState
from nvme_mdev.spec.nvme_identify_controller import Nwpc
from nvme_mdev.spec.nvme_identify_namespace import Nsattr
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.spec.nvme_commands import SQE
    from tests.controller.conftest import Served

FID = Fid.NAMESPACE_WRITE_PROTECTION
ALL = 0xFFFF_FFFF
NONE, PROTECTED, UNTIL_POWER_CYCLE, PERMANENT = WriteProtectionState


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(MemoryBackend(SIZE), MemoryBackend(SIZE))


def cannot_write(queue: IoQueue, nsid: int) -> None:
    for sqe in (commands.write(nsid, 0, 1), commands.write_zeroes(nsid, 0, 1)):
        with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
            queue.execute(sqe, send=bytes(512))
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        sqe = commands.dataset_management(nsid, 1, 4)
        queue.execute(sqe, send=commands.pack_ranges([(0, 1)]))
    queue.execute(commands.read(nsid, 0, 1), receive=512)
    hint = commands.dataset_management(nsid, 1, DsmAttribute.IDR)
    queue.execute(hint, send=commands.pack_ranges([(0, 1)]))


def test_what_is_offered_is_told(host: NvmeHost) -> None:
    assert host.identify_controller().nwpc == Nwpc.NWPS | Nwpc.WPUPC
    assert host.get_features(FID, nsid=1) == NONE
    assert host.get_features(FID, nsid=1, select=3) == 0b110


@pytest.mark.parametrize("state", [PROTECTED, UNTIL_POWER_CYCLE])
def test_a_protected_namespace_is_only_read(host: NvmeHost, state: WriteProtectionState) -> None:
    queue = host.create_queue_pair()
    host.set_features(FID, state, nsid=1)
    assert host.get_features(FID, nsid=1) == state
    cannot_write(queue, 1)
    queue.write(2, 0, bytes(512), block_size=512)
    assert host.identify_namespace(1).nsattr == Nsattr.CWP
    assert host.identify_namespace(2).nsattr == 0


def test_protection_can_be_taken_away(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    host.set_features(FID, PROTECTED, nsid=ALL)
    cannot_write(queue, 1)
    cannot_write(queue, 2)
    host.set_features(FID, NONE, nsid=2)
    cannot_write(queue, 1)
    queue.write(2, 0, bytes(512), block_size=512)


def test_protection_outlives_resets_and_the_client(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.set_features(FID, PROTECTED, nsid=1)
        host.reset()
        cannot_write(host.create_queue_pair(), 1)
    with NvmeHost(served.path) as host:
        cannot_write(host.create_queue_pair(), 1)


def test_protection_until_the_power_cycle_is_not_taken_away_before(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.set_features(FID, UNTIL_POWER_CYCLE, nsid=1)
        for state in (NONE, PROTECTED):
            with refused(CommandStatus.FEATURE_NOT_CHANGEABLE):
                host.set_features(FID, state, nsid=1)
        with refused(CommandStatus.FEATURE_NOT_CHANGEABLE):
            host.set_features(FID, PROTECTED, nsid=ALL)
        assert host.get_features(FID, nsid=2) == NONE
        host.set_features(FID, UNTIL_POWER_CYCLE, nsid=1)
        host.reset()
        cannot_write(host.create_queue_pair(), 1)
    with NvmeHost(served.path) as host:
        assert host.get_features(FID, nsid=1) == NONE
        host.create_queue_pair().write(1, 0, bytes(512), block_size=512)


@pytest.mark.parametrize("value", [PERMANENT, 4, 7])
def test_other_states_are_an_invalid_field(host: NvmeHost, value: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(FID, value, nsid=1)
    assert error_log(host)[0].peloc == 44


def test_a_namespace_is_needed(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.set_features(FID, PROTECTED)
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(FID, PROTECTED, nsid=3)
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.get_features(FID, nsid=ALL)


def test_another_namespace_with_the_nsid_begins_unprotected(served: Served, host: NvmeHost) -> None:
    host.set_features(FID, PROTECTED, nsid=2)
    backend = served.run(served.controller.remove_namespace(2))
    served.call(served.controller.add_namespace, 2, backend)
    assert host.get_features(FID, nsid=2) == NONE
    host.create_queue_pair().write(2, 0, bytes(512), block_size=512)


# -- what was written before ----------------------------------------------------------------

SLOW_NS = 300_000_000


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def start(host: NvmeHost, queue: IoQueue, sqe: SQE) -> int:
    sqe.prp1 = host.memory.allocate(4096).iova
    return queue.start(sqe)


def test_writes_in_flight_are_waited_for_and_reads_are_not(serve: Callable[..., Served]) -> None:
    served = serve(NullBackend(SIZE, latency_ns=SLOW_NS))
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        in_use = served.controller.queues.namespaces.in_use
        read = start(host, queue, commands.read(1, 0, 8))
        until(lambda: served.call(in_use, 1))
        assert not served.call(lambda: in_use(1, writing=True))
        write = start(host, queue, commands.write(1, 0, 8))
        until(lambda: served.call(lambda: in_use(1, writing=True)))
        host.set_features(FID, PROTECTED, nsid=1)
        completion = queue.take(write)
        assert completion is not None
        assert completion.ok
        assert queue.finish(read).ok


def test_writes_of_the_other_controllers_are_waited_for(serve: Callable[..., Served]) -> None:
    served = serve(NullBackend(SIZE, latency_ns=SLOW_NS))
    other = serve(peer=served)
    with NvmeHost(served.path) as host, NvmeHost(other.path) as writer:
        queue = writer.create_queue_pair()
        write = start(writer, queue, commands.write(1, 0, 8))
        in_use = other.controller.queues.namespaces.in_use
        until(lambda: served.call(lambda: in_use(1, writing=True)))
        host.set_features(FID, PROTECTED, nsid=1)
        completion = queue.take(write)
        assert completion is not None
        assert completion.ok
        with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
            queue.execute(commands.write_zeroes(1, 0, 1))


class Cached(UringBackend):
    """An image whose flushes can be held up and fail."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(SIZE))
        super().__init__(str(path))
        self.flushes = 0
        self.held = threading.Event()
        self.held.set()
        self.error: OSError | None = None

    def flush(self) -> None:
        self.flushes += 1
        self.held.wait(60)
        if self.error is not None:
            raise self.error
        super().flush()


def test_the_cache_is_flushed_before_the_protection_counts(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    backend = Cached(tmp_path / "vm.img")
    with NvmeHost(serve(backend).path) as host:
        queue = host.create_queue_pair()
        queue.write(1, 0, bytes(512), block_size=512)
        backend.held.clear()
        cid = host.admin_queue.start(commands.set_features(FID, PROTECTED, nsid=1))
        until(lambda: bool(backend.flushes))
        assert host.get_features(FID, nsid=1) == NONE
        cannot_write(queue, 1)
        assert host.admin_queue.take(cid) is None
        backend.held.set()
        assert host.admin_queue.finish(cid).ok
        assert host.get_features(FID, nsid=1) == PROTECTED
        cannot_write(queue, 1)
        host.set_features(FID, NONE, nsid=1)
        assert backend.flushes == 1


@pytest.mark.parametrize("nsid", [2, ALL])
def test_a_flush_that_fails_protects_nothing(
    serve: Callable[..., Served], tmp_path: Path, nsid: int
) -> None:
    backend = Cached(tmp_path / "vm.img")
    backend.error = OSError(5, "broken")
    with NvmeHost(serve(MemoryBackend(SIZE), backend).path) as host:
        queue = host.create_queue_pair()
        with refused(GenericStatus.INTERNAL_ERROR, dnr=False):
            host.set_features(FID, PROTECTED, nsid=nsid)
        for one in (1, 2):
            assert host.get_features(FID, nsid=one) == NONE
            queue.write(one, 0, bytes(512), block_size=512)


def test_a_reset_while_it_is_flushed_protects_nothing(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    backend = Cached(tmp_path / "vm.img")
    with NvmeHost(serve(backend).path) as host:
        backend.held.clear()
        host.admin_queue.start(commands.set_features(FID, UNTIL_POWER_CYCLE, nsid=1))
        until(lambda: bool(backend.flushes))
        host.reset()
        backend.held.set()
        assert host.get_features(FID, nsid=1) == NONE
        host.create_queue_pair().write(1, 0, bytes(512), block_size=512)


# -- who is told ----------------------------------------------------------------------------


def changed(host: NvmeHost) -> list[int]:
    """Wait for the event; the Changed Namespace List, which is read and so cleared."""
    assert host.events(10) == [AsyncEvent(2, 0, LogPage.CHANGED_NAMESPACES)]
    page = host.get_log_page(LogPage.CHANGED_NAMESPACES, 16)
    host.request_events()
    return [nsid for nsid in memoryview(page).cast("I") if nsid]


def test_each_guest_is_told_when_a_namespace_becomes_protected_or_writable(
    served: Served, serve: Callable[..., Served]
) -> None:
    other = serve(peer=served)
    with NvmeHost(served.path) as host, NvmeHost(other.path) as sharer:
        for guest in (host, sharer):
            guest.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.NSAN)
            guest.request_events()
        for state in (PROTECTED, NONE):
            host.set_features(FID, state, nsid=2)
            assert changed(host) == changed(sharer) == [2]
        host.set_features(FID, NONE, nsid=2)
        host.set_features(FID, UNTIL_POWER_CYCLE, nsid=ALL)
        assert changed(host) == changed(sharer) == [1, 2]
        host.set_features(FID, UNTIL_POWER_CYCLE, nsid=ALL)
        for guest in (host, sharer):
            assert guest.events(0.05) == []
