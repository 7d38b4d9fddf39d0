"""Asynchronous Event Requests, Abort, doorbell errors, namespaces that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, Status

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from nvme_mdev.host.driver import NvmeHost
    from tests.controller.conftest import Served

INVALID_REGISTER = AsyncEvent(0, 0, LogPage.ERROR)
INVALID_VALUE = AsyncEvent(0, 1, LogPage.ERROR)
NS_CHANGED = AsyncEvent(2, 0, LogPage.CHANGED_NAMESPACES)


def test_a_doorbell_that_is_not_there_is_an_error_event(host: NvmeHost) -> None:
    host.request_events()
    host.write_doorbell(5, 1)
    assert host.events(1) == [INVALID_REGISTER]
    entry = error_log(host)[0]
    assert (entry.sqid, entry.cmdid) == (0xFFFF, 0xFFFF)
    assert Status.unpack(entry.sts >> 1).code is CommandStatus.INVALID_QUEUE_ID


def test_a_doorbell_beyond_the_page_is_an_error_event(host: NvmeHost) -> None:
    host.request_events()
    host.write_bar0(0x3000, bytes(4))
    assert host.events(1) == [INVALID_REGISTER]


def test_a_doorbell_between_two_is_an_error_event(host: NvmeHost) -> None:
    host.request_events()
    host.write_bar0(0x1002, bytes(4))
    assert host.events(1) == [INVALID_REGISTER]


def test_a_doorbell_value_beyond_the_queue_is_an_error_event(host: NvmeHost) -> None:
    host.create_queue_pair(16, qid=1)
    host.request_events()
    host.write_doorbell(1, 16)
    assert host.events(1) == [INVALID_VALUE]
    entry = error_log(host)[0]
    assert (entry.sqid, entry.cmdid) == (0xFFFF, 0xFFFF)
    assert Status.unpack(entry.sts >> 1).code is GenericStatus.INVALID_FIELD


def test_an_invalid_value_in_the_mapped_doorbell_is_an_error_event(host: NvmeHost) -> None:
    host.create_queue_pair(16, qid=1)
    host.request_events()
    view = host._doorbell_view(1, completion=False)
    assert view is not None
    view[:] = (4096).to_bytes(4, "little")
    view.release()
    assert host.events(5) == [INVALID_VALUE]


def test_error_events_come_once_until_the_log_is_read(host: NvmeHost) -> None:
    host.request_events(3)
    host.write_doorbell(5, 1)
    assert host.events(1) == [INVALID_REGISTER]
    host.write_doorbell(6, 1)
    assert host.events(0.05) == []
    error_log(host)
    host.write_doorbell(6, 1)
    assert host.events(1) == [INVALID_REGISTER]


def test_reading_the_log_with_retain_keeps_events_masked(host: NvmeHost) -> None:
    host.request_events(2)
    host.write_doorbell(5, 1)
    assert host.events(1) == [INVALID_REGISTER]
    host.get_log_page(LogPage.ERROR, 64, rae=True)
    host.write_doorbell(6, 1)
    assert host.events(0.05) == []


def test_an_event_waits_for_a_request(host: NvmeHost) -> None:
    host.write_doorbell(5, 1)
    host.request_events()
    assert host.events(1) == [INVALID_REGISTER]


def test_one_request_too_many_is_refused(host: NvmeHost) -> None:
    limit = host.identify_controller().aerl + 1
    host.request_events(limit)
    with refused(CommandStatus.AER_LIMIT_EXCEEDED):
        host.admin(commands.async_event_request())
    assert host.events(0.05) == []


def test_a_request_can_be_aborted(host: NvmeHost) -> None:
    cid = host.admin_queue.start(commands.async_event_request())
    assert host.abort(0, cid)
    assert host.admin_queue.finish(cid).status.code == GenericStatus.ABORT_REQUESTED


@pytest.mark.parametrize(("sqid", "cid"), [(0, 0xFFFE), (1, 0), (0xFFFF, 0xFFFF)])
def test_what_is_not_there_is_not_aborted(host: NvmeHost, sqid: int, cid: int) -> None:
    host.request_events()
    assert not host.abort(sqid, cid)


def test_an_abort_does_not_abort_itself(host: NvmeHost) -> None:
    sqe = commands.abort(0, 0)
    cid = (host.admin_queue.start(commands.get_features(7)) + 1) & 0xFFFF
    sqe.cdw10 = cid << 16
    assert host.admin(sqe).completion.result & 1


def test_a_temperature_threshold_below_the_temperature_is_an_event(host: NvmeHost) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.SMART_TEMPERATURE)
    host.request_events()
    host.set_features(Fid.TEMPERATURE_THRESHOLD, 200)
    assert host.events(1) == [AsyncEvent(1, 1, LogPage.SMART)]


def test_a_namespace_that_is_added_is_an_event_and_works(served: Served, host: NvmeHost) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.NSAN)
    host.request_events()
    backend = MemoryBackend(SIZE)
    served.backends.append(backend)
    served.call(served.controller.add_namespace, 200, backend)
    assert host.events(1) == [NS_CHANGED]
    assert host.get_log_page(LogPage.CHANGED_NAMESPACES, 4) == bytes([200, 0, 0, 0])
    assert host.active_namespaces() == [1, 200]
    queue = host.create_queue_pair()
    queue.write(200, 0, b"z" * 4096, block_size=512)
    assert queue.read(200, 0, 8, block_size=512) == b"z" * 4096


def test_a_namespace_that_is_removed_is_an_event_and_gone(served: Served, host: NvmeHost) -> None:
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.NSAN)
    host.request_events()
    queue = host.create_queue_pair()
    queue.flush(1)
    served.run(served.controller.remove_namespace(1))
    assert host.events(1) == [NS_CHANGED]
    assert host.active_namespaces() == []
    with refused(GenericStatus.INVALID_FIELD):
        queue.flush(1)


def test_a_guest_that_asks_is_told_of_changes_that_it_has_not_read_of(
    served: Served, host: NvmeHost
) -> None:
    host.request_events()
    served.run(served.controller.remove_namespace(1))
    host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.NSAN)
    assert host.events(1) == [NS_CHANGED]
    assert host.get_log_page(LogPage.CHANGED_NAMESPACES, 4) == bytes([1, 0, 0, 0])
    host.request_events()
    for wanted in (0, AsyncEventConfig.NSAN):
        host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, wanted)
    assert host.events(0.05) == []


def test_a_guest_that_does_not_ask_is_not_told_of_namespaces(
    served: Served, host: NvmeHost
) -> None:
    host.request_events()
    served.run(served.controller.remove_namespace(1))
    assert host.events(0.05) == []


def test_a_reset_forgets_requests(host: NvmeHost) -> None:
    host.request_events(4)
    host.reset()
    host.request_events(4)
    host.write_doorbell(5, 1)
    assert host.events(1) == [INVALID_REGISTER]
