"""Reaching a client's memory with messages: VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE.

For windows that the client has mapped without a file descriptor. The server asks and the client
answers, on the socket on which the client asks, too: a reply is told by its type and its number.

Nobody may wait here who has a request of the client's to answer: QEMU answers us on its main loop,
which cannot run while a vCPU waits, with QEMU's lock held, for our reply to a register access.

The first message is one that moves nothing: its reply tells how the client lays them out
(:mod:`.dma_layout`).

What is outstanding is bounded so that all of it fits into the buffers of the socket, both ways. So
neither side can come to wait until the other one reads.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import Command, HeaderFlags

from . import dma_layout, framing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .dma_layout import DmaLayout

CHUNK = 32 << 10
"""Bytes that a message moves at most. One of this size is put into a Unix socket whole or not at
all, so that no process dies in the middle of one."""
REPLY_TIMEOUT_S = 30.0
"""How long an answer may take; what Linux gives a command."""

_OUTSTANDING = 96 << 10
"""Bytes of messages that are not answered; the kernel's socket buffers take twice that."""
_OVERHEAD = 1 << 10
"""Bytes that a small message takes of such a buffer, and more."""
_MOST_LATE = 1024
"""Answers that are still to come when nobody waits for them any more; then we ask nothing more."""
_EPOCH_SHIFT = 13
_EPOCHS = 8
"""Message ids have the process's number (modulo this) in their upper bits: a reply that a process
before us has asked for is told from ours."""


class ClientMemory:
    """The memory of one client; in the event loop of its session."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        *,
        max_transfer: int = wire.DEFAULT_MAX_DATA_XFER_SIZE,
        epoch: int = 0,
        timeout: float | None = None,
    ) -> None:
        """``send``: puts a whole message into the socket; ``max_transfer``: what the client takes.

        ``epoch``: how many processes have served this client before; ``timeout``: seconds for a
        reply, None: `REPLY_TIMEOUT_S`.
        """
        self._send = send
        self._chunk = max(1, min(max_transfer, CHUNK))
        self._epoch = epoch % _EPOCHS
        self._successor = epoch > 0
        self._timeout = REPLY_TIMEOUT_S if timeout is None else timeout
        self._count = 0
        self._waiting: dict[int, tuple[Command, asyncio.Future[framing.Message]]] = {}
        self._late: set[int] = set()
        self._layout: DmaLayout | None = None
        self._learning = asyncio.Lock()
        self._room = asyncio.Condition()
        self._outstanding = 0
        self._closed = False

    async def read(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes at an IOVA.

        OSError with the client's errno; TimeoutError: it does not answer; ConnectionError: it has
        gone.
        """
        pieces = await _together(
            [self._read(at, count) for at, count in _chunks(address, size, self._chunk)]
        )
        return b"".join(pieces)

    async def write(self, address: int, data: bytes) -> None:
        """Write bytes at an IOVA; raises as :meth:`read`."""
        await _together(
            [
                self._write(at, data[at - address : at - address + count])
                for at, count in _chunks(address, len(data), self._chunk)
            ]
        )

    def take_reply(self, message: framing.Message) -> None:
        """A reply of the client's. RemoteProtocolError: nobody has asked for it, or not so."""
        header = message.header
        if header.message_id in self._late:
            self._late.discard(header.message_id)
            return
        command, future = self._waiting.pop(header.message_id, (None, None))
        if future is None:
            if self._successor and header.message_id >> _EPOCH_SHIFT != self._epoch:
                return  # a process before us has asked
            raise framing.RemoteProtocolError("a reply that nobody has asked for", close=True)
        if header.command != command or message.fds:
            text = f"command {header.command} with {len(message.fds)} fds in reply to {command}"
            if not future.done():
                future.set_exception(ConnectionResetError(errno.ECONNRESET, text))
            raise framing.RemoteProtocolError(text, close=True)
        if not future.done():
            future.set_result(message)

    def close(self) -> None:
        """The client has gone: whoever waits gets a ConnectionError."""
        self._closed = True
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError(errno.ECONNRESET, "the client has gone"))
        self._waiting.clear()

    async def _known_layout(self) -> DmaLayout:
        """What the client speaks; asked for with the first access."""
        if self._layout is None:
            async with self._learning:
                if self._layout is None:
                    self._layout = await self._learn()
        return self._layout

    async def _learn(self) -> DmaLayout:
        try:
            reply = await self._call(Command.DMA_WRITE, dma_layout.PROBE, 0)
        except (TimeoutError, ConnectionError):
            raise
        except OSError:
            return dma_layout.SPECIFIED  # which does not say that no bytes can be written
        return dma_layout.told_by(reply)

    async def _read(self, address: int, size: int) -> bytes:
        layout = await self._known_layout()
        reply = await self._call(Command.DMA_READ, layout.read(address, size), size)
        return layout.data(reply, address, size)

    async def _write(self, address: int, data: bytes) -> None:
        layout = await self._known_layout()
        reply = await self._call(Command.DMA_WRITE, layout.write(address, data), len(data))
        layout.check_written(reply, address, len(data))

    async def _call(self, command: Command, body: bytes, size: int) -> bytes:
        """Ask, and wait for the answer's body."""
        cost = size + _OVERHEAD
        async with self._room:
            await self._room.wait_for(
                lambda: self._closed or self._outstanding + cost <= _OUTSTANDING
            )
            if self._closed:
                raise ConnectionResetError(errno.ECONNRESET, "the client has gone")
            self._outstanding += cost
        try:
            return await self._ask(command, body)
        finally:
            async with self._room:
                self._outstanding -= cost
                self._room.notify_all()

    async def _ask(self, command: Command, body: bytes) -> bytes:
        if len(self._late) >= _MOST_LATE:
            raise TimeoutError(errno.ETIMEDOUT, f"{len(self._late)} messages are not answered")
        number = self._next_id()
        future: asyncio.Future[framing.Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (command, future)
        try:
            async with asyncio.timeout(self._timeout):
                await self._send(framing.encode(framing.MessageHeader(number, command), body))
                message = await future
        except (TimeoutError, asyncio.CancelledError):
            self._late.add(number)
            raise
        finally:
            self._waiting.pop(number, None)
        if HeaderFlags.ERROR in message.header.flags:
            code = message.header.error or errno.EIO
            raise OSError(code, f"{command.name}: {os.strerror(code)}")
        return message.body

    def _next_id(self) -> int:
        """A number that no message has that may still be answered."""
        while True:
            self._count = (self._count + 1) % (1 << _EPOCH_SHIFT)
            number = self._epoch << _EPOCH_SHIFT | self._count
            if number not in self._waiting and number not in self._late:
                return number


def _chunks(address: int, size: int, chunk: int) -> list[tuple[int, int]]:
    """(address, bytes) of the messages that a range takes."""
    end = address + size
    return [(at, min(chunk, end - at)) for at in range(address, end, chunk)]


async def _together(calls: list[Awaitable[bytes] | Awaitable[None]]) -> list[bytes]:
    """All of them at a time; the first error when all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, bytes)]
