"""A client of the control socket: blocking, one call at a time, without any state of its own."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from nvme_mdev.errors import UserError, describe_os_error
from nvme_mdev.service.rpc import (
    ErrorCode,
    Lines,
    LineTooLongError,
    RpcError,
    encode_request,
    parse_answer,
)
from nvme_mdev.service.schema import SchemaError, from_json, to_json

if TYPE_CHECKING:
    from typing import Self

    from nvme_mdev.service.api import Method

P = TypeVar("P")
R = TypeVar("R")

_PATIENCE_S = 10.0
"""Seconds to connect, and for a call that only tells something. How long another may take is the
daemon's to say: it bounds each of them."""
_TELLS = frozenset({"list", "show", "stats"})
"""Last words of the methods that only tell something."""
_CHUNK = 1 << 16


class ControlClient:
    """A connection to a daemon; use it as a context manager.

    Whatever goes wrong is a UserError: the daemon's own message where it refuses something, and
    what to do where it cannot be reached.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._next_id = 0
        self._lines = Lines()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE_S)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise UserError(self._unreachable(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def call(self, method: Method[P, R], params: P) -> R:
        """Call a method and wait for its result."""
        return self._decode(method, self.call_raw(method.name, to_json(params)))

    def call_raw(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method by its name, with JSON values; the result is as it came."""
        self._next_id += 1
        self._socket.settimeout(_PATIENCE_S if method.rpartition(".")[2] in _TELLS else None)
        try:
            self._socket.sendall(encode_request(method, params, self._next_id))
            return parse_answer(self._receive(), self._next_id)
        except RpcError as error:
            refused = error.code in (ErrorCode.REFUSED, ErrorCode.TOO_MANY_CLIENTS)
            message = error.message if refused else f"{method}: {error.message}"
            raise UserError(" ".join(message.split())) from error
        except OSError as error:
            raise UserError(self._unreachable(error)) from error
        except (ValueError, LineTooLongError) as error:
            raise UserError(f"{self._path}: this is not a control socket ({error})") from error

    def _receive(self) -> bytes:
        while True:
            data = self._socket.recv(_CHUNK)
            if not data:
                raise ValueError("closed without an answer")
            if lines := self._lines.receive(data):
                return lines[0]

    def _decode(self, method: Method[P, R], result: Any) -> R:
        try:
            return from_json(method.result, result)
        except SchemaError as error:
            raise UserError(
                f"{self._path}: the daemon is of another version ({method.name}: {error})"
            ) from error

    def _unreachable(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._path}: the daemon does not answer: see what it does, or end it"
        if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
            return f"{self._path}: no daemon has this control socket: start it, or check the name"
        if error.errno is None:  # Python's own: a path that is too long
            return f"{self._path}: {error}"
        return describe_os_error(OSError(error.errno, error.strerror, self._path))
