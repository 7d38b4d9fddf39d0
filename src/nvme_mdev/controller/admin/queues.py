"""Create and Delete I/O Submission and Completion Queue (Base 5.2, PCIe Transport 3.3)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nvme_mdev.controller.drain import drained
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.datapath.memory import GuestMemoryError
from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE_SIZE, AdminOpcode, QueueFlags
from nvme_mdev.spec.nvme_registers import ADMIN_CQES, ADMIN_SQES
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.controller.admin.command import AdminCommand, Outcome
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.datapath.memory import GuestMemory
    from nvme_mdev.datapath.queue_table import QueueTable

_PRP_SIZE = 8


def create_io_cq(controller: Controller, command: AdminCommand) -> int:
    """Create I/O Completion Queue (Base 5.2.1)."""
    qid = command.sqe.cdw10 & 0xFFFF
    vector = command.sqe.cdw11 >> 16
    if not _valid(controller, qid) or controller.queues.has_cq(qid):
        raise NvmeError(CommandStatus.INVALID_QUEUE_ID, Field.CDW10)
    entries = _entries(controller, command, controller.registers.cc.iocqes == ADMIN_CQES)
    contiguous = _check_memory(controller, command, entries * CQE_SIZE, writable=True)
    if vector >= controller.usable_vectors:
        raise NvmeError(CommandStatus.INVALID_INTERRUPT_VECTOR, Field.CDW11_HIGH)
    interrupts = bool(command.sqe.cdw11 & QueueFlags.IEN)
    controller.queues.create_cq(
        qid, command.sqe.prp1, entries, vector, interrupts=interrupts, contiguous=contiguous
    )
    return 0


def create_io_sq(controller: Controller, command: AdminCommand) -> int:
    """Create I/O Submission Queue (Base 5.2.2)."""
    qid = command.sqe.cdw10 & 0xFFFF
    cqid = command.sqe.cdw11 >> 16
    priority = command.sqe.cdw11 >> 1 & 0x3
    if not _valid(controller, qid) or controller.queues.has_sq(qid):
        raise NvmeError(CommandStatus.INVALID_QUEUE_ID, Field.CDW10)
    entries = _entries(controller, command, controller.registers.cc.iosqes == ADMIN_SQES)
    if not _valid(controller, cqid):
        raise NvmeError(CommandStatus.INVALID_QUEUE_ID, Field.CDW11_HIGH)
    if not controller.queues.has_cq(cqid):
        raise NvmeError(CommandStatus.COMPLETION_QUEUE_INVALID, Field.CDW11_HIGH)
    contiguous = _check_memory(controller, command, entries * SQE_SIZE, writable=False)
    controller.queues.create_sq(
        qid, cqid, command.sqe.prp1, entries, priority=priority, contiguous=contiguous
    )
    return 0


def delete_io_cq(controller: Controller, command: AdminCommand) -> int:
    """Delete I/O Completion Queue (Base 5.2.3): only without submission queues."""
    qid = command.sqe.cdw10 & 0xFFFF
    if not _valid(controller, qid) or not controller.queues.has_cq(qid):
        raise NvmeError(CommandStatus.INVALID_QUEUE_ID, Field.CDW10)
    if controller.queues.sqs_of_cq(qid):
        raise NvmeError(CommandStatus.INVALID_QUEUE_DELETION, Field.CDW10)
    controller.queues.delete_cq(qid)
    return 0


def delete_io_sq(controller: Controller, command: AdminCommand) -> Outcome:
    """Delete I/O Submission Queue (Base 5.2.4): fetch nothing more, complete what is in flight."""
    qid = command.sqe.cdw10 & 0xFFFF
    queues = controller.queues
    known = _valid(controller, qid) and queues.has_sq(qid)
    if not known or qid in being_deleted(controller):
        raise NvmeError(CommandStatus.INVALID_QUEUE_ID, Field.CDW10)
    queues.hold(qid)
    queues.end_throttled(qid)
    if queues.inflight(qid):
        return _delete_drained(queues, qid)
    queues.delete_sq(qid)
    return 0


async def _delete_drained(queues: QueueTable, qid: int) -> int:
    await drained(queues, qid)
    queues.delete_sq(qid)
    return 0


def is_done(controller: Controller, command: AdminCommand) -> bool:
    """Whether a command that was executed by a process that died has done all that it had to do.

    A queue that is created last of all gets its size, and loses it first of all when it is
    deleted. A guest that creates a queue twice, in just the same way, is told here that it worked.
    """
    qid = command.sqe.cdw10 & 0xFFFF
    wanted = command.sqe.prp1, (command.sqe.cdw10 >> 16) + 1
    queues = controller.queues
    match command.sqe.opc:
        case AdminOpcode.CREATE_IO_CQ:
            return queues.cq_place(qid) == wanted
        case AdminOpcode.CREATE_IO_SQ:
            return queues.sq_place(qid) == wanted
        case AdminOpcode.DELETE_IO_CQ:
            return not queues.has_cq(qid)
        case AdminOpcode.DELETE_IO_SQ:
            return not queues.has_sq(qid)
        case _:
            return False


def being_deleted(controller: Controller) -> set[int]:
    """I/O SQs that a Delete I/O Submission Queue is waiting for."""
    commands = controller.admin_queue.waiting(AdminOpcode.DELETE_IO_SQ)
    return {command.sqe.cdw10 & 0xFFFF for command in commands}


def _valid(controller: Controller, qid: int) -> bool:
    return 1 <= qid <= controller.settings.io_queues


def _entries(controller: Controller, command: AdminCommand, entry_size_set: bool) -> int:
    """Queue size in entries; CC must say how large an entry is (Base 3.1.4.5)."""
    zero_based = command.sqe.cdw10 >> 16
    if not 1 <= zero_based < controller.settings.queue_entries:
        raise NvmeError(CommandStatus.INVALID_QUEUE_SIZE, Field.CDW10_HIGH)
    if not entry_size_set:
        raise NvmeError(CommandStatus.INVALID_QUEUE_SIZE)
    return zero_based + 1


def _check_memory(
    controller: Controller, command: AdminCommand, size: int, *, writable: bool
) -> bool:
    """Queues begin at a page and are in guest memory; whether this one is contiguous."""
    contiguous = bool(command.sqe.cdw11 & QueueFlags.PC)
    page_size = controller.registers.cc.page_size
    if command.sqe.prp1 % page_size:
        raise NvmeError(GenericStatus.INVALID_PRP_OFFSET, Field.PRP1)
    memory = controller.queues.memory
    pages = (
        [(command.sqe.prp1, size)]
        if contiguous
        else listed_pages(memory, command.sqe.prp1, size, page_size)
    )
    for iova, length in pages:
        if iova % page_size:
            raise NvmeError(GenericStatus.INVALID_PRP_OFFSET, Field.PRP1)
        if not memory.covers(iova, length, writable=writable):
            raise NvmeError(GenericStatus.DATA_TRANSFER_ERROR, Field.PRP1)
    return contiguous


def listed_pages(
    memory: GuestMemory, prp_list: int, size: int, page_size: int
) -> Iterator[tuple[int, int]]:
    """IOVA and length of the pages that a PRP list names for ``size`` bytes (Base 4.3.1).

    The last entry of a page of the list leads to the next one, if more is to come.
    """
    fits = page_size // _PRP_SIZE
    left = -(-size // page_size)
    while left:
        count = left if left <= fits else fits - 1
        try:
            entries = memory.read(prp_list, _PRP_SIZE * (count + (left > fits)))
        except GuestMemoryError:
            raise NvmeError(GenericStatus.DATA_TRANSFER_ERROR, Field.PRP1) from None
        prps = [prp for (prp,) in struct.iter_unpack("<Q", entries)]
        for prp in prps[:count]:
            yield prp, min(page_size, size)
            size -= page_size
        left -= count
        prp_list = prps[-1]
        if left and prp_list % page_size:
            raise NvmeError(GenericStatus.INVALID_PRP_OFFSET, Field.PRP1)
