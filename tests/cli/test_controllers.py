"""Several controllers in one daemon: made at the start and later, sharing namespaces or not."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.deaths import kill, serving_pid
from tests.controller.statuses import refused

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.spec.nvme_commands import AsyncEventType
from nvme_mdev.spec.nvme_identify import Cns, ControllerList
from nvme_mdev.spec.nvme_identify_controller import Cmic, Fuses
from nvme_mdev.spec.nvme_identify_namespace import Nmic
from nvme_mdev.spec.nvme_status import MediaStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Serve

MIB = 1 << 20


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test alone."""
    directory = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(directory))
    return directory


def _notified(host: NvmeHost) -> bool:
    return [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]


def _controllers(host: NvmeHost, cns: Cns, nsid: int = 0) -> list[int]:
    found = ControllerList.from_buffer_copy(host.identify(cns, nsid))
    return list(found.cntlid[: found.numids])


# -- at the start -------------------------------------------------------------------------------


def test_controllers_of_one_serve_are_one_subsystem_and_share_every_namespace(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve(
        *("memory:1M", tmp_path / "a.img", "--size", "1M"),
        *("--socket", tmp_path / "a", "--socket", tmp_path / "b"),
    )
    assert f"ready on {tmp_path}/a, {tmp_path}/b: " in daemon.ready
    assert [one["name"] for one in ask("list")["controllers"]] == ["a", "b"]
    assert ask("show", "a")["sharing"] == ["b"]
    with NvmeHost(tmp_path / "a") as a, NvmeHost(tmp_path / "b") as b:
        one, other = a.identify_controller(), b.identify_controller()
        assert (one.sn, one.subnqn) == (other.sn, other.subnqn)
        assert (one.cntlid, other.cntlid) == (1, 2)
        assert one.cmic == other.cmic == Cmic.MULTI_CTRL
        for host in (a, b):
            assert host.identify_namespace(1).nmic == Nmic.SHRNS
            assert _controllers(host, Cns.CONTROLLER_LIST) == [1, 2]
            assert _controllers(host, Cns.NS_CONTROLLER_LIST, 2) == [1, 2]
        assert a.namespace_descriptors(2) == b.namespace_descriptors(2)
        queues = [host.create_queue_pair() for host in (a, b)]
        for nsid in (1, 2):
            queues[0].write(nsid, 3, bytes([nsid]) * 512, block_size=512)
            queues[1].flush(nsid)
            assert queues[1].read(nsid, 3, 1, block_size=512) == bytes([nsid]) * 512
    assert daemon.stop().status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--socket", "a", "--socket", "a"], "--socket is given twice"),
        (["--socket", "a", "--socket", "b", "--name", "x"], "1 --name for 2 --socket"),
        (["--socket", "a", "--socket", "b", "--name", "x", "--name", "x"], "--name is given twice"),
    ],
)
def test_sockets_and_names_that_do_not_fit_are_refused(
    refuse: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refuse("serve", "null:1G", *arguments)
    assert list(tmp_path.iterdir()) == []


# -- while it runs ------------------------------------------------------------------------------


def test_a_controller_with_targets_of_its_own_comes_and_goes(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any], refuse: Callable[..., str]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "a")
    added = ask(
        *("controller", "add", "a", "memory:1M", tmp_path / "b.img", "--size", "2M"),
        *("--socket", tmp_path / "b", "--queues", 3, "--set", "poll_timeout_ms=7"),
    )
    assert (added["summary"]["name"], added["io_queues"], added["sharing"]) == ("b", 3, [])
    assert [one["size"] for one in added["namespaces"]] == [MIB, 2 * MIB]
    assert ask("stats", tmp_path / "b")["iothreads"][0]["poll_timeout_ms"] == 7
    with NvmeHost(tmp_path / "b") as host:
        assert host.active_namespaces() == [1, 2]
        assert host.identify_controller().cmic == 0
        assert "has a client: unplug it first" in refuse("controller", "remove", "b")
        assert ask("controller", "remove", "b", "--force")["name"] == "b"
    assert [one["name"] for one in ask("list")["controllers"]] == ["a"]
    assert not (tmp_path / "b").exists()
    assert "last controller" in refuse("controller", "remove", "a")
    serve(tmp_path / "b.img", "--socket", tmp_path / "c").stop()
    assert daemon.stop().status == 0


def test_a_controller_that_shares_joins_the_subsystem_and_both_guests_know(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    serve("memory:1M", "--socket", tmp_path / "a")
    with NvmeHost(tmp_path / "a") as a:
        assert a.identify_namespace(1).nmic == 0
        a.watch_namespaces()
        ask("controller", "add", "a", "--share", "--socket", tmp_path / "b")
        assert _notified(a)
        assert a.identify_namespace(1).nmic == Nmic.SHRNS
        with NvmeHost(tmp_path / "b") as b:
            assert b.identify_controller().cntlid == 2
            a.create_queue_pair().write(1, 0, b"x" * 512, block_size=512)
            assert b.create_queue_pair().read(1, 0, 1, block_size=512) == b"x" * 512
        a.get_log_page(4, 4096)
        a.request_events()
        ask("controller", "remove", "b")
        assert _notified(a)
        assert a.identify_controller().cmic == a.identify_namespace(1).nmic == 0


def test_a_namespace_is_attached_resized_and_removed_for_all_that_share_it(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any], refuse: Callable[..., str]
) -> None:
    serve("null:1M", *(word for name in "abc" for word in ("--socket", tmp_path / name)))
    with ExitStack() as hosts:
        a, b, c = (hosts.enter_context(NvmeHost(tmp_path / name)) for name in "abc")
        assert ask("namespace", "add", "a", "memory:1M", "--nsid", 5)["nsid"] == 5
        assert "has a namespace 5 already" in refuse(
            "namespace", "add", "b", "null:1M", "--nsid", 5
        )
        assert [host.active_namespaces() for host in (a, b, c)] == [[1, 5], [1], [1]]
        ask("namespace", "attach", "b", 5)
        assert "has namespace 5 already" in refuse("namespace", "attach", "b", 5)
        assert "has a namespace 6" in refuse("namespace", "attach", "b", 6)
        assert _controllers(c, Cns.NS_CONTROLLER_LIST, 5) == [1, 2]
        ask("namespace", "add", "c", "memory:1M", "--shared")
        for host in (a, b, c):
            assert host.active_namespaces() == ([1, 2] if host is c else [1, 2, 5])
        queues = {host: host.create_queue_pair() for host in (a, b, c)}
        queues[a].write(5, 7, b"a" * 512, block_size=512)
        _ = [host.watch_namespaces() for host in (a, b)]
        ask("namespace", "resize", "b", 5, "4M")
        assert _notified(a)
        assert _notified(b)
        for host in (a, b):
            assert host.identify_namespace(5).nsze == 4 * MIB // 512
            assert queues[host].read(5, 7, 1, block_size=512) == b"a" * 512
            queues[host].read(5, 4 * MIB // 512 - 1, 1, block_size=512)
        ask("namespace", "remove", "a", 5)
        with pytest.raises(NvmeStatusError):
            queues[a].read(5, 7, 1, block_size=512)
        assert queues[b].read(5, 7, 1, block_size=512) == b"a" * 512
        ask("namespace", "remove", "b", 2, "--all")
        assert [host.active_namespaces() for host in (a, b, c)] == [[1], [1, 5], [1]]


def test_unreadable_blocks_stay_for_those_that_a_namespace_is_not_detached_from(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    serve("null:1M", "--socket", tmp_path / "a", "--socket", tmp_path / "b")
    ask("namespace", "add", "a", "memory:1M", "--nsid", 5, "--shared")
    with NvmeHost(tmp_path / "a") as a, NvmeHost(tmp_path / "b") as b:
        a.create_queue_pair().write_uncorrectable(5, 0, 1)
        queue = b.create_queue_pair()
        queue.write_uncorrectable(5, 7, 1)
        ask("namespace", "remove", "a", 5)
        with refused(MediaStatus.UNRECOVERED_READ):
            queue.verify(5, 7, 1)
        queue.verify(5, 0, 7)
        ask("namespace", "attach", "a", 5)
        with refused(MediaStatus.UNRECOVERED_READ):
            a.create_queue_pair().verify(5, 7, 1)
        queue.write(5, 7, bytes(512))
        ask("namespace", "remove", "b", 5)
        a.create_queue_pair().verify(5, 0, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["null:1M", "--share"], "takes no target or serial"),
        (["--share", "--serial", "x"], "takes no target or serial"),
        (["--share", "--read-only"], "has them as they are: leave size, block size, read-only"),
        (["--share", "--block-size", "4096"], "has them as they are"),
        (["{tmp}/a.img"], "is a namespace of this daemon already: share"),
        (["null:1M", "--serial", "S1"], "serial S1 is that of a: give another"),
        (["null:1M", "--name", "a"], "named a is being served: choose another"),
        (["null:1M", "--set", "iothread_cpu=8000"], "no such CPU"),
        (
            ["null:1M", "--set", "io_timeout_ms=1", "--set", "io_timeout_ms=2"],
            "the setting io_timeout_ms is given twice: give it once",
        ),
        (["{tmp}/no.img"], "does not exist: give --size"),
        (["null:1M", "--queues", "129"], "129 is not in the range"),
    ],
)
def test_a_controller_that_cannot_be_had_leaves_nothing(
    serve: Serve,
    tmp_path: Path,
    ask: Callable[..., Any],
    refuse: Callable[..., str],
    *,
    arguments: list[str],
    message: str,
) -> None:
    serve(tmp_path / "a.img", "--size", "1M", "--socket", tmp_path / "a", "--serial", "S1")
    words = [one.format(tmp=tmp_path) for one in arguments]
    assert message in refuse("controller", "add", "a", *words, "--socket", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert [one["name"] for one in ask("list")["controllers"]] == ["a"]
    ask("controller", "add", "a", "null:1M", "--socket", tmp_path / "b")


def test_a_socket_in_use_is_refused(
    serve: Serve, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    serve("null:1M", "--socket", tmp_path / "a")
    assert "is in use: somebody listens there" in refuse(
        "controller", "add", "a", "null:2M", "--socket", tmp_path / "a"
    )
    assert (tmp_path / "a").exists()


# -- killed -------------------------------------------------------------------------------------


def test_every_controller_of_a_killed_daemon_carries_on(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve("memory:1M", "--socket", tmp_path / "a")
    ask("controller", "add", "a", "--share", "--socket", tmp_path / "b")
    ask("controller", "add", "a", "memory:2M", "--socket", tmp_path / "c")
    ask("controller", "add", "a", "null:2M", "--socket", tmp_path / "d")
    with ExitStack() as hosts:
        found = [hosts.enter_context(NvmeHost(tmp_path / name)) for name in "abc"]
        queues = [host.create_queue_pair() for host in found]
        queues[0].write(1, 0, b"a" * 512, block_size=512)
        queues[2].write(1, 0, b"c" * 512, block_size=512)
        ask("set", "c", "poll_timeout_ms=9")
        ask("controller", "remove", "d")
        shown = [ask("show", name) for name in "abc"]
        for _ in range(2):
            kill(daemon)
            assert [one["name"] for one in ask("list")["controllers"]] == ["a", "b", "c"]
            assert [ask("show", name) for name in "abc"] == shown
            for queue, data in zip(queues, (b"a", b"a", b"c"), strict=True):
                assert queue.read(1, 0, 1, block_size=512) == data * 512
        ask("namespace", "add", "a", "null:1M", "--shared")
        assert [host.active_namespaces() for host in found] == [[1, 2], [1, 2], [1]]
    assert not (tmp_path / "d").exists()
    assert daemon.stop().status == 0


def test_pausing_and_unplugging_one_leaves_the_others_alone(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    serve("memory:1M", "--socket", tmp_path / "a", "--socket", tmp_path / "b")
    with NvmeHost(tmp_path / "a"), NvmeHost(tmp_path / "b") as b:
        queue = b.create_queue_pair()
        assert ask("pause", "a")["paused"]
        assert not ask("show", "b")["summary"]["paused"]
        queue.read(1, 0, 1, block_size=512)
        assert ask("unplug", "a", "--force", "--timeout", 0)["was_connected"]
        queue.read(1, 0, 1, block_size=512)
        assert ask("show", "b")["summary"]["client_pid"]


def test_sixty_four_controllers_serve_and_leave_no_descriptor_behind(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "0", "--no-keeper")

    def open_files() -> Counter[str]:
        found = Counter[str]()
        for fd in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed just now
                found[str(fd.readlink()).partition(":")[0]] += 1
        return found

    def serve_for_a_while() -> Counter[str]:
        for number in range(1, 64):
            ask("controller", "add", "0", "--share", "--socket", tmp_path / str(number))
        assert len(ask("list")["controllers"]) == 64
        for number in (1, 31, 63):
            with NvmeHost(tmp_path / str(number)) as host:
                host.create_queue_pair().read(1, 0, 1, block_size=512)
        for number in range(1, 64):
            ask("controller", "remove", str(number))
        return open_files()

    first, *later = (serve_for_a_while() for _ in range(5))
    for kind in ("/memfd", "anon_inode"):
        assert {files[kind] for files in later} == {first[kind]}


@pytest.mark.timeout(300)
def test_a_client_that_comes_and_goes_a_thousand_times_leaves_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    """With interrupts, verified data, and the keeper: descriptors, mappings, memory."""
    daemon = serve("memory:1M", "--socket", tmp_path / "s")
    server, keeper = Path(f"/proc/{serving_pid(daemon)}"), Path(f"/proc/{daemon.process.pid}")

    def use() -> None:
        # A guest of little memory, because most of a round's time is what touches all of it.
        with NvmeHost(tmp_path / "s", memory_size=1 << 20) as host:
            queue = host.create_queue_pair(interrupts=True)
            queue.write(1, 5, b"z" * 4096, block_size=512)
            assert queue.read(1, 5, 8, block_size=512) == b"z" * 4096

    def held() -> tuple[int, int, int]:
        maps = [line for line in (server / "maps").read_text().splitlines() if "/memfd" in line]
        fds = [len(list((process / "fd").iterdir())) for process in (server, keeper)]
        return (len(maps), *fds)

    def resident_kib() -> int:
        (line,) = [one for one in (server / "status").read_text().splitlines() if "VmRSS" in one]
        return int(line.split()[1])

    for _ in range(20):
        use()
    before, memory = held(), resident_kib()
    for _ in range(1000):
        use()
    end = time.monotonic() + 30
    # The last client may be on its way out; the one before may have been when that was counted.
    while any(now > then for now, then in zip(held(), before, strict=True)):
        assert time.monotonic() < end, (held(), before)
        time.sleep(0.05)
    assert resident_kib() < memory + 4096  # 4 KiB a client


def test_fused_commands_are_offered_where_one_iothread_serves_the_namespaces(
    serve: Serve, tmp_path: Path
) -> None:
    sockets = ["--socket", tmp_path / "a", "--socket", tmp_path / "b"]
    serve("memory:4M", *sockets, "--iothread", "shared")
    serve("memory:4M", "--socket", tmp_path / "c", "--socket", tmp_path / "d")
    for name, fused in {"a": Fuses.FCWS, "b": Fuses.FCWS, "c": 0, "d": 0}.items():
        with NvmeHost(tmp_path / name) as host:
            assert host.identify_controller().fuses == fused
