"""Error Information log entries: which command, which status, which field (Base 5.1.12.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import equal, require
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import SQE
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_identify import IDENTIFY_SIZE
from nvme_mdev.spec.nvme_identify_controller import Oncs
from nvme_mdev.spec.nvme_logs import PELOC_NONE, ErrorLogEntry, LogPage
from nvme_mdev.spec.nvme_status import STATUS_MORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.conformance.subject import Subject
    from nvme_mdev.host.completion import Completion
    from nvme_mdev.host.io import CommandQueue

GROUP = Group("error_log")

_ENTRY = 64


def _newest(subject: Subject, count: int = 1) -> list[ErrorLogEntry]:
    page = subject.host.get_log_page(LogPage.ERROR, count * _ENTRY)
    return [ErrorLogEntry.from_buffer_copy(page, at) for at in range(0, len(page), _ENTRY)]


def _fail(
    subject: Subject, queue: CommandQueue, sqe: SQE, *, receive: int = 0
) -> tuple[Completion, ErrorLogEntry]:
    """A command that fails, and its entry in the log."""
    before = _newest(subject)[0].errcnt
    completion = queue.execute(sqe, receive=receive, check=False).completion
    require(not completion.ok, "the command succeeded")
    entry = _newest(subject)[0]
    require(entry.errcnt > before, f"no new entry for {completion.status}")
    return completion, entry


def _read_beyond(subject: Subject) -> SQE:
    return commands.read(subject.nsid, subject.namespace.blocks + 5, 1)


@GROUP.check("Base 5.1.12.1.2")
def an_entry_names_queue_and_command(subject: Subject) -> None:
    """An entry has the SQ identifier and the command identifier of the command that failed."""
    queue = subject.queue
    for where, sqe in (
        (queue, _read_beyond(subject)),
        (subject.host.admin_queue, commands.identify(0xFF)),
    ):
        completion, entry = _fail(subject, where, sqe, receive=4096)
        equal((entry.sqid, entry.cmdid), (where.qid, completion.cid), "SQID and CID")


@GROUP.check("Base 5.1.12.1.2")
def an_entry_has_the_status(subject: Subject) -> None:
    """An entry's status field is that of the completion, with Do Not Retry."""
    completion, entry = _fail(subject, subject.queue, _read_beyond(subject), receive=4096)
    found, wanted = (field & ~STATUS_MORE for field in (entry.sts >> 1, completion.status_field))
    equal(found, wanted, "status field")


@GROUP.check("Base 4.2.3", "Base 5.1.12.1.2")
def more_says_that_there_is_an_entry(subject: Subject) -> None:
    """More is 1 in the status of a command that has an entry in the log, else 0."""
    for queue, sqe in (
        (subject.queue, _read_beyond(subject)),
        (subject.queue, commands.flush(subject.nsid)),
        (subject.host.admin_queue, commands.identify(0xFF)),
        (subject.host.admin_queue, commands.identify(1)),
    ):
        before = _newest(subject)[0].errcnt
        completion = queue.execute(sqe, receive=4096, check=False).completion
        equal(completion.status.more, _newest(subject)[0].errcnt > before, f"{sqe.opc:02X}h, More")


@GROUP.check("Base 5.1.12.1.2")
def an_entry_has_namespace_and_block(subject: Subject) -> None:
    """An entry of an I/O command has its NSID and the first block with the error."""
    sqe = _read_beyond(subject)
    slba = subject.namespace.blocks + 5
    _, entry = _fail(subject, subject.queue, sqe, receive=4096)
    equal(entry.nsid, subject.nsid, "NSID")
    equal(entry.lba, slba, "LBA")


@GROUP.check("Base 5.1.12.1.2")
def entries_count_up_and_come_newest_first(subject: Subject) -> None:
    """Error counts go up by one, and the newest entry is the first."""
    entries = min(subject.controller.elpe + 1, 4)
    for _ in range(entries):
        subject.host.admin(commands.identify(0xFF), receive=IDENTIFY_SIZE, check=False)
    counts = [entry.errcnt for entry in _newest(subject, entries)]
    equal(counts, list(range(counts[0], counts[0] - entries, -1)), "error counts")


@GROUP.check("Base 5.1.12.1.2")
def the_log_has_as_many_entries_as_elpe_says(subject: Subject) -> None:
    """The log has ELPE + 1 entries; a new one takes the place of the oldest."""
    entries = subject.controller.elpe + 1
    for _ in range(entries + 2):
        subject.host.admin(commands.identify(0xFF), receive=IDENTIFY_SIZE, check=False)
    found = [entry.errcnt for entry in _newest(subject, entries)]
    require(all(found), "an entry is empty")
    equal(found, list(range(found[0], found[0] - entries, -1)), "error counts")


@GROUP.check("Base 5.1.12.1.2")
def the_error_count_outlives_a_reset(subject: Subject) -> None:
    """The error count goes on after a Controller Reset."""
    _, before = _fail(subject, subject.host.admin_queue, commands.identify(0xFF), receive=4096)
    subject.host.enable()
    _, after = _fail(subject, subject.host.admin_queue, commands.identify(0xFF), receive=4096)
    require(after.errcnt > before.errcnt, f"{after.errcnt} after {before.errcnt}")


@GROUP.check("Base 5.1.12.1.2", needs=needs.oncs(Oncs.NVMCMPS))
def a_successful_command_has_no_entry(subject: Subject) -> None:
    """Commands that succeed add no entry."""
    before = _newest(subject)[0].errcnt
    subject.queue.read(subject.nsid, 0, 1)
    subject.host.identify(1)
    equal(_newest(subject)[0].errcnt, before, "error count")


class _Fault(NamedTuple):
    """A command with one bad parameter."""

    what: str
    io: bool
    make: Callable[[Subject], SQE]
    byte: int
    """Where the parameter begins in the SQE."""
    length: int = 4
    """Bytes of the parameter: any of them names it."""


def _with_flags(subject: Subject) -> SQE:
    sqe = commands.read(subject.nsid, 0, 1)
    sqe.flags = 0b1100_0000
    return sqe


_FAULTS = (
    _Fault("an admin opcode", False, lambda _: SQE(opc=0x7E), 0, 1),
    _Fault("CNS", False, lambda _: commands.identify(0xFF), 40),
    _Fault("the NSID of Identify", False, lambda _: commands.identify(0, 0), 4),
    _Fault("LID", False, lambda _: commands.get_log_page(0x3F, 64), 40),
    _Fault("FID of Get Features", False, lambda _: commands.get_features(0x7F), 40),
    _Fault("FID of Set Features", False, lambda _: commands.set_features(0x7F, 0), 40),
    _Fault(
        "a power state",
        False,
        lambda subject: commands.set_features(
            Fid.POWER_MANAGEMENT, subject.controller.npss + 1 & 0x1F
        ),
        44,
    ),
    _Fault("the QID of Delete I/O SQ", False, lambda _: commands.delete_io_sq(0), 40, 2),
    _Fault("the QID of Create I/O CQ", False, lambda _: commands.create_io_cq(0, 4, 0), 40, 2),
    _Fault("an I/O opcode", True, lambda subject: SQE(opc=0x7E, nsid=subject.nsid), 0, 1),
    _Fault("PSDT", True, _with_flags, 1, 1),
    _Fault("the NSID of Read", True, lambda _: commands.read(0, 0, 1), 4),
    _Fault("SLBA", True, _read_beyond, 40, 8),
)


@GROUP.check("Base 5.1.12.1.2")
def an_entry_names_the_parameter_at_fault(subject: Subject) -> None:
    """Parameter Error Location is a byte of the field that is wrong, or says that none is."""
    for fault in _FAULTS:
        queue = subject.queue if fault.io else subject.host.admin_queue
        receive = 0 if fault.make(subject).opc in {0, 4, 5, 0x7E} else 4096
        _, entry = _fail(subject, queue, fault.make(subject), receive=receive)
        byte, bit = entry.peloc & 0xFF, entry.peloc >> 8
        within = fault.byte <= byte < fault.byte + fault.length and bit < 8
        require(
            entry.peloc == PELOC_NONE or within,
            f"{fault.what}: byte {byte}, bit {bit} instead of byte {fault.byte}",
        )
