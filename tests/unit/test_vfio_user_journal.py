"""The journal of the message in progress, at each moment at which its process can die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.service.fdstore import FdStore
from nvme_mdev.service.kept_fds import KeptFds
from nvme_mdev.vfio_user.connection import JournalledConnection
from nvme_mdev.vfio_user.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = b"a request of the client"
PIECE = 10


class Session:
    """A client, and a server that dies and is followed by the next."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        self.files = KeptFds(FdStore(None), {})
        self.journal = Journal(self.files)

    def connect(self) -> JournalledConnection:
        return JournalledConnection(self.server.dup(), self.journal)

    def next(self) -> JournalledConnection:
        """The next process: only what is kept goes on."""
        kept = {f"fd.{number}": os.dup(fd) for number, fd in self.files._fds.items()}
        old, self.files = self.journal, KeptFds(FdStore(None), kept)
        self.journal = Journal(self.files, os.dup(old.fd), os.dup(old.reply_fd))
        old.close()
        return JournalledConnection.resume(self.server.dup(), self.journal)

    def close(self) -> None:
        for closed in (self.client, self.server, self.journal, self.files):
            closed.close()


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


class KilledError(Exception):
    """Where the process died."""


def _kill(*_: object) -> None:
    raise KilledError


def _store_target(journal: Journal, value: int) -> None:
    """Killed before the last store of `Journal.taken`."""
    if not value:
        raise KilledError
    journal.words[5] = value


@pytest.mark.parametrize("moment", ["take", "_consume", "taken", "target", "nowhere"])
def test_a_piece_is_received_once(
    session: Session, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async def work() -> bytes:
        connection = session.connect()
        session.client.sendall(REQUEST)
        with monkeypatch.context() as patch:
            if moment == "_consume":
                patch.setattr(connection, moment, _kill)
            elif moment == "target":
                target = property(lambda journal: journal.words[5], _store_target)
                patch.setattr(Journal, moment, target, raising=False)  # a class has no word
            elif moment != "nowhere":
                patch.setattr(session.journal, moment, _kill)
            with contextlib.suppress(KilledError):
                await connection.receive(PIECE)
        connection.close()
        connection = session.next()
        received, _ = session.journal.request()
        while len(received) < len(REQUEST):
            received += (await connection.receive(len(REQUEST) - len(received)))[0]
        connection.close()
        return received

    assert asyncio.run(work()) == REQUEST
    assert session.journal.request()[0] == REQUEST


def test_the_files_of_a_request_are_there_again(session: Session) -> None:
    async def work() -> None:
        connection = session.connect()
        eventfd = os.eventfd(5)
        socket.send_fds(session.client, [REQUEST], [eventfd])
        os.close(eventfd)
        _, fds = await connection.receive(len(REQUEST))
        os.close(fds[0])
        connection.close()
        session.next().close()

    asyncio.run(work())
    data, fds = session.journal.request()
    assert data == REQUEST
    assert os.eventfd_read(fds[0]) == 5
    os.close(fds[0])
    session.journal.finish()
    assert session.files._fds == {}


@pytest.mark.parametrize("sent", [0, 5, 20])
def test_the_rest_of_a_reply_is_sent(session: Session, sent: int) -> None:
    reply = b"the reply to the client"[:20]

    async def work() -> None:
        session.connect().close()
        session.journal.answer(reply, has_fd=False)
        if sent:
            os.sendfile(session.server.fileno(), session.journal.reply_fd, None, sent)
        connection = session.next()
        assert session.journal.answered
        await connection.send_rest()
        await connection.send(b"next")
        connection.close()

    asyncio.run(work())
    assert session.client.recv(100) == reply + b"next"
    assert not session.journal.answered


def test_replies_that_were_not_read_yet_do_not_change(session: Session) -> None:
    async def work() -> None:
        connection = session.connect()
        for number in range(50):
            await connection.send(bytes([number]) * 1000)
        connection.close()

    asyncio.run(work())
    received = b""
    while len(received) < 50_000:
        received += session.client.recv(100_000)
    assert received == b"".join(bytes([number]) * 1000 for number in range(50))


def test_a_reply_with_a_descriptor_that_was_not_sent_is_asked_for_again(session: Session) -> None:
    async def work() -> None:
        session.connect().close()
        session.journal.answer(b"reply", has_fd=True)
        session.next().close()

    asyncio.run(work())
    assert not session.journal.answered


def test_a_journal_of_another_version_is_refused() -> None:
    fd, reply = os.memfd_create("journal"), os.memfd_create("reply")
    with pytest.raises(ValueError, match="another version"):
        Journal(KeptFds(FdStore(None), {}), fd, reply)
    os.close(fd)
    os.close(reply)


def test_files_of_the_next_message_are_not_taken_for_those_of_this_one(session: Session) -> None:
    """The kernel shows them to a look that goes up to the end of a message without any."""
    message = b"\x01\0\x05\0" + (20).to_bytes(4, "little") + bytes(12)

    async def work() -> list[int]:
        connection = session.connect()
        session.client.sendall(message)
        eventfd = os.eventfd(0)
        socket.send_fds(session.client, [message], [eventfd])
        os.close(eventfd)
        counts = []
        for _ in range(2):
            for size in (16, 4):
                data, fds = await connection.receive(size)
                assert len(data) == size
                counts.append(len(fds))
                for fd in fds:
                    os.close(fd)
            assert session.journal.fd_count == sum(counts[-2:])
            await connection.send(b"")
        connection.close()
        return counts

    assert asyncio.run(work()) == [0, 0, 1, 0]
