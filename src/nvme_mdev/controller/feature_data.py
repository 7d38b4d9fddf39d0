"""Features whose values do not fit a dword: where they are in shared memory, their defaults.

Timestamp (Base 5.1.25.1.7), Host Behavior Support (5.1.25.1.14), Host Identifier (5.1.25.1.28).
"""

from __future__ import annotations

import ctypes
import enum
import time
from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_features import (
    TIMESTAMP_ORIGIN_SET,
    TIMESTAMP_ORIGIN_SHIFT,
    HostBehaviorSupport,
    Timestamp,
)

if TYPE_CHECKING:
    from nvme_mdev.datapath.state import ControllerState

HOST_IDENTIFIER_SIZE = 16
"""Bytes of the extended host identifier; the short one is the first half."""

_TIMESTAMP_MASK = (1 << 48) - 1
_WORD = 8


class _Place(enum.IntEnum):
    """Byte of the state's ``feature_data`` area."""

    TIMESTAMP = 0
    """Milliseconds since 1970 that were set, or 0; 64 bits."""
    TIMESTAMP_SET_AT = 8
    """When, in milliseconds of the monotonic clock, which all processes share; 64 bits."""
    TIMESTAMP_ORIGIN = 16
    HOST_IDENTIFIER = 64
    HOST_IDENTIFIER_LONG = 80
    """1: it has 128 bits."""
    HOST_BEHAVIOR = 512


class FeatureData:
    """A view on these features in a controller's state."""

    def __init__(self, state: ControllerState) -> None:
        self._data = state.feature_data

    def reset(self) -> None:
        """Controller Level Reset: nothing of it is saved, and the clock begins at 0."""
        self._set_clock(0, 0)
        self.set_host_identifier(b"")
        self.host_behavior = bytes(ctypes.sizeof(HostBehaviorSupport))

    # -- timestamp ---------------------------------------------------------------------------

    @property
    def timestamp(self) -> Timestamp:
        """The timestamp as of now."""
        elapsed = _monotonic_ms() - self._word(_Place.TIMESTAMP_SET_AT)
        value = (self._word(_Place.TIMESTAMP) + elapsed) & _TIMESTAMP_MASK
        data = Timestamp(
            attributes=self._data[_Place.TIMESTAMP_ORIGIN] << TIMESTAMP_ORIGIN_SHIFT,
        )
        data.timestamp[:] = list(value.to_bytes(6, "little"))
        return data

    def set_timestamp(self, milliseconds: int) -> None:
        """Milliseconds since 1970, modulo 2**48."""
        self._set_clock(milliseconds, TIMESTAMP_ORIGIN_SET)

    def _set_clock(self, milliseconds: int, origin: int) -> None:
        self._set_word(_Place.TIMESTAMP, milliseconds)
        self._set_word(_Place.TIMESTAMP_SET_AT, _monotonic_ms())
        self._data[_Place.TIMESTAMP_ORIGIN] = origin

    # -- host --------------------------------------------------------------------------------

    @property
    def host_identifier(self) -> bytes:
        """16 bytes; all 0: the host has told none. One of 64 bits has 8 zero bytes behind it."""
        return self._bytes(_Place.HOST_IDENTIFIER, HOST_IDENTIFIER_SIZE)

    @property
    def host_identifier_is_long(self) -> bool:
        """Whether it has 128 bits."""
        return bool(self._data[_Place.HOST_IDENTIFIER_LONG])

    def set_host_identifier(self, identifier: bytes) -> None:
        """8 or 16 bytes, or none."""
        self._set_bytes(_Place.HOST_IDENTIFIER, identifier.ljust(HOST_IDENTIFIER_SIZE, b"\0"))
        self._data[_Place.HOST_IDENTIFIER_LONG] = len(identifier) == HOST_IDENTIFIER_SIZE

    @property
    def host_behavior(self) -> bytes:
        """A :class:`HostBehaviorSupport`, as its bytes."""
        return self._bytes(_Place.HOST_BEHAVIOR, ctypes.sizeof(HostBehaviorSupport))

    @host_behavior.setter
    def host_behavior(self, data: bytes) -> None:
        self._set_bytes(_Place.HOST_BEHAVIOR, data)

    # -- in shared memory --------------------------------------------------------------------

    def _word(self, place: int) -> int:
        return int.from_bytes(self._data[place : place + _WORD], "little")

    def _set_word(self, place: int, value: int) -> None:
        self._data[place : place + _WORD] = value.to_bytes(_WORD, "little")

    def _bytes(self, place: int, size: int) -> bytes:
        return bytes(self._data[place : place + size])

    def _set_bytes(self, place: int, data: bytes) -> None:
        self._data[place : place + len(data)] = data


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
