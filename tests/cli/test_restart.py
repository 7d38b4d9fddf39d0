"""The serving process is killed under its client, which notices nothing but a pause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.deaths import kill, killed_again_and_again, serving_pid
from tests.encryption import make_key

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import AsyncEventType
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.vfio_user import Command, PciRegion
from nvme_mdev.vfio_user import framing, messages
from nvme_mdev.vfio_user.client import Client

if TYPE_CHECKING:
    from tests.cli.conftest import RunCommand, Serve

    from nvme_mdev.host.io import CommandQueue

MIB = 1 << 20


@pytest.mark.parametrize(
    ("target", "options", "kills", "seconds"),
    [
        ("image", ["--interrupts"], 20, 30),
        ("image", ["--no-mapped-doorbells", "--interrupts"], 5, 10),
        ("encrypted", ["--interrupts"], 10, 15),
        ("memory:64M", ["--polling"], 5, 10),
        ("memory:64M", ["--type", "nvme-2Q_V1"], 5, 10),
    ],
)
def test_verified_io_goes_on_while_the_serving_process_is_killed(
    serve: Serve, tmp_path: Path, *, target: str, options: list[str], kills: int, seconds: int
) -> None:
    arguments = [target]
    if target in {"image", "encrypted"}:
        key = f",key-file={make_key(tmp_path / 'key')}" if target == "encrypted" else ""
        arguments = [f"{tmp_path}/vm1.img{key}", "--size", "64M"]
    if "--type" in options:
        arguments, options = [*arguments, *options], []
    daemon = serve(*arguments, "--socket", tmp_path / "s")
    bench = [sys.executable, "-m", "nvme_mdev.cli.main", "bench", str(tmp_path / "s")]
    bench += ["--rw", "randrw", "--bs", "4k", "--qd", "32", "--jobs", "2", "--verify"]
    with (
        subprocess.Popen(
            [*bench, "--runtime", str(seconds), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
        killed_again_and_again(daemon, kills) as enough,
    ):
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert enough.is_set()
    assert daemon.stop().status == 0


def test_admin_commands_queues_and_memory_come_and_go_meanwhile(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("memory:4M", "--socket", tmp_path / "s")
    data = os.urandom(4096)
    with NvmeHost(tmp_path / "s") as host, killed_again_and_again(daemon, 10) as enough:
        while not enough.is_set():
            window = host.map_memory(4 * MIB)
            queue = host.create_queue_pair(interrupts=True)
            queue.write(1, 8, data, block_size=512)
            assert queue.read(1, 8, 8, block_size=512) == data
            assert host.active_namespaces() == [1]
            host.delete_queue_pair(queue)
            host.unmap_memory(window)
        host.reset()
        assert host.create_queue_pair().read(1, 8, 8, block_size=512) == data


@pytest.mark.parametrize("map_doorbells", [True, False])
def test_a_client_without_shared_memory_does_not_notice_either(
    serve: Serve, tmp_path: Path, *, map_doorbells: bool
) -> None:
    """Every buffer is used for something else as soon as its command is done: late data shows."""
    daemon = serve(tmp_path / "vm1.img", "--size", "64M", "--socket", tmp_path / "s")
    rounds = 0
    with NvmeHost(
        tmp_path / "s",
        share_memory=False,
        map_doorbells=map_doorbells,
        memory_size=8 * MIB,
        timeout=60.0,
    ) as host:
        queues = [host.create_queue_pair(16, interrupts=True), host.create_queue_pair(64)]
        buffers = [host.memory.allocate(4096) for _ in range(32)]
        with killed_again_and_again(daemon, 10) as enough:
            while not enough.is_set() or rounds < 3:
                rounds += 1
                data = [os.urandom(4096) for _ in buffers]
                for make in (commands.write, commands.read):
                    started = []
                    for number, buffer in enumerate(buffers):
                        buffer.write(data[number] if make is commands.write else bytes(4096))
                        sqe = make(1, number * 8, 8)
                        sqe.prp1 = buffer.iova
                        queue = queues[number % 2]
                        while queue.room() == 0:
                            queue.collect()
                        started.append((queue, queue.start(sqe), buffer, number))
                    for queue, cid, buffer, number in started:
                        assert queue.finish(cid).ok
                        if make is commands.read:
                            assert buffer.read() == data[number], number
                        buffer.fill(0xA5)
                assert host.active_namespaces() == [1]
                assert all(buffer.read() == b"\xa5" * 4096 for buffer in buffers)
    assert daemon.stop().status == 0


def test_an_event_request_that_was_outstanding_is_answered_afterwards(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.request_events()
        kill(daemon)
        host.write_doorbell(60, 1)
        assert [event.event_type for event in host.events(30)] == [AsyncEventType.ERROR]


def _posted(queue: CommandQueue) -> set[int]:
    """Command identifiers in the completion queue, old ones too."""
    entries = bytes(queue.rings.cq.view)
    return {
        int.from_bytes(entries[at + 12 : at + 14], "little") for at in range(0, len(entries), 16)
    }


def test_an_event_that_finds_the_completion_queue_full_is_told_by_the_next_process(
    serve: Serve, nvme_mdev: RunCommand, tmp_path: Path
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.watch_namespaces()
        host.active_namespaces()  # with its completion all of the submission queue is free again
        queue = host.admin_queue
        cids = []
        while queue.room():
            cids.append(queue.start(commands.get_features(Fid.NUMBER_OF_QUEUES)))
        assert len(cids) == queue.rings.cq_entries - 1
        deadline = time.monotonic() + 30
        while not _posted(queue).issuperset(cids):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert nvme_mdev("namespace", "add", tmp_path / "s", "null:1M").status == 0
        kill(daemon)
        for cid in cids:
            assert queue.finish(cid).ok
        assert [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]


def _request(offset: int, size: int, message_id: int) -> bytes:
    header = framing.MessageHeader(message_id, Command.REGION_READ)
    return framing.encode(header, messages.RegionRead(offset, PciRegion.CONFIG, size).pack())


def _replies(client: Client, count: int) -> list[framing.Message]:
    """So many messages; then nothing more comes."""
    receiver, found = framing.Receiver(), []
    while len(found) < count:
        data = client._socket.recv(receiver.wanted)
        assert data, "the server has gone away"
        if message := receiver.receive(data):
            found.append(message)
    client._socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client._socket.recv(1)
    return found


@pytest.mark.parametrize("first", [1, 15, 16, 17, 30])
def test_a_message_that_was_half_received_is_answered_when_the_rest_has_come(
    serve: Serve, tmp_path: Path, first: int
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    with Client(tmp_path / "s") as client:
        message = _request(0, 4, 77)
        client._socket.sendall(message[:first])
        time.sleep(0.2)
        kill(daemon)
        client._socket.sendall(message[first:])
        (reply,) = _replies(client, 1)
        assert reply.header.message_id == 77


def test_each_request_of_many_gets_one_reply(serve: Serve, tmp_path: Path) -> None:
    """The client does not read: replies are stuck half sent when the process is killed."""
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    count = 200
    with Client(tmp_path / "s") as client:

        def send() -> None:
            for number in range(count):
                client._socket.sendall(_request(0, 4096, number))

        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(3):
            time.sleep(0.7)
            kill(daemon)
        found = _replies(client, count)
        sender.join()
        assert [reply.header.message_id for reply in found] == list(range(count))
        assert {len(reply.body) for reply in found} == {16 + 4096}


def test_the_next_client_finds_the_controller_as_new(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair()
        kill(daemon)
    kill(daemon)
    with NvmeHost(tmp_path / "s") as host:
        assert host.active_namespaces() == [1]
        assert host.create_queue_pair().qid == 1


def test_a_client_that_goes_while_nobody_serves_is_seen_to_have_gone(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    host = NvmeHost(tmp_path / "s")
    kill(daemon)
    host.transport.close()
    with NvmeHost(tmp_path / "s") as host:
        assert host.active_namespaces() == [1]


# -- the keeper ---------------------------------------------------------------------------------


def test_it_says_that_it_carries_on(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    kill(daemon)
    with NvmeHost(tmp_path / "s"):
        pass
    assert daemon.stop().err.splitlines()[:2] == [
        "nvme-mdev: the serving process was killed (SIGKILL), starting it again",
        f"nvme-mdev: carrying on at {tmp_path}/s",
    ]


def _gone(pid: int) -> bool:
    """Whether a process has ended (an orphan's zombie may stay where there is no init)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_serving_process_dies_with_its_keeper(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    pid = serving_pid(daemon)
    daemon.stop(signal.SIGKILL)
    end = time.monotonic() + 30
    while not _gone(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_the_serving_process_refuses_is_the_end_of_the_keeper(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nvme_mdev.cli.main", "serve", str(tmp_path / "missing.img")]
    result = subprocess.run(
        [*command, "--socket", str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "does not exist: give --size" in result.stderr


def test_without_a_keeper_it_is_one_process_and_dies_when_killed(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s", "--no-keeper")
    pid = daemon.process.pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
    assert daemon.stop(signal.SIGKILL).status == -signal.SIGKILL


def test_a_crash_loop_is_given_up(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    while daemon.process.poll() is None:
        try:
            kill(daemon)
        except (FileNotFoundError, ProcessLookupError):
            continue
        time.sleep(0.005)
    assert daemon.process.stderr is not None
    assert daemon.process.returncode == 1
    assert daemon.process.stderr.read().endswith("giving up\n")
