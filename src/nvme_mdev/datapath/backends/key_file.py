"""The file that has a namespace's key, and another key in its place.

A key is changed in three steps, so that a process or machine that dies between any two of them
leaves a key behind, old or new, and a later process what it needs to finish:

1. the new key goes to ``.NAME.new`` and is durable there; the old file gets a second name,
   ``.NAME.old``; then the new one is renamed over ``NAME``;
2. the caller uses the new key;
3. the folder is made durable, and the old file is overwritten and removed.

Whoever opens the key file finishes step 3 if somebody died before it. What the file system or the
drive below keep of overwritten blocks (snapshots, copies on write, flash translation) is theirs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.datapath.cipher import Key

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_SIZE = 64
"""Bytes: the two keys of AES-256-XTS."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyFile:
    """A key file, locked while a namespace uses it: a change of the key is no other's business."""

    def __init__(self, path: str, *, shared: bool) -> None:
        """Open it; ``shared``: several namespaces that are only read may have one key.

        ValueError: it is no key file, in a sentence for people. OSError EBUSY, its name in it: a
        namespace has it.
        """
        # Where links lead: the file there is replaced, not the link.
        self.path = Path(path).resolve()
        self._fd = self._open(path, self.path)
        try:
            self._check(path)
            self._lock(self._fd, shared=shared)
            if not shared:
                self._finish_other(path)
        except BaseException:
            self.close()
            raise

    def _open(self, named: str, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ValueError(f"key-file={named} does not exist: {_how_to_make(named)}") from None
        except OSError as error:
            raise ValueError(
                f"key-file={named}: {(error.strerror or str(error)).lower()}: give a file that can"
                " be read"
            ) from error

    def _check(self, named: str) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != KEY_SIZE:
            what = f"has {status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "is no file"
            raise ValueError(
                f"key-file={named} {what}, and a key {KEY_SIZE} random ones: {_how_to_make(named)}"
            )
        if status.st_mode & _OTHERS:
            raise ValueError(f"key-file={named} is open to others: chmod 600 {named}")

    def _lock(self, fd: int, *, shared: bool) -> None:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "is another namespace's key", str(self.path)) from None

    def read(self) -> Key:
        """The key; ValueError: it is none, in a sentence for people."""
        try:
            return Key.read(self._fd)
        except ValueError as error:
            raise ValueError(
                f"key-file={self.path}: {error}: {_how_to_make(str(self.path))}"
            ) from None

    def replace(self, key: Key) -> None:
        """Put another key in its place: from here on it is the key that a later process finds.

        OSError: nothing has changed. `forget_old` has to follow.
        """
        with contextlib.suppress(FileNotFoundError):
            self._new.unlink()
        self._finish()
        fd = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._give_to_owner(fd)
            self._lock(fd, shared=False)
            key.write(fd)
            os.fsync(fd)
            os.link(self.path, self._old)
            self._new.rename(self.path)
        except BaseException:
            os.close(fd)
            self._new.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd = fd

    def forget_old(self) -> None:
        """Make the change durable and the old key unreadable; OSError: one of both may not be."""
        self._sync_folder()
        self._finish()

    def close(self) -> None:
        """Give it up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def _new(self) -> Path:
        return self.path.with_name(f".{self.path.name}.new")

    @property
    def _old(self) -> Path:
        return self.path.with_name(f".{self.path.name}.old")

    def _give_to_owner(self, fd: int) -> None:
        owner, made = os.fstat(self._fd), os.fstat(fd)
        if (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid):
            os.fchown(fd, owner.st_uid, owner.st_gid)

    def _finish_other(self, named: str) -> None:
        """What somebody has not finished who died."""
        try:
            self._finish()
        except OSError as error:
            raise ValueError(
                f"key-file={named}: the old key {self._old} cannot be erased:"
                f" {(error.strerror or str(error)).lower()}: remove it"
            ) from error

    def _finish(self) -> None:
        """Overwrite and remove an old key, if there is one."""
        try:
            old = self._old.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISREG(old.st_mode) or old.st_size != KEY_SIZE:
            raise OSError(errno.EEXIST, "it is none", str(self._old))
        if not os.path.samestat(old, os.fstat(self._fd)):
            with self._writable_old() as fd:
                os.pwrite(fd, bytes(KEY_SIZE), 0)
                os.fsync(fd)
        self._old.unlink()
        self._sync_folder()

    @contextlib.contextmanager
    def _writable_old(self) -> Iterator[int]:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with contextlib.ExitStack() as opened:
            readable = os.open(self._old, os.O_RDONLY | flags)
            opened.callback(os.close, readable)
            # Whoever made a key of mode 400 can still have it erased.
            os.fchmod(readable, 0o600)
            fd = os.open(self._old, os.O_WRONLY | flags)
            opened.callback(os.close, fd)
            yield fd

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _how_to_make(path: str) -> str:
    return f"make one with (umask 077; head -c {KEY_SIZE} /dev/urandom > {path})"
