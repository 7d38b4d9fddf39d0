"""Optional admin commands: Keep Alive, Device Self-test, Format NVM, Sanitize (Base 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import completed, equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_identify_controller import Fna, Oacs
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("admin_optional")

_SHORT, _ABORT_TEST = 1, 0xF
_LATEST_RESULT = 4
"""Offset of the newest result in the Device Self-test log."""


@GROUP.check("Base 5.1.14", needs=needs.keep_alive)
def keep_alive_succeeds(subject: Subject) -> None:
    """Keep Alive succeeds."""
    for _ in range(3):
        succeeds(subject.host.admin_queue, SQE(opc=AdminOpcode.KEEP_ALIVE))


def _self_test(code: int, nsid: int) -> SQE:
    return SQE(opc=AdminOpcode.DEVICE_SELF_TEST, nsid=nsid, cdw10=code)


@GROUP.check("Base 5.1.5", "Base 5.1.12.1.7", needs=needs.oacs(Oacs.DSTS))
def a_short_self_test_has_a_result(subject: Subject) -> None:
    """A short self-test ends, and its result is the newest in the log."""
    succeeds(subject.host.admin_queue, _self_test(_SHORT, subject.nsid))

    def idle() -> bool:
        return subject.host.get_log_page(LogPage.DEVICE_SELF_TEST, 564)[0] & 0xF == 0

    subject.wait(idle, "the end of the self-test")
    result = subject.host.get_log_page(LogPage.DEVICE_SELF_TEST, 564)[_LATEST_RESULT]
    equal(result, _SHORT << 4, "self-test code and result")


@GROUP.check("Base 5.1.5", needs=needs.oacs(Oacs.DSTS))
def a_self_test_can_be_aborted(subject: Subject) -> None:
    """Aborting the self-test succeeds, whether one is in progress or not."""
    for _ in range(2):
        succeeds(subject.host.admin_queue, _self_test(_ABORT_TEST, subject.nsid))


@GROUP.check("Base 5.1.5", needs=needs.oacs(Oacs.DSTS))
def an_unknown_self_test_is_refused(subject: Subject) -> None:
    """A reserved self-test code is Invalid Field in Command."""
    for code in (0x0, 0x7):
        sqe = _self_test(code, subject.nsid)
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.1.5", needs=needs.oacs(Oacs.DSTS))
def a_self_test_of_no_namespace_is_refused(subject: Subject) -> None:
    """A self-test of an NSID above NN is Invalid Namespace or Format."""
    sqe = _self_test(_SHORT, subject.invalid_nsid())
    refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_NAMESPACE_OR_FORMAT)


def _format(nsid: int, *, lbaf: int = 0, ses: int = 0) -> SQE:
    return SQE(opc=AdminOpcode.FORMAT_NVM, nsid=nsid, cdw10=lbaf & 0xF | ses << 9)


@GROUP.check("Base 5.1.10", needs=needs.oacs(Oacs.FNVMS))
def a_format_that_is_not_there_is_refused(subject: Subject) -> None:
    """Format NVM with an LBA format above NLBAF is Invalid Format."""
    formats = subject.namespace.identify.nlbaf + 1
    if formats > 15:
        raise NotApplicable("every format index is valid")
    refused(
        subject.host.admin_queue,
        _format(subject.nsid, lbaf=formats),
        CommandStatus.INVALID_FORMAT,
    )


@GROUP.check("Base 5.1.10", needs=needs.oacs(Oacs.FNVMS))
def a_reserved_secure_erase_is_refused(subject: Subject) -> None:
    """Format NVM with a reserved Secure Erase Setting is refused."""
    codes = GenericStatus.INVALID_FIELD, CommandStatus.INVALID_FORMAT
    refused(subject.host.admin_queue, _format(subject.nsid, ses=5), *codes)


@GROUP.check("Base 5.1.10", needs=(needs.oacs(Oacs.FNVMS), needs.writable), destructive=True)
def a_format_keeps_or_changes_the_block_size(subject: Subject) -> None:
    """Format NVM to each LBA format without metadata gives blocks of that size, all readable."""
    original = subject.namespace.identify
    index = original.flbas & 0xF
    for number in [*range(min(original.nlbaf + 1, 16)), index]:
        entry = original.lbaf[number]
        if entry.ms or not entry.lbads:
            continue
        reply = subject.host.admin(_format(subject.nsid, lbaf=number), check=False)
        if reply.completion.status.code is GenericStatus.OPERATION_DENIED:
            raise NotApplicable("the server does not allow this namespace to be formatted")
        require(reply.completion.ok, f"format {number}: {reply.completion.status}")
        subject.attach()
        equal(subject.block_size, 1 << entry.lbads, f"block size of format {number}")
        subject.queue.read(subject.nsid, subject.namespace.blocks - 1, 1)


@GROUP.check("Base 5.1.10", needs=(needs.oacs(Oacs.FNVMS), needs.writable), destructive=True)
def a_secure_erase_leaves_nothing(subject: Subject) -> None:
    """Format NVM with each secure erase that FNA has leaves none of the data."""
    if subject.controller.fna & Fna.SENS and len(subject.host.active_namespaces()) > 1:
        raise NotApplicable("a secure erase is of all namespaces")
    data = b"\x5a" * subject.block_size
    index = subject.namespace.identify.flbas & 0xF
    for ses in (1, 2) if subject.controller.fna & Fna.CES else (1,):
        subject.queue.write(subject.nsid, 0, data)
        reply = subject.host.admin(_format(subject.nsid, lbaf=index, ses=ses), check=False)
        if reply.completion.status.code is GenericStatus.OPERATION_DENIED:
            raise NotApplicable("the server does not allow this namespace to be formatted")
        require(reply.completion.ok, f"SES {ses}: {reply.completion.status}")
        require(subject.queue.read(subject.nsid, 0, 1) != data, "the data is still there")


def _sanitize(action: int) -> SQE:
    return SQE(opc=AdminOpcode.SANITIZE, cdw10=action)


def _begin_sanitizing(subject: Subject, action: int) -> None:
    """In one pass, where it overwrites."""
    reply = subject.host.admin(_sanitize(action | 1 << 4), check=False)
    if reply.completion.status.code is GenericStatus.OPERATION_DENIED:
        raise NotApplicable("the server does not allow the subsystem to be sanitized")
    require(reply.completion.ok, f"action {action}: {reply.completion.status}")


def _is_sanitizing(subject: Subject) -> bool:
    return subject.host.get_log_page(LogPage.SANITIZE_STATUS, 512)[2] & 7 == 2


def _await_sanitized(subject: Subject) -> None:
    subject.wait(lambda: not _is_sanitizing(subject), "the end of the sanitize operation")


@GROUP.check("Base 5.1.22", needs=needs.sanitize)
def an_unknown_sanitize_action_is_refused(subject: Subject) -> None:
    """A Sanitize Action that is reserved or that SANICAP lacks is Invalid Field in Command."""
    kinds = subject.controller.sanicap & 7
    missing = [action for action, bit in ((4, 1), (2, 2), (3, 4)) if not kinds & bit]
    for action in [0, 7, *missing]:
        refused(subject.host.admin_queue, _sanitize(action), GenericStatus.INVALID_FIELD)


@GROUP.check(
    "Base 5.1.22", "Base 5.1.12.1.33", needs=(needs.sanitize, needs.writable), destructive=True
)
def a_sanitize_operation_leaves_nothing(subject: Subject) -> None:
    """Each sanitize operation that SANICAP has ends successfully, and the data is gone."""
    kinds = subject.controller.sanicap & 7
    data = b"\x5a" * subject.block_size
    for action, bit in ((2, 2), (3, 4), (4, 1)):
        if not kinds & bit:
            continue
        subject.queue.write(subject.nsid, 0, data)
        _begin_sanitizing(subject, action)
        _await_sanitized(subject)
        status = subject.host.get_log_page(LogPage.SANITIZE_STATUS, 512)[2] & 7
        require(status in {1, 4}, f"sanitize status {status}")
        require(subject.queue.read(subject.nsid, 0, 1) != data, "the data is still there")


@GROUP.check("Base 8.1.24.4", "Base 5.1", needs=(needs.sanitize, needs.writable), destructive=True)
def a_sanitize_operation_excludes_other_commands(subject: Subject) -> None:
    """While a sanitize operation is in progress reads and most log pages are refused."""
    kinds = subject.controller.sanicap & 7
    action = next(action for action, bit in ((3, 4), (2, 2), (4, 1)) if kinds & bit)
    queue, admin = subject.queue, subject.host.admin_queue
    _begin_sanitizing(subject, action)
    read = queue.execute(commands.read(subject.nsid, 0, 1), receive=subject.block_size, check=False)
    sqe = commands.get_log_page(LogPage.FIRMWARE_SLOT, 512)
    page = admin.execute(sqe, receive=512, check=False)
    in_progress = _is_sanitizing(subject)
    _await_sanitized(subject)
    if not in_progress:
        raise NotApplicable("it was over too soon to be looked at")
    for reply in (read, page):
        completed(reply.completion, GenericStatus.SANITIZE_IN_PROGRESS)
