"""Completion queue entries, phase tags, opcodes that are not there (Base 4.2, 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import completed, equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import CQE, CQE_SIZE, SQE, Psdt
from nvme_mdev.spec.nvme_logs import CommandEffect
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject
    from nvme_mdev.host.completion import Completion

GROUP = Group("completions")

_FABRICS = 0x7F
_VENDOR_ADMIN = 0xC0
_VENDOR_IO = 0x80


@GROUP.check("Base 4.2.1")
def entries_name_queue_and_command(subject: Subject) -> None:
    """A completion has its command's SQ identifier and command identifier."""
    for queue in (subject.host.create_queue_pair(8), subject.host.create_queue_pair(8)):
        for cid in (0, 1, 0x1234, 0xFFFE):
            sqe = commands.flush(subject.nsid)
            sqe.cid = cid
            queue.submit(bytes(sqe))
            subject.wait(lambda queue=queue: queue.wait(0.1), "a completion")  # type: ignore[misc]
            (completion,) = queue.reap()
            equal(completion.sq_id, queue.qid, "SQID")
            equal(completion.cid, cid, "CID")


@GROUP.check("Base 4.2.1")
def sqhd_follows_the_head(subject: Subject) -> None:
    """SQHD says where the controller's head is: it moves by one with each single command."""
    queue = subject.host.create_queue_pair(8)
    for number in range(1, 20):
        completion = queue.finish(queue.start(commands.flush(subject.nsid)))
        equal(completion.sq_head, number % 8, "SQHD")


@GROUP.check("Base 4.2.4")
def the_phase_tag_is_inverted_at_each_wrap(subject: Subject) -> None:
    """The phase tag is 1 in the first pass through the CQ, 0 in the second, and so on."""
    queue = subject.host.create_queue_pair(4)
    for number in range(17):
        completed(queue.finish(queue.start(commands.flush(subject.nsid))))
        at = number % 4 * CQE_SIZE
        entry = CQE.from_buffer_copy(queue.rings.cq.read(at, CQE_SIZE))
        equal(entry.status & 1, 1 - number // 4 % 2, f"phase tag of completion {number}")


@GROUP.check("Base 3.3.1")
def every_command_has_one_completion(subject: Subject) -> None:
    """Each of many commands at once is completed, once."""
    queue = subject.queue
    outstanding: set[int] = set()
    for number in range(1000):
        while queue.room() == 0:
            outstanding -= _reap(queue.reap(), outstanding)
        sqe = commands.flush(subject.nsid)
        sqe.cid = number
        queue.submit(bytes(sqe))
        outstanding.add(number)

    def all_done() -> bool:
        nonlocal outstanding
        outstanding -= _reap(queue.reap(), outstanding)
        return not outstanding

    subject.wait(all_done, "every completion")
    equal(queue.reap(), [], "completions beyond the last")


def _reap(completions: list[Completion], outstanding: set[int]) -> set[int]:
    found: set[int] = set()
    for completion in completions:
        completed(completion)
        require(completion.cid in outstanding - found, f"CID {completion.cid} came unasked")
        found.add(completion.cid)
    return found


@GROUP.check("Base 4.2.3.1", "Base 5.1.12.1.6")
def admin_opcodes_that_are_not_there_are_refused(subject: Subject) -> None:
    """Every admin opcode outside of the Commands Supported and Effects log is Invalid Opcode."""
    log = subject.effects()
    for opcode in range(_VENDOR_ADMIN):
        if not log.acs[opcode] & CommandEffect.CSUPP and opcode != _FABRICS:
            _invalid_opcode(subject, opcode, io=False)


@GROUP.check("Base 4.2.3.1", "Base 5.1.12.1.6")
def io_opcodes_that_are_not_there_are_refused(subject: Subject) -> None:
    """Every I/O opcode outside of the Commands Supported and Effects log is Invalid Opcode."""
    log = subject.effects()
    for opcode in range(_VENDOR_IO):
        if not log.iocs[opcode] & CommandEffect.CSUPP and opcode != _FABRICS:
            _invalid_opcode(subject, opcode, io=True)


def _invalid_opcode(subject: Subject, opcode: int, *, io: bool) -> None:
    queue = subject.queue if io else subject.host.admin_queue
    sqe = SQE(opc=opcode, nsid=subject.nsid if io else 0)
    status = queue.execute(sqe, check=False).completion.status
    require(status.code is GenericStatus.INVALID_OPCODE, f"opcode {opcode:02X}h: {status}")


@GROUP.check("Base 4.2.3.1")
def an_invalid_command_is_not_to_be_retried(subject: Subject) -> None:
    """Do Not Retry is set where the same command would fail again."""
    admin, queue = subject.host.admin_queue, subject.queue
    for where, sqe in (
        (admin, SQE(opc=0x7E)),
        (admin, commands.identify(0xFF)),
        (admin, commands.delete_io_cq(0xFFFF)),
        (queue, SQE(opc=0x7E, nsid=subject.nsid)),
        (queue, commands.read(0, 0, 1)),
        (queue, commands.read(subject.nsid, subject.namespace.blocks, 1)),
    ):
        status = where.execute(sqe, check=False).completion.status
        require(not status.success and status.dnr, f"opcode {sqe.opc:02X}h: {status}")


@GROUP.check("Base 4.1.1")
def admin_commands_take_no_sgl(subject: Subject) -> None:
    """PSDT other than 00b in an admin command is Invalid Field in Command."""
    for psdt in (Psdt.SGL, Psdt.SGL_MPTR_SGL, 3):
        sqe = commands.identify(1)
        sqe.flags = psdt << 6
        sqe.prp1 = subject.host.memory.allocate(4096).iova
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 4.1.1", "Base 3.4.2")
def admin_commands_are_not_fused(subject: Subject) -> None:
    """FUSE other than 00b in an admin command is Invalid Field in Command."""
    for fuse in (1, 2, 3):
        sqe = commands.identify(1)
        sqe.flags = fuse
        sqe.prp1 = subject.host.memory.allocate(4096).iova
        refused(
            subject.host.admin_queue,
            sqe,
            GenericStatus.INVALID_FIELD,
            GenericStatus.ABORT_MISSING_FUSED,
        )


@GROUP.check("Base 4.1.1")
def command_identifiers_may_be_used_again(subject: Subject) -> None:
    """A command identifier can be used again as soon as its command is completed."""
    queue = subject.queue
    for _ in range(200):
        sqe = commands.flush(subject.nsid)
        sqe.cid = 5
        queue.submit(bytes(sqe))
        subject.wait(lambda: queue.wait(0.1), "a completion")
        (completion,) = queue.reap()
        completed(completion)


@GROUP.check("Base 3.4.1")
def queues_do_not_wait_for_each_other(subject: Subject) -> None:
    """Commands of one queue are completed while another queue's are not reaped."""
    first, second = subject.host.create_queue_pair(4), subject.host.create_queue_pair(4)
    for _ in range(3):
        first.start(commands.flush(subject.nsid))
    for _ in range(20):
        succeeds(second, commands.flush(subject.nsid))
