"""What of a relay outlives the process: where each queue stands, what is on its way, the shadow.

Two memfds, made when a relay is first needed. In the first are, a part each: the header; the
doorbells that the queues follow; by CQ, how far completions were pushed; by gigabyte of the shadow,
which one of the guest's it is; the commands that were pulled and not answered.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RELAY = "relay"
SHADOW = "shadow"
"""Names that the descriptors are kept by."""

GRANULE_SHIFT = 30
GRANULES = 8192
"""The guest's memory is mirrored in pieces of 1 GiB, of which there can be so many."""
COMMANDS = 1024
"""Commands that were pulled and not answered at most."""
DOORBELL_PAGE = 4096

FORMAT = 0x3130_594C_4552_4D4E  # "NMRELY01"
_HEADER = struct.Struct("<QI")
_POLLS_AT = 8
_DOORBELLS = 4096
_PUSHED = 8192
_GRANULES = 12288
_COMMANDS = _GRANULES + 8 * GRANULES
_COMMAND_SIZE = 128
_SIZE = _COMMANDS + COMMANDS * _COMMAND_SIZE
#: 1: in use; SQ; then its SQE.
_COMMAND = struct.Struct("<IH10x64s")
_STATE = struct.Struct("<I")
_WORD = struct.Struct("<I")
_GRANULE = struct.Struct("<Q")

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Keeper(Protocol):
    """Who keeps descriptors for the next process."""

    @property
    def inherited(self) -> Mapping[str, int]:
        """Those of the process before us, by name."""

    def store(self, name: str, fd: int) -> None:
        """Keep one."""

    def remove(self, name: str) -> None:
        """Give it up."""


class PulledCommand(NamedTuple):
    """A command on its way, as it is written down."""

    number: int
    sqid: int
    sqe: bytes


class RelayFiles:
    """The two memfds of one controller's relay."""

    def __init__(self, keeper: Keeper | None, *, adopt: bool = False) -> None:
        """Make them, and have them kept, or adopt those of a process before us.

        ValueError: they are of another version of nvme-mdev.
        """
        if adopt and keeper is not None:
            self._fd, self.shadow_fd = keeper.inherited[RELAY], keeper.inherited[SHADOW]
        else:
            adopt = False
            self._fd = os.memfd_create("nvme-mdev-relay")
            self.shadow_fd = os.memfd_create("nvme-mdev-shadow")
            os.ftruncate(self._fd, _SIZE)
            os.ftruncate(self.shadow_fd, GRANULES << GRANULE_SHIFT)
        if os.fstat(self._fd).st_size != _SIZE:
            raise ValueError("the relay's memory is of another version of nvme-mdev")
        self._keeper = keeper
        self._map = mmap.mmap(self._fd, _SIZE)
        self._view = memoryview(self._map)
        self.doorbells = self._view[_DOORBELLS : _DOORBELLS + DOORBELL_PAGE].cast("I")
        """The doorbells that the queues follow."""
        if not adopt:
            _HEADER.pack_into(self._map, 0, FORMAT, 0)
            if keeper is not None:
                # The shadow first: without the other one it is as if there was none.
                keeper.store(SHADOW, self.shadow_fd)
                keeper.store(RELAY, self._fd)
        elif _HEADER.unpack_from(self._map)[0] != FORMAT:
            raise ValueError("the relay's memory is of another version of nvme-mdev")

    def close(self) -> None:
        """Close them; the next process has no use for them."""
        if self._keeper is not None:
            self._keeper.remove(RELAY)
            self._keeper.remove(SHADOW)
        self.doorbells.release()
        self._view.release()
        self._map.close()
        os.close(self._fd)
        os.close(self.shadow_fd)

    @property
    def polls(self) -> bool:
        """Whether the client may ring in memory that it has mapped."""
        return bool(_WORD.unpack_from(self._map, _POLLS_AT)[0])

    @polls.setter
    def polls(self, value: bool) -> None:
        _WORD.pack_into(self._map, _POLLS_AT, value)

    def pushed(self, cqid: int) -> int:
        """The index of the next completion to be pushed."""
        return int(_WORD.unpack_from(self._map, _PUSHED + cqid * _WORD.size)[0])

    def set_pushed(self, cqid: int, index: int) -> None:
        """Write it down: those before it are with the guest."""
        _WORD.pack_into(self._map, _PUSHED + cqid * _WORD.size, index)

    # -- the shadow's pieces -----------------------------------------------------------------

    def granules(self) -> Iterator[tuple[int, int]]:
        """(which GiB of the guest's, which of the shadow) of each that is in use."""
        for number in range(GRANULES):
            (value,) = _GRANULE.unpack_from(self._map, _GRANULES + number * _GRANULE.size)
            if value:
                yield value - 1, number

    def set_granule(self, number: int, guest: int) -> None:
        """A GiB of the shadow is that of the guest's from now on."""
        _GRANULE.pack_into(self._map, _GRANULES + number * _GRANULE.size, guest + 1)

    def punch(self, offset: int, size: int) -> None:
        """Give memory of the shadow back to the system; it reads as zeroes."""
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        _libc.fallocate(self.shadow_fd, mode, ctypes.c_long(offset), ctypes.c_long(size))

    # -- commands ----------------------------------------------------------------------------

    def note(self, command: PulledCommand) -> None:
        """Write a command down."""
        at = _COMMANDS + command.number * _COMMAND_SIZE
        _COMMAND.pack_into(self._map, at, 0, command.sqid, command.sqe)
        _STATE.pack_into(self._map, at, 1)

    def forget(self, number: int) -> None:
        """It is answered, or its queue is gone."""
        _STATE.pack_into(self._map, _COMMANDS + number * _COMMAND_SIZE, 0)

    def commands(self) -> Iterator[PulledCommand]:
        """Those that are written down."""
        for number in range(COMMANDS):
            at = _COMMANDS + number * _COMMAND_SIZE
            state, sqid, sqe = _COMMAND.unpack_from(self._map, at)
            if state:
                yield PulledCommand(number, sqid, sqe)
