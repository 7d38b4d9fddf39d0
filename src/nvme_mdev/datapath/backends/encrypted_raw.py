"""The bytes under an encrypted namespace, for maintenance: what it writes the guest reads."""

from __future__ import annotations

from nvme_mdev.datapath.backends.raw import RawMedium
from nvme_mdev.datapath.cipher import Cipher, Key

_SECTOR_SHIFT = 9


class EncryptedRawMedium(RawMedium):
    """As `RawMedium`; the key is that of the moment when it was made."""

    def __init__(self, key: Key, fd: int, start: int = 0, direct_fd: int | None = None) -> None:
        """The namespace begins at ``start``; the tweaks are counted from there."""
        super().__init__(fd, start, direct_fd)
        self._cipher = Cipher(key)

    def write(self, offset: int, data: bytes) -> None:
        """Write at most `CHUNK` bytes, of whole sectors."""
        super().write(offset, self._cipher.encrypt(offset >> _SECTOR_SHIFT, data))

    def deallocate(self, offset: int, length: int) -> bool:  # noqa: ARG002
        """It would not read as zeroes."""
        return False
