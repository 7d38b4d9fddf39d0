"""Commands between the moment that a relay has pulled them and the one that they are answered."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvme_mdev.service.relay.files import COMMANDS, PulledCommand
from nvme_mdev.service.relay.transfers import Transfer
from nvme_mdev.spec.nvme_commands import SQE

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.service.relay.files import RelayFiles
    from nvme_mdev.service.relay.shadow import Shadow

MOST_BYTES = 64 << 20
"""Data of I/O commands on their way at most, unless a single one has more."""
_ADMIN_SHARE = 64
"""Commands that only the admin queue may have."""


@dataclass(eq=False)
class RelayedCommand:
    """A command on its way."""

    number: int
    """Its place in the files, and the bytes that it was counted with."""
    sqid: int
    raw: bytes
    length: int
    transfer: Transfer = field(default_factory=Transfer)
    pages: list[int] = field(default_factory=list)
    """Pages of the shadow that it uses."""
    adopted: bool = False
    """A process before us has pulled it, and perhaps not given it to its queue."""

    @property
    def sqe(self) -> SQE:
        """The command, taken apart."""
        return SQE.from_buffer_copy(self.raw)

    @property
    def admin(self) -> bool:
        """It came on the admin queue."""
        return self.sqid == 0

    @property
    def key(self) -> tuple[int, int]:
        """SQ and CID: what its completion says of it."""
        return self.sqid, int.from_bytes(self.raw[2:4], "little")


class RelayedCommands:
    """All of one controller's."""

    def __init__(self, files: RelayFiles, shadow: Shadow) -> None:
        self._files = files
        self._shadow = shadow
        self._by_key: dict[tuple[int, int], deque[RelayedCommand]] = {}
        self._free = list(range(COMMANDS - 1, -1, -1))
        self._bytes = 0
        self._changed = asyncio.Event()

    def adopt(self, length_of: Callable[[SQE, bool], int]) -> list[RelayedCommand]:
        """Those of a process before us."""
        adopted = []
        for noted in self._files.commands():
            sqe = SQE.from_buffer_copy(noted.sqe)
            command = RelayedCommand(
                noted.number, noted.sqid, noted.sqe, length_of(sqe, noted.sqid == 0), adopted=True
            )
            self._free.remove(noted.number)
            self._bytes += 0 if command.admin else command.length
            self._by_key.setdefault(command.key, deque()).append(command)
            adopted.append(command)
        return adopted

    def fits(self, sqid: int, length: int) -> bool:
        """Whether there is room for one more."""
        if sqid == 0:
            return bool(self._free)
        return len(self._free) > _ADMIN_SHARE and (
            self._bytes == 0 or self._bytes + length <= MOST_BYTES
        )

    async def room(self, sqid: int, length: int) -> None:
        """Wait until there is."""
        while not self.fits(sqid, length):
            self._changed.clear()
            await self._changed.wait()

    def add(self, sqid: int, raw: bytes, length: int) -> RelayedCommand:
        """One more, for which there is room. It is written down by :meth:`note`."""
        command = RelayedCommand(self._free.pop(), sqid, raw, length)
        self._bytes += 0 if command.admin else length
        return command

    def note(self, command: RelayedCommand) -> None:
        """It is given to its queue: the next process has to know of it."""
        for other in list(self._by_key.get(command.key, ())):
            if other.adopted:
                self.drop(other)  # this one, as it was before the death
        self._files.note(PulledCommand(command.number, command.sqid, command.raw))
        self._by_key.setdefault(command.key, deque()).append(command)

    def find(self, sqid: int, cid: int) -> RelayedCommand | None:
        """The oldest of this identifier."""
        found = self._by_key.get((sqid, cid))
        return found[0] if found else None

    def drop(self, command: RelayedCommand) -> None:
        """It is answered, or never will be."""
        queue = self._by_key.get(command.key)
        if queue is not None and command in queue:
            queue.remove(command)
            if not queue:
                del self._by_key[command.key]
        self._files.forget(command.number)
        self._free.append(command.number)
        self._bytes -= 0 if command.admin else command.length
        self._shadow.release(command.pages)
        command.pages = []
        self._changed.set()

    def of(self, sqid: int) -> list[RelayedCommand]:
        """Those of an SQ."""
        return [c for queue in self._by_key.values() for c in queue if c.sqid == sqid]
