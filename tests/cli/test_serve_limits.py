"""Limits of namespaces, from the command line to the guest, against a real `serve`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.deaths import kill

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Serve

    from nvme_mdev.host.io import IoQueue

PAGE = 4096
BURST = 3 * PAGE
HOURS = f"bps=1:{BURST}"
"""Three pages at once; the next one would take more than an hour."""
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime directory of this test alone."""
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


@pytest.fixture
def limits(ask: Callable[..., Any]) -> Callable[[str, int], dict[str, tuple[int, int]]]:
    """What `namespace list` says: rate and burst of each limit of a namespace."""

    def read(name: str, nsid: int) -> dict[str, tuple[int, int]]:
        found = ask("namespace", "list", name)["namespaces"]
        (one,) = [one for one in found if one["nsid"] == nsid]
        return {limit["name"]: (limit["rate"], limit["burst"]) for limit in one["limits"]}

    return read


class Reads:
    """Reads of a page each that are under way, and what has become of them."""

    def __init__(self, host: NvmeHost, queue: IoQueue, count: int, *, nsid: int = 1) -> None:
        self._queue = queue
        self._data = host.memory.allocate(PAGE)
        self.waiting = []
        for _ in range(count):
            sqe = commands.read(nsid, 0, PAGE // 512)
            sqe.prp1 = self._data.iova
            self.waiting.append(queue.start(sqe))
        self.done: dict[int, int] = {}

    def wait(self, count: int) -> dict[int, int]:
        """Wait until so many more have completed; CID to status."""
        before, end = len(self.done), time.monotonic() + DEADLINE_S
        while len(self.done) < before + count:
            assert time.monotonic() < end
            for cid in list(self.waiting):
                if completion := self._queue.take(cid):
                    self.waiting.remove(cid)
                    self.done[cid] = completion.status.code
        return self.done


def _throttled(ask: Callable[..., Any], name: str, count: int) -> None:
    """Wait until so many commands of namespace 1 wait for its limits."""
    end = time.monotonic() + DEADLINE_S
    while ask("stats", name)["namespaces"][0]["throttled"] != count:
        assert time.monotonic() < end


def test_limits_of_the_command_line_and_of_targets_are_listed(
    serve: Serve,
    ask: Callable[..., Any],
    limits: Callable[[str, int], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    serve(
        *("null:1G", "memory:1M,iops=5:6,read-bps=off", "--socket", tmp_path / "vm.sock"),
        *("--limit", "iops=1000", "--limit", "read-bps=1M:2M"),
    )
    assert limits("vm", 1) == {"iops": (1000, 100), "read_bps": (1 << 20, 2 << 20)}
    assert limits("vm", 2) == {"iops": (5, 6)}
    ask("namespace", "add", "vm", "null:1M,write-iops=7")
    assert limits("vm", 3) == {"write_iops": (7, 1)}


def test_limits_are_changed_by_name_and_outlive_the_process(
    serve: Serve,
    ask: Callable[..., Any],
    limits: Callable[[str, int], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    daemon = serve("null:1G,iops=1000", "--socket", tmp_path / "vm.sock")
    ask("namespace", "set", "vm", 1, "bps=100M", "read-iops=10:20")
    ask("namespace", "set", "vm", 1, "iops=off", "bps=1M:1M")
    wanted = {"bps": (1 << 20, 1 << 20), "read_iops": (10, 20)}
    assert limits("vm", 1) == wanted
    for _ in range(2):
        kill(daemon)
        assert limits("vm", 1) == wanted


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("iops", "NAME=RATE"),
        ("iops=0", "iops=0"),
        ("speed=1", "read-iops"),
        ("bps=1K:1T", "in a day"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    serve: Serve, refuse: Callable[..., str], tmp_path: Path, limit: str, said: str
) -> None:
    serve("null:1G", "--socket", tmp_path / "vm.sock")
    assert said in refuse("namespace", "set", "vm", 1, limit)
    assert said in refuse("serve", "null:1G", "--socket", tmp_path / "b", "--limit", limit)
    if "=" in limit and "speed" not in limit:
        assert said in refuse("serve", f"null:1G,{limit}", "--socket", tmp_path / "b")


def test_a_guest_gets_what_its_limits_allow_and_the_rest_when_they_are_gone(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    serve("null:1G", "null:1G", "--limit", HOURS, "--socket", tmp_path / "vm.sock")
    ask("namespace", "set", "vm", 2, "bps=off")
    with NvmeHost(tmp_path / "vm.sock") as host:
        queue = host.create_queue_pair()
        limited, free = Reads(host, queue, 10), Reads(host, queue, 10, nsid=2)
        assert set(free.wait(10).values()) == {0}
        limited.wait(3)
        _throttled(ask, "vm", 7)
        assert len(limited.done) == 3
        assert host.abort(queue.qid, limited.waiting[-1])
        aborted = limited.waiting[-1]
        assert limited.wait(1)[aborted] == GenericStatus.ABORT_REQUESTED
        # Nobody waits for what waits.
        assert ask("pause", "vm")["paused"]
        ask("resume", "vm")
        _throttled(ask, "vm", 6)
        ask("namespace", "set", "vm", 1, "bps=off")
        assert sorted(limited.wait(6).values()) == [0] * 9 + [GenericStatus.ABORT_REQUESTED]


def test_what_waits_waits_on_in_the_next_process(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    daemon = serve("null:1G", "--limit", HOURS, "--socket", tmp_path / "vm.sock")
    with NvmeHost(tmp_path / "vm.sock") as host:
        queue = host.create_queue_pair()
        reads = Reads(host, queue, 20)
        reads.wait(3)
        _throttled(ask, "vm", 17)
        kill(daemon)
        # It begins with a full bucket.
        reads.wait(3)
        _throttled(ask, "vm", 14)
        ask("restart", "vm")
        reads.wait(3)
        _throttled(ask, "vm", 11)
        ask("namespace", "set", "vm", 1, "bps=off")
        assert list(reads.wait(11).values()) == [0] * 20


def test_a_queue_is_deleted_and_the_controller_reset_under_what_waits(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    serve("null:1G", "--limit", HOURS, "--socket", tmp_path / "vm.sock")
    with NvmeHost(tmp_path / "vm.sock") as host:
        deleted, reset = host.create_queue_pair(), host.create_queue_pair()
        reads = Reads(host, deleted, 10)
        reads.wait(3)
        _throttled(ask, "vm", 7)
        Reads(host, reset, 10)
        _throttled(ask, "vm", 17)
        host.delete_queue_pair(deleted)
        _throttled(ask, "vm", 10)
        host.reset()
        assert ask("stats", "vm")["namespaces"][0]["throttled"] == 0
        host.create_queue_pair().flush(1)


def test_controllers_that_share_a_namespace_share_its_limits(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    sockets = tmp_path / "a.sock", tmp_path / "b.sock"
    serve("null:1G", "--limit", HOURS, *(part for one in sockets for part in ("--socket", one)))
    with NvmeHost(sockets[0]) as one, NvmeHost(sockets[1]) as other:
        reads = Reads(one, one.create_queue_pair(), 3)
        reads.wait(3)
        waiting = Reads(other, other.create_queue_pair(), 3)
        _throttled(ask, "b", 3)
        ask("namespace", "set", "a", 1, "bps=off")
        assert list(waiting.wait(3).values()) == [0] * 3
