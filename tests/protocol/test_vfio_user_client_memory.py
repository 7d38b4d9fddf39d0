"""DMA_READ and DMA_WRITE: the server asks, the client answers, each while the other asks, too."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import TYPE_CHECKING, Any

import pytest
from harness import HEADER, QEMU_JSON, REPLY, TIMEOUT, Peer, Reply, Running

from nvme_mdev.spec.vfio_user import Command, HeaderFlags, MessageType
from nvme_mdev.vfio_user import client_memory, framing
from nvme_mdev.vfio_user.client_memory import CHUNK, ClientMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

ACCESS = struct.Struct("<QQ")
NARROW = struct.Struct("<QI")
ADDRESS = 0x12345000
ERROR = 0x20


class Asked:
    """The server's side: what it asks for, and what came of it."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def _start(self, work: Callable[[ClientMemory], Coroutine[Any, Any, Any]]) -> Future[Any]:
        memory = self._running.device.client_memory
        return asyncio.run_coroutine_threadsafe(work(memory), self._running.loop)

    def read(self, address: int, size: int) -> Future[bytes]:
        return self._start(lambda memory: memory.read(address, size))

    def write(self, address: int, data: bytes) -> Future[None]:
        return self._start(lambda memory: memory.write(address, data))


def answer(
    peer: Peer, request: Reply, body: bytes = b"", *, error: int = 0, command: int | None = None
) -> None:
    flags = REPLY | (ERROR if error else 0)
    size = HEADER.size + len(body)
    chosen = request.command if command is None else command
    peer.send_raw(HEADER.pack(request.message_id, chosen, size, flags, error) + body)


def answer_first(peer: Peer, body: bytes = ACCESS.pack(0, 0), *, error: int = 0) -> None:
    """The first message moves nothing; how it is answered tells the client's layout."""
    request = peer.receive()
    assert (request.command, request.body) == (Command.DMA_WRITE, ACCESS.pack(0, 0))
    answer(peer, request, body, error=error)


def connected(running: Running, peer: Peer) -> Asked:
    assert peer.call(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)).error == 0
    return Asked(running)


@pytest.fixture
def asked(running: Running, peer: Peer) -> Asked:
    """A client that has told its layout: the specification's."""
    asked = connected(running, peer)
    future = asked.read(ADDRESS, 1)
    answer_first(peer)
    answer(peer, peer.receive(), ACCESS.pack(ADDRESS, 1) + b"x")
    assert future.result(TIMEOUT) == b"x"
    return asked


def test_a_read_names_address_and_bytes_and_gets_them(asked: Asked, peer: Peer) -> None:
    future = asked.read(ADDRESS, 5)
    request = peer.receive()
    assert (request.command, request.flags, request.error) == (Command.DMA_READ, 0, 0)
    assert request.body == ACCESS.pack(ADDRESS, 5)
    answer(peer, request, ACCESS.pack(ADDRESS, 5) + b"hello")
    assert future.result(TIMEOUT) == b"hello"


def test_a_write_carries_the_data_and_is_over_when_it_is_answered(asked: Asked, peer: Peer) -> None:
    future = asked.write(ADDRESS, b"hello")
    request = peer.receive()
    assert request.command == Command.DMA_WRITE
    assert request.body == ACCESS.pack(ADDRESS, 5) + b"hello"
    assert not future.done()
    answer(peer, request, ACCESS.pack(ADDRESS, 5))
    future.result(TIMEOUT)


def test_a_client_with_a_count_of_32_bits_is_spoken_to_like_that(
    running: Running, peer: Peer
) -> None:
    """QEMU 10.1 and 10.2."""
    asked = connected(running, peer)
    reads = [asked.read(ADDRESS, 5) for _ in range(2)]
    answer_first(peer, b"")
    for _ in reads:
        request = peer.receive()
        assert request.command == Command.DMA_READ
        assert request.body == NARROW.pack(ADDRESS, 5) + bytes(4)
        # Zeroes where the specification has the upper half of the count.
        answer(peer, request, NARROW.pack(ADDRESS, 5) + b"\0\0\0\0o" + bytes(4))
    assert [read.result(TIMEOUT) for read in reads] == [b"\0\0\0\0o"] * 2
    write = asked.write(ADDRESS, b"hello")
    request = peer.receive()
    assert request.command == Command.DMA_WRITE
    assert request.body == NARROW.pack(ADDRESS, 5) + b"hello" + bytes(4)
    answer(peer, request)
    write.result(TIMEOUT)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        NARROW.pack(ADDRESS, 4) + b"data",
        NARROW.pack(ADDRESS, 4) + b"data" + bytes(5),
        NARROW.pack(ADDRESS, 3) + b"data" + bytes(4),
        NARROW.pack(ADDRESS + 4, 4) + b"data" + bytes(4),
    ],
)
def test_a_client_with_a_count_of_32_bits_that_answers_with_something_else(
    running: Running, peer: Peer, body: bytes
) -> None:
    asked = connected(running, peer)
    read = asked.read(ADDRESS, 4)
    answer_first(peer, b"")
    answer(peer, peer.receive(), body)
    write = asked.write(ADDRESS, b"data")
    answer(peer, peer.receive(), ACCESS.pack(ADDRESS, 4))
    for future in (read, write):
        with pytest.raises(OSError, match=r".") as caught:
            future.result(TIMEOUT)
        assert caught.value.errno == errno.EPROTO


def test_a_client_that_refuses_to_move_nothing_has_the_specifications_layout(
    running: Running, peer: Peer
) -> None:
    asked = connected(running, peer)
    read = asked.read(ADDRESS, 4)
    answer_first(peer, b"", error=errno.EINVAL)
    answer(peer, peer.receive(), ACCESS.pack(ADDRESS, 4) + b"data")
    assert read.result(TIMEOUT) == b"data"


def test_a_long_range_is_several_messages_whose_replies_may_come_in_any_order(
    asked: Asked, peer: Peer
) -> None:
    data = bytes(range(256)) * (2 * CHUNK // 256) + b"end"
    future = asked.read(ADDRESS, len(data))
    requests = [peer.receive() for _ in range(2)]
    requests.reverse()
    for request in requests:
        at, count = ACCESS.unpack(request.body)
        answer(peer, request, request.body + data[at - ADDRESS :][:count])
    last = peer.receive()
    assert ACCESS.unpack(last.body) == (ADDRESS + 2 * CHUNK, 3)
    answer(peer, last, last.body + b"end")
    assert future.result(TIMEOUT) == data


def test_no_message_is_larger_than_the_client_takes(running: Running) -> None:
    with running.peer() as peer:
        proposal = b'{"capabilities": {"max_data_xfer_size": 4096}}\0'
        peer.call(Command.VERSION, struct.pack("<HH", 0, 0) + proposal)
        future = Asked(running).write(ADDRESS, bytes(10000))
        answer_first(peer)
        counts = []
        for _ in range(3):
            request = peer.receive()
            counts.append(len(request.body) - ACCESS.size)
            answer(peer, request, request.body[: ACCESS.size])
        future.result(TIMEOUT)
    assert counts == [4096, 4096, 10000 - 8192]


def test_the_clients_own_requests_are_answered_meanwhile(asked: Asked, peer: Peer) -> None:
    future = asked.read(ADDRESS, 4)
    request = peer.receive()
    info = struct.pack("<IIII", 16, 0, 0, 0)
    assert peer.call(Command.DEVICE_GET_INFO, info).error == 0
    answer(peer, request, request.body + b"data")
    assert peer.call(Command.DEVICE_GET_INFO, info).error == 0
    assert future.result(TIMEOUT) == b"data"


@pytest.mark.parametrize("number", [errno.EFAULT, errno.ENODEV, errno.EPERM, errno.E2BIG])
def test_an_error_reply_is_the_error_of_the_access(asked: Asked, peer: Peer, number: int) -> None:
    futures: list[Future[Any]] = [asked.read(ADDRESS, 4), asked.write(ADDRESS, b"data")]
    for _ in futures:
        answer(peer, peer.receive(), error=number)
    for future in futures:
        with pytest.raises(OSError, match="DMA_") as caught:
            future.result(TIMEOUT)
        assert caught.value.errno == number


@pytest.mark.parametrize(
    "body",
    [
        b"",
        ACCESS.pack(ADDRESS, 4),
        ACCESS.pack(ADDRESS, 4) + b"dat",
        ACCESS.pack(ADDRESS, 3) + b"dat",
        ACCESS.pack(ADDRESS + 4, 4) + b"data",
        ACCESS.pack(ADDRESS, 5) + b"data!",
        ACCESS.pack(ADDRESS, 1 << 40) + b"data",
    ],
)
def test_a_read_that_is_answered_with_something_else_fails(
    asked: Asked, peer: Peer, body: bytes
) -> None:
    future = asked.read(ADDRESS, 4)
    answer(peer, peer.receive(), body)
    with pytest.raises(OSError, match=r".") as caught:
        future.result(TIMEOUT)
    assert caught.value.errno == errno.EPROTO


def test_a_write_that_is_answered_with_something_else_fails(asked: Asked, peer: Peer) -> None:
    future = asked.write(ADDRESS, b"data")
    answer(peer, peer.receive(), ACCESS.pack(ADDRESS, 3))
    with pytest.raises(OSError, match=r".") as caught:
        future.result(TIMEOUT)
    assert caught.value.errno == errno.EPROTO


def test_a_reply_to_another_message_ends_the_session(asked: Asked, peer: Peer) -> None:
    future = asked.read(ADDRESS, 4)
    request = peer.receive()
    request.message_id += 1
    answer(peer, request, request.body + b"data")
    assert peer.closed()
    with pytest.raises(ConnectionError):
        future.result(TIMEOUT)


def test_a_reply_of_another_command_ends_the_session(asked: Asked, peer: Peer) -> None:
    future = asked.read(ADDRESS, 4)
    answer(peer, peer.receive(), command=Command.DMA_WRITE)
    assert peer.closed()
    with pytest.raises(ConnectionError):
        future.result(TIMEOUT)


@pytest.mark.parametrize("sent", [0, 10, 20])
def test_a_client_that_goes_in_the_middle_of_a_reply_leaves_nobody_waiting(
    running: Running, asked: Asked, peer: Peer, sent: int
) -> None:
    future = asked.read(ADDRESS, 4)
    waiting = asked.read(ADDRESS, 3 * CHUNK)
    request = peer.receive()
    reply = HEADER.pack(request.message_id, Command.DMA_READ, 36, REPLY, 0) + request.body
    peer.send_raw(reply[:sent])
    peer.close()
    for one in (future, waiting):
        with pytest.raises(ConnectionError):
            one.result(TIMEOUT)
    running.wait_until_idle()


def test_who_is_not_answered_gives_up_and_the_late_reply_means_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_memory, "REPLY_TIMEOUT_S", 0.02)
    with running.peer() as peer:
        peer.call(Command.VERSION, struct.pack("<HH", 0, 0) + QEMU_JSON)
        future = Asked(running).read(ADDRESS, 4)
        request = peer.receive()
        with pytest.raises(TimeoutError):
            future.result(TIMEOUT)
        answer(peer, request, request.body + b"data")
        assert peer.call(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)).error == 0


def test_a_client_that_never_answers_is_asked_no_more_after_a_thousand_messages() -> None:
    async def ask() -> int:
        sent: list[bytes] = []

        async def send(data: bytes) -> None:
            sent.append(data)

        memory = ClientMemory(send, timeout=0)
        for _ in range(1100):
            with pytest.raises(TimeoutError):
                await memory.read(0, 4)
        return len(sent)

    assert asyncio.run(ask()) <= 1024


def test_what_is_outstanding_is_bounded_by_the_sockets_buffers() -> None:
    async def ask() -> int:
        sent: list[bytes] = []

        async def send(data: bytes) -> None:
            sent.append(data)
            if len(sent) == 1:
                asyncio.get_running_loop().call_soon(refuse, data)

        def refuse(data: bytes) -> None:
            number, command = struct.unpack_from("<HH", data)
            header = framing.MessageHeader(
                number, command, MessageType.REPLY, HeaderFlags.ERROR, errno.EINVAL
            )
            memory.take_reply(framing.Message(header, b"", ()))

        memory = ClientMemory(send)
        task = asyncio.create_task(memory.write(0, bytes(1 << 20)))
        for _ in range(100):
            await asyncio.sleep(0)
        memory.close()
        with pytest.raises(ConnectionError):
            await task
        return sum(map(len, sent))

    assert 2 * CHUNK < asyncio.run(ask()) <= 96 << 10
