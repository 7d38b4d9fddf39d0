"""A guest whose memory only messages reach (VFIO_USER_DMA_READ and DMA_WRITE)."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.service.relay import commands as relayed_commands
from nvme_mdev.service.relay import shadow
from nvme_mdev.spec.nvme_registers import Register
from nvme_mdev.spec.nvme_reservations import RegisterAction, ReservationType
from nvme_mdev.spec.nvme_status import GenericStatus
from nvme_mdev.vfio_user import client_memory

from .reservation_host import Entry, ReservationHost
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Served

MIB = 1 << 20


@pytest.fixture
def private(served: Served) -> Iterator[NvmeHost]:
    with NvmeHost(served.path, share_memory=False, memory_size=16 * MIB) as host:
        yield host


@contextmanager
def failing(host: NvmeHost, access: str, hits: Callable[[int, int], bool]) -> Iterator[None]:
    """Answer accesses of one kind ("read", "write") to some ranges with EIO."""
    memory = host.transport.private_memory
    assert memory is not None
    real = getattr(memory, access)

    def refuse(address: int, what: int | bytes) -> object:
        if hits(address, what if isinstance(what, int) else len(what)):
            raise OSError(errno.EIO, "broken")
        return real(address, what)

    setattr(memory, access, refuse)
    try:
        yield
    finally:
        delattr(memory, access)


def test_reservations_are_made_and_reported(private: NvmeHost) -> None:
    host = ReservationHost(private, 0xA0, 0xAA)
    keys = private.memory.allocate(4096)
    keys.view[4096 - 16 :] = commands.pack_keys(0, host.key)
    sqe = commands.reservation_register(1, RegisterAction.REGISTER)
    sqe.prp1 = keys.iova + 4096 - 16
    assert host.queue.finish(host.queue.start(sqe)).ok
    host.acquire(ReservationType.EXCLUSIVE_ACCESS)
    assert host.report().entries == [Entry(1, True, 0xA0, 0xAA)]
    host.identify(0xB0)
    with refused(GenericStatus.RESERVATION_CONFLICT):
        host.queue.read(1, 0, 1, block_size=512)


def test_data_of_every_size_is_written_and_read_back(private: NvmeHost) -> None:
    queue = private.create_queue_pair()
    for blocks in (1, 7, 8, 9, 64, 256, 2048):
        data = os.urandom(blocks * 512)
        queue.write(1, 3, data, block_size=512)
        assert queue.read(1, 3, blocks, block_size=512) == data


@pytest.mark.parametrize("interrupts", [False, True])
def test_queues_wrap_many_times(private: NvmeHost, *, interrupts: bool) -> None:
    queue = private.create_queue_pair(4, interrupts=interrupts)
    for number in range(50):
        queue.write(1, number, bytes([number]) * 512, block_size=512)
    for number in range(50):
        assert queue.read(1, number, 1, block_size=512) == bytes([number]) * 512


def test_shadow_doorbells_are_not_offered_nor_taken(private: NvmeHost) -> None:
    assert not private.identify_controller().oacs & 0x100
    with private.memory.allocate(8192) as pages, refused(GenericStatus.INVALID_OPCODE):
        private.admin(commands.doorbell_buffer_config(pages.iova, pages.iova + 4096))


def test_doorbells_are_offered_as_memory_only_to_clients_that_share_some(served: Served) -> None:
    with NvmeHost(served.path, share_memory=False, enable=False) as host:
        assert host.doorbells_mapped  # nothing was known of its memory then
        page, _ = host.transport.map_doorbells()
        assert page is None


def test_doorbells_in_messages_are_heard(served: Served) -> None:
    with NvmeHost(served.path, share_memory=False, map_doorbells=False) as host:
        queue = host.create_queue_pair(4, interrupts=True)
        for number in range(20):
            queue.write(1, number, bytes([number]) * 512, block_size=512)
            assert queue.read(1, number, 1, block_size=512) == bytes([number]) * 512


def test_memory_that_is_shared_and_memory_that_is_not_can_be_mixed(
    private: NvmeHost, served: Served
) -> None:
    iova, size = 0x5_0000_0000, 2 * MIB
    fd = os.memfd_create("shared")
    try:
        os.ftruncate(fd, size)
        private.map_file(iova, size, fd, 0, writable=True)
        data = os.urandom(4096)
        os.pwrite(fd, data, 8192)
        queue = private.create_queue_pair()
        write = commands.write(1, 0, 8)
        write.prp1 = iova + 8192
        queue.execute(write)
        assert queue.read(1, 0, 8, block_size=512) == data
        # Half of the data in either.
        with private.memory.allocate(4096) as buffer:
            read = commands.read(1, 0, 8)
            read.prp1, read.prp2 = iova + 4096 - 2048, buffer.iova
            queue.execute(read)
            assert os.pread(fd, 2048, 2048) == data[:2048]
            assert buffer.read(0, 2048) == data[2048:]
        private.unmap_file(iova, size)
        with pytest.raises(NvmeStatusError) as caught:
            queue.execute(write)
        assert caught.value.status.sc == GenericStatus.DATA_TRANSFER_ERROR
    finally:
        os.close(fd)


def test_a_client_that_shares_its_memory_has_the_controller_as_ever_afterwards(
    served: Served,
) -> None:
    with NvmeHost(served.path, share_memory=False) as host:
        host.create_queue_pair().write(1, 0, bytes(512), block_size=512)
    with NvmeHost(served.path) as host:
        assert host.doorbells_mapped
        assert host.identify_controller().oacs & 0x100
        assert host.create_queue_pair().read(1, 0, 1, block_size=512) == bytes(512)


def test_data_that_cannot_be_read_is_a_data_transfer_error(private: NvmeHost) -> None:
    queue = private.create_queue_pair()
    with private.memory.allocate(4096) as buffer:
        write = commands.write(1, 0, 8)
        write.prp1 = buffer.iova
        with (
            failing(private, "read", lambda address, _: address == buffer.iova),
            pytest.raises(NvmeStatusError) as caught,
        ):
            queue.execute(write)
        assert caught.value.status.sc == GenericStatus.DATA_TRANSFER_ERROR
        queue.execute(write)
    entry = error_log(private)[0]
    assert (entry.sqid, entry.sts >> 1 & 0xFF) == (queue.qid, GenericStatus.DATA_TRANSFER_ERROR)


def test_data_that_cannot_be_written_is_a_data_transfer_error(private: NvmeHost) -> None:
    queue = private.create_queue_pair()
    with private.memory.allocate(4096) as buffer:
        read = commands.read(1, 0, 8)
        read.prp1 = buffer.iova
        with (
            failing(private, "write", lambda address, _: address == buffer.iova),
            pytest.raises(NvmeStatusError) as caught,
        ):
            queue.execute(read)
        assert caught.value.status.sc == GenericStatus.DATA_TRANSFER_ERROR
        queue.execute(read)
    entry = error_log(private)[0]
    assert (entry.sqid, entry.sts >> 1 & 0xFF) == (queue.qid, GenericStatus.DATA_TRANSFER_ERROR)


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_queue_that_cannot_be_reached_is_fatal_until_a_reset(
    private: NvmeHost, access: str
) -> None:
    queue = private.create_queue_pair()
    size = 64 if access == "read" else 16
    with failing(private, access, lambda _, count: count == size):
        queue.start(commands.flush(1))
        while not private.csts().cfs:
            pass
    private.reset()
    assert private.create_queue_pair().read(1, 0, 1, block_size=512) == bytes(512)


def test_a_client_that_does_not_answer_is_a_fatal_error_in_the_end(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_memory, "REPLY_TIMEOUT_S", 0.05)
    served = serve()
    with NvmeHost(served.path, share_memory=False, enable=False) as host:
        memory = host.transport.private_memory
        assert memory is not None
        host.enable()
        client = host.transport.client
        monkeypatch.setattr(client, "_answer", lambda _: None)
        host.write_doorbell(0, 1)
        while not host.csts().cfs:
            pass
        assert host.read_register(Register.CSTS) & 2


def test_more_data_than_there_may_be_on_its_way_waits(
    private: NvmeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed_commands, "MOST_BYTES", 64 << 10)
    monkeypatch.setattr(shadow, "MOST_IDLE", 4)
    queue = private.create_queue_pair(64)
    data = [os.urandom(32 << 10) for _ in range(12)]
    buffers = [private.memory.allocate(32 << 10) for _ in data]
    for opcode in (commands.write, commands.read):
        started = []
        for number, buffer in enumerate(buffers):
            if opcode is commands.write:
                buffer.write(data[number])
            sqe = opcode(1, number * 64, 64)
            sqe.prp1 = buffer.iova
            entries = [buffer.iova + at for at in range(4096, 32 << 10, 4096)]
            page = private.memory.allocate(4096)
            page.write(b"".join(entry.to_bytes(8, "little") for entry in entries))
            sqe.prp2 = page.iova
            started.append(queue.start(sqe))
        for cid in started:
            assert queue.finish(cid).ok
        if opcode is commands.write:
            for buffer in buffers:
                buffer.fill(0)
    assert [buffer.read() for buffer in buffers] == data


def test_a_reset_in_the_middle_leaves_the_controller_usable(private: NvmeHost) -> None:
    for _ in range(5):
        queue = private.create_queue_pair(64)
        for number in range(40):
            queue.start(commands.write(1, number, 1))
        private.reset()
    assert private.create_queue_pair().read(1, 0, 1, block_size=512) == bytes(512)
