"""The SMART log's counters: what is counted, and what they outlive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.controller.health import worst
from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid
from nvme_mdev.spec.nvme_logs import CriticalWarning, LogPage, SmartLog
from nvme_mdev.spec.nvme_status import MediaStatus

from .statuses import error_log

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from pathlib import Path

    from tests.controller.conftest import Served


def number(field: ctypes.Array[ctypes.c_uint8]) -> int:
    return int.from_bytes(bytes(field), "little")


def smart(host: NvmeHost) -> SmartLog:
    return SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))


def test_each_client_is_a_power_cycle_and_one_that_vanishes_an_unsafe_shutdown(
    served: Served,
) -> None:
    with NvmeHost(served.path) as host:
        assert (number(smart(host).pwrc), number(smart(host).upl)) == (1, 0)
    host = NvmeHost(served.path)
    assert (number(smart(host).pwrc), number(smart(host).upl)) == (2, 0)
    host._release()
    with NvmeHost(served.path) as host:
        assert (number(smart(host).pwrc), number(smart(host).upl)) == (3, 1)


def test_a_client_that_never_enables_the_controller_loses_nothing(served: Served) -> None:
    with NvmeHost(served.path, enable=False):
        pass
    with NvmeHost(served.path) as host:
        assert (number(smart(host).pwrc), number(smart(host).upl)) == (2, 0)


def test_resets_are_no_power_cycles(host: NvmeHost) -> None:
    host.reset()
    host.shutdown()
    host.reset()
    assert (number(smart(host).pwrc), number(smart(host).upl)) == (1, 0)


def test_the_error_count_goes_on_for_the_next_client_and_the_entries_are_gone(
    served: Served,
) -> None:
    with NvmeHost(served.path) as host:
        for _ in range(3):
            host.admin(commands.identify(0xF0), check=False)
    with NvmeHost(served.path) as host:
        assert error_log(host)[0].errcnt == 0
        host.admin(commands.identify(0xF0), check=False)
        assert [entry.errcnt for entry in error_log(host)] == [4, 0, 0, 0]
        assert number(smart(host).neile) == 4


def test_a_medium_that_cannot_be_read_is_a_media_error(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    served = serve(UringBackend(str(image)))
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        served.controller.namespace_changes.busy.add(1)  # nobody follows the new size
        image.write_bytes(b"")
        reply = queue.execute(commands.read(1, 0, 8), receive=4096, check=False)
        assert reply.completion.status.code == MediaStatus.UNRECOVERED_READ
        queue.execute(commands.read(1, 1 << 30, 1), receive=512, check=False)
        assert number(smart(host).mdie) == 1


def test_time_with_io_in_flight_is_busy_time(served: Served, host: NvmeHost) -> None:
    health, life = served.controller.health, served.controller.state.lifetime
    health._last -= 90
    served.call(health.tick)
    assert number(smart(host).cbt) == 0
    assert life[Lifetime.POWERED_MS] >= 90_000
    health._queues = Busy()
    health._last -= 120
    served.call(health.tick)
    health._queues = served.controller.queues
    assert number(smart(host).cbt) == 2


class Busy:
    def inflight(self) -> int:
        return 1


def test_media_that_cannot_be_read_are_a_warning_and_an_event_until_they_can(
    served: Served, host: NvmeHost
) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.SMART_RELIABILITY)
    host.request_events()
    health = served.controller.health
    served.call(lambda: health.media_tested(readable=False))
    assert host.events(5) == [AsyncEvent(1, 0, LogPage.SMART)]
    assert smart(host).cw == CriticalWarning.RELIABILITY
    served.call(lambda: health.media_tested(readable=True))
    assert smart(host).cw == 0


def test_a_warning_that_is_not_asked_for_is_no_event_until_it_is_and_comes_once(
    served: Served, host: NvmeHost
) -> None:
    host.request_events(2)
    health = served.controller.health
    served.call(lambda: health.media_tested(readable=False))
    assert host.events(0.05) == []
    for _ in range(2):
        host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.SMART_READ_ONLY)
    assert host.events(0.05) == []
    wanted = AsyncEventConfig.SMART_READ_ONLY | AsyncEventConfig.SMART_RELIABILITY
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, wanted)
    assert host.events(5) == [AsyncEvent(1, 0, LogPage.SMART)]
    assert smart(host).cw == CriticalWarning.RELIABILITY
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, wanted)
    served.call(lambda: health.media_tested(readable=False))
    assert host.events(0.05) == []


def test_a_temperature_beyond_its_threshold_is_an_event_when_it_is_asked_for(
    host: NvmeHost,
) -> None:
    host.request_events()
    host.set_features(Fid.TEMPERATURE_THRESHOLD, 1)
    assert host.events(0.05) == []
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.SMART_TEMPERATURE)
    assert host.events(5) == [AsyncEvent(1, 1, LogPage.SMART)]


@pytest.mark.parametrize(
    ("warning", "information"),
    [
        (CriticalWarning.SPARE, 2),
        (CriticalWarning.RELIABILITY, 0),
        (CriticalWarning.READ_ONLY, 0),
        (CriticalWarning.VOLATILE_BACKUP, 0),
    ],
)
def test_each_warning_of_a_drive_has_its_event(
    served: Served, host: NvmeHost, warning: CriticalWarning, information: int
) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, int(warning))
    host.request_events()
    served.call(served.controller.health._drives_told, [SmartLog(cw=warning)])
    assert host.events(5) == [AsyncEvent(1, information, LogPage.SMART)]


def test_media_that_are_all_read_only_are_a_warning(served: Served, host: NvmeHost) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.SMART_READ_ONLY)
    host.request_events()
    controller = served.controller

    def protect(read_only: bool) -> None:
        controller.queues.namespaces.protect(1, read_only)
        controller.namespace_changes.medium_protected(1)

    served.call(protect, True)
    assert host.events(5) == [AsyncEvent(1, 0, LogPage.SMART)]
    assert smart(host).cw == CriticalWarning.READ_ONLY
    served.call(protect, False)
    assert smart(host).cw == 0


def measure(served: Served, kelvin: int) -> None:
    """The medium tells another temperature."""
    backend, health = served.backends[0], served.controller.health
    assert backend.temperature() is None

    class Warm:
        temperature = staticmethod(lambda: kelvin)
        smart = staticmethod(lambda: None)

    class Namespace:
        backend = Warm()

    health._namespaces = [Namespace()]
    health._measured = None
    served.call(health.tick)
    deadline = time.monotonic() + 30
    while served.controller.state.lifetime[Lifetime.TEMPERATURE] != kelvin:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_of_several_drives_the_worst_is_told() -> None:
    good = SmartLog(avsp=100, avspt=5, pused=1, ctemp=300, tmt1tc=7)
    bad = SmartLog(cw=CriticalWarning.SPARE, avsp=3, avspt=10, pused=120, ctemp=310, egcws=1)
    good.mdie[0], bad.mdie[1] = 200, 1
    good.tsen[0], bad.tsen[0], bad.tsen[1] = 301, 299, 311
    told = worst([good, bad])
    assert (told.cw, told.avsp, told.avspt, told.pused) == (CriticalWarning.SPARE, 3, 10, 120)
    assert (told.ctemp, told.egcws, told.tmt1tc, number(told.mdie)) == (310, 1, 7, 256)
    assert list(told.tsen)[:3] == [301, 311, 0]


def test_the_temperature_is_the_mediums_and_a_warning_beyond_the_threshold(
    served: Served, host: NvmeHost
) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.SMART_TEMPERATURE)
    host.request_events()
    measure(served, 320)
    assert (smart(host).ctemp, smart(host).cw) == (320, 0)
    measure(served, 345)
    assert host.events(5) == [AsyncEvent(1, 1, LogPage.SMART)]
    assert (smart(host).ctemp, smart(host).cw) == (345, 2)
    served.controller.health._last -= 60
    served.call(served.controller.health.tick)
    assert smart(host).wctt == 1
    assert smart(host).cctt == 0
