"""Finding controllers by name: links to sockets, and what dead daemons leave."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service import runtime

Listen = Callable[[str], Path]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    sockets: list[socket.socket] = []

    def start(name: str) -> Path:
        path = tmp_path / name
        listener = socket.socket(socket.AF_UNIX)
        sockets.append(listener)
        listener.bind(os.fspath(path))
        listener.listen()
        return path

    yield start
    for one in sockets:
        one.close()


def dead(tmp_path: Path) -> Path:
    path = tmp_path / "dead.ctl"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
    return path


def test_a_published_controller_is_found_and_removed(directory: Path, listen: Listen) -> None:
    control = listen("vm1.sock.ctl")
    entry = runtime.publish("vm1", control, exact=True)
    assert entry is not None
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [one.name for one in runtime.entries()] == ["vm1"]
    assert runtime.find("vm1") == (directory / "vm1", "vm1")
    entry.remove()
    assert runtime.entries() == []
    with pytest.raises(UserError, match="no controller is named vm1: none is served"):
        runtime.find("vm1")


def test_a_name_that_is_taken_is_refused_or_numbered(directory: Path, listen: Listen) -> None:
    runtime.publish("vm", listen("a"), exact=True)
    with pytest.raises(UserError, match="named vm is being served"):
        runtime.publish("vm", listen("b"), exact=True)
    second = runtime.publish("vm", listen("c"), exact=False)
    assert second is not None
    assert second.name == "vm-2"


def test_what_a_dead_daemon_left_is_removed_by_who_lists(
    directory: Path, tmp_path: Path, listen: Listen
) -> None:
    directory.mkdir()
    for target in (dead(tmp_path), tmp_path / "nothing"):
        (directory / target.name).symlink_to(target)
    (directory / "alive").symlink_to(listen("alive"))
    assert [entry.name for entry in runtime.entries()] == ["alive"]
    assert [path.name for path in directory.iterdir()] == ["alive"]


def test_the_name_of_a_dead_daemon_can_be_had(
    directory: Path, tmp_path: Path, listen: Listen
) -> None:
    directory.mkdir()
    (directory / "vm").symlink_to(dead(tmp_path))
    entry = runtime.publish("vm", listen("new"), exact=True)
    assert entry is not None
    assert entry.link.readlink() == tmp_path / "new"


def test_another_daemons_link_is_not_removed(directory: Path, listen: Listen) -> None:
    entry = runtime.publish("vm", listen("a"), exact=True)
    assert entry is not None
    entry.link.unlink()
    entry.link.symlink_to(listen("b"))
    entry.remove()
    assert entry.link.is_symlink()


def test_a_path_is_that_of_the_control_socket_or_of_the_socket_beside_it(
    tmp_path: Path, listen: Listen
) -> None:
    listen("vm.sock.ctl")
    listen("cntrl.ctl")
    control = tmp_path / "vm.sock.ctl"
    assert runtime.find(f"{tmp_path}/vm.sock") == (control, f"{tmp_path}/vm.sock")
    assert runtime.find(f"{tmp_path}/vm.sock.ctl") == (control, None)
    assert runtime.find(f"{tmp_path}/") == (tmp_path / "cntrl.ctl", f"{tmp_path}/cntrl")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/vm1.sock", "vm1"),
        ("/a/vm 1.sock", "vm_1"),
        ("/a/web/cntrl", "web"),
        ("/a/-x", "x"),
        ("/a/...", "controller"),
        ("/" + "n" * 90, "n" * 60),
    ],
)
def test_the_name_comes_from_the_socket_or_its_directory(path: str, name: str) -> None:
    assert runtime.default_name(Path(path)) == name
    assert runtime.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "ü", "n" * 65, "a\n"])
def test_a_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a controller's name"):
        runtime.check_name(name)


def test_root_and_users_have_their_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NVME_MDEV_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime.runtime_directory() == Path("/run/nvme-mdev")
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime.runtime_directory() == tmp_path / "nvme-mdev"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime.runtime_directory() is None
