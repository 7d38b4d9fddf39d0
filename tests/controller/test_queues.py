"""Create and delete I/O queues: every status that the specification names."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_registers import Cc, Register
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.spec.nvme_commands import SQE
    from tests.controller.conftest import Served

QUEUES = 4


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(io_queues=QUEUES, queue_entries=256)


def create_cq(host: NvmeHost, qid: int = 1, entries: int = 16, vector: int = 0) -> SQE:
    page = host.memory.allocate(8 * 4096)
    return commands.create_io_cq(qid, entries, page.iova, vector=vector, interrupts=False)


def create_sq(host: NvmeHost, qid: int = 1, entries: int = 16, cqid: int = 1) -> SQE:
    page = host.memory.allocate(8 * 4096)
    return commands.create_io_sq(qid, entries, page.iova, cqid)


@pytest.mark.parametrize("qid", [0, QUEUES + 1, 0xFFFF])
def test_a_queue_id_that_cannot_be_is_invalid(host: NvmeHost, qid: int) -> None:
    host.admin(create_cq(host))
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(create_cq(host, qid))
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(create_sq(host, qid))
    assert error_log(host)[0].peloc == 40


def test_a_queue_id_in_use_is_invalid(host: NvmeHost) -> None:
    host.create_queue_pair(qid=1)
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(create_cq(host))
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(create_sq(host))


@pytest.mark.parametrize("entries", [1, 257, 0x10000])
def test_a_queue_size_beyond_the_limits_is_invalid(host: NvmeHost, entries: int) -> None:
    host.admin(create_cq(host))
    for sqe in (create_cq(host, 2), create_sq(host, 2)):
        sqe.cdw10 = (entries - 1) << 16 | 2
        with refused(CommandStatus.INVALID_QUEUE_SIZE):
            host.admin(sqe)
        assert error_log(host)[0].peloc == 42


@pytest.mark.parametrize("entries", [2, 256])
def test_the_smallest_and_the_largest_queue_work(host: NvmeHost, entries: int) -> None:
    queue = host.create_queue_pair(entries)
    for _ in range(2 * entries):
        queue.flush(1)


class Listed:
    """A queue of three pages, and the PRP list that names them, last page first."""

    def __init__(self, host: NvmeHost) -> None:
        self.memory = host.memory
        self.pages = [host.memory.allocate(4096).iova for _ in range(3)]
        self.prp_list = host.memory.allocate(4096)
        self.entries = list(reversed(self.pages))

    def create_cq(self, qid: int = 2) -> SQE:
        self.prp_list.write(struct.pack("<3Q", *self.entries))
        sqe = commands.create_io_cq(qid, 700, self.prp_list.iova, vector=0, interrupts=False)
        sqe.cdw11 &= ~1
        return sqe

    def create_sq(self, qid: int = 2, cqid: int = 1) -> SQE:
        self.prp_list.write(struct.pack("<3Q", *self.entries))
        sqe = commands.create_io_sq(qid, 150, self.prp_list.iova, cqid)
        sqe.cdw11 &= ~1
        return sqe


@pytest.fixture
def large(serve: Callable[..., Served]) -> Iterator[NvmeHost]:
    with NvmeHost(serve(io_queues=QUEUES).path) as driver:
        yield driver


def test_a_queue_can_be_scattered_over_the_pages_of_a_prp_list(large: NvmeHost) -> None:
    large.admin(Listed(large).create_cq())
    large.admin(Listed(large).create_sq(cqid=2))


@pytest.mark.parametrize("page", [0, 1, 2])
def test_each_page_of_a_scattered_queue_begins_at_a_page(large: NvmeHost, page: int) -> None:
    large.admin(create_cq(large))
    for kind in (Listed.create_cq, Listed.create_sq):
        listed = Listed(large)
        listed.entries[page] += 8
        with refused(GenericStatus.INVALID_PRP_OFFSET):
            large.admin(kind(listed))
        assert error_log(large)[0].peloc == 24


@pytest.mark.parametrize("page", [0, 1, 2])
def test_each_page_of_a_scattered_queue_is_in_guest_memory(large: NvmeHost, page: int) -> None:
    large.admin(create_cq(large))
    for kind in (Listed.create_cq, Listed.create_sq):
        listed = Listed(large)
        listed.entries[page] = 0x7777_0000_0000
        with refused(GenericStatus.DATA_TRANSFER_ERROR):
            large.admin(kind(listed))


def test_the_prp_list_of_a_queue_begins_at_a_page_in_guest_memory(large: NvmeHost) -> None:
    large.admin(create_cq(large))
    for kind in (Listed.create_cq, Listed.create_sq):
        sqe = kind(Listed(large))
        sqe.prp1 += 64
        with refused(GenericStatus.INVALID_PRP_OFFSET):
            large.admin(sqe)
        sqe.prp1 = 0x7777_0000_0000
        with refused(GenericStatus.DATA_TRANSFER_ERROR):
            large.admin(sqe)


def test_queues_begin_at_a_page(host: NvmeHost) -> None:
    host.admin(create_cq(host))
    for sqe in (create_cq(host, 2), create_sq(host, 2)):
        sqe.prp1 += 64
        with refused(GenericStatus.INVALID_PRP_OFFSET):
            host.admin(sqe)
        assert error_log(host)[0].peloc == 24


def test_queues_are_in_guest_memory(host: NvmeHost) -> None:
    host.admin(create_cq(host))
    for sqe in (create_cq(host, 2), create_sq(host, 2)):
        sqe.prp1 = 0x7777_0000_0000
        with refused(GenericStatus.DATA_TRANSFER_ERROR):
            host.admin(sqe)


@pytest.mark.parametrize("vector", [QUEUES + 1, 0xFFFF])
def test_a_vector_beyond_msix_is_invalid(host: NvmeHost, vector: int) -> None:
    with refused(CommandStatus.INVALID_INTERRUPT_VECTOR):
        host.admin(create_cq(host, vector=vector))
    assert error_log(host)[0].peloc == 46


@pytest.mark.parametrize("cqid", [0, QUEUES + 1])
def test_a_submission_queue_needs_a_valid_completion_queue_id(host: NvmeHost, cqid: int) -> None:
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(create_sq(host, cqid=cqid))


def test_a_submission_queue_needs_a_completion_queue(host: NvmeHost) -> None:
    with refused(CommandStatus.COMPLETION_QUEUE_INVALID):
        host.admin(create_sq(host, cqid=2))
    assert error_log(host)[0].peloc == 46


def test_entry_sizes_must_have_been_set(host: NvmeHost) -> None:
    cc = Cc.unpack(host.read_register(Register.CC))
    host.write_register(Register.CC, Cc(en=cc.en).pack())
    with refused(CommandStatus.INVALID_QUEUE_SIZE):
        host.admin(create_cq(host))
    host.write_register(Register.CC, cc.pack())
    host.admin(create_cq(host))


def test_several_submission_queues_share_a_completion_queue(host: NvmeHost) -> None:
    host.create_queue_pair(qid=1)
    host.admin(create_sq(host, 2, cqid=1))
    with refused(CommandStatus.INVALID_QUEUE_DELETION):
        host.admin(commands.delete_io_cq(1))
    host.admin(commands.delete_io_sq(1))
    with refused(CommandStatus.INVALID_QUEUE_DELETION):
        host.admin(commands.delete_io_cq(1))
    host.admin(commands.delete_io_sq(2))
    host.admin(commands.delete_io_cq(1))


@pytest.mark.parametrize("qid", [0, 1, QUEUES + 1, 0xFFFF])
def test_what_is_not_there_cannot_be_deleted(host: NvmeHost, qid: int) -> None:
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(commands.delete_io_sq(qid))
    with refused(CommandStatus.INVALID_QUEUE_ID):
        host.admin(commands.delete_io_cq(qid))


def test_queues_are_made_and_deleted_again_and_again(host: NvmeHost) -> None:
    for _ in range(20):
        queue = host.create_queue_pair(32)
        queue.flush(1)
        host.delete_queue_pair(queue)


def test_deleting_a_busy_queue_completes_what_is_in_flight(host: NvmeHost) -> None:
    for _ in range(10):
        queue = host.create_queue_pair(128)
        cids = [queue.start(commands.flush(1)) for _ in range(100)]
        host.admin(commands.delete_io_sq(queue.qid))
        queue.collect()
        for cid in cids:
            completion = queue.take(cid)
            assert completion is None or completion.ok
        host.admin(commands.delete_io_cq(queue.qid))
        del host.queues[queue.qid]
        queue.close()


def test_interrupts_arrive_on_their_vectors(host: NvmeHost) -> None:
    queue = host.create_queue_pair(interrupts=True, vector=3)
    for _ in range(10):
        queue.flush(1)


def test_all_queues_that_are_offered_can_be_made(host: NvmeHost) -> None:
    assert min(host.queue_counts) == QUEUES
    for qid in range(1, QUEUES + 1):
        host.create_queue_pair(qid=qid).flush(1)
