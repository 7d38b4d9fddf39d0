"""Moves one command's data between the guest and the shadow."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from nvme_mdev.service.relay.transfers import Transfer, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from nvme_mdev.datapath.memory import GuestMemory
    from nvme_mdev.service.relay.commands import RelayedCommand
    from nvme_mdev.service.relay.guest import Guest
    from nvme_mdev.service.relay.shadow import Shadow
    from nvme_mdev.service.relay.transfers import Fetch


class Mover:
    """Of one controller, while its page size and memory are what they are."""

    def __init__(
        self, guest: Guest, shadow: Shadow, memory: GuestMemory, page_size: int, limit: int
    ) -> None:
        """``memory``: the shadow's windows, which are the guest's; ``limit``: MDTS in bytes."""
        self._guest = guest
        self._shadow = shadow
        self._memory = memory
        self._page_size = page_size
        self._limit = limit

    async def pull(self, command: RelayedCommand) -> None:
        """Bring what a command reads, its lists first; the data path finds it in the shadow.

        What is not guest memory is left out: the data path refuses it. OSError: guest memory that
        cannot be read.
        """

        async def fetch(iova: int, size: int) -> bytes:
            command.pages += self._shadow_pages(iova, size)
            data = await self._guest.read(iova, size)
            self._shadow.write(iova, data)
            return data

        command.transfer = await self._describe(command, fetch)
        transfer = command.transfer
        command.pages += self._shadow.hold(transfer.ranges)
        if transfer.pulls:
            await together([self._pull(iova, size) for iova, size in transfer.ranges])

    async def recall(self, command: RelayedCommand) -> None:
        """As :meth:`pull`, of a command that a process before us has pulled: it is all there."""

        async def fetch(iova: int, size: int) -> bytes:
            command.pages += self._shadow_pages(iova, size)
            return self._shadow.read(iova, size)

        command.transfer = await self._describe(command, fetch)
        command.pages += self._shadow.hold(command.transfer.ranges)

    async def push(self, transfer: Transfer) -> None:
        """Bring a command's data to the guest; OSError: it cannot be written there."""
        if transfer.pushes:
            move = self._push if transfer.exact else self._push_changes
            await together([move(iova, size) for iova, size in transfer.ranges])

    def _shadow_pages(self, iova: int, size: int) -> list[int]:
        if not self._memory.covers(iova, size, writable=False):
            raise OSError(errno.EFAULT, f"{size} bytes at {iova:#x} are not guest memory")
        return self._shadow.hold([(iova, size)])

    async def _describe(self, command: RelayedCommand, fetch: Fetch) -> Transfer:
        try:
            transfer = await describe(
                command.sqe,
                command.length,
                admin=command.admin,
                page_size=self._page_size,
                limit=self._limit,
                fetch=fetch,
            )
        except OSError as error:
            if error.errno == errno.EFAULT:
                return Transfer()
            raise
        transfer.ranges = _joined(
            [
                (iova, size)
                for iova, size in transfer.ranges
                if size and self._memory.covers(iova, size, writable=transfer.pushes)
            ]
        )
        return transfer

    async def _pull(self, iova: int, size: int) -> None:
        self._shadow.write(iova, await self._guest.read(iova, size))

    async def _push(self, iova: int, size: int) -> None:
        await self._guest.write(iova, self._shadow.read(iova, size))

    async def _push_changes(self, iova: int, size: int) -> None:
        """How much of its range such a command has written is not known here: what differs."""
        old, new = await self._guest.read(iova, size), self._shadow.read(iova, size)
        if old == new:
            return
        first = next(i for i in range(size) if old[i] != new[i])
        last = next(i for i in range(size - 1, -1, -1) if old[i] != new[i])
        await self._guest.write(iova + first, new[first : last + 1])


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours in one."""
    joined: list[tuple[int, int]] = []
    for iova, size in ranges:
        if joined and joined[-1][0] + joined[-1][1] == iova:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((iova, size))
    return joined


async def together(calls: Sequence[Awaitable[None]]) -> None:
    """All of them at a time; the first error when all have ended."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
