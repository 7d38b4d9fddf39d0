"""A client's memory, however it is reached: a file that it has shared, or messages."""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.datapath.memory import GuestMemory
    from nvme_mdev.vfio_user.client_memory import ClientMemory

UNMAPPED_PATIENCE_S = 0.1
"""How long memory that was unmapped a moment ago may be away: firmware maps it anew at once."""
_RETRY_S = 0.002


class PrivateWindow(NamedTuple):
    """A DMA window without a file."""

    iova: int
    size: int
    readable: bool
    writable: bool


class PrivateWindows:
    """Those of one client, which never overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._windows: list[PrivateWindow] = []

    def __iter__(self) -> Iterator[PrivateWindow]:
        return iter(self._windows)

    def __len__(self) -> int:
        return len(self._windows)

    def add(self, window: PrivateWindow) -> None:
        """One more."""
        position = bisect_left(self._starts, window.iova)
        self._starts.insert(position, window.iova)
        self._windows.insert(position, window)

    def remove(self, iova: int, size: int) -> None:
        """Forget those that begin in a range."""
        first = bisect_left(self._starts, iova)
        last = bisect_left(self._starts, iova + size, first)
        del self._starts[first:last]
        del self._windows[first:last]

    def at(self, iova: int) -> PrivateWindow | None:
        """The one that holds an address."""
        position = bisect_right(self._starts, iova) - 1
        if position >= 0 and iova < self._windows[position].iova + self._windows[position].size:
            return self._windows[position]
        return None

    def next_start(self, iova: int) -> int | None:
        """Where the first one above an address begins."""
        position = bisect_right(self._starts, iova)
        return self._starts[position] if position < len(self._starts) else None


class Guest:
    """Reads and writes by IOVA, in tasks of the event loop."""

    def __init__(self, shared: GuestMemory, private: PrivateWindows) -> None:
        self.shared = shared
        """What the client has shared, mapped into this process."""
        self.private = private
        self.client: ClientMemory | None = None
        """Messages to the client; None: there is no session."""
        self.unmapped_at = 0.0
        """When the client last unmapped anything (loop time)."""

    async def read(self, iova: int, size: int) -> bytes:
        """Bytes of a range. OSError: it cannot be had (EFAULT: it is not the guest's memory)."""
        await self._wait_for(iova, size, write=False)
        parts = []
        for at, count, private in self._parts(iova, size):
            if private is None:
                parts.append(self.shared.read(at, count))
            else:
                parts.append(await self._messages().read(at, count))
        return b"".join(parts)

    async def write(self, iova: int, data: bytes) -> None:
        """Bytes into a range; raises as :meth:`read`."""
        await self._wait_for(iova, len(data), write=True)
        for at, count, private in self._parts(iova, len(data)):
            part = data[at - iova : at - iova + count]
            if private is None:
                self.shared.write(at, part)
            else:
                await self._messages().write(at, part)

    def covers(self, iova: int, size: int, *, write: bool) -> bool:
        """Whether a range is the guest's memory, and may be accessed so."""
        if iova + size > 1 << 64:
            return False
        for at, count, private in self._parts(iova, size):
            if private is None:
                if not self.shared.covers(at, count, writable=write):
                    return False
            elif not (private.writable if write else private.readable):
                return False
        return True

    def _parts(self, iova: int, size: int) -> Iterator[tuple[int, int, PrivateWindow | None]]:
        """(address, bytes, window) of each part; without a window it is shared, or nothing."""
        end = iova + size
        while iova < end:
            window = self.private.at(iova)
            if window is not None:
                stop = window.iova + window.size
            else:
                stop = self.private.next_start(iova) or end
            stop = min(stop, end)
            yield iova, stop - iova, window
            iova = stop

    def _messages(self) -> ClientMemory:
        if self.client is None:
            raise ConnectionResetError(errno.ECONNRESET, "there is no client")
        return self.client

    async def _wait_for(self, iova: int, size: int, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        while not self.covers(iova, size, write=write):
            if loop.time() > self.unmapped_at + UNMAPPED_PATIENCE_S:
                raise OSError(errno.EFAULT, f"{size} bytes at {iova:#x} are not guest memory")
            await asyncio.sleep(_RETRY_S)
