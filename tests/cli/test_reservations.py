"""Reservations through the death of the daemon, and, where the user gives them a file, its end."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.cli.deaths import kill
from tests.controller.reservation_host import Entry, ReservationHost
from tests.controller.statuses import refused

from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.spec.nvme_features import Fid, WriteProtectionState
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_reservations import (
    RegisterAction,
    ReservationNotice,
    ReservationType,
)
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Serve

WE, EA = ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS
A, B = 0xA0, 0xB0
KEPT = {
    "format": "nvme-mdev reservations 1",
    "generation": 1,
    "type": 0,
    "holder": "",
    "registrants": [],
}
CONFLICT = GenericStatus.RESERVATION_CONFLICT


def in_file(identifier: int) -> str:
    """A Host Identifier in the file."""
    return identifier.to_bytes(16, "little").hex()


def sockets(folder: Path) -> list[str | Path]:
    return ["--socket", folder / "a", "--socket", folder / "b"]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Callable[[], tuple[ReservationHost, ReservationHost]]]:
    """Hosts A and B on the two controllers."""
    with ExitStack() as stack:

        def attach() -> tuple[ReservationHost, ReservationHost]:
            a, b = (stack.enter_context(NvmeHost(tmp_path / name)) for name in "ab")
            return ReservationHost(a, A, A), ReservationHost(b, B, B)

        yield attach


def test_reservations_notices_and_masks_are_as_they_were_after_a_death(
    serve: Serve,
    tmp_path: Path,
    both: Callable[[], tuple[ReservationHost, ReservationHost]],
) -> None:
    daemon = serve("memory:4M", "memory:4M", *sockets(tmp_path))
    a, b = both()
    a.host.set_features(Fid.RESERVATION_NOTIFICATION_MASK, 0b0100, nsid=1)
    a.host.set_features(
        Fid.NAMESPACE_WRITE_PROTECTION, WriteProtectionState.UNTIL_POWER_CYCLE, nsid=2
    )
    a.register()
    b.register()
    a.acquire(WE)
    before = a.report()
    kill(daemon)
    assert b.report() == before
    with refused(CONFLICT):
        b.queue.write(1, 0, bytes(512), block_size=512)
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        b.queue.write(2, 0, bytes(512), block_size=512)
    a.queue.write(1, 0, bytes(512), block_size=512)
    b.preempt(EA, A)
    kill(daemon)
    assert a.host.get_features(Fid.RESERVATION_NOTIFICATION_MASK, nsid=1) == 0b0100
    assert a.notices() == [(ReservationNotice.REGISTRATION_PREEMPTED, 1)]
    assert b.report() == (3, EA, False, [Entry(2, True, B, B)])
    with refused(CONFLICT):
        a.queue.read(1, 0, 1, block_size=512)


def test_each_command_takes_effect_once_however_often_the_daemon_is_killed(
    serve: Serve,
    tmp_path: Path,
    both: Callable[[], tuple[ReservationHost, ReservationHost]],
) -> None:
    daemon = serve("memory:4M", *sockets(tmp_path))
    a, b = both()
    a.register()
    stop = threading.Event()
    failures: list[NvmeStatusError] = []
    changes = 0

    def change_keys() -> None:
        """Replacing a key twice, or registering with what is taken, would conflict."""
        nonlocal changes
        key = B
        b.register()
        try:
            while not stop.is_set():
                b.replace(key + 1, key=key)
                changes += 1
                key += 1
                b.unregister(key=key)
                changes += 1
                b.key = key
                b.register()
                changes += 1
        except NvmeStatusError as error:
            failures.append(error)

    worker = threading.Thread(target=change_keys)
    worker.start()
    generations = []
    for _ in range(12):
        before = changes
        kill(daemon)
        generations.append(a.report().generation)
        while changes == before and worker.is_alive():
            time.sleep(0.001)
    stop.set()
    worker.join()
    assert not failures
    assert generations == sorted(generations)
    # a's and b's first registration, then each change.
    assert a.report().generation == 2 + changes


def test_a_reservation_holds_on_every_polling_thread_of_a_controller(
    serve: Serve,
    tmp_path: Path,
    both: Callable[[], tuple[ReservationHost, ReservationHost]],
) -> None:
    daemon = serve("memory:4M", "--type", "nvme-3Q_V1", *sockets(tmp_path))
    a, b = both()
    a.register()
    a.acquire(EA)
    queues = [b.host.create_queue_pair() for _ in range(5)]
    for _ in range(2):
        for queue in queues:
            with refused(CONFLICT):
                queue.read(1, 0, 1, block_size=512)
        kill(daemon)
    a.release(EA)
    for queue in queues:
        queue.read(1, 0, 1, block_size=512)


def test_a_preemption_is_told_after_a_death(
    serve: Serve,
    tmp_path: Path,
    both: Callable[[], tuple[ReservationHost, ReservationHost]],
) -> None:
    daemon = serve("memory:4M", *sockets(tmp_path))
    a, b = both()
    a.register()
    b.register()
    a.host.request_events()
    kill(daemon)
    b.clear()
    kill(daemon)
    assert a.host.events(30) == [AsyncEvent(6, 0, LogPage.RESERVATION_NOTIFICATION)]
    assert a.notices() == [(ReservationNotice.RESERVATION_PREEMPTED, 1)]


def test_a_subsystem_that_has_gone_leaves_nothing_to_the_next_of_its_name(
    serve: Serve, tmp_path: Path, ask: Callable[..., object]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s")
    for _ in range(2):
        ask("controller", "add", tmp_path / "s", "memory:1M", "--socket", tmp_path / "a")
        kill(daemon)
        with NvmeHost(tmp_path / "a") as host:
            a = ReservationHost(host, A, A)
            assert a.report().generation == 0
            a.register()
            ask("controller", "remove", tmp_path / "a", "--force")


# -- persisting through a loss of power ---------------------------------------------------------


def test_with_a_file_reservations_outlive_the_daemon(serve: Serve, tmp_path: Path) -> None:
    kept = tmp_path / "resv.json"
    arguments = [f"memory:4M,ptpl-file={kept}", "--socket", tmp_path / "s"]
    daemon = serve(*arguments)
    with NvmeHost(tmp_path / "s") as host:
        assert host.identify_namespace(1).rescap == 0xFF
        a = ReservationHost(host, A, A)
        a.register()
        assert not kept.exists()
        a.register(cptpl=3)
        a.acquire(EA)
        assert host.get_features(Fid.RESERVATION_PERSISTENCE, nsid=1) == 1
        a.identify(B)
        a.key = B
        a.register()
        before = a.report()
        assert before.ptpl
        kill(daemon)
        assert a.report() == before
    assert daemon.stop().status == 0
    found = json.loads(kept.read_text())
    assert [one["key"] for one in found["registrants"]] == [hex(A), hex(B)]
    daemon = serve(*arguments)
    with NvmeHost(tmp_path / "s") as host:
        stranger = ReservationHost(host, 0xC0)
        assert stranger.report() == before._replace(
            entries=[Entry(0xFFFF, True, A, A), Entry(0xFFFF, False, B, B)]
        )
        with refused(CONFLICT):
            stranger.queue.read(1, 0, 1, block_size=512)
        stranger.identify(A)
        stranger.key = A
        stranger.queue.read(1, 0, 1, block_size=512)
        host.set_features(Fid.RESERVATION_PERSISTENCE, 0, nsid=1)
        assert not kept.exists()
        host.set_features(Fid.RESERVATION_PERSISTENCE, 1, nsid=1)
        assert json.loads(kept.read_text())["holder"] == in_file(A)
        host.set_features(Fid.RESERVATION_PERSISTENCE, 0, nsid=1)
        stranger.register(cptpl=3)
        assert kept.exists()
        stranger.register(cptpl=2)
        assert not kept.exists()
    assert daemon.stop().status == 0
    serve(*arguments)
    with NvmeHost(tmp_path / "s") as host:
        assert ReservationHost(host, A).report() == (0, 0, False, [])


def test_with_a_file_reservations_come_back_with_the_namespace(
    serve: Serve, tmp_path: Path, ask: Callable[..., object]
) -> None:
    serve("null:1M", "--socket", tmp_path / "s")
    target = f"memory:1M,ptpl-file={tmp_path}/r"
    with NvmeHost(tmp_path / "s") as host:
        a = ReservationHost(host, A, A)
        for generation in (1, 2):
            ask("namespace", "add", tmp_path / "s", target, "--nsid", 5)
            a.register(5, cptpl=3)
            assert a.report(5) == (generation, 0, True, [Entry(1, False, A, A)])
            ask("namespace", "remove", tmp_path / "s", 5)


def test_what_cannot_be_kept_has_not_happened(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    serve(f"memory:4M,ptpl-file={folder}/r", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        a = ReservationHost(host, A, A)
        a.register(cptpl=3)
        (folder / "r").unlink()
        folder.rmdir()
        with refused(GenericStatus.INTERNAL_ERROR, dnr=False):
            a.acquire(EA)
        assert a.report() == (1, 0, True, [Entry(1, False, A, A)])
        folder.mkdir()
        a.acquire(EA)
        assert json.loads((folder / "r").read_text())["type"] == EA


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "nvme-mdev reservations 2"}',
        json.dumps(KEPT | {"type": WE}),
        json.dumps(KEPT | {"type": 7}),
        json.dumps(KEPT | {"holder": f"{A:032x}"}),
        json.dumps(KEPT | {"registrants": [{"host": "00", "key": "0x1"}]}),
        json.dumps(KEPT | {"registrants": [{"host": f"{A:032x}", "key": "0x0"}]}),
    ],
)
def test_a_file_of_something_else_is_refused(
    refuse: Callable[..., str], tmp_path: Path, *, text: str
) -> None:
    (tmp_path / "r").write_text(text)
    message = refuse("serve", f"null:1M,ptpl-file={tmp_path}/r", "--socket", tmp_path / "s")
    assert "is no file of reservations" in message
    assert (tmp_path / "r").read_text() == text


def test_a_file_in_a_directory_that_does_not_exist_is_refused_as_that(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    line = refuse("serve", f"null:1M,ptpl-file={tmp_path}/no/r", "--socket", tmp_path / "s")
    assert f"ptpl-file: the directory {tmp_path}/no does not exist: make it first" in line
    (tmp_path / "no").touch()
    line = refuse("serve", f"null:1M,ptpl-file={tmp_path}/no/r", "--socket", tmp_path / "s")
    assert f"{tmp_path}/no/r: Not a directory: give a file in a directory" in line


def test_a_file_in_a_directory_that_cannot_be_written_is_refused(
    refuse: Callable[..., str], ordinary_user: Path
) -> None:
    locked = ordinary_user / "locked"
    locked.mkdir(mode=0o500)
    line = refuse("serve", f"null:1M,ptpl-file={locked}/r", "--socket", ordinary_user / "s")
    assert f"{locked}: Permission denied: " in line
    assert "give a file in a directory that can be written" in line


def test_a_file_for_two_namespaces_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    target = f"null:1M,ptpl-file={tmp_path}/r"
    twice = refuse("serve", target, target, "--socket", tmp_path / "s")
    assert "give each its own" in twice


def test_registering_over_a_death_in_the_middle_is_answered_once(
    serve: Serve,
    tmp_path: Path,
    both: Callable[[], tuple[ReservationHost, ReservationHost]],
) -> None:
    daemon = serve("memory:4M", *sockets(tmp_path))
    a, b = both()
    buffer = a.host.memory.allocate(4096)
    buffer.view[:16] = commands.pack_keys(0, A)
    for _ in range(5):
        sqe = commands.reservation_register(1, RegisterAction.REGISTER)
        sqe.prp1 = buffer.iova
        cids = [a.queue.start(sqe) for _ in range(20)]
        kill(daemon)
        assert all(a.queue.finish(cid).ok for cid in cids)
    assert b.report() == (100, 0, False, [Entry(1, False, A, A)])
