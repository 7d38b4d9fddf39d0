"""Creating and deleting I/O queues, their sizes, a full CQ (Base 3.3, 5.2.1 to 5.2.4)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import completed, equal, refused, require, succeeds
from nvme_mdev.conformance.subject import QUIET
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import QueueFlags, QueuePriority
from nvme_mdev.spec.nvme_features import Fid, NumberOfQueues
from nvme_mdev.spec.nvme_registers import CapBit, Cc, Register
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject
    from nvme_mdev.host.io import CommandQueue
    from nvme_mdev.spec.nvme_commands import SQE

GROUP = Group("queues")

_ENTRIES = 16


def _admin(subject: Subject) -> CommandQueue:
    """The admin queue, after the number of queues was asked for."""
    _ = subject.host.queue_counts
    return subject.host.admin_queue


def _cq(subject: Subject, qid: int = 1, *, entries: int = _ENTRIES, vector: int = 0) -> SQE:
    page = subject.host.memory.allocate(4096)
    return commands.create_io_cq(qid, entries, page.iova, vector=vector)


def _sq(subject: Subject, qid: int = 1, *, entries: int = _ENTRIES, cqid: int = 1) -> SQE:
    page = subject.host.memory.allocate(4096)
    return commands.create_io_sq(qid, entries, page.iova, cqid)


@GROUP.check("Base 5.2.1", "Base 5.2.2")
def queue_0_cannot_be_created(subject: Subject) -> None:
    """Identifier 0 is Invalid Queue Identifier."""
    admin = _admin(subject)
    refused(admin, _cq(subject, 0), CommandStatus.INVALID_QUEUE_ID)
    succeeds(admin, _cq(subject, 1))
    refused(admin, _sq(subject, 0), CommandStatus.INVALID_QUEUE_ID)


@GROUP.check("Base 5.2.1", "Base 5.2.2")
def an_identifier_above_what_was_allocated_is_invalid(subject: Subject) -> None:
    """An identifier above what Number of Queues returned is Invalid Queue Identifier."""
    admin = _admin(subject)
    counts = subject.host.queue_counts
    for qid in {counts.completion + 1, 0xFFFF} - {0x10000}:
        refused(admin, _cq(subject, qid), CommandStatus.INVALID_QUEUE_ID)
    succeeds(admin, _cq(subject, 1))
    for qid in {counts.submission + 1, 0xFFFF} - {0x10000}:
        refused(admin, _sq(subject, qid), CommandStatus.INVALID_QUEUE_ID)


@GROUP.check("Base 5.2.1", "Base 5.2.2")
def an_identifier_in_use_is_invalid(subject: Subject) -> None:
    """An identifier that is in use is Invalid Queue Identifier."""
    admin = _admin(subject)
    succeeds(admin, _cq(subject))
    refused(admin, _cq(subject), CommandStatus.INVALID_QUEUE_ID)
    succeeds(admin, _sq(subject))
    refused(admin, _sq(subject), CommandStatus.INVALID_QUEUE_ID)


@GROUP.check("Base 5.2.1", "Base 5.2.2", "Base 3.3.3.1")
def a_queue_of_one_entry_is_refused(subject: Subject) -> None:
    """A size of 0h, one entry, is Invalid Queue Size."""
    admin = _admin(subject)
    refused(admin, _cq(subject, entries=1), CommandStatus.INVALID_QUEUE_SIZE)
    succeeds(admin, _cq(subject))
    refused(admin, _sq(subject, entries=1), CommandStatus.INVALID_QUEUE_SIZE)


@GROUP.check("Base 5.2.1", "Base 5.2.2", "Base 3.1.4.1")
def a_queue_above_mqes_is_refused(subject: Subject) -> None:
    """A size above CAP.MQES is Invalid Queue Size."""
    admin, entries = _admin(subject), subject.host.max_entries + 1
    if entries > 0x10000:
        raise NotApplicable("CAP.MQES allows every size")
    refused(admin, _cq(subject, entries=entries), CommandStatus.INVALID_QUEUE_SIZE)
    succeeds(admin, _cq(subject))
    refused(admin, _sq(subject, entries=entries), CommandStatus.INVALID_QUEUE_SIZE)


@GROUP.check("Base 3.3.3.1")
def queues_of_two_entries_work(subject: Subject) -> None:
    """Queues of two entries, the least, work for more commands than fit."""
    queue = subject.host.create_queue_pair(2)
    for _ in range(7):
        succeeds(queue, commands.flush(subject.nsid))


@GROUP.check("Base 3.1.4.1", "Base 3.3.3.1")
def the_largest_queues_work(subject: Subject) -> None:
    """Queues of CAP.MQES + 1 entries work, through more commands than fit."""
    entries = subject.host.max_entries
    if subject.host.cap.bits & CapBit.CQR or entries <= 4096:
        subject.attach(memory_size=(entries * 80 + (1 << 20)))
    queue = subject.host.create_queue_pair(entries)
    for _ in range(0, min(2 * entries, 4096), 64):
        cids = [queue.start(commands.flush(subject.nsid)) for _ in range(min(64, entries - 1))]
        for cid in cids:
            completed(queue.finish(cid))


@GROUP.check("Base 3.3.3.1", "Base 3.3.1.2.1")
def a_full_completion_queue_is_not_overrun(subject: Subject) -> None:
    """No completion is posted to a full CQ, and none is lost: they follow as room is made."""
    queue = subject.host.create_queue_pair(16, cq_entries=4)
    cids = [queue.start(commands.flush(subject.nsid)) for _ in range(12)]
    subject.wait(lambda: queue.rings.cq.read(2 * 16 + 14, 1) != b"\0", "a third completion")
    time.sleep(QUIET)
    equal(queue.rings.cq.read(3 * 16, 16), bytes(16), "entry 3 of a CQ that holds 3")
    for cid in cids:
        completed(queue.finish(cid))


@GROUP.check("Base 5.2.1", "Base 5.2.2", needs=needs.cap(CapBit.CQR))
def queues_that_are_not_contiguous_are_refused(subject: Subject) -> None:
    """PC = 0 is Invalid Field in Command where CAP.CQR is 1."""
    admin = _admin(subject)
    cq = _cq(subject)
    cq.cdw11 &= ~int(QueueFlags.PC)
    refused(admin, cq, GenericStatus.INVALID_FIELD)
    succeeds(admin, _cq(subject))
    sq = _sq(subject)
    sq.cdw11 &= ~int(QueueFlags.PC)
    refused(admin, sq, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.2.1", "Base 5.2.2", "Base 4.3.1", needs=needs.cap_lacks(CapBit.CQR))
def queues_of_a_prp_list_work(subject: Subject) -> None:
    """Queues in pages that a PRP list names work where CAP.CQR is 0."""
    admin, host = _admin(subject), subject.host
    entries = min(256, host.max_entries)
    memory, step = host.memory, host.page_size
    pages = [memory.allocate(step) for _ in range(2 * -(-entries * 64 // step) + 2)]
    sq_pages = [page.iova for page in pages[:-2:2]]
    lists = [memory.allocate(step), memory.allocate(step)]
    lists[0].write(b"".join(iova.to_bytes(8, "little") for iova in sq_pages))
    lists[1].write(pages[-1].iova.to_bytes(8, "little"))
    cq = commands.create_io_cq(1, entries, lists[1].iova)
    sq = commands.create_io_sq(1, entries, lists[0].iova, 1)
    for sqe in (cq, sq):
        sqe.cdw11 &= ~int(QueueFlags.PC)
        succeeds(admin, sqe)
    for index in range(entries - 1):
        sqe = commands.flush(subject.nsid)
        sqe.cid = index
        at = index * 64
        pages[2 * (at // step)].write(bytes(sqe), at % step)
    host.write_doorbell(1, entries - 1)
    last = (entries - 2) * 16
    subject.wait(lambda: pages[-1].read(last + 14, 1) != b"\0", "the last completion")
    equal(int.from_bytes(pages[-1].read(last + 14, 2), "little"), 1, "status of the last command")


@GROUP.check("Base 5.2.1", "Base 5.2.2")
def a_queue_begins_at_a_page(subject: Subject) -> None:
    """PRP Entry 1 with an offset within the page is PRP Offset Invalid."""
    admin = _admin(subject)
    cq = _cq(subject)
    cq.prp1 += 64
    refused(admin, cq, GenericStatus.INVALID_PRP_OFFSET, GenericStatus.INVALID_FIELD)
    succeeds(admin, _cq(subject))
    sq = _sq(subject)
    sq.prp1 += 64
    refused(admin, sq, GenericStatus.INVALID_PRP_OFFSET, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.2.1", "PCIe 3.5")
def a_vector_beyond_the_last_is_refused(subject: Subject) -> None:
    """An Interrupt Vector above what the function has is Invalid Interrupt Vector."""
    vectors = subject.host.transport.msix_vectors()
    for vector in {max(vectors, 1), 0xFFFF}:
        sqe = _cq(subject, vector=vector)
        sqe.cdw11 |= QueueFlags.IEN
        refused(_admin(subject), sqe, CommandStatus.INVALID_INTERRUPT_VECTOR)


@GROUP.check("Base 5.2.2")
def a_submission_queue_on_the_admin_cq_is_refused(subject: Subject) -> None:
    """Completion Queue Identifier 0 is Invalid Queue Identifier."""
    refused(_admin(subject), _sq(subject, cqid=0), CommandStatus.INVALID_QUEUE_ID)


@GROUP.check("Base 5.2.2")
def a_submission_queue_beyond_the_last_cq_is_refused(subject: Subject) -> None:
    """A Completion Queue Identifier above the range is Invalid Queue Identifier."""
    admin = _admin(subject)
    cqid = subject.host.queue_counts.completion + 1
    refused(admin, _sq(subject, cqid=cqid), CommandStatus.INVALID_QUEUE_ID)


@GROUP.check("Base 5.2.2")
def a_submission_queue_without_its_cq_is_refused(subject: Subject) -> None:
    """A Completion Queue Identifier that was not created is Completion Queue Invalid."""
    refused(_admin(subject), _sq(subject, cqid=1), CommandStatus.COMPLETION_QUEUE_INVALID)


@GROUP.check("Base 3.1.4.5")
def entry_sizes_must_be_set_first(subject: Subject) -> None:
    """Queues cannot be created while CC.IOSQES and CC.IOCQES are not 6 and 4."""
    admin = _admin(subject)
    subject.host.disable()
    subject.host.enable()
    cc = Cc.unpack(subject.register(Register.CC))
    subject.host.write_register(Register.CC, Cc(en=True, mps=cc.mps).pack())
    admin = _admin(subject)
    codes = (CommandStatus.INVALID_QUEUE_SIZE, GenericStatus.INVALID_FIELD)
    refused(admin, _cq(subject), *codes)
    subject.host.write_register(Register.CC, cc.pack())
    succeeds(admin, _cq(subject))


@GROUP.check("Base 5.2.2", needs=needs.cap(CapBit.AMS_WRR))
def every_priority_is_accepted(subject: Subject) -> None:
    """With weighted round robin, queues of every priority class work."""
    host = subject.host
    host.disable()
    cc = Cc(en=True, mps=host.cap.mpsmin, ams=1, iosqes=6, iocqes=4)
    host.enable()
    host.write_register(Register.CC, 0)
    subject.wait_ready(ready=False)
    host.write_register(Register.CC, cc.pack())
    subject.wait_ready()
    equal(subject.register(Register.CC), cc.pack(), "CC")
    host.enable()
    succeeds(_admin(subject), _cq(subject))
    for qid, priority in enumerate(QueuePriority, 1):
        if qid > host.queue_counts.submission:
            raise NotApplicable(f"only {qid - 1} submission queues")
        sqe = _sq(subject, qid)
        sqe.cdw11 |= priority << 1
        succeeds(host.admin_queue, sqe)


@GROUP.check("Base 3.3.1", "Base 5.2.3")
def several_submission_queues_share_a_cq(subject: Subject) -> None:
    """Several SQs can have one CQ, which can be deleted only when all of them are gone."""
    admin = _admin(subject)
    if subject.host.queue_counts.submission < 2:
        raise NotApplicable("only one submission queue")
    succeeds(admin, _cq(subject))
    sqs = [_sq(subject, qid) for qid in (1, 2)]
    for sqe in sqs:
        succeeds(admin, sqe)
    for qid in (1, 2):
        refused(admin, commands.delete_io_cq(1), CommandStatus.INVALID_QUEUE_DELETION)
        succeeds(admin, commands.delete_io_sq(qid))
    succeeds(admin, commands.delete_io_cq(1))


@GROUP.check("Base 5.2.3", "Base 5.2.4")
def what_is_not_there_cannot_be_deleted(subject: Subject) -> None:
    """Deleting a queue that was not created, or the admin queue, is Invalid Queue Identifier."""
    admin = _admin(subject)
    for qid in (0, 1, subject.host.queue_counts.submission + 1, 0xFFFF):
        refused(admin, commands.delete_io_sq(qid), CommandStatus.INVALID_QUEUE_ID)
        refused(admin, commands.delete_io_cq(qid), CommandStatus.INVALID_QUEUE_ID)


@GROUP.check("Base 5.2.3", "Base 5.2.4")
def a_deleted_queue_can_be_created_again(subject: Subject) -> None:
    """A queue's identifier can be used again after it was deleted."""
    for entries in (4, 16, 8):
        queue = subject.host.create_queue_pair(entries, qid=1)
        for _ in range(entries + 1):
            succeeds(queue, commands.flush(subject.nsid))
        subject.host.delete_queue_pair(queue)


@GROUP.check("Base 5.2.4", "Base 3.7.3")
def deleting_a_busy_queue_loses_no_command_twice(subject: Subject) -> None:
    """Commands outstanding when their SQ is deleted complete before the deletion, or never."""
    host = subject.host
    for _ in range(5):
        queue = host.create_queue_pair(64, qid=1)
        cids = [queue.start(commands.flush(subject.nsid)) for _ in range(60)]
        succeeds(host.admin_queue, commands.delete_io_sq(1))
        queue.collect()
        for cid in cids:
            completion = queue.take(cid)
            if completion is not None:
                code = completion.status.code
                allowed = (GenericStatus.SUCCESS, GenericStatus.ABORT_SQ_DELETION)
                require(code in allowed, f"a command completed with {completion.status}")
        after = queue.rings.cq.read()
        time.sleep(QUIET / 5)
        equal(queue.rings.cq.read(), after, "the CQ after the deletion")
        succeeds(host.admin_queue, commands.delete_io_cq(1))
        del host.queues[1]


@GROUP.check("Base 5.1.25.2.1")
def number_of_queues_is_known_before(subject: Subject) -> None:
    """Number of Queues allocates at least one of each, and is a Command Sequence Error later."""
    given = NumberOfQueues.unpack(subject.host.set_features(Fid.NUMBER_OF_QUEUES, 0))
    require(given.nsq >= 0, "no queue was given")
    _ = subject.queue
    refused(
        subject.host.admin_queue,
        commands.set_features(Fid.NUMBER_OF_QUEUES, 0),
        GenericStatus.COMMAND_SEQUENCE_ERROR,
    )


@GROUP.check("Base 5.1.25.2.1")
def number_of_queues_can_be_read_back(subject: Subject) -> None:
    """Get Features, Number of Queues returns what Set Features returned."""
    counts = subject.host.request_queues(1)
    found = NumberOfQueues.unpack(subject.host.get_features(Fid.NUMBER_OF_QUEUES))
    equal((found.nsq + 1, found.ncq + 1), tuple(counts), "queues allocated")


@GROUP.check("Base 5.1.25.2.1")
def number_of_queues_65536_is_refused(subject: Subject) -> None:
    """65,536 queues of either kind are Invalid Field in Command."""
    for value in (0x0000_FFFF, 0xFFFF_0000, 0xFFFF_FFFF):
        sqe = commands.set_features(Fid.NUMBER_OF_QUEUES, value)
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.1.25.2.1")
def every_queue_that_was_given_can_be_created(subject: Subject) -> None:
    """As many queue pairs as Number of Queues returned can be created and used."""
    most = min(subject.host.queue_counts)
    for qid in range(1, most + 1):
        queue = subject.host.create_queue_pair(4, qid=qid)
        succeeds(queue, commands.flush(subject.nsid))


@GROUP.check("Base 5.2.1", "Base 5.2.2")
def queues_out_of_memory_hurt_nobody(subject: Subject) -> None:
    """Queues where there is no host memory are refused, or hurt nobody else."""
    admin = _admin(subject)
    sqe = _cq(subject)
    sqe.prp1 = 0x7FFF_FFFF_F000
    admin.execute(sqe, check=False)
    sqe = _sq(subject)
    sqe.prp1 = 0x7FFF_FFFF_E000
    admin.execute(sqe, check=False)
    succeeds(admin, commands.identify(1), receive=4096)
