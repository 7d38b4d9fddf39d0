"""Abort (Base 5.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import completed, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import ABORT_NOT_ABORTED
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("abort")


def _not_aborted(subject: Subject, sqid: int, cid: int) -> bool:
    reply = succeeds(subject.host.admin_queue, commands.abort(sqid, cid))
    return bool(reply.completion.result & ABORT_NOT_ABORTED)


@GROUP.check("Base 5.1.1")
def what_is_not_outstanding_is_not_aborted(subject: Subject) -> None:
    """Abort of a command that is not outstanding succeeds and says that nothing was aborted."""
    queue = subject.queue
    succeeds(queue, commands.flush(subject.nsid))
    for sqid, cid in ((0, 0x4321), (queue.qid, 0), (queue.qid, 0x4321)):
        require(_not_aborted(subject, sqid, cid), f"SQ {sqid}, CID {cid} was aborted")


@GROUP.check("Base 5.1.1", "Base 5.1.2")
def an_event_request_can_be_aborted(subject: Subject) -> None:
    """An aborted Asynchronous Event Request completes with Command Abort Requested, or stays."""
    admin = subject.host.admin_queue
    cid = admin.start(commands.async_event_request())
    if _not_aborted(subject, 0, cid):
        require(admin.take(cid) is None, "it was completed, and was not aborted")
        return
    completed(admin.finish(cid), GenericStatus.ABORT_REQUESTED)
    require(_not_aborted(subject, 0, cid), "it was aborted twice")


@GROUP.check("Base 5.1.1")
def abort_says_what_happened_to_io(subject: Subject) -> None:
    """I/O commands that Abort says to have aborted completed so before it; others normally."""
    queue = subject.queue
    for _ in range(10):
        cids = [queue.start(commands.flush(subject.nsid)) for _ in range(8)]
        aborted = {cid for cid in cids[-2:] if not _not_aborted(subject, queue.qid, cid)}
        for cid in cids:
            completion = queue.take(cid) if cid in aborted else queue.finish(cid)
            require(completion is not None, f"CID {cid} was aborted, and is not completed")
            if completion is not None:
                codes = (GenericStatus.ABORT_REQUESTED,) if cid in aborted else ()
                completed(completion, *codes)


@GROUP.check("Base 5.1.1", "Base 5.1.13.2.1")
def as_many_aborts_as_acl_says(subject: Subject) -> None:
    """As many Abort commands as ACL says can be outstanding at a time."""
    admin = subject.host.admin_queue
    count = min(subject.controller.acl + 1, 16)
    cids = [admin.start(commands.abort(0, 0x4321)) for _ in range(count)]
    for cid in cids:
        completed(admin.finish(cid))


@GROUP.check("Base 5.1.1")
def abort_of_a_queue_that_is_not_there(subject: Subject) -> None:
    """Abort of a command of a queue that is not there aborts nothing."""
    sqe = commands.abort(0xFFF0, 1)
    completion = subject.host.admin(sqe, check=False).completion
    if completion.ok:
        require(completion.result & ABORT_NOT_ABORTED, "it says that a command was aborted")
    else:
        completed(completion, GenericStatus.INVALID_FIELD)
