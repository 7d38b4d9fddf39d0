"""What the control socket changes outlives the serving process."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.deaths import kill, killed_again_and_again, serving_pid

from nvme_mdev.errors import UserError
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient
from nvme_mdev.spec.nvme_commands import AsyncEventType
from nvme_mdev.spec.nvme_identify_controller import Oacs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Daemon, Serve

MIB = 1 << 20


def _call(path: Path, method: api.Method[Any, Any], **params: Any) -> Any:
    with ControlClient(path) as client:
        return client.call(method, method.params(**params))


def _namespaces(path: Path) -> dict[int, tuple[str, int]]:
    found = _call(path, api.NAMESPACE_LIST).namespaces
    return {one.nsid: (one.target, one.size) for one in found}


def test_namespaces_and_settings_are_as_they_were_before_the_kill(
    serve: Serve, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.img", tmp_path / "b.img"
    daemon = serve(first, "null:1M", "--size", "1M", "--socket", tmp_path / "s")
    control = tmp_path / "s.ctl"
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        _call(control, api.NAMESPACE_ADD, target=str(second), nsid=7, create_size=MIB)
        _call(control, api.NAMESPACE_ADD, target="memory:1M", nsid=9, block_size=4096)
        _call(control, api.NAMESPACE_REMOVE, nsid=1)
        _call(control, api.NAMESPACE_RESIZE, nsid=2, size=2 * MIB)
        _call(control, api.NAMESPACE_RESIZE, nsid=7, size=3 * MIB)
        _call(control, api.NAMESPACE_RESIZE, nsid=9, size=4 * MIB)
        changes = {"poll_timeout_ms": 77, "io_timeout_ms": 5000, "shadow_doorbell": False}
        _call(control, api.CONTROLLER_SET, settings=changes)
        for nsid, block_size in ((7, 512), (9, 4096)):
            queue.write(nsid, 1, bytes([nsid]) * 4096, block_size=block_size)
        shown, listed = _call(control, api.CONTROLLER_SHOW), _namespaces(control)
        for _ in range(2):
            kill(daemon)
            assert _call(control, api.CONTROLLER_SHOW) == shown
            assert _namespaces(control) == listed
            assert listed == {
                2: ("null:1M", 2 * MIB),
                7: (str(second), 3 * MIB),
                9: ("memory:1M", 4 * MIB),
            }
            assert host.active_namespaces() == [2, 7, 9]
            for nsid, block_size in ((7, 512), (9, 4096)):
                data = queue.read(nsid, 1, 4096 // block_size, block_size=block_size)
                assert data == bytes([nsid]) * 4096
    assert daemon.stop().status == 0


def test_what_was_removed_is_given_up_and_the_rest_of_it_can_be_served_by_others(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("memory:1M", tmp_path / "a", "--size", "1M", "--socket", tmp_path / "s")
    for nsid in (1, 2):
        _call(tmp_path / "s.ctl", api.NAMESPACE_REMOVE, nsid=nsid)
    kill(daemon)
    assert _namespaces(tmp_path / "s.ctl") == {}
    serve(tmp_path / "a", "--socket", tmp_path / "other").stop()
    kept = [str(fd.readlink()) for fd in Path(f"/proc/{daemon.process.pid}/fd").iterdir()]
    assert [name for name in kept if "nvme-mdev-state" in name]
    assert not [name for name in kept if "nvme-mdev-memory" in name]


@pytest.mark.parametrize("lowest", [2, 4_000_000_000])
def test_a_change_that_was_answered_is_there_and_another_is_whole_or_not_there(
    serve: Serve, tmp_path: Path, lowest: int
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s", "--max-nsid", lowest + 4)
    control = tmp_path / "s.ctl"
    known, unknown = {1: "null:1M"}, set[int]()
    with NvmeHost(tmp_path / "s") as host, killed_again_and_again(daemon, 15) as enough:
        number = 0
        while not enough.is_set():
            number += 1
            nsid = lowest + number % 5
            try:
                if nsid in known:
                    _call(control, api.NAMESPACE_REMOVE, nsid=nsid)
                    del known[nsid]
                else:
                    _call(control, api.NAMESPACE_ADD, target=f"null:{number}M", nsid=nsid)
                    known[nsid] = f"null:{number}M"
            except UserError:
                unknown.add(nsid)
            found = {nsid: target for nsid, (target, _) in _patiently(control).items()}
            assert host.active_namespaces() == sorted(found)
            if nsid in unknown:
                assert {**found, nsid: ""} == {**known, nsid: ""}
                assert found.get(nsid) in (known.get(nsid), f"null:{number}M", None)
                known = found
            assert found == known
            unknown.clear()
    assert daemon.stop().status == 0


def _patiently(control: Path) -> dict[int, tuple[str, int]]:
    """The namespaces, asked for until the answer is not lost with the process."""
    while True:
        try:
            return _namespaces(control)
        except UserError:
            continue


# -- killed at a certain point ------------------------------------------------------------------

DEATH = """
    import os, signal
    {imports}
    original = {function}
    def dying(*arguments, **named):
        doomed = os.path.exists({flag!r})
        if doomed and {before}:
            os.unlink({flag!r})
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if doomed:
            os.unlink({flag!r})
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    {function} = dying
"""


@pytest.fixture
def die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make serving processes die once, when they call a function for the first time."""

    def prepare(module: str, function: str, *, before: bool) -> Callable[[], None]:
        (tmp_path / "site").mkdir()
        flag = tmp_path / "doomed"
        (tmp_path / "site" / "sitecustomize.py").write_text(
            textwrap.dedent(DEATH).format(
                imports=f"import {module}",
                function=f"{module}.{function}",
                flag=str(flag),
                before=before,
            )
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        return flag.touch

    return prepare


CHANGES = "nvme_mdev.controller.namespace_changes"
SERVED = "nvme_mdev.service.served"


@pytest.mark.parametrize(
    ("module", "function", "before", "there"),
    [
        ("nvme_mdev.service.record", "RecordFile.write", True, False),
        ("nvme_mdev.service.record", "RecordFile.write", False, True),
        (CHANGES, "NamespaceChanges.add", True, True),
        (CHANGES, "NamespaceChanges.add", False, True),
    ],
)
def test_the_guest_knows_of_a_namespace_wherever_adding_it_was_cut_off(
    serve: Serve,
    tmp_path: Path,
    die: Callable[..., Callable[[], None]],
    *,
    module: str,
    function: str,
    before: bool,
    there: bool,
) -> None:
    doom = die(module, function, before=before)
    serve("null:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.watch_namespaces()
        doom()
        with pytest.raises(UserError):
            _call(tmp_path / "s.ctl", api.NAMESPACE_ADD, target="memory:1M", nsid=5)
        assert sorted(_namespaces(tmp_path / "s.ctl")) == ([1, 5] if there else [1])
        assert host.active_namespaces() == ([1, 5] if there else [1])
        if there:
            assert [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]
        _call(tmp_path / "s.ctl", api.NAMESPACE_ADD, target="memory:1M", nsid=6)
        assert host.active_namespaces() == ([1, 5, 6] if there else [1, 6])


@pytest.mark.parametrize(
    ("module", "function", "before"),
    [
        ("nvme_mdev.service.record", "RecordFile.write", False),
        (CHANGES, "NamespaceChanges.unused", True),
    ],
)
def test_a_removal_that_was_cut_off_has_not_happened_and_the_guest_is_told(
    serve: Serve,
    tmp_path: Path,
    die: Callable[..., Callable[[], None]],
    *,
    module: str,
    function: str,
    before: bool,
) -> None:
    doom = die(module, function, before=before)
    serve("null:1M", "memory:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.watch_namespaces()
        doom()
        with pytest.raises(UserError):
            _call(tmp_path / "s.ctl", api.NAMESPACE_REMOVE, nsid=2)
        assert [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]
        assert host.active_namespaces() == [1, 2]
        _call(tmp_path / "s.ctl", api.NAMESPACE_REMOVE, nsid=2)
        assert host.active_namespaces() == [1]


# -- what others did meanwhile ------------------------------------------------------------------


def test_an_image_that_has_gone_meanwhile_takes_only_its_namespace_along(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1M", tmp_path / "a", "--size", "1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.watch_namespaces()
        (tmp_path / "a").unlink()
        kill(daemon)
        assert [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]
        assert host.active_namespaces() == [1]
    assert f"{tmp_path}/a is not served any more" in daemon.stop().err


def test_an_image_that_others_have_enlarged_meanwhile_is_told_to_the_guest(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve(tmp_path / "a", "--size", "1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.watch_namespaces()
        pid = serving_pid(daemon)
        os.kill(pid, signal.SIGSTOP)
        os.truncate(tmp_path / "a", 2 * MIB)
        os.kill(pid, signal.SIGKILL)
        assert [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]
        assert host.identify_namespace(1).nsze == 2 * MIB // 512


def test_a_setting_that_waits_for_a_reset_waits_for_it_after_a_kill(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        _call(tmp_path / "s.ctl", api.CONTROLLER_SET, settings={"shadow_doorbell": False})
        assert host.identify_controller().oacs & Oacs.DBCS
        kill(daemon)
        assert host.identify_controller().oacs & Oacs.DBCS
        host.reset()
        assert not host.identify_controller().oacs & Oacs.DBCS


def test_a_control_client_that_comes_while_nobody_serves_is_answered(
    serve: Serve, tmp_path: Path
) -> None:
    daemon: Daemon = serve("null:1M", "--socket", tmp_path / "s")
    for _ in range(5):
        kill(daemon)
        assert sorted(_namespaces(tmp_path / "s.ctl")) == [1]
