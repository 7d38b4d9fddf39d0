"""Keys, and AES-256-XTS by somebody else than the data path: the package `cryptography`."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from nvme_mdev.datapath.backends.encrypted import EncryptedBackend
from nvme_mdev.datapath.backends.raw import CHUNK

SECTOR = 512


def make_key(path: Path, key: bytes | None = None) -> Path:
    """A key file that others cannot read."""
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(key or os.urandom(64))
    return path


def _sectors(data: bytes, first: int, key: bytes, *, encrypt: bool) -> bytes:
    out = []
    for at in range(0, len(data), SECTOR):
        tweak = (first + at // SECTOR).to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak))
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        out.append(context.update(data[at : at + SECTOR]) + context.finalize())
    return b"".join(out)


def encrypted(data: bytes, first: int, key: bytes) -> bytes:
    """Whole sectors, the first of which has this number, as ``aes-xts-plain64`` has them."""
    return _sectors(data, first, key, encrypt=True)


def decrypted(data: bytes, first: int, key: bytes) -> bytes:
    """The other way round."""
    return _sectors(data, first, key, encrypt=False)


def blank(image: str, **options: int) -> EncryptedBackend:
    """A namespace of an image that is there; it has a key beside it, and reads as zeroes."""
    path = Path(image)
    backend = EncryptedBackend(image, str(make_key(path.with_suffix(".key"))), **options)
    raw = backend.raw()
    for offset in range(0, backend.size, CHUNK):
        raw.write(offset, bytes(min(CHUNK, backend.size - offset)))
    return backend
