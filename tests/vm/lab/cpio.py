"""Writes an initramfs: the "newc" cpio format of the kernel's driver-api/early-userspace page."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


@dataclass
class Archive:
    """An initramfs in the making; entries are kept in the order in which they are added."""

    _data: bytearray = field(default_factory=bytearray)
    _entries: int = 0

    def directory(self, name: str) -> None:
        self._append(name, stat.S_IFDIR | 0o755, b"")

    def symlink(self, name: str, target: str) -> None:
        self._append(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        self._append(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def write(self, path: Path) -> None:
        """Finish the archive and write it to `path`."""
        self._append(TRAILER, 0, b"")
        path.write_bytes(self._data)

    def _append(self, name: str, mode: int, content: bytes) -> None:
        self._entries += 1
        encoded = name.lstrip("/").encode() + b"\0"
        # inode, mode, uid, gid, nlink, mtime, size, device and rdevice numbers, name size, checksum
        numbers = (self._entries, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += MAGIC + b"".join(b"%08X" % number for number in numbers) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
