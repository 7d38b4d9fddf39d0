"""The commands on a running controller, each against a real `serve`."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.deaths import serving_pid

from nvme_mdev.errors import UserError
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.service import api, client
from nvme_mdev.service.client import ControlClient
from nvme_mdev.spec.nvme_identify_controller import Oacs
from nvme_mdev.spec.vfio_user import PciIrq

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import RunCommand, Serve

MIB = 1 << 20


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test alone."""
    directory = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(directory))
    return directory


@pytest.fixture
def socket(serve: Serve, tmp_path: Path) -> Path:
    """The vfio-user socket of a controller named vm with an image and memory."""
    serve(
        *("memory:1M", tmp_path / "vm.img", "--size", "1M"),
        *("--socket", tmp_path / "vm.sock", "--serial", "A1"),
    )
    return tmp_path / "vm.sock"


# -- finding ------------------------------------------------------------------------------------


def test_list_has_every_controller_and_none_of_a_dead_daemon(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    assert ask("list") == {"controllers": []}
    serve("null:1G", "--socket", tmp_path / "a.sock", "--name", "web")
    killed = serve("null:1G", "--socket", tmp_path / "b.sock")
    assert [one["name"] for one in ask("list")["controllers"]] == ["b", "web"]
    killed.stop(signal.SIGKILL)
    (web,) = ask("list")["controllers"]
    assert (web["name"], web["socket"], web["size"]) == ("web", f"{tmp_path}/a.sock", 1 << 30)
    assert (web["state"], web["client_pid"], web["paused"]) == ("disabled", None, False)


def test_two_sockets_of_one_name_are_two_controllers(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        serve("null:1G", "--socket", tmp_path / folder / "vm.sock")
    assert [one["name"] for one in ask("list")["controllers"]] == ["vm", "vm-2"]


def test_a_name_that_was_asked_for_and_is_taken_is_refused(
    serve: Serve, refuse: Callable[..., str], tmp_path: Path
) -> None:
    serve("null:1G", "--socket", tmp_path / "a", "--name", "vm")
    line = refuse("serve", "null:1G", "--socket", tmp_path / "b", "--name", "vm")
    assert "named vm is being served: choose another --name" in line
    assert not (tmp_path / "b").exists()


def test_a_controller_is_found_by_name_and_by_either_socket(
    socket: Path, ask: Callable[..., Any]
) -> None:
    for name in ("vm", socket, f"{socket}.ctl"):
        assert ask("show", name)["summary"]["serial"] == "A1"


def test_nothing_of_the_control_socket_is_left_and_there_need_not_be_one(
    serve: Serve, refuse: Callable[..., str], tmp_path: Path, runtime: Path
) -> None:
    serve("null:1G", "--socket", tmp_path / "a", "--control", tmp_path / "c").stop()
    daemon = serve("null:1G", "--socket", tmp_path / "b", "--no-control")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert list(runtime.iterdir()) == []
    assert "b" in refuse("show", tmp_path / "b")
    daemon.stop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a/b"], "cannot be a controller's name"),
        (["--control", "no/where/x"], "is not a directory"),
        (["--control", "s"], "no path for a socket"),
        (["--control", "x" * 108], "too long for the control socket"),
        (["--control", "file"], "is no socket: choose another --control"),
        (["--control", "c", "--no-control"], "exclude each other"),
    ],
)
def test_a_control_socket_that_cannot_be_had_is_refused(
    refuse: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert message in refuse("serve", "null:1G", "--socket", "s", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_serve_without_a_runtime_directory_warns_in_one_line_and_serves(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path / "no/where"))
    command = [sys.executable, "-m", "nvme_mdev.cli.main", "serve", "null:1M", "--name", "vm"]
    process = subprocess.Popen(
        [*command, "--socket", tmp_path / "s"], stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stderr is not None
            warning, ready = process.stderr.readline(), process.stderr.readline()
            assert warning == (
                "nvme-mdev: vm is served, but nvme-mdev list cannot show it:"
                f" {tmp_path}/no/where: No such file or directory: set NVME_MDEV_RUNTIME_DIR to a"
                f" directory of yours, or name it by its control socket, {tmp_path}/s.ctl\n"
            )
            assert "ready on" in ready
            assert ask("show", tmp_path / "s.ctl")["summary"]["name"] == "vm"
        finally:
            process.terminate()
    assert process.returncode == 0


def test_who_is_not_there_is_said_to_be_so(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert "no controller is named vm: none is served" in refuse("show", "vm")
    assert "no daemon has this control socket" in refuse("show", tmp_path / "vm")
    (tmp_path / "file").touch()
    assert "file" in refuse("show", tmp_path / "file")
    assert "too long" in refuse("show", tmp_path / ("x" * 200))


def test_a_daemon_that_stands_still_hides_no_other(
    serve: Serve, nvme_mdev: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_PATIENCE_S", 0.5)
    serve("null:1M", "--socket", tmp_path / "a")
    still = serve("null:1M", "--socket", tmp_path / "b")
    os.kill(serving_pid(still), signal.SIGSTOP)
    try:
        listed = nvme_mdev("list")
        shown = nvme_mdev("show", "b")
    finally:
        os.kill(serving_pid(still), signal.SIGCONT)
    assert (listed.status, " a " in listed.out) == (0, True)
    assert "the daemon does not answer" in listed.err
    assert (shown.status, "the daemon does not answer" in shown.err) == (2, True)


def test_a_namespace_whose_medium_has_gone_is_shown_as_lost(
    serve: Serve, nvme_mdev: RunCommand, refuse: Callable[..., str], tmp_path: Path
) -> None:
    image = tmp_path / "a.img"
    serve(image, "--size", "1M", "--socket", tmp_path / "a")
    os.truncate(image, 0)
    deadline = time.monotonic() + 60
    while "lost" not in (shown := nvme_mdev("namespace", "list", "a")).out:
        assert (shown.status, time.monotonic() < deadline) == (0, True)
    assert "is gone: bring it back, or remove" in refuse("namespace", "resize", "a", "1", "2M")


# -- showing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["list"], ["vm", "disabled", "2 MiB", "A1"]),
        (["show", "vm"], ["A1", "nqn.2014-08", "poll_timeout_ms", "500", "vm.img", "memory:1M"]),
        (["namespace", "list", "vm"], ["vm.img", "1 MiB", "512 B", "read-write"]),
        (["stats", "vm"], ["commands translated", "iothread-0", "0 commands in flight"]),
        (["set", "vm", "iothread_cpu=0"], ["iothread_cpu", "shadow_doorbell", "on"]),
        (["pause", "vm"], ["paused"]),
        (["resume", "vm"], ["running"]),
        (["unplug", "vm"], ["no client was connected"]),
        (["namespace", "remove", "vm", "1"], ["memory:1M"]),
    ],
)
def test_a_person_gets_a_table(
    socket: Path, nvme_mdev: RunCommand, command: list[str], words: list[str]
) -> None:
    result = nvme_mdev(*command)
    assert (result.status, result.err) == (0, "")
    for word in words:
        assert word in result.out


# -- namespaces ---------------------------------------------------------------------------------


def test_namespaces_are_added_resized_and_removed(
    socket: Path, ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with NvmeHost(socket) as host:
        added = ask("namespace", "add", "vm", "new.img", "--size", "2M", "--block-size", "4096")
        assert (added["nsid"], added["target"]) == (3, f"{tmp_path}/new.img")
        assert ask("namespace", "add", "vm", "null:1G", "--nsid", 200)["nsid"] == 200
        assert host.active_namespaces() == [1, 2, 3, 200]
        assert host.namespace(3).block_size == 4096
        assert ask("namespace", "resize", "vm", 3, "4M")["size"] == 4 * MIB
        assert host.namespace(3).size == (tmp_path / "new.img").stat().st_size == 4 * MIB
        assert ask("namespace", "remove", "vm", 3)["target"] == added["target"]
        assert [one["nsid"] for one in ask("namespace", "list", "vm")["namespaces"]] == [1, 2, 200]
        assert host.active_namespaces() == [1, 2, 200]
    # What was removed is closed: it can be served again.
    assert ask("namespace", "add", "vm", "new.img", "--read-only")["read_only"]


def test_what_cannot_be_done_with_a_namespace_is_said_in_a_line_and_changes_nothing(
    socket: Path, ask: Callable[..., Any], refuse: Callable[..., str], tmp_path: Path
) -> None:
    before = ask("namespace", "list", "vm")
    protected = tmp_path / "protected.img"
    protected.write_bytes(bytes(MIB))
    for arguments, message in [
        (["add", "vm", tmp_path / "no.img"], "give --size to create it"),
        (["add", "vm", tmp_path / "new.img", "--size", "1M", "--nsid", "1"], "give another NSID"),
        (["add", "vm", "null:1G", "--nsid", "257"], "serve it with --max-nsid 257"),
        (["add", "vm", "null:x"], "is not a size"),
        (["add", "vm", tmp_path / "vm.img"], "share that one"),
        (["remove", "vm", "9"], "no namespace 9: there are 1, 2"),
        (["resize", "vm", "9", "1M"], "no namespace 9"),
        (["resize", "vm", "1", "1000"], "multiple of 512"),
        (["resize", "vm", "1", "7E"], "not that much memory"),
    ]:
        assert message in refuse("namespace", *arguments)
    assert ask("namespace", "list", "vm") == before
    assert not (tmp_path / "new.img").exists()
    ask("namespace", "add", "vm", protected, "--read-only")
    assert "is read-only" in refuse("namespace", "resize", "vm", "3", "2M")


def test_a_namespace_is_removed_under_load_and_the_other_one_serves_on(
    socket: Path, ask: Callable[..., Any]
) -> None:
    with NvmeHost(socket) as host:
        queue = host.create_queue_pair()
        queue.write(2, 0, b"x" * 512)
        ask("namespace", "remove", "vm", 2)
        with pytest.raises(NvmeStatusError, match="INVALID_FIELD"):
            queue.write(2, 0, b"x" * 512, block_size=512)
        queue.write(1, 0, b"x" * 512)


# -- settings -----------------------------------------------------------------------------------


def _values(result: Any) -> dict[str, Any]:
    return {one["name"]: one["value"] for one in result["settings"]}


def test_settings_are_changed_and_shown(socket: Path, ask: Callable[..., Any]) -> None:
    cpu = min(os.sched_getaffinity(0))
    changes = [f"iothread_cpu={cpu}", "poll_timeout_ms=7", "io_timeout_ms=9000"]
    ask("set", "vm", *changes, "mapped_doorbells=off")
    assert _values(ask("show", "vm")) == {
        "iothread_cpu": cpu,
        "poll_timeout_ms": 7,
        "io_timeout_ms": 9000,
        "shadow_doorbell": True,
        "mapped_doorbells": False,
    }
    assert _values(ask("set", "vm", "iothread_cpu=any"))["iothread_cpu"] is None
    with NvmeHost(socket) as host:
        assert not host.doorbells_mapped


def test_shadow_doorbell_waits_for_a_reset_while_a_guest_uses_the_controller(
    socket: Path, ask: Callable[..., Any]
) -> None:
    def shown(result: Any) -> tuple[bool, bool]:
        (one,) = [one for one in result["settings"] if one["name"] == "shadow_doorbell"]
        return one["value"], one["pending"]

    with NvmeHost(socket) as host:
        assert shown(ask("set", "vm", "shadow_doorbell=off")) == (False, True)
        assert host.identify_controller().oacs & Oacs.DBCS
        host.reset()
        assert not host.identify_controller().oacs & Oacs.DBCS
        assert shown(ask("show", "vm")) == (False, False)
    assert shown(ask("set", "vm", "shadow_doorbell=on")) == (True, False)


def test_a_setting_that_cannot_be_is_refused_and_none_of_them_changed(
    socket: Path, ask: Callable[..., Any], refuse: Callable[..., str]
) -> None:
    assert "'speed' is not a setting" in refuse("set", "vm", "poll_timeout_ms=1", "speed=9")
    assert "give on or off" in refuse("set", "vm", "shadow_doorbell=2")
    assert "no such CPU" in refuse("set", "vm", "iothread_cpu=8000", "poll_timeout_ms=1")
    line = refuse("set", "vm", "io_timeout_ms=1", "io_timeout_ms=2")
    assert "the setting io_timeout_ms is given twice" in line
    with NvmeHost(socket):
        assert "unplug first" in refuse("set", "vm", "poll_timeout_ms=1", "mapped_doorbells=off")
    assert _values(ask("show", "vm"))["poll_timeout_ms"] == 500


# -- numbers ------------------------------------------------------------------------------------


def test_stats_count_what_a_guest_did(socket: Path, ask: Callable[..., Any]) -> None:
    with NvmeHost(socket) as host:
        queue = host.create_queue_pair(32)
        queue.write(2, 0, bytes(8192))
        queue.read(1, 0, 1)
        with pytest.raises(NvmeStatusError):
            queue.read(1, 1 << 40, 1)
        stats = ask("stats", "vm")
    assert stats["translated"]["count"] == stats["completed"]["count"] == 3
    assert stats["translated"]["mean_ns"] > 0
    assert (stats["errors"], stats["inflight"]) == (1, 0)
    assert stats["queues"] == [{"qid": 1, "cqid": 1, "entries": 32, "inflight": 0, "held": False}]
    data = {one["nsid"]: one["data"] for one in stats["namespaces"]}
    assert (data[2]["write_bytes"], data[1]["read_bytes"], data[1]["write_bytes"]) == (8192, 512, 0)
    assert stats["data"]["write_commands"] == 1
    (thread,) = stats["iothreads"]
    assert (thread["queues"], thread["translated"]["count"]) == (1, 3)


def test_a_type_spreads_the_queues_over_its_threads(
    serve: Serve, tmp_path: Path, nvme_mdev: RunCommand
) -> None:
    path = tmp_path / "two.sock"
    serve("null:1G", "--socket", path, "--type", "nvme-2Q_V1", "--iothread-cpu", "0")
    with NvmeHost(path) as host:
        for _ in range(3):
            host.create_queue_pair().read(1, 0, 1)
        stats = json.loads(nvme_mdev("stats", f"{path}.ctl", "-o", "json").out)
    assert [(thread["name"], thread["queues"]) for thread in stats["iothreads"]] == [
        ("iothread-0", 2),
        ("iothread-1", 1),
    ]
    assert [thread["translated"]["count"] for thread in stats["iothreads"]] == [2, 1]
    assert stats["translated"]["count"] == 3
    settings = json.loads(nvme_mdev("set", f"{path}.ctl", "iothread_cpu=0,0", "-o", "json").out)[
        "settings"
    ]
    assert {one["name"]: one["value"] for one in settings}["iothread_cpu"] == 0


def test_a_paused_controller_says_so_and_holds_its_queues(
    socket: Path, ask: Callable[..., Any]
) -> None:
    with NvmeHost(socket) as host:
        queue = host.create_queue_pair()
        assert ask("pause", "vm") == {"paused": True}
        assert ask("show", "vm")["summary"]["paused"]
        assert [one["held"] for one in ask("stats", "vm")["queues"]] == [True]
        assert ask("resume", "vm") == {"paused": False}
        queue.flush(1)


# -- giving back --------------------------------------------------------------------------------


def test_a_client_that_listens_is_asked_and_waited_for(
    socket: Path, ask: Callable[..., Any], refuse: Callable[..., str]
) -> None:
    asked = os.eventfd(0, os.EFD_CLOEXEC)
    with NvmeHost(socket) as host:
        host.transport.client.enable_irqs(PciIrq.REQ, [asked])
        assert "still there after 0.1 s" in refuse("unplug", "vm", "--timeout", 0.1)
        assert select.select([asked], [], [], 0)[0]
    os.close(asked)
    assert ask("unplug", "vm") == {"was_connected": False, "forced": False}


def test_a_client_that_does_not_listen_is_disconnected_by_force_only(
    socket: Path, ask: Callable[..., Any], refuse: Callable[..., str]
) -> None:
    host = NvmeHost(socket)
    assert "takes no requests" in refuse("unplug", "vm")
    result = ask("unplug", "vm", "--force", "--timeout", 0)
    assert result == {"was_connected": True, "forced": True}
    assert host.transport.disconnected
    host.close()
    with NvmeHost(socket) as again:
        assert again.active_namespaces() == [1, 2]


# -- the protocol as a whole --------------------------------------------------------------------


def test_discover_tells_of_every_method(socket: Path) -> None:
    with ControlClient(f"{socket}.ctl") as client:
        found = client.call(api.DISCOVER, api.NoParams())
    assert [method.name for method in found.methods] == [method.name for method in api.METHODS]
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", method.name) for method in found.methods)


def test_a_method_or_parameter_that_is_unknown_is_named(socket: Path) -> None:
    with ControlClient(f"{socket}.ctl") as client:
        with pytest.raises(Exception, match="no method 'controller"):
            client.call_raw("controller.fly", {})
        with pytest.raises(Exception, match="'colour' is unknown"):
            client.call_raw("controller.show", {"colour": 1})
        with pytest.raises(Exception, match="this daemon serves vm"):
            client.call(api.CONTROLLER_SHOW, api.OfController("other"))
        assert client.call(api.CONTROLLER_SHOW, api.OfController("vm")).summary.name == "vm"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_size": 0}, "block_size 0: give 512 or 4096"),
        ({"block_size": -512}, "block_size -512: give 512 or 4096"),
        ({"block_size": 1000}, "block_size 1000: give 512 or 4096"),
        ({"block_size": 1 << 70}, "give 512 or 4096"),
        ({"create_size": 0}, "create_size 0: give at least 1, less than 8E bytes"),
        ({"create_size": -1}, "create_size -1: give at least 1, less than 8E bytes"),
        ({"create_size": 1 << 63}, "give at least 1, less than 8E bytes"),
    ],
)
def test_a_size_that_nothing_can_have_is_refused_by_its_name_zero_too(
    socket: Path, wrong: dict[str, int], message: str
) -> None:
    image, sizes = f"{socket}.img", {"create_size": MIB, **wrong}
    with ControlClient(f"{socket}.ctl") as client:
        with pytest.raises(UserError, match=message):
            client.call_raw("namespace.add", {"target": image, **sizes})
        with pytest.raises(UserError, match=message):
            client.call_raw(
                "controller.add", {"socket": f"{socket}.2", "targets": [image], **sizes}
            )
        assert len(client.call(api.NAMESPACE_LIST, api.OfController()).namespaces) == 2
    assert not Path(image).exists()
