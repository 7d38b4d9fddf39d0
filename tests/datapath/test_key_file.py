"""Key files: what is one, who may have it, and that a change of the key never loses both keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends import key_file
from nvme_mdev.datapath.backends.key_file import KeyFile
from nvme_mdev.datapath.cipher import Key
from tests.encryption import make_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TAKEN = "is another namespace's key"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_key(tmp_path / "disk.key")


@pytest.fixture
def opened(path: Path) -> Iterator[KeyFile]:
    made = KeyFile(str(path), shared=False)
    yield made
    made.close()


def value(key: Key) -> bytes:
    fd = os.memfd_create("key")
    try:
        key.write(fd)
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def names(path: Path) -> set[str]:
    return {one.name for one in path.parent.iterdir()}


# -- what is one ----------------------------------------------------------------------------


def test_it_is_read(path: Path, opened: KeyFile) -> None:
    assert value(opened.read()) == path.read_bytes()


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128])
def test_a_file_of_another_size_is_none(path: Path, size: int) -> None:
    path.write_bytes(os.urandom(size))
    with pytest.raises(ValueError, match=rf"has {size} bytes, and a key 64 random ones: make one"):
        KeyFile(str(path), shared=False)


def test_nothing_there_is_none_and_how_to_make_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    with pytest.raises(ValueError, match="does not exist: make one with") as caught:
        KeyFile(str(path), shared=False)
    command = str(caught.value).partition("make one with ")[2]
    assert os.waitstatus_to_exitcode(os.system(command)) == 0
    KeyFile(str(path), shared=False).close()


def test_what_is_no_file_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no file"):
            KeyFile(str(other), shared=False)


def test_two_equal_halves_are_none(path: Path) -> None:
    path.write_bytes(os.urandom(32) * 2)
    opened = KeyFile(str(path), shared=False)
    with pytest.raises(ValueError, match="its two halves are the same: make one with"):
        opened.read()
    opened.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"is open to others: chmod 600 {path}"):
        KeyFile(str(path), shared=False)


# -- who may have it ------------------------------------------------------------------------


def test_a_key_is_one_namespaces(path: Path, opened: KeyFile, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    for other in (path, tmp_path / "link"):
        with pytest.raises(OSError, match=TAKEN) as caught:
            KeyFile(str(other), shared=False)
        assert caught.value.filename == str(path)


def test_namespaces_that_are_only_read_share_one(path: Path) -> None:
    one, other = (KeyFile(str(path), shared=True) for _ in range(2))
    with pytest.raises(OSError, match=TAKEN):
        KeyFile(str(path), shared=False)
    one.close()
    other.close()
    KeyFile(str(path), shared=False).close()


# -- another key ----------------------------------------------------------------------------


def test_another_key_takes_its_place(path: Path, opened: KeyFile) -> None:
    old = path.read_bytes()
    os.link(path, path.with_name("backup"))
    key = Key.random()
    opened.replace(key)
    assert path.read_bytes() == value(key) != old
    opened.forget_old()
    assert path.with_name("backup").read_bytes() == bytes(64), "the old file is overwritten"
    assert names(path) == {"disk.key", "backup"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert value(opened.read()) == value(key)
    with pytest.raises(OSError, match=TAKEN):
        KeyFile(str(path), shared=False)


def test_through_a_link_the_file_is_replaced(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("disk.key")
    opened = KeyFile(str(link), shared=False)
    key = Key.random()
    opened.replace(key)
    opened.forget_old()
    opened.close()
    assert link.is_symlink()
    assert path.read_bytes() == value(key)


def test_a_key_that_may_only_be_read_is_replaced(path: Path) -> None:
    path.chmod(0o400)
    opened = KeyFile(str(path), shared=False)
    opened.replace(Key.random())
    opened.forget_old()
    opened.close()
    assert names(path) == {"disk.key"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_the_owner_stays(path: Path) -> None:
    os.chown(path, 1234, 1235)
    opened = KeyFile(str(path), shared=False)
    opened.replace(Key.random())
    opened.forget_old()
    opened.close()
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


def test_what_is_no_key_of_ours_is_not_overwritten(path: Path) -> None:
    old = path.with_name(".disk.key.old")
    old.write_text("somebody's notes")
    with pytest.raises(ValueError, match=f"the old key {old} cannot be erased: it is none: remove"):
        KeyFile(str(path), shared=False)
    assert old.read_text() == "somebody's notes"
    old.unlink()
    opened = KeyFile(str(path), shared=False)
    old.write_text("somebody's notes")
    key = path.read_bytes()
    with pytest.raises(OSError, match="it is none"):
        opened.replace(Key.random())
    opened.close()
    assert path.read_bytes() == key
    assert old.read_text() == "somebody's notes"


class DiedError(Exception):
    """The process, just before a step."""


STEPS = ("open", "fsync", "link", "rename", "pwrite", "unlink")


@pytest.mark.parametrize("number", range(20))
def test_whoever_dies_at_any_step_leaves_a_key_and_the_next_finishes(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old = path.read_bytes()
    os.link(path, path.with_name("backup"))
    opened = KeyFile(str(path), shared=False)
    key = Key.random()
    steps = 0

    def counted(step):
        def call(*args, **options):
            nonlocal steps
            steps += 1
            if steps > number:
                raise DiedError
            return step(*args, **options)

        return call

    with monkeypatch.context() as patched:
        for name in STEPS:
            patched.setattr(key_file.os, name, counted(getattr(os, name)))
        try:
            opened.replace(key)
            opened.forget_old()
        except DiedError:
            pass
        else:
            assert number > 10
    opened.close()
    found = path.read_bytes()
    assert found in (old, value(key))
    again = KeyFile(str(path), shared=False)
    assert value(again.read()) == found
    assert path.with_name("backup").read_bytes() == (old if found == old else bytes(64))
    third = Key.random()
    again.replace(third)
    again.forget_old()
    again.close()
    assert path.read_bytes() == value(third)
    assert path.with_name("backup").read_bytes() == bytes(64)
    assert names(path) == {"disk.key", "backup"}


def test_a_key_that_cannot_be_replaced_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = path.read_bytes()
    opened = KeyFile(str(path), shared=False)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(key_file.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            opened.replace(Key.random())
    assert path.read_bytes() == old
    assert value(opened.read()) == old
    opened.close()
    KeyFile(str(path), shared=False).close()
    assert names(path) == {"disk.key"}
