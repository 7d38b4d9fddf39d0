"""The control socket: several clients at a time on a Unix socket, each a stream of JSON-RPC lines.

A client's requests are carried out one after the other, in order, and the next one is read when
the answer to the one before has been taken by the kernel, but for a bounded rest. So a client that
does not read stops only itself, and is sent away when that lasts (:data:`ANSWER_TIMEOUT_S`), as is
one that says nothing for long (:data:`IDLE_TIMEOUT_S`). More clients than :data:`MAX_CLIENTS` are
told so and closed. Only the owner of the daemon (and root) can connect.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.service.rpc import (
    MAX_LINE,
    ErrorCode,
    Lines,
    LineTooLongError,
    Request,
    RpcError,
    encode_error,
    encode_result,
    parse_request,
)
from nvme_mdev.vfio_user.listener import listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

_log = logging.getLogger(__name__)

MAX_CLIENTS = 32
"""Connections at a time: arbitrary, far above what people and monitors need."""
ANSWER_TIMEOUT_S = 10.0
"""How long an answer may wait for its reader."""
IDLE_TIMEOUT_S = 600.0
"""How long a client may be silent between two requests."""
_CHUNK = 1 << 16
_BUFFER = 1 << 16
"""Bytes of answers that are kept for a client before it is waited for."""


class ControlServer:
    """Serves requests on a Unix socket; ``handle`` carries one out."""

    def __init__(self, path: Path, handle: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """``handle``: method and parameters to a JSON value; RpcError or UserError refuse."""
        self.path = path
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._identity: tuple[int, int] | None = None

    async def start(self, inherited: int | None = None) -> None:
        """Listen; OSError as :func:`nvme_mdev.vfio_user.listener.listen` says.

        ``inherited``: the listening socket of a process before us, whose clients wait in it.
        """
        listener = listen(self.path) if inherited is None else socket.socket(fileno=inherited)
        listener.setblocking(False)
        with suppress(FileNotFoundError):  # somebody removed it while we were dead
            found = self.path.lstat()
            self._identity = (found.st_dev, found.st_ino)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    def fileno(self) -> int:
        """The listening socket."""
        assert self._server is not None
        return self._server.sockets[0].fileno()

    async def close(self) -> None:
        """Send all clients away and remove the socket's file, if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        with suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()
        for client in self._clients:
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._clients) >= MAX_CLIENTS
        self._clients.add(task)
        writer.transport.set_write_buffer_limits(high=_BUFFER)
        try:
            if crowded:
                await self._send(writer, encode_error(_too_many()))
            else:
                await self._serve(reader, writer)
        except (OSError, TimeoutError) as error:
            _log.debug("%s: client lost: %s", self.path, error)
        except asyncio.CancelledError:
            # The daemon stops. The task ends here: asyncio logs a cancelled one as an error.
            pass
        finally:
            self._clients.discard(task)
            writer.transport.abort() if crowded else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = Lines()
        while True:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                data = await reader.read(_CHUNK)
            if not data:
                return
            try:
                found = lines.receive(data)
            except LineTooLongError:
                error = RpcError(ErrorCode.INVALID_REQUEST, f"a line has at most {MAX_LINE} bytes")
                await self._send(writer, encode_error(error))
                return
            for line in found:
                answer = await self._answer(line)
                if answer is not None:
                    await self._send(writer, answer)

    async def _send(self, writer: asyncio.StreamWriter, answer: bytes) -> None:
        writer.write(answer)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()
            raise

    async def _answer(self, line: bytes) -> bytes | None:
        """Carry out a line; the line to send back, None for a notification."""
        try:
            request = parse_request(line)
        except RpcError as error:
            return encode_error(error)
        try:
            result = await self._carry_out(request)
        except RpcError as error:
            error.request_id = request.request_id
            return encode_error(error) if request.wants_answer else None
        return encode_result(request.request_id, result) if request.wants_answer else None

    async def _carry_out(self, request: Request) -> Any:
        """The result; whatever goes wrong is an RpcError."""
        try:
            return await self._handle(request.method, request.params)
        except RpcError:
            raise
        except UserError as error:
            raise RpcError(ErrorCode.REFUSED, str(error)) from error
        except OSError as error:
            raise RpcError(ErrorCode.REFUSED, describe_os_error(error)) from error
        except Exception as error:
            _log.exception("%s: %s", self.path, request.method)
            raise RpcError(ErrorCode.INTERNAL_ERROR, "internal error, see the log") from error


def _too_many() -> RpcError:
    return RpcError(
        ErrorCode.TOO_MANY_CLIENTS,
        f"the daemon serves {MAX_CLIENTS} control clients already: close one",
    )
