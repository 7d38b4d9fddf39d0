"""How DMA_READ and DMA_WRITE are laid out: as the specification says, or as QEMU before 11 does it.

QEMU's client came with a count of 32 bits (``VFIOUserDMARW`` in its hw/vfio-user/protocol.h; seen
with 10.1 and 10.2). The data is where the upper half of the count would be, and the message ends
with four bytes of padding. Such a client is told by its reply to a DMA_WRITE of no bytes, which is
a header alone; the specification's repeats address and count.
"""

from __future__ import annotations

import errno
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from . import framing, messages

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE: Final = messages.DmaWrite(0, b"").pack()
"""A DMA_WRITE of no bytes; the same in both."""

_NARROW = struct.Struct("<QI")  # address, count
_PADDING = bytes(4)


class DmaLayout(Protocol):
    """Bodies of messages. A reply that is not to what was asked is an OSError, EPROTO."""

    def read(self, address: int, size: int) -> bytes:
        """DMA_READ's request."""

    def data(self, reply: bytes, address: int, size: int) -> bytes:
        """What its reply brings."""

    def write(self, address: int, data: bytes) -> bytes:
        """DMA_WRITE's request."""

    def check_written(self, reply: bytes, address: int, size: int) -> None:
        """Whether its reply is one."""


class _Specified:
    def read(self, address: int, size: int) -> bytes:
        return messages.DmaAccess(address, size).pack()

    def data(self, reply: bytes, address: int, size: int) -> bytes:
        with _malformed():
            answer = messages.DmaWrite.unpack(reply)
        if (answer.address, len(answer.data)) != (address, size):
            raise OSError(errno.EPROTO, f"{len(answer.data)} bytes of {answer.address:#x} instead")
        return answer.data

    def write(self, address: int, data: bytes) -> bytes:
        return messages.DmaWrite(address, data).pack()

    def check_written(self, reply: bytes, address: int, size: int) -> None:
        with _malformed():
            answer = messages.DmaAccess.unpack(reply)
        if (answer.address, answer.count) != (address, size):
            raise OSError(errno.EPROTO, f"{answer.count} bytes written at {answer.address:#x}")


class _Narrow:
    def read(self, address: int, size: int) -> bytes:
        return _NARROW.pack(address, size) + _PADDING

    def data(self, reply: bytes, address: int, size: int) -> bytes:
        if len(reply) != _NARROW.size + size + len(_PADDING):
            raise OSError(errno.EPROTO, f"a reply of {len(reply)} bytes to a read of {size}")
        if _NARROW.unpack_from(reply) != (address, size):
            raise OSError(errno.EPROTO, "a reply to another read")
        return reply[_NARROW.size : _NARROW.size + size]

    def write(self, address: int, data: bytes) -> bytes:
        return _NARROW.pack(address, len(data)) + data + _PADDING

    def check_written(self, reply: bytes, address: int, size: int) -> None:
        if reply:
            raise OSError(errno.EPROTO, f"{len(reply)} bytes about {size} written at {address:#x}")


SPECIFIED: Final[DmaLayout] = _Specified()
NARROW: Final[DmaLayout] = _Narrow()


def told_by(reply: bytes) -> DmaLayout:
    """The layout of a client that has answered to `PROBE` with this body."""
    return SPECIFIED if reply else NARROW


@contextmanager
def _malformed() -> Iterator[None]:
    """A reply that makes no sense is the end of the access, not of the session."""
    try:
        yield
    except framing.RemoteProtocolError as error:
        raise OSError(errno.EPROTO, str(error)) from error
