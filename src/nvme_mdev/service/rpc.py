"""JSON-RPC 2.0 without a socket: lines to requests, results and errors to lines.

One JSON value a line, UTF-8, ended by a newline (a JSON text can always be written without one).
Parameters are passed by name. There are no batches: requests can be sent without waiting, and are
answered in order. A request without ``id`` is a notification: it is carried out and not answered.

What the peer sends is bounded (:data:`MAX_LINE`) before it is looked at. A line that is not a
request gets the error that the specification names; only a line that is too long ends the
connection, since the next one cannot be found.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any, NoReturn

VERSION = "2.0"
MAX_LINE = 1 << 20
"""Bytes of a line, newline included: far above any request or answer of ours."""
_MAX_ID = 256
"""Characters of an ``id``, which is sent back: arbitrary."""

Id = str | int | None


class ErrorCode(enum.IntEnum):
    """Codes of errors (JSON-RPC 2.0, section 5.1); the last two are ours."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    REFUSED = 1
    """It cannot be done; the message is one line for a person: what is wrong, what to do."""
    TOO_MANY_CLIENTS = 2


class RpcError(Exception):
    """An error that the peer is, or was, told."""

    def __init__(self, code: int, message: str, request_id: Id = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        """The request that it answers, None: unknown."""


class LineTooLongError(Exception):
    """More than MAX_LINE bytes without a newline."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call, or a notification."""

    method: str
    params: dict[str, Any]
    request_id: Id = None
    wants_answer: bool = True


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def receive(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their newlines; empty ones are left out.

        LineTooLongError: the peer sends no newline.
        """
        searched = len(self._rest)
        self._rest += data
        end = self._rest.rfind(b"\n", searched)
        lines = []
        if end >= 0:
            lines = bytes(self._rest[:end]).split(b"\n")
            del self._rest[: end + 1]
        if len(self._rest) >= MAX_LINE or any(len(line) >= MAX_LINE for line in lines):
            raise LineTooLongError
        return [line for line in lines if line.strip()]


def parse_request(line: bytes) -> Request:
    """A request from a line; RpcError with the code and id that the answer has."""
    value = _parse(line)
    if isinstance(value, list):
        raise RpcError(ErrorCode.INVALID_REQUEST, "batches are not served: send one request a line")
    if not isinstance(value, dict):
        raise RpcError(ErrorCode.INVALID_REQUEST, "a request is an object")
    request_id = _id_of(value)
    method, params = value.get("method"), value.get("params", {})
    if value.get("jsonrpc") != VERSION:
        raise RpcError(ErrorCode.INVALID_REQUEST, 'jsonrpc must be "2.0"', request_id)
    if not isinstance(method, str):
        raise RpcError(ErrorCode.INVALID_REQUEST, "method must be a string", request_id)
    if isinstance(params, list):
        raise RpcError(ErrorCode.INVALID_PARAMS, "parameters are passed by name", request_id)
    if not isinstance(params, dict):
        raise RpcError(ErrorCode.INVALID_REQUEST, "params must be an object", request_id)
    return Request(method, params, request_id, "id" in value)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RpcError(ErrorCode.PARSE_ERROR, "this line is not JSON") from error


def _refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON."""
    raise ValueError(name)


def _id_of(value: dict[str, Any]) -> Id:
    request_id = value.get("id")
    is_id = request_id is None or (
        isinstance(request_id, str | int) and not isinstance(request_id, bool)
    )
    if not is_id or len(str(request_id)) > _MAX_ID:
        raise RpcError(
            ErrorCode.INVALID_REQUEST,
            f"id must be an integer or a string, of at most {_MAX_ID} characters",
        )
    return request_id


def encode_request(method: str, params: dict[str, Any], request_id: Id) -> bytes:
    """A call as a line."""
    return _line({"method": method, "params": params, "id": request_id})


def encode_result(request_id: Id, result: Any) -> bytes:
    """The answer to a call that was carried out."""
    return _line({"result": result, "id": request_id})


def encode_error(error: RpcError) -> bytes:
    """The answer to a call that was not."""
    told = {"code": int(error.code), "message": error.message}
    return _line({"error": told, "id": error.request_id})


def _line(members: dict[str, Any]) -> bytes:
    # ASCII: a file's name can have lone surrogates, which are escaped here and not in UTF-8.
    return json.dumps({"jsonrpc": VERSION, **members}).encode() + b"\n"


def parse_answer(line: bytes, request_id: Id) -> Any:
    """The result in an answer to our call; RpcError is the peer's, ValueError: it is no answer."""
    try:
        value = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict) or value.get("jsonrpc") != VERSION:
        raise ValueError("no JSON-RPC 2.0 object")
    refusal = value.get("error")
    if isinstance(refusal, dict):
        code, message = refusal.get("code"), refusal.get("message")
        if isinstance(code, int) and isinstance(message, str):
            raise RpcError(code, message, value.get("id"))
    if "result" not in value or value.get("id") != request_id:
        raise ValueError("no answer to our request")
    return value["result"]
