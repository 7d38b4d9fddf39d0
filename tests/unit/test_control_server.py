"""The control socket's server: several clients, hostile ones, and what each gets."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service import control
from nvme_mdev.service.control import ControlServer
from nvme_mdev.service.rpc import MAX_LINE, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
#: Clients of the test that runs; closed at its end.
WRITERS: list[asyncio.StreamWriter] = []


async def handle(method: str, params: dict[str, Any]) -> Any:
    match method:
        case "echo":
            return params
        case "big":
            return "x" * 500_000
        case "wait":
            await asyncio.Event().wait()
        case "refuse":
            raise UserError("no: try something else")
        case "disk":
            raise FileNotFoundError(2, "gone", "/image")
    raise RuntimeError(method)


def run(path: Path, test: Callable[[ControlServer], Awaitable[None]]) -> None:
    async def main() -> None:
        server = ControlServer(path / "ctl", handle)
        await server.start()
        try:
            async with asyncio.timeout(30):
                await test(server)
        finally:
            await server.close()
            for writer in WRITERS:
                writer.transport.abort()
            await asyncio.sleep(0)
            WRITERS.clear()
        assert not (path / "ctl").exists()

    asyncio.run(main())


async def connect(server: ControlServer) -> Streams:
    streams = await asyncio.open_unix_connection(os.fspath(server.path), limit=MAX_LINE)
    WRITERS.append(streams[1])
    return streams


def request(method: str, request_id: object = 1, **params: object) -> bytes:
    members = {"jsonrpc": "2.0", "method": method, "params": params, "id": request_id}
    return json.dumps(members).encode() + b"\n"


async def ask(streams: Streams, data: bytes) -> Any:
    streams[1].write(data)
    return json.loads(await streams[0].readline())


def test_only_the_owner_can_connect(tmp_path: Path) -> None:
    async def test(server: ControlServer) -> None:
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600

    run(tmp_path, test)


def test_clients_are_served_side_by_side_and_each_in_order(tmp_path: Path) -> None:
    async def test(server: ControlServer) -> None:
        waiting, first, second = [await connect(server) for _ in range(3)]
        waiting[1].write(request("wait"))
        assert (await ask(first, request("echo", x=1)))["result"] == {"x": 1}
        second[1].write(request("echo", "a") + request("echo", "b"))
        assert [json.loads(await second[0].readline())["id"] for _ in "ab"] == ["a", "b"]

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (request("refuse"), ErrorCode.REFUSED, "no: try something else"),
        (request("disk"), ErrorCode.REFUSED, "/image: No such file or directory"),
        (request("bug"), ErrorCode.INTERNAL_ERROR, "internal error, see the log"),
        (b"nonsense\n", ErrorCode.PARSE_ERROR, "this line is not JSON"),
    ],
)
def test_an_error_is_an_answer_and_the_next_request_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, code: int, message: str
) -> None:
    async def test(server: ControlServer) -> None:
        client = await connect(server)
        answer = await ask(client, data)
        assert answer["error"] == {"code": code, "message": message}
        assert (await ask(client, request("echo", 2)))["id"] == 2

    caplog.set_level(logging.CRITICAL)
    run(tmp_path, test)


def test_a_notification_has_no_answer(tmp_path: Path) -> None:
    async def test(server: ControlServer) -> None:
        client = await connect(server)
        client[1].write(b'{"jsonrpc": "2.0", "method": "refuse"}\n')
        assert (await ask(client, request("echo", "next")))["id"] == "next"

    run(tmp_path, test)


def test_a_line_without_end_is_answered_and_ends_the_connection(tmp_path: Path) -> None:
    async def test(server: ControlServer) -> None:
        reader, writer = await connect(server)
        writer.write(b"x" * MAX_LINE)
        answer = json.loads(await reader.readline())
        assert answer["error"]["code"] == ErrorCode.INVALID_REQUEST
        assert await reader.read() == b""

    run(tmp_path, test)


def test_a_client_that_does_not_read_is_sent_away_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.2)

    async def test(server: ControlServer) -> None:
        _, writer = await connect(server)
        writer.transport.pause_reading()
        writer.write(request("big") * 4)
        other = await connect(server)
        assert (await ask(other, request("echo", 5)))["id"] == 5
        while len(server._clients) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    run(tmp_path, test)


def test_a_client_that_says_nothing_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "IDLE_TIMEOUT_S", 0.1)

    async def test(server: ControlServer) -> None:
        reader, writer = await connect(server)
        writer.write(b'{"jsonrpc"')
        assert await reader.read() == b""

    run(tmp_path, test)


def test_one_client_too_many_is_told_so(tmp_path: Path) -> None:
    async def test(server: ControlServer) -> None:
        clients = [await connect(server) for _ in range(control.MAX_CLIENTS)]
        for client in clients:
            await ask(client, request("echo"))
        reader, _ = await connect(server)
        answer = json.loads(await reader.readline())
        assert answer["error"]["code"] == ErrorCode.TOO_MANY_CLIENTS
        clients.pop()[1].close()
        while len(server._clients) >= control.MAX_CLIENTS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert "result" in await ask(await connect(server), request("echo"))

    run(tmp_path, test)
