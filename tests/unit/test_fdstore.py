"""The FD store's protocol, as systemd would hear it, and what is given back."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.service import fdstore
from nvme_mdev.service.kept_fds import KeptFds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(path))

    def heard(self) -> list[tuple[list[str], bool]]:
        """What was said since: the lines, and whether a file descriptor came with them."""
        said = []
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return said
            for _, _, content in ancillary:
                os.close(array.array("i", content)[0])
            said.append((data.decode().split("\n"), bool(ancillary)))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    manager = Systemd(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def store(systemd: Systemd) -> Iterator[fdstore.FdStore]:
    store = fdstore.FdStore(os.fspath(systemd.path))
    yield store
    store.close()


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("file")
    yield fd
    os.close(fd)


def test_storing_removing_and_ready_are_said_as_sd_notify_says_them(
    systemd: Systemd, store: fdstore.FdStore, file: int
) -> None:
    store.store("state", file)
    store.remove("state")
    store.ready("ready on x")
    assert systemd.heard() == [
        (["FDSTORE=1", "FDPOLL=0", "FDNAME=state"], True),
        (["FDSTOREREMOVE=1", "FDNAME=state"], False),
        (["READY=1", "STATUS=ready on x"], False),
    ]


def test_without_a_notify_socket_nothing_is_kept(file: int) -> None:
    store = fdstore.FdStore(None)
    assert not store.keeps
    store.store("state", file)
    store.remove("state")
    store.ready("ready")
    store.close()


def test_what_is_given_back_has_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "state:fd.1")
    monkeypatch.setattr(fdstore.os, "set_inheritable", lambda fd, inheritable: None)
    assert fdstore.inherited() == {"state": 3, "fd.1": 4}
    assert "LISTEN_FDS" not in os.environ


def test_what_is_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert fdstore.inherited() == {}


# -- the client's files -------------------------------------------------------------------------


def _names(systemd: Systemd) -> list[str]:
    """`+name` for what was stored, `-name` for what was removed."""
    return [
        ("+" if fd else "-") + lines[-1].removeprefix("FDNAME=") for lines, fd in systemd.heard()
    ]


def test_a_file_is_stored_once_however_often_it_comes(
    systemd: Systemd, store: fdstore.FdStore, file: int
) -> None:
    files = KeptFds(store, {})
    again = os.dup(file)
    other = os.eventfd(0)
    assert [files.keep(fd) for fd in (file, again, other, file)] == [1, 1, 2, 1]
    assert _names(systemd) == ["+fd.1", "+fd.2"]
    for number in (1, 1):
        files.drop(number)
    assert _names(systemd) == []
    files.drop(1)
    files.drop(2)
    assert _names(systemd) == ["-fd.1", "-fd.2"]
    files.close()
    os.close(again)
    os.close(other)


def test_after_a_restart_files_keep_their_numbers_and_the_unused_go(
    systemd: Systemd, store: fdstore.FdStore, file: int
) -> None:
    unused = os.eventfd(0)
    files = KeptFds(store, {"state": 99, "fd.7": os.dup(file), "fd.9": unused})
    files.claim(7)
    files.give_up_unclaimed()
    assert _names(systemd) == ["-fd.9"]
    assert files.keep(file) == 7
    assert os.fstat(files[7]).st_ino == os.fstat(file).st_ino
    new = os.eventfd(0)
    assert files.keep(new) == 10
    os.close(new)
    with pytest.raises(KeyError):
        files.claim(9)
    files.close()
