"""Doorbell errors and their events (PCIe 3.1.2; Base 5.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, require, succeeds
from nvme_mdev.conformance.subject import TIMEOUT
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import AsyncEventType, ErrorEventInfo
from nvme_mdev.spec.nvme_logs import ErrorLogEntry, LogPage
from nvme_mdev.spec.nvme_registers import CapBit
from nvme_mdev.spec.nvme_status import Status

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("doorbells")


def _event(subject: Subject, info: ErrorEventInfo) -> None:
    found = subject.host.events(TIMEOUT)
    require(found, "no asynchronous event")
    equal(found[0], (AsyncEventType.ERROR, info, LogPage.ERROR), "event type, information, page")


@GROUP.check("PCIe 3.1.2.1", "Base 5.1.2")
def a_tail_beyond_the_queue_is_an_event(subject: Subject) -> None:
    """An SQ tail beyond the queue's size is reported as Invalid Doorbell Write Value."""
    queue = subject.host.create_queue_pair(16)
    subject.host.request_events()
    subject.host.write_doorbell(queue.qid, 16)
    _event(subject, ErrorEventInfo.INVALID_DOORBELL_VALUE)


@GROUP.check("PCIe 3.1.2.2", "Base 5.1.2")
def a_head_beyond_the_queue_is_an_event(subject: Subject) -> None:
    """A CQ head beyond the queue's size is reported as Invalid Doorbell Write Value."""
    queue = subject.host.create_queue_pair(16)
    subject.host.request_events()
    subject.host.write_doorbell(queue.qid, 0xFFFF, completion=True)
    _event(subject, ErrorEventInfo.INVALID_DOORBELL_VALUE)


@GROUP.check("PCIe 3.1.2.2", "Base 5.1.2")
def a_head_beyond_what_was_posted_is_an_event(subject: Subject) -> None:
    """A CQ head past the completions that were posted is Invalid Doorbell Write Value.

    The controller needs to look at the head only when the CQ could be full: the commands that would
    fill it come at once, for after two of them the head would do.
    """
    queue = subject.host.create_queue_pair(16, cq_entries=4)
    sqe = bytes(commands.flush(subject.nsid))
    queue.submit(sqe)
    subject.wait(lambda: queue.wait(0.1), "a completion")
    subject.host.request_events()
    subject.host.write_doorbell(queue.qid, 3, completion=True)
    while queue.room():
        queue.post(sqe)
    queue.ring()
    _event(subject, ErrorEventInfo.INVALID_DOORBELL_VALUE)


@GROUP.check("PCIe 3.1.2.1", "Base 5.1.2")
def a_doorbell_of_no_queue_is_an_event(subject: Subject) -> None:
    """A doorbell of a queue that was not created is reported as Invalid Doorbell Register."""
    subject.host.request_events()
    subject.host.write_doorbell(1, 1)
    _event(subject, ErrorEventInfo.INVALID_DOORBELL_REGISTER)


@GROUP.check("PCIe 3.1.2.2", "Base 5.1.2")
def a_head_doorbell_of_no_queue_is_an_event(subject: Subject) -> None:
    """The head doorbell of a CQ that was not created is Invalid Doorbell Register, too."""
    subject.host.request_events()
    subject.host.write_doorbell(1, 0, completion=True)
    _event(subject, ErrorEventInfo.INVALID_DOORBELL_REGISTER)


@GROUP.check("Base 5.1.12.1.2", "Base 5.1.2")
def a_doorbell_error_is_in_the_error_log(subject: Subject) -> None:
    """The error log has an entry for a doorbell error: of no command, with a status that fits."""
    subject.host.request_events()
    before = ErrorLogEntry.from_buffer_copy(subject.host.get_log_page(LogPage.ERROR, 64))
    subject.host.write_doorbell(1, 1)
    _event(subject, ErrorEventInfo.INVALID_DOORBELL_REGISTER)
    entry = ErrorLogEntry.from_buffer_copy(subject.host.get_log_page(LogPage.ERROR, 64))
    require(entry.errcnt > before.errcnt, "no new entry")
    equal((entry.sqid, entry.cmdid), (0xFFFF, 0xFFFF), "SQID and CMDID")
    require(not Status.unpack(entry.sts >> 1).success, "the status is SUCCESS")


@GROUP.check("PCIe 3.1.2")
def a_bad_doorbell_stops_no_other_queue(subject: Subject) -> None:
    """Other queues go on after invalid doorbell writes."""
    queue = subject.queue
    other = subject.host.create_queue_pair(16)
    for value in (16, 0xFFFF, 0xFFFF_FFFF):
        subject.host.write_doorbell(other.qid, value)
        subject.host.write_doorbell(other.qid, value, completion=True)
        succeeds(queue, commands.flush(subject.nsid))
    succeeds(subject.host.admin_queue, commands.identify(1), receive=4096)


@GROUP.check("PCIe 3.1.2.1")
def a_queue_works_after_an_invalid_tail(subject: Subject) -> None:
    """An invalid tail is ignored: with the next valid one the queue goes on."""
    queue = subject.host.create_queue_pair(16)
    subject.host.write_doorbell(queue.qid, 16)
    succeeds(queue, commands.flush(subject.nsid))


@GROUP.check("PCIe 3.1.2")
def doorbells_are_as_far_apart_as_cap_says(subject: Subject) -> None:
    """A queue's doorbells are 4 << CAP.DSTRD bytes apart."""
    subject.attach(map_doorbells=False)
    for qid in range(1, min(subject.host.queue_counts, default=1) + 1)[:4]:
        queue = subject.host.create_queue_pair(4, qid=qid)
        for _ in range(5):
            succeeds(queue, commands.flush(subject.nsid))


@GROUP.check("PCIe 3.1.2")
def doorbells_in_mapped_memory_work(subject: Subject) -> None:
    """Doorbells rung in mapped memory work as those through messages do."""
    if not subject.host.doorbells_mapped:
        raise NotApplicable("the server does not offer the doorbells as memory")
    queue = subject.host.create_queue_pair(4)
    for _ in range(9):
        succeeds(queue, commands.flush(subject.nsid))


@GROUP.check("PCIe 3.1.2", "Base 3.1.4.5")
def doorbells_of_a_disabled_controller_do_nothing(subject: Subject) -> None:
    """Doorbell writes while CC.EN is 0 have no effect on what is enabled afterwards."""
    subject.host.disable()
    for qid in range(3):
        subject.host.write_doorbell(qid, 3)
        subject.host.write_doorbell(qid, 3, completion=True)
    subject.host.enable()
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 3.1.4.1", needs=needs.cap(CapBit.CSS_NCSS))
def only_the_low_half_of_a_doorbell_counts(subject: Subject) -> None:
    """Bits 31:16 of a doorbell are reserved: a valid tail in bits 15:0 is taken, or refused."""
    queue = subject.host.create_queue_pair(16)
    subject.host.write_doorbell(queue.qid, 0xABCD_0000)
    succeeds(queue, commands.flush(subject.nsid))
