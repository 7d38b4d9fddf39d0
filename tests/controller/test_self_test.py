"""Device Self-test: short and extended, results, progress, and what ends them."""

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
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_identify_controller import Oacs
from nvme_mdev.spec.nvme_logs import CriticalWarning, LogPage
from nvme_mdev.spec.nvme_maintenance import SelfTestCode, SelfTestLog, SelfTestResult
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.controller.conftest import Served

ALL = 0xFFFF_FFFF
SHORT, EXTENDED, ABORT = SelfTestCode.SHORT, SelfTestCode.EXTENDED, SelfTestCode.ABORT
NOT_USED = 0xF


def self_test(host: NvmeHost, code: int, nsid: int = ALL) -> None:
    host.admin(SQE(opc=AdminOpcode.DEVICE_SELF_TEST, nsid=nsid, cdw10=code))


def log(host: NvmeHost) -> SelfTestLog:
    return SelfTestLog.from_buffer_copy(host.get_log_page(LogPage.DEVICE_SELF_TEST, 564))


def results(host: NvmeHost) -> list[tuple[int, int]]:
    """(code, result) of each, the newest first."""
    found = [(entry.status >> 4, entry.status & 0xF) for entry in log(host).results]
    return [one for one in found if one[1] != NOT_USED]


def finished(host: NvmeHost) -> SelfTestLog:
    deadline = time.monotonic() + 60
    while (data := log(host)).current:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return data


class Gate:
    """Reads wait until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reads = 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    read = RawMedium.read

    def gated(raw: RawMedium, offset: int, length: int) -> None:
        made.reads += 1
        made.opened.wait(60)
        read(raw, offset, length)

    monkeypatch.setattr(RawMedium, "read", gated)
    yield made
    made.opened.set()


def test_it_is_offered(host: NvmeHost) -> None:
    data = host.identify_controller()
    assert data.oacs & Oacs.DSTS
    assert data.edstt == 1
    assert data.dsto == 1
    assert results(host) == []


@pytest.mark.parametrize("code", [SHORT, EXTENDED])
@pytest.mark.parametrize("nsid", [0, 1, ALL])
def test_a_test_passes(host: NvmeHost, code: int, nsid: int) -> None:
    self_test(host, code, nsid)
    finished(host)
    assert results(host) == [(code, SelfTestResult.PASSED)]


def test_the_newest_result_comes_first_and_twenty_are_kept(host: NvmeHost) -> None:
    for number in range(22):
        self_test(host, EXTENDED if number == 20 else SHORT, 0)
        finished(host)
    found = results(host)
    assert len(found) == 20
    assert [code for code, _ in found[:3]] == [SHORT, EXTENDED, SHORT]


def test_a_medium_that_cannot_be_read_fails_where_that_is(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    served = serve(MemoryBackend(SIZE), UringBackend(str(image)))
    with NvmeHost(served.path) as host:
        served.controller.namespace_changes.busy.add(2)  # nobody follows the new size
        with image.open("r+b") as file:
            file.truncate(5 << 20)
        self_test(host, EXTENDED)
        entry = finished(host).results[0]
        assert entry.status == EXTENDED << 4 | SelfTestResult.FAILED
        assert (entry.segment, entry.valid, entry.nsid) == (1, 0xF, 2)
        assert entry.flba == (5 << 20) // 512
        assert (entry.sct, entry.sc) == (2, MediaStatus.UNRECOVERED_READ)
        assert host.get_log_page(LogPage.SMART, 4)[0] == CriticalWarning.RELIABILITY


def test_the_progress_is_told_and_only_one_test_runs(host: NvmeHost, gate: Gate) -> None:
    self_test(host, EXTENDED)
    assert log(host).current == EXTENDED
    assert log(host).completion < 100
    with refused(CommandStatus.SELF_TEST_IN_PROGRESS, dnr=False):
        self_test(host, SHORT)
    gate.opened.set()
    finished(host)
    assert gate.reads == SIZE >> 20


def test_a_test_is_aborted(host: NvmeHost, gate: Gate) -> None:
    self_test(host, EXTENDED)
    self_test(host, ABORT)
    assert log(host).current == 0
    assert results(host) == [(EXTENDED, SelfTestResult.ABORTED_BY_COMMAND)]
    self_test(host, ABORT)
    assert len(results(host)) == 1


def test_a_reset_ends_the_short_test(host: NvmeHost, gate: Gate) -> None:
    self_test(host, SHORT)
    host.reset()
    assert results(host) == [(SHORT, SelfTestResult.ABORTED_BY_RESET)]


def test_the_extended_test_outlives_resets_and_the_client(served: Served, gate: Gate) -> None:
    with NvmeHost(served.path) as host:
        self_test(host, EXTENDED)
        host.reset()
        assert log(host).current == EXTENDED
    gate.opened.set()
    with NvmeHost(served.path) as host:
        finished(host)
        assert results(host) == [(EXTENDED, SelfTestResult.PASSED)]


@pytest.mark.parametrize("code", [0, 3, 0xE])
def test_other_codes_are_an_invalid_field(host: NvmeHost, code: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        self_test(host, code)
    assert error_log(host)[0].peloc == 40


def test_the_namespace_must_be_there(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        self_test(host, SHORT, 257)
    with refused(GenericStatus.INVALID_FIELD):
        self_test(host, SHORT, 2)


@pytest.mark.parametrize("code", [SHORT, EXTENDED])
def test_what_is_done_is_the_first_pieces_and_the_progress_counts_all(
    serve: Callable[..., Served], code: SelfTestCode
) -> None:
    served = serve(MemoryBackend(SIZE), NullBackend((5 << 20) + 512), NullBackend(512))
    words = served.controller.state.lifetime
    words[Lifetime.SELF_TEST_NSID] = ALL
    words[Lifetime.SELF_TEST] = code
    self_test = served.controller.self_test
    every = list(self_test._pieces(0))
    assert {piece.nsid for piece in every} == {0, 1, 2, 3}
    for done in range(len(every) + 1):
        assert list(self_test._pieces(done)) == every[done:]
        words[Lifetime.SELF_TEST_DONE] = done
        assert self_test.log().completion == 100 * done // len(every)


def test_the_progress_on_a_huge_namespace_can_be_read(
    serve: Callable[..., Served], gate: Gate
) -> None:
    with NvmeHost(serve(NullBackend(1 << 50)).path) as host:
        self_test(host, EXTENDED)
        assert (log(host).current, log(host).completion) == (EXTENDED, 0)
        self_test(host, ABORT)
