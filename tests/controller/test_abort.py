"""Abort of I/O commands: those that wait in their queue, and those in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_status import STATUS_MORE, CommandStatus, GenericStatus

from .assembly import SIZE
from .statuses import error_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.spec.nvme_commands import SQE
    from tests.controller.conftest import Served

ABORTED = GenericStatus.ABORT_REQUESTED
SLOW_NS = 300_000_000


@pytest.fixture
def queue(served: Served, host: NvmeHost) -> Iterator[IoQueue]:
    """A queue that the host has paused."""
    made = host.create_queue_pair(16)
    served.run(served.controller.pause())
    yield made
    served.call(served.controller.resume)


def test_a_command_that_waits_is_aborted_at_once_and_never_executed(
    served: Served, host: NvmeHost, queue: IoQueue
) -> None:
    sent = [queue.start(commands.flush(1)) for _ in range(3)]
    assert host.abort(1, sent[1])
    assert queue.finish(sent[1]).status.code == ABORTED
    entry = error_log(host)[0]
    assert (entry.sqid, entry.cmdid, entry.sts >> 1) == (1, sent[1], ABORTED | STATUS_MORE)
    served.call(served.controller.resume)
    assert queue.finish(sent[0]).ok
    assert queue.finish(sent[2]).ok
    for _ in range(40):
        queue.flush(1)
    assert served.controller.queues.inflight() == 0


@pytest.mark.parametrize(
    ("sqe", "lba"),
    [(commands.write(1, 7, 1), 7), (commands.copy(1, 9, 1), 9), (commands.flush(1), 0)],
)
def test_the_error_log_says_where_a_command_was_aborted_that_waited(
    host: NvmeHost, queue: IoQueue, sqe: SQE, lba: int
) -> None:
    if lba:
        sqe.cdw11 = 1
        lba |= 1 << 32
    assert host.abort(1, queue.start(sqe))
    entry = error_log(host)[0]
    assert (entry.nsid, entry.lba) == (1, lba)


def test_a_command_is_aborted_once(host: NvmeHost, queue: IoQueue) -> None:
    cid = queue.start(commands.flush(1))
    assert host.abort(1, cid)
    assert not host.abort(1, cid)


def test_only_so_many_are_aborted_while_they_wait(
    served: Served, host: NvmeHost, queue: IoQueue
) -> None:
    sent = [queue.start(commands.flush(1)) for _ in range(5)]
    assert [host.abort(1, cid) for cid in sent] == [True] * 3 + [False] * 2
    served.call(served.controller.resume)
    assert [queue.finish(cid).ok for cid in sent] == [False] * 3 + [True] * 2
    served.run(served.controller.pause())
    again = queue.start(commands.flush(1))
    assert host.abort(1, again)
    assert queue.finish(again).status.code == ABORTED


@pytest.mark.parametrize("write", [True, False])
def test_what_was_aborted_did_not_change_the_namespace(
    served: Served, host: NvmeHost, queue: IoQueue, write: bool
) -> None:
    buffer = host.memory.allocate(4096)
    buffer.view[:] = b"x" * 4096
    sqe = commands.write(1, 0, 8)
    sqe.prp1 = buffer.iova
    cid = queue.start(sqe)
    if write:
        served.call(served.controller.resume)
    else:
        assert host.abort(1, cid)
        served.call(served.controller.resume)
    assert queue.finish(cid).ok == write
    assert queue.read(1, 0, 8, block_size=512) == (b"x" if write else bytes(1)) * 4096


def test_a_reset_forgets_what_was_aborted(served: Served, host: NvmeHost, queue: IoQueue) -> None:
    assert host.abort(1, queue.start(commands.flush(1)))
    host.reset()
    again = host.create_queue_pair(16, qid=1)
    served.call(served.controller.resume)
    again.flush(1)


def test_a_command_in_flight_is_cancelled(serve: Callable[..., Served]) -> None:
    served = serve(NullBackend(SIZE, latency_ns=SLOW_NS))
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair(16)
        sent = [queue.start(commands.flush(1)) for _ in range(2)]
        while served.controller.queues.inflight() < 2:
            pass
        assert host.abort(1, sent[0])
        assert queue.finish(sent[0]).status.code == ABORTED
        assert queue.finish(sent[1]).ok


def test_what_cannot_be_cancelled_is_not_aborted(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvme_mdev.controller.admin.abort._PATIENCE_S", 0.01)
    served = serve(NullBackend(SIZE, latency_ns=SLOW_NS))
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair(16)
        cid = queue.start(commands.flush(1))
        while served.controller.queues.inflight() < 1:
            pass
        assert not host.abort(1, cid)
        queue.finish(cid)


def test_too_many_aborts_at_a_time_are_refused(serve: Callable[..., Served]) -> None:
    served = serve(NullBackend(SIZE, latency_ns=2 * SLOW_NS))
    with NvmeHost(served.path) as host:
        limit = host.identify_controller().acl + 1
        queue = host.create_queue_pair(16)
        sent = [queue.start(commands.flush(1)) for _ in range(limit + 1)]
        while served.controller.queues.inflight() < limit + 1:
            pass
        aborts = [host.admin_queue.start(commands.abort(1, cid)) for cid in sent]
        done = [host.admin_queue.finish(cid) for cid in aborts]
        assert [one.ok for one in done] == [True] * limit + [False]
        assert done[-1].status.code == CommandStatus.ABORT_LIMIT_EXCEEDED
        for cid in sent:
            queue.finish(cid)
