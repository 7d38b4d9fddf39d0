"""Format NVM and Sanitize: opt-in, what they erase, what is refused meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.raw import RawMedium
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_identify_controller import Oacs
from nvme_mdev.spec.nvme_logs import CommandEffect, CommandsEffectsLog, LogPage
from nvme_mdev.spec.nvme_maintenance import SANITIZE_GDE, Sanicap, SanitizeLog, SanitizeState
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus
from tests.encryption import blank

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvme_mdev.host.io import IoQueue
    from tests.controller.conftest import Served

ALL = 0xFFFF_FFFF
BLOCK_ERASE, OVERWRITE = 2, 3
AUSE, OIPBP, NDAS = 1 << 3, 1 << 8, 1 << 9
DATA = b"\xa5" * 4096
SANITIZED = AsyncEvent(6, 1, LogPage.SANITIZE_STATUS)


def format_nvm(lbaf: int = 0, *, nsid: int = 1, ses: int = 0, more: int = 0) -> SQE:
    return SQE(opc=AdminOpcode.FORMAT_NVM, nsid=nsid, cdw10=lbaf | ses << 9 | more)


def sanitize(action: int, pattern: int = 0) -> SQE:
    return SQE(opc=AdminOpcode.SANITIZE, cdw10=action, cdw11=pattern)


def sanitize_log(host: NvmeHost) -> SanitizeLog:
    return SanitizeLog.from_buffer_copy(host.get_log_page(LogPage.SANITIZE_STATUS, 512))


def sanitized(host: NvmeHost) -> SanitizeLog:
    deadline = time.monotonic() + 60
    while (data := sanitize_log(host)).sstat & 7 == SanitizeState.IN_PROGRESS:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return data


class Gate:
    """Erasing waits until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.broken = False


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    deallocate, write = RawMedium.deallocate, RawMedium.write

    def wait() -> None:
        made.opened.wait(60)
        if made.broken:
            raise OSError(5, "broken")

    def gated_deallocate(raw: RawMedium, offset: int, length: int) -> bool:
        wait()
        return deallocate(raw, offset, length)

    def gated_write(raw: RawMedium, offset: int, data: bytes) -> None:
        wait()
        write(raw, offset, data)

    monkeypatch.setattr(RawMedium, "deallocate", gated_deallocate)
    monkeypatch.setattr(RawMedium, "write", gated_write)
    yield made
    made.opened.set()


@pytest.fixture(params=["memory", "image", "encrypted"])
def served(serve: Callable[..., Served], request: pytest.FixtureRequest, tmp_path: Path) -> Served:
    """Two namespaces with data at both ends, of one kind."""
    if request.param == "memory":
        return serve(MemoryBackend(SIZE), MemoryBackend(SIZE), allow_erase=True)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    make = blank if request.param == "encrypted" else UringBackend
    return serve(*(make(str(tmp_path / name)) for name in ("one", "two")), allow_erase=True)


without_keys = pytest.mark.parametrize("served", ["memory", "image"], indirect=True)
"""With keys there is one more way to erase: `test_crypto_erase.py`."""


def queue_with_data(host: NvmeHost) -> IoQueue:
    """A queue pair; :data:`DATA` is at both ends of namespaces 1 and 2."""
    made = host.create_queue_pair()
    for nsid in (1, 2):
        for slba in (0, SIZE // 512 - 8):
            made.write(nsid, slba, DATA, block_size=512)
    return made


@pytest.fixture
def queue(host: NvmeHost) -> IoQueue:
    return queue_with_data(host)


def ends(queue: IoQueue, nsid: int, block_size: int = 512) -> set[bytes]:
    """What is at the ends of the namespace."""
    blocks = SIZE // block_size
    count = 4096 // block_size
    first, last = 0, blocks - count
    return {queue.read(nsid, slba, count, block_size=block_size) for slba in (first, last)}


# -- opt-in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [AdminOpcode.FORMAT_NVM, AdminOpcode.SANITIZE])
def test_without_the_users_consent_there_is_no_erasing(
    serve: Callable[..., Served], opcode: int
) -> None:
    with NvmeHost(serve().path) as host:
        data = host.identify_controller()
        assert not data.oacs & Oacs.FNVMS
        assert data.sanicap == 0
        assert host.identify_namespace(1).nlbaf == 0
        assert host.identify_namespace(1).fpi == 0
        with refused(GenericStatus.INVALID_OPCODE):
            host.admin(SQE(opc=opcode, nsid=1))
        with refused(CommandStatus.INVALID_LOG_PAGE):
            host.get_log_page(LogPage.SANITIZE_STATUS, 512)


@without_keys
def test_with_it_there_are_two_formats_and_two_ways_to_sanitize(host: NvmeHost) -> None:
    data = host.identify_controller()
    assert data.oacs & Oacs.FNVMS
    assert data.fna == 0
    assert data.sanicap == Sanicap.BES | Sanicap.OWS | Sanicap.NODMMAS_NOT_MODIFIED
    namespace = host.identify_namespace(1)
    assert [namespace.lbaf[index].lbads for index in range(3)] == [9, 12, 0]
    assert (namespace.nlbaf, namespace.flbas, namespace.fpi) == (1, 0, 0x80)
    page = host.get_log_page(LogPage.COMMANDS_EFFECTS, 4096)
    effects = CommandsEffectsLog.from_buffer_copy(page).acs
    assert effects[AdminOpcode.FORMAT_NVM] & (CommandEffect.LBCC | CommandEffect.NCC)
    assert effects[AdminOpcode.SANITIZE] & CommandEffect.LBCC


# -- format ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ses", [0, 1])
def test_a_format_erases_its_namespace_alone(host: NvmeHost, queue: IoQueue, ses: int) -> None:
    host.admin(format_nvm(ses=ses))
    assert ends(queue, 1) == {bytes(4096)}
    assert ends(queue, 2) == {DATA}


def test_a_format_of_all_namespaces_erases_all(host: NvmeHost, queue: IoQueue) -> None:
    host.admin(format_nvm(nsid=ALL))
    assert ends(queue, 1) | ends(queue, 2) == {bytes(4096)}


def test_a_format_changes_the_block_size_and_back(host: NvmeHost, queue: IoQueue) -> None:
    host.admin(format_nvm(1))
    namespace = host.identify_namespace(1)
    assert (namespace.flbas, namespace.nsze) == (1, SIZE // 4096)
    queue.write(1, SIZE // 4096 - 1, DATA, block_size=4096)
    assert ends(queue, 1, 4096) == {bytes(4096), DATA}
    with refused(GenericStatus.LBA_OUT_OF_RANGE):
        queue.read(1, SIZE // 4096, 1, block_size=4096)
    host.admin(format_nvm(0))
    assert host.identify_namespace(1).nsze == SIZE // 512
    assert ends(queue, 1) == {bytes(4096)}


def test_the_guest_is_told_when_a_format_has_changed_the_block_size(host: NvmeHost) -> None:
    host.watch_namespaces()
    host.admin(format_nvm(0))
    assert host.events(0.05) == []
    host.admin(format_nvm(1, nsid=2))
    assert host.events(5) == [AsyncEvent(2, 0, LogPage.CHANGED_NAMESPACES)]
    assert host.get_log_page(LogPage.CHANGED_NAMESPACES, 8) == bytes([2]) + bytes(7)


def test_the_block_size_outlives_resets_and_the_client(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.admin(format_nvm(1))
        host.reset()
        assert host.namespace(1).block_size == 4096
    with NvmeHost(served.path) as host:
        assert host.namespace(1).block_size == 4096
        assert host.namespace(2).block_size == 512


def test_io_is_refused_while_a_format_is_in_progress(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    cid = host.admin_queue.start(format_nvm())
    with refused(GenericStatus.FORMAT_IN_PROGRESS, dnr=False):
        while True:
            queue.read(1, 0, 8, block_size=512)
    assert host.identify_namespace(1).fpi == 0x80 | 100
    assert host.identify_namespace(2).fpi == 0x80
    assert queue.read(2, 0, 8, block_size=512) == DATA
    gate.opened.set()
    assert host.admin_queue.finish(cid).ok
    assert host.identify_namespace(1).fpi == 0x80
    assert ends(queue, 1) == {bytes(4096)}


def test_a_reset_does_not_end_a_format(host: NvmeHost, queue: IoQueue, gate: Gate) -> None:
    host.admin_queue.start(format_nvm())
    while not host.identify_namespace(1).fpi & 0x7F:
        pass
    host.reset()
    again = host.create_queue_pair()
    with refused(GenericStatus.FORMAT_IN_PROGRESS, dnr=False):
        again.read(1, 0, 8, block_size=512)
    gate.opened.set()
    deadline = time.monotonic() + 60
    while host.identify_namespace(1).fpi & 0x7F:
        assert time.monotonic() < deadline
    assert ends(again, 1) == {bytes(4096)}


def test_of_the_formats_during_one_only_the_same_joins_it(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    first = host.admin_queue.start(format_nvm(1, ses=1))
    while not host.identify_namespace(1).fpi & 0x7F:
        pass
    for other in (format_nvm(0, ses=1), format_nvm(1), format_nvm(0, nsid=ALL, ses=1)):
        with refused(GenericStatus.FORMAT_IN_PROGRESS, dnr=False):
            host.admin(other)
    same = host.admin_queue.start(format_nvm(1, ses=1))
    assert host.identify_namespace(2).fpi == 0x80
    assert host.admin_queue.take(same) is None
    gate.opened.set()
    assert host.admin_queue.finish(first).ok
    assert host.admin_queue.finish(same).ok
    assert host.identify_namespace(1).flbas == 1
    assert ends(queue, 1, 4096) == {bytes(4096)}


def test_a_format_that_fails_is_an_internal_error(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    gate.broken = True
    gate.opened.set()
    with refused(GenericStatus.INTERNAL_ERROR, dnr=False):
        host.admin(format_nvm())
    queue.read(1, 0, 8, block_size=512)


@without_keys
@pytest.mark.parametrize(
    ("sqe", "status", "peloc"),
    [
        (format_nvm(2), CommandStatus.INVALID_FORMAT, 40),
        (format_nvm(more=1 << 12), CommandStatus.INVALID_FORMAT, 40),
        (format_nvm(more=1 << 5), CommandStatus.INVALID_FORMAT, 40),
        (format_nvm(ses=2), GenericStatus.INVALID_FIELD, 41),
        (format_nvm(ses=7), GenericStatus.INVALID_FIELD, 41),
        (format_nvm(nsid=0), GenericStatus.INVALID_NAMESPACE_OR_FORMAT, 4),
        (format_nvm(nsid=257), GenericStatus.INVALID_NAMESPACE_OR_FORMAT, 4),
        (format_nvm(nsid=3), GenericStatus.INVALID_FIELD, 4),
        (sanitize(0), GenericStatus.INVALID_FIELD, 40),
        (sanitize(4), GenericStatus.INVALID_FIELD, 40),
        (sanitize(7), GenericStatus.INVALID_FIELD, 40),
    ],
)
def test_what_cannot_be_is_refused(
    host: NvmeHost, queue: IoQueue, sqe: SQE, status: GenericStatus, peloc: int
) -> None:
    with refused(status):
        host.admin(sqe)
    assert error_log(host)[0].peloc == peloc
    assert ends(queue, 1) | ends(queue, 2) == {DATA}


@pytest.mark.parametrize("sqe", [format_nvm(nsid=ALL), sanitize(BLOCK_ERASE)])
def test_a_protected_namespace_is_not_erased_nor_any_other(
    host: NvmeHost, queue: IoQueue, sqe: SQE
) -> None:
    host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, 1, nsid=2)
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        host.admin(sqe)
    assert ends(queue, 1) | ends(queue, 2) == {DATA}


def test_a_medium_with_large_blocks_has_no_format_with_small_ones(
    serve: Callable[..., Served],
) -> None:
    with NvmeHost(serve(NullBackend(2048), allow_erase=True).path) as host:
        assert host.identify_namespace(1).nlbaf == 0
        with refused(CommandStatus.INVALID_FORMAT):
            host.admin(format_nvm(1))


# -- sanitize -------------------------------------------------------------------------------


def test_nothing_was_ever_sanitized(host: NvmeHost) -> None:
    data = sanitize_log(host)
    assert (data.sprog, data.sstat) == (0xFFFF, SanitizeState.NEVER)
    assert data.eto == data.etbe == 0xFFFF_FFFF


@pytest.mark.parametrize("flags", [0, NDAS])
def test_a_block_erase_erases_all_namespaces_and_tells(
    host: NvmeHost, queue: IoQueue, flags: int
) -> None:
    host.request_events()
    host.admin(sanitize(BLOCK_ERASE | flags))
    assert host.events(60) == [SANITIZED]
    data = sanitize_log(host)
    assert (data.sprog, data.sstat & 7) == (0xFFFF, SanitizeState.COMPLETED)
    assert data.scdw10 == BLOCK_ERASE | flags
    assert ends(queue, 1) | ends(queue, 2) == {bytes(4096)}


@pytest.mark.parametrize(("gone", "new"), [(2, 2), (300, 400)])
def test_a_namespace_in_the_place_of_one_that_has_gone_is_not_sanitized(
    serve: Callable[..., Served], gate: Gate, gone: int, new: int
) -> None:
    backends = (MemoryBackend(SIZE), MemoryBackend(SIZE))
    served = serve(*backends, nsids=[1, gone], max_nsid=400, allow_erase=True)
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        queue.write(gone, 0, DATA, block_size=512)
        host.admin(sanitize(BLOCK_ERASE))
        backend = served.run(served.controller.remove_namespace(gone))
        served.call(served.controller.add_namespace, new, backend)
        gate.opened.set()
        assert sanitized(host).sstat & 7 == SanitizeState.COMPLETED
        assert queue.read(new, 0, 8, block_size=512) == DATA
    # Nor by the next process.
    left = served.controller.state.lifetime[Lifetime.SANITIZE_NSIDS : Lifetime.SELF_TEST]
    assert not any(left)


def test_an_overwrite_leaves_the_pattern_of_its_last_pass(host: NvmeHost, queue: IoQueue) -> None:
    host.admin(sanitize(OVERWRITE | 2 << 4 | OIPBP | NDAS, 0x1234_5678))
    assert sanitized(host).sstat == SanitizeState.COMPLETED | 2 << 3 | SANITIZE_GDE
    pattern = (0x1234_5678 ^ 0xFFFF_FFFF).to_bytes(4, "little") * 1024
    assert ends(queue, 1) | ends(queue, 2) == {pattern}


def test_an_overwrite_that_may_deallocate_reads_as_zeroes(host: NvmeHost, queue: IoQueue) -> None:
    host.admin(sanitize(OVERWRITE | 1 << 4, 0x1234_5678))
    sanitized(host)
    assert ends(queue, 1) | ends(queue, 2) == {bytes(4096)}


def test_while_it_is_in_progress_io_and_more_erasing_are_refused(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    host.admin(sanitize(BLOCK_ERASE))
    assert sanitize_log(host).sstat & 7 == SanitizeState.IN_PROGRESS
    assert sanitize_log(host).sprog == 0
    for nsid in (1, 2):
        for sqe in (commands.read(nsid, 0, 8), commands.write(nsid, 0, 8)):
            with refused(GenericStatus.SANITIZE_IN_PROGRESS, dnr=False):
                queue.execute(sqe, receive=4096)
    self_test = SQE(opc=AdminOpcode.DEVICE_SELF_TEST, nsid=ALL, cdw10=1)
    for sqe in (format_nvm(), sanitize(BLOCK_ERASE), self_test):
        with refused(GenericStatus.SANITIZE_IN_PROGRESS, dnr=False):
            host.admin(sqe)
    host.reset()
    with refused(GenericStatus.SANITIZE_IN_PROGRESS, dnr=False):
        host.create_queue_pair().read(1, 0, 8, block_size=512)
    gate.opened.set()
    assert sanitized(host).sstat & 7 == SanitizeState.COMPLETED
    assert host.create_queue_pair().read(1, 0, 8, block_size=512) == bytes(4096)


ALLOWED_PAGES = (
    LogPage.ERROR,
    LogPage.SMART,
    LogPage.CHANGED_NAMESPACES,
    LogPage.RESERVATION_NOTIFICATION,
    LogPage.SANITIZE_STATUS,
)


@pytest.mark.parametrize("failed", [False, True])
def test_a_sanitize_operation_allows_flush_and_some_admin_commands(
    host: NvmeHost, queue: IoQueue, gate: Gate, *, failed: bool
) -> None:
    status = GenericStatus.SANITIZE_FAILED if failed else GenericStatus.SANITIZE_IN_PROGRESS
    pages = host.get_log_page(LogPage.SUPPORTED_LOG_PAGES, 1024)
    supported = [lid for lid in range(256) if pages[4 * lid] & 1]
    if failed:
        gate.broken = True
        gate.opened.set()
    host.admin(sanitize(BLOCK_ERASE | AUSE))
    if failed:
        assert sanitized(host).sstat & 7 == SanitizeState.FAILED
    for nsid in (1, 2, ALL):
        queue.flush(nsid)
    for lid in supported:
        if lid in ALLOWED_PAGES:
            host.get_log_page(lid, 64)
        else:
            with refused(status, dnr=False):
                host.get_log_page(lid, 64)
    with refused(status, dnr=False):
        host.configure_doorbell_buffers()
    host.admin(SQE(opc=AdminOpcode.KEEP_ALIVE))
    assert host.get_features(Fid.NUMBER_OF_QUEUES)
    with refused(status, dnr=False):
        host.create_queue_pair().read(1, 0, 8, block_size=512)
    host.reset()
    assert host.active_namespaces() == [1, 2]


def test_a_sanitize_operation_does_not_wait_for_flushes(serve: Callable[..., Served]) -> None:
    """They are allowed during it, so there can be some in flight all the time."""
    served = serve(NullBackend(SIZE, latency_ns=2_000_000_000), allow_erase=True)
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        flush = queue.start(commands.flush(1))
        deadline = time.monotonic() + 60
        while not served.call(served.controller.queues.inflight):
            assert time.monotonic() < deadline
        host.admin(sanitize(BLOCK_ERASE))
        assert sanitized(host).sstat & 7 == SanitizeState.COMPLETED
        assert queue.take(flush) is None
        assert queue.finish(flush).ok


def test_the_error_log_tells_no_block_while_a_sanitize_operation_is_in_progress(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    with refused(GenericStatus.LBA_OUT_OF_RANGE):
        queue.read(1, SIZE // 512 + 7, 8, block_size=512)
    before = error_log(host)[0]
    assert before.lba == SIZE // 512 + 7
    host.admin(sanitize(BLOCK_ERASE))
    entry = error_log(host)[0]
    assert (entry.errcnt, entry.nsid, entry.lba) == (before.errcnt, 1, 0)
    gate.opened.set()
    sanitized(host)
    assert error_log(host)[0].lba == before.lba


def test_of_the_end_of_a_sanitize_operation_nothing_is_told_once_the_next_has_begun(
    host: NvmeHost, gate: Gate
) -> None:
    gate.opened.set()
    host.admin(sanitize(BLOCK_ERASE))
    deadline = time.monotonic() + 60
    while host.get_log_page(LogPage.SANITIZE_STATUS, 4, rae=True)[2] & 7 != 1:
        assert time.monotonic() < deadline
    gate.opened.clear()
    host.admin(sanitize(BLOCK_ERASE))
    host.request_events()
    assert host.events(0.05) == []
    gate.opened.set()
    assert host.events(60) == [SANITIZED]


def test_a_failure_bars_the_namespaces_until_it_is_left(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    gate.broken = True
    gate.opened.set()
    host.admin(sanitize(BLOCK_ERASE | AUSE))
    assert sanitized(host).sstat & 7 == SanitizeState.FAILED
    with refused(GenericStatus.SANITIZE_FAILED, dnr=False):
        queue.read(1, 0, 8, block_size=512)
    with refused(GenericStatus.SANITIZE_FAILED, dnr=False):
        host.admin(format_nvm())
    host.admin(sanitize(1))
    queue.read(1, 0, 8, block_size=512)


def test_a_failure_in_the_restricted_mode_is_only_left_by_success(
    host: NvmeHost, queue: IoQueue, gate: Gate
) -> None:
    gate.broken = True
    gate.opened.set()
    host.admin(sanitize(BLOCK_ERASE))
    assert sanitized(host).sstat & 7 == SanitizeState.FAILED
    for sqe in (sanitize(1), sanitize(BLOCK_ERASE | AUSE)):
        with refused(GenericStatus.SANITIZE_FAILED, dnr=False):
            host.admin(sqe)
    gate.broken = False
    host.admin(sanitize(BLOCK_ERASE))
    assert sanitized(host).sstat & 7 == SanitizeState.COMPLETED
    assert queue.read(1, 0, 8, block_size=512) == bytes(4096)


def test_global_data_erased_lasts_until_something_is_written(
    served: Served, host: NvmeHost, queue: IoQueue
) -> None:
    assert not sanitize_log(host).sstat & SANITIZE_GDE
    host.admin(sanitize(BLOCK_ERASE))
    assert sanitized(host).sstat & SANITIZE_GDE
    host.reset()
    queue = host.create_queue_pair()
    queue.read(1, 0, 8, block_size=512)
    assert sanitize_log(host).sstat & SANITIZE_GDE
    queue.write(1, 0, DATA, block_size=512)
    assert not sanitize_log(host).sstat & SANITIZE_GDE
    host.admin(sanitize(BLOCK_ERASE))
    assert sanitized(host).sstat & SANITIZE_GDE
    backend = MemoryBackend(SIZE)
    served.backends.append(backend)
    served.call(served.controller.add_namespace, 3, backend)
    assert not sanitize_log(host).sstat & SANITIZE_GDE


@pytest.mark.parametrize("how", ["format", "sanitize"])
def test_what_is_erased_can_be_read_again(host: NvmeHost, queue: IoQueue, *, how: str) -> None:
    queue.write_uncorrectable(1, 0, 8)
    with refused(MediaStatus.UNRECOVERED_READ):
        queue.read(1, 0, 8, block_size=512)
    host.admin(format_nvm() if how == "format" else sanitize(BLOCK_ERASE))
    if how == "sanitize":
        sanitized(host)
    assert queue.read(1, 0, 8, block_size=512) == bytes(4096)
