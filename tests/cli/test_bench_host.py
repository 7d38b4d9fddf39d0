"""The NVMe host driver against the daemon: what its callers rely on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import HostError, NvmeStatusError, TransportError
from nvme_mdev.host.memory import build_prps
from nvme_mdev.spec.nvme_registers import Shst
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Serve

DATA = os.urandom(64 << 10)


@pytest.fixture
def path(serve: Serve, tmp_path: Path) -> Path:
    socket = tmp_path / "s"
    serve("memory:16M", "--block-size", "512", "--socket", socket)
    return socket


@pytest.fixture
def host(path: Path) -> Iterator[NvmeHost]:
    with NvmeHost(path) as attached:
        yield attached


@pytest.mark.parametrize("interrupts", [False, True])
@pytest.mark.parametrize("entries", [2, 3, 128])
def test_every_io_command_works_at_any_depth(
    host: NvmeHost, interrupts: bool, entries: int
) -> None:
    queue = host.create_queue_pair(entries, interrupts=interrupts)
    queue.write(1, 8, DATA)
    queue.flush(1)
    assert queue.read(1, 8, 128) == DATA
    assert queue.compare(1, 8, DATA)
    assert not queue.compare(1, 8, bytes(512))
    queue.write_zeroes(1, 8, 64)
    assert queue.read(1, 8, 128) == bytes(32 << 10) + DATA[32 << 10 :]
    queue.deallocate(1, [(8, 64), (72, 64)])
    assert queue.read(1, 8, 128) == bytes(64 << 10)


def test_a_status_error_says_what_and_why(host: NvmeHost) -> None:
    with pytest.raises(NvmeStatusError, match="READ failed: LBA_OUT_OF_RANGE") as caught:
        host.create_queue_pair().read(1, 1 << 40, 1)
    assert (caught.value.sct, caught.value.sc) == (0, GenericStatus.LBA_OUT_OF_RANGE)


def test_queues_can_be_deleted_and_created_again_without_losing_memory(host: NvmeHost) -> None:
    before = host.memory.available
    for _ in range(5):
        queue = host.create_queue_pair()
        queue.write(1, 0, DATA)
        host.delete_queue_pair(queue)
    assert host.memory.available == before
    with pytest.raises(ValueError, match="closed"):
        queue.flush(1)


def test_a_reset_forgets_queues_and_keeps_data(host: NvmeHost) -> None:
    host.create_queue_pair().write(1, 0, DATA)
    host.reset()
    assert host.queues == {}
    assert host.create_queue_pair().read(1, 0, 128) == DATA
    host.device_reset()
    assert not host.enabled
    host.enable()
    assert host.create_queue_pair().read(1, 0, 128) == DATA


@pytest.mark.parametrize("abrupt", [False, True])
def test_it_can_be_shut_down_and_enabled_again(host: NvmeHost, abrupt: bool) -> None:
    host.shutdown(abrupt=abrupt)
    assert host.csts().shst == Shst.COMPLETE
    host.enable()
    assert host.csts().shst == Shst.NORMAL


def test_an_invalid_doorbell_is_an_event(host: NvmeHost) -> None:
    host.request_events(2)
    assert host.events() == []
    host.write_doorbell(60, 1)
    assert host.events(10.0) == [AsyncEvent(0, 0, 1)]


def test_any_entry_with_any_prps_can_be_sent(host: NvmeHost) -> None:
    queue = host.create_queue_pair(8)
    pages = [host.memory.allocate(4096) for _ in range(4)]
    order = [pages[index] for index in (2, 0, 3, 1)]
    prps = build_prps(host.memory, [page.iova for page in order], list_offset=4096 - 16)
    for number, page in enumerate(order):
        page.fill(number)
    sqe = commands.write(1, 100, 32)
    sqe.cid, sqe.prp1, sqe.prp2 = 0xABCD, prps.prp1, prps.prp2
    queue.submit(bytes(sqe))
    assert queue.wait(10.0)
    (completion,) = queue.reap()
    assert (completion.cid, completion.ok) == (0xABCD, True)
    assert queue.read(1, 100, 32) == b"".join(bytes([number]) * 4096 for number in range(4))


def test_further_windows_are_mapped_where_asked(host: NvmeHost) -> None:
    window = host.map_memory(1 << 20, iova=0x7000_0000_0000)
    queue = host.create_queue_pair()
    buffer = window.allocate(4096)
    buffer.write(DATA[:4096])
    sqe = commands.write(1, 0, 8)
    sqe.prp1 = buffer.iova
    assert queue.finish(queue.start(sqe)).ok
    assert queue.read(1, 0, 8) == DATA[:4096]
    host.unmap_memory(window)
    assert not queue.finish(queue.start(sqe)).ok


def test_a_namespace_that_is_not_there_is_named_with_those_that_are(host: NvmeHost) -> None:
    with pytest.raises(HostError, match="there is no namespace 7: the controller has 1"):
        host.namespace(7)


def test_the_controller_is_left_shut_down_for_the_next_one(path: Path) -> None:
    with NvmeHost(path) as first:
        first.create_queue_pair().write(1, 0, DATA)
    with NvmeHost(path, enable=False) as second:
        assert not second.csts().rdy
        second.enable()
        assert second.create_queue_pair().read(1, 0, 128) == DATA


def test_when_the_server_dies_the_driver_says_so(serve: Serve, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    daemon = serve("null:1G", "--socket", socket)
    with NvmeHost(socket) as host:
        queue = host.create_queue_pair()
        daemon.process.kill()
        daemon.process.wait()
        with pytest.raises(TransportError, match="the server has gone away"):
            queue.flush(1)
