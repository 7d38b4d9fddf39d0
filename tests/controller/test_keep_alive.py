"""The Keep Alive timer and command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nvme_mdev.controller import keep_alive
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_registers import Csts
from nvme_mdev.spec.nvme_status import GenericStatus

from .statuses import error_log

if TYPE_CHECKING:
    import pytest

    from nvme_mdev.host.driver import NvmeHost
    from tests.controller.conftest import Served


def wait_for_failure(host: NvmeHost) -> None:
    deadline = time.monotonic() + 60
    while not host.csts().cfs:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_timer_has_the_finest_granularity(host: NvmeHost) -> None:
    assert host.identify_controller().kas == 1


def test_a_host_that_stays_silent_is_taken_for_dead(host: NvmeHost) -> None:
    host.set_features(Fid.KEEP_ALIVE_TIMER, 100)
    wait_for_failure(host)
    host.reset()
    assert host.csts() == Csts(rdy=True)
    entry = error_log(host)[0]
    assert entry.sts >> 1 == GenericStatus.KEEP_ALIVE_EXPIRED
    assert (entry.sqid, entry.cmdid) == (0xFFFF, 0xFFFF)


def test_a_host_that_speaks_is_not(host: NvmeHost, served: Served) -> None:
    host.set_features(Fid.KEEP_ALIVE_TIMER, 3_600_000)
    before = served.controller.keep_alive._timer
    host.admin(SQE(opc=AdminOpcode.KEEP_ALIVE))
    after = served.controller.keep_alive._timer
    assert before is not None
    assert after is not None
    assert before.cancelled()
    assert after.when() > before.when()


def test_a_timer_that_rings_late_begins_anew(
    host: NvmeHost, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process did not run, and the host perhaps neither: its silence says nothing."""
    monkeypatch.setattr(keep_alive, "STOOD_STILL_S", 0.3)
    host.set_features(Fid.KEEP_ALIVE_TIMER, 2000)
    loop, before = served.controller._loop, served.controller.keep_alive._timer
    assert loop is not None
    loop.call_soon_threadsafe(time.sleep, 2.5)
    deadline = time.monotonic() + 60
    while served.controller.keep_alive._timer is before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert served.controller.keep_alive._timer is not None
    wait_for_failure(host)


def test_a_reset_ends_the_timer(host: NvmeHost, served: Served) -> None:
    host.set_features(Fid.KEEP_ALIVE_TIMER, 60_000)
    host.reset()
    assert host.get_features(Fid.KEEP_ALIVE_TIMER) == 0
    assert served.controller.keep_alive._timer is None


def test_no_timeout_is_no_timer(host: NvmeHost, served: Served) -> None:
    host.set_features(Fid.KEEP_ALIVE_TIMER, 60_000)
    host.set_features(Fid.KEEP_ALIVE_TIMER, 0)
    assert served.controller.keep_alive._timer is None
    host.admin(SQE(opc=AdminOpcode.KEEP_ALIVE))
