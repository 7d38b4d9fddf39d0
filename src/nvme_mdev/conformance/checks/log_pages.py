"""Get Log Page and the log pages (Base 5.1.12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import GET_LOG_PAGE_OT, NSID_ALL, AdminOpcode, NvmOpcode
from nvme_mdev.spec.nvme_identify_controller import Lpa, Oacs, Oncs
from nvme_mdev.spec.nvme_logs import (
    ChangedNamespacesLog,
    CommandEffect,
    FirmwareSlotLog,
    LogPage,
    LogPageSupport,
    SmartLog,
    SupportedLogPages,
)
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("log_pages")

_INDEXED = {
    LogPage.TELEMETRY_HOST,
    LogPage.TELEMETRY_CONTROLLER,
    LogPage.ENDURANCE_GROUP,
    LogPage.PREDICTABLE_LATENCY_NVM_SET,
    LogPage.PERSISTENT_EVENT,
    LogPage.LBA_STATUS,
    LogPage.MEDIA_UNIT_STATUS,
    LogPage.BOOT_PARTITION,
    LogPage.ROTATIONAL_MEDIA,
}
"""Pages that need an identifier, or do something, when they are read."""


def _supported(subject: Subject) -> list[int]:
    page = SupportedLogPages.from_buffer_copy(
        subject.host.get_log_page(LogPage.SUPPORTED_LOG_PAGES, 1024, nsid=0)
    )
    return [lid for lid in range(256) if page.lids[lid] & LogPageSupport.LSUPP]


def _smart(subject: Subject) -> SmartLog:
    return SmartLog.from_buffer_copy(subject.host.get_log_page(LogPage.SMART, 512))


def _u128(field: object) -> int:
    return int.from_bytes(bytes(field), "little")  # type: ignore[call-overload]


@GROUP.check("Base 5.1.12.1")
def an_unknown_page_is_refused(subject: Subject) -> None:
    """A log page identifier that is reserved is Invalid Log Page."""
    for lid in (0x3F, 0x7D, 0xBF):
        sqe = commands.get_log_page(lid, 512)
        refused(
            subject.host.admin_queue,
            sqe,
            CommandStatus.INVALID_LOG_PAGE,
            GenericStatus.INVALID_FIELD,
            receive=512,
        )


@GROUP.check("Base 5.1.12.1.1", needs=needs.version(2, 0))
def pages_in_the_list_are_there_and_others_are_not(subject: Subject) -> None:
    """Log pages of the Supported Log Pages log can be read, and all others are refused."""
    supported = set(_supported(subject))
    for lid in set(range(0xC0)) - _INDEXED:
        sqe = commands.get_log_page(lid, 512, nsid=NSID_ALL, rae=True)
        status = subject.host.admin(sqe, receive=512, check=False).completion.status
        if lid in supported:
            require(status.success, f"log page {lid:02X}h: {status}")
        else:
            require(
                status.code in {CommandStatus.INVALID_LOG_PAGE, GenericStatus.INVALID_FIELD},
                f"log page {lid:02X}h, which is not in the list: {status}",
            )


@GROUP.check("Base 3.1.3.5", needs=needs.version(2, 0))
def mandatory_pages_are_there(subject: Subject) -> None:
    """Supported Log Pages, Error, SMART, Firmware Slot, Effects and Feature Effects are there."""
    supported = _supported(subject)
    for page in (
        LogPage.SUPPORTED_LOG_PAGES,
        LogPage.ERROR,
        LogPage.SMART,
        LogPage.FIRMWARE_SLOT,
        LogPage.COMMANDS_EFFECTS,
        LogPage.FEATURE_EFFECTS,
    ):
        require(page in supported, f"{page.name} is not in the list")


@GROUP.check("Base 5.1.12", needs=needs.lpa(Lpa.LPEDS))
def an_offset_returns_the_rest_of_the_page(subject: Subject) -> None:
    """A log page read in pieces, by their offsets, is the page."""
    host = subject.host
    whole = host.get_log_page(LogPage.COMMANDS_EFFECTS, 4096, rae=True)
    for offset, size in ((4, 4), (512, 512), (4092, 4), (1000, 3096)):
        part = host.get_log_page(LogPage.COMMANDS_EFFECTS, size, offset=offset, rae=True)
        equal(part, whole[offset : offset + size], f"{size} bytes from {offset} on")


@GROUP.check("Base 5.1.12", needs=needs.lpa(Lpa.LPEDS))
def an_offset_beyond_the_page_is_refused(subject: Subject) -> None:
    """An offset beyond the end of the log page is Invalid Field in Command."""
    for lid, size in ((LogPage.SMART, 512), (LogPage.COMMANDS_EFFECTS, 4096)):
        for offset in (size + 4, 1 << 32, 1 << 63):
            sqe = commands.get_log_page(lid, 64, offset=offset)
            refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD, receive=64)


@GROUP.check("Base 5.1.12", needs=(needs.lpa(Lpa.LPEDS), needs.transfer_limit))
def more_than_mdts_is_refused(subject: Subject) -> None:
    """A length above MDTS is Invalid Field in Command."""
    sqe = commands.get_log_page(LogPage.ERROR, subject.host.max_transfer + 4)
    sqe.prp1 = subject.host.memory.allocate(4096).iova
    refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.1.12")
def one_dword_can_be_read(subject: Subject) -> None:
    """A single dword of a log page can be read, and nothing is written beyond it."""
    buffer = subject.host.memory.allocate(4096)
    buffer.write(b"\xa5" * 4096)
    sqe = commands.get_log_page(LogPage.SMART, 4)
    sqe.prp1 = buffer.iova
    succeeds(subject.host.admin_queue, sqe)
    equal(buffer.read(4), b"\xa5" * 4092, "what lies behind the dword")


@GROUP.check("Base 5.1.12", needs=needs.version(2, 0))
def an_index_offset_needs_support(subject: Subject) -> None:
    """Offset Type 1 is Invalid Field in Command for a page without index offsets."""
    page = SupportedLogPages.from_buffer_copy(
        subject.host.get_log_page(LogPage.SUPPORTED_LOG_PAGES, 1024, nsid=0)
    )
    if page.lids[LogPage.SMART] & LogPageSupport.IOS:
        raise NotApplicable("the SMART log takes index offsets")
    sqe = commands.get_log_page(LogPage.SMART, 64, offset=4)
    sqe.cdw14 = GET_LOG_PAGE_OT
    refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD, receive=64)


# -- SMART -----------------------------------------------------------------------------------


@GROUP.check("Base 5.1.12.1.3")
def smart_is_that_of_the_controller(subject: Subject) -> None:
    """The SMART log can be read with NSID FFFFFFFFh and, as the controller's, with 0."""
    for nsid in (NSID_ALL, 0):
        subject.host.get_log_page(LogPage.SMART, 512, nsid=nsid)


@GROUP.check("Base 5.1.12.1.3")
def smart_of_a_namespace_needs_support(subject: Subject) -> None:
    """The SMART log of one namespace is Invalid Field in Command unless LPA.SMARTS is set."""
    if subject.controller.lpa & Lpa.SMARTS:
        raise NotApplicable("LPA.SMARTS is 1")
    refused(
        subject.host.admin_queue,
        commands.get_log_page(LogPage.SMART, 512, nsid=subject.nsid),
        GenericStatus.INVALID_FIELD,
        receive=512,
    )


@GROUP.check("Base 5.1.12.1.3")
def smart_percentages_are_percentages(subject: Subject) -> None:
    """Available spare and its threshold are at most 100 %, reserved warnings are 0."""
    smart = _smart(subject)
    require(smart.avsp <= 100 and smart.avspt <= 100, f"{smart.avsp} %, {smart.avspt} %")
    require(not smart.cw & 0xC0, f"critical warnings {smart.cw:#x}")


@GROUP.check("Base 5.1.12.1.3")
def smart_counts_reads(subject: Subject) -> None:
    """Host read commands and data units read grow by what was read."""
    before = _smart(subject)
    blocks = min(subject.namespace.blocks, max(1, 4096 // subject.block_size))
    count = -(-1000 * 512 // (blocks * subject.block_size)) + 1
    for _ in range(count):
        subject.queue.read(subject.nsid, 0, blocks)
    after = _smart(subject)
    equal(_u128(after.hrc) - _u128(before.hrc), count, "host read commands")
    require(_u128(after.dur) > _u128(before.dur), "data units read did not grow")


@GROUP.check("Base 5.1.12.1.3", destructive=True, needs=needs.writable)
def smart_counts_writes(subject: Subject) -> None:
    """Host write commands grow by what was written."""
    before = _smart(subject)
    for _ in range(3):
        subject.queue.write(subject.nsid, 0, bytes(subject.block_size))
    equal(_u128(_smart(subject).hwc) - _u128(before.hwc), 3, "host write commands")


@GROUP.check("Base 5.1.12.1.3")
def smart_counts_error_log_entries(subject: Subject) -> None:
    """The number of error log entries is the newest entry's count."""
    subject.host.admin(commands.identify(0xFF), receive=4096, check=False)
    entry = subject.host.get_log_page(LogPage.ERROR, 64)
    equal(_u128(_smart(subject).neile), int.from_bytes(entry[:8], "little"), "error log entries")


# -- the other pages -------------------------------------------------------------------------


@GROUP.check("Base 5.1.12.1.4")
def the_firmware_slot_agrees_with_identify(subject: Subject) -> None:
    """The active firmware slot is 1 to 7 and has the revision of Identify Controller."""
    page = FirmwareSlotLog.from_buffer_copy(subject.host.get_log_page(LogPage.FIRMWARE_SLOT, 512))
    active = page.afi & 7
    require(1 <= active <= 7, f"slot {active}")
    equal(page.frs[active - 1].revision, subject.controller.fr, f"revision in slot {active}")


@GROUP.check("Base 5.1.12.1.5")
def the_changed_list_is_empty_once_read(subject: Subject) -> None:
    """The Changed Attached Namespace List is empty after it was read, with nothing changed."""
    sqe = commands.get_log_page(LogPage.CHANGED_NAMESPACES, 4096)
    reply = subject.host.admin(sqe, receive=4096, check=False)
    if not reply.completion.ok:
        raise NotApplicable("there is no such log page")
    page = subject.host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096)
    require(not any(ChangedNamespacesLog.from_buffer_copy(page).nsid), "it is not")


@GROUP.check("Base 5.1.12.1.6", needs=needs.lpa(Lpa.CSES))
def mandatory_commands_have_effects_entries(subject: Subject) -> None:
    """Every mandatory command is in the Commands Supported and Effects log."""
    log = subject.effects()
    admin = [
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.IDENTIFY,
        AdminOpcode.ABORT,
        AdminOpcode.SET_FEATURES,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.ASYNC_EVENT_REQUEST,
    ]
    for opcode in admin:
        require(log.acs[opcode] & CommandEffect.CSUPP, f"{opcode.name} is not in the log")
    for io_opcode in (NvmOpcode.FLUSH, NvmOpcode.WRITE, NvmOpcode.READ):
        require(log.iocs[io_opcode] & CommandEffect.CSUPP, f"{io_opcode.name} is not in the log")


_OPTIONAL_IO = {
    Oncs.NVMCMPS: [NvmOpcode.COMPARE],
    Oncs.NVMWUSV: [NvmOpcode.WRITE_UNCORRECTABLE],
    Oncs.NVMDSMSV: [NvmOpcode.DATASET_MANAGEMENT],
    Oncs.NVMWZSV: [NvmOpcode.WRITE_ZEROES],
    Oncs.RESERVS: [
        NvmOpcode.RESERVATION_REGISTER,
        NvmOpcode.RESERVATION_REPORT,
        NvmOpcode.RESERVATION_ACQUIRE,
        NvmOpcode.RESERVATION_RELEASE,
    ],
    Oncs.NVMVFYS: [NvmOpcode.VERIFY],
    Oncs.NVMCPYS: [NvmOpcode.COPY],
}
_OPTIONAL_ADMIN = {
    Oacs.SSRS: [AdminOpcode.SECURITY_SEND, AdminOpcode.SECURITY_RECEIVE],
    Oacs.FNVMS: [AdminOpcode.FORMAT_NVM],
    Oacs.FWDS: [AdminOpcode.FIRMWARE_COMMIT, AdminOpcode.FIRMWARE_IMAGE_DOWNLOAD],
    Oacs.NMS: [AdminOpcode.NAMESPACE_MANAGEMENT, AdminOpcode.NAMESPACE_ATTACHMENT],
    Oacs.DSTS: [AdminOpcode.DEVICE_SELF_TEST],
    Oacs.DIRS: [AdminOpcode.DIRECTIVE_SEND, AdminOpcode.DIRECTIVE_RECEIVE],
    Oacs.VMS: [AdminOpcode.VIRTUALIZATION_MANAGEMENT],
    Oacs.DBCS: [AdminOpcode.DOORBELL_BUFFER_CONFIG],
    Oacs.GLSS: [AdminOpcode.GET_LBA_STATUS],
    Oacs.CFLS: [AdminOpcode.LOCKDOWN],
}


@GROUP.check("Base 5.1.12.1.6", "Base 5.1.13.2.1", needs=needs.lpa(Lpa.CSES))
def optional_io_commands_are_in_both_or_none(subject: Subject) -> None:
    """An optional I/O command is in the effects log if and only if ONCS has it."""
    log = subject.effects()
    for bit, opcodes in _OPTIONAL_IO.items():
        for opcode in opcodes:
            in_log = bool(log.iocs[opcode] & CommandEffect.CSUPP)
            equal(in_log, bool(subject.controller.oncs & bit), f"{opcode.name} in the log")


@GROUP.check("Base 5.1.12.1.6", "Base 5.1.13.2.1", needs=needs.lpa(Lpa.CSES))
def optional_admin_commands_are_in_both_or_none(subject: Subject) -> None:
    """An optional admin command is in the effects log if and only if OACS has it."""
    log = subject.effects()
    for bit, opcodes in _OPTIONAL_ADMIN.items():
        for opcode in opcodes:
            in_log = bool(log.acs[opcode] & CommandEffect.CSUPP)
            equal(in_log, bool(subject.controller.oacs & bit), f"{opcode.name} in the log")


@GROUP.check("Base 5.1.12.1.6", needs=needs.lpa(Lpa.CSES))
def commands_that_write_say_so(subject: Subject) -> None:
    """Commands that change user data have Logical Block Content Change in the effects log."""
    log = subject.effects()
    for opcode in (NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.COPY):
        effects = log.iocs[opcode]
        if effects & CommandEffect.CSUPP:
            require(effects & CommandEffect.LBCC, f"{opcode.name} has no LBCC")


@GROUP.check("Base 5.1.12.1.7", needs=needs.oacs(Oacs.DSTS))
def the_self_test_log_is_there(subject: Subject) -> None:
    """The Device Self-test log can be read where there is Device Self-test."""
    subject.host.get_log_page(LogPage.DEVICE_SELF_TEST, 564)


@GROUP.check("Base 5.1.12.1.33", needs=needs.sanitize)
def the_sanitize_log_is_there(subject: Subject) -> None:
    """The Sanitize Status log can be read where there is Sanitize."""
    subject.host.get_log_page(LogPage.SANITIZE_STATUS, 512)


@GROUP.check("Base 5.1.12.1.32", needs=needs.oncs(Oncs.RESERVS))
def the_reservation_log_is_empty(subject: Subject) -> None:
    """The Reservation Notification log has type 0 when nothing happened."""
    page = subject.host.get_log_page(LogPage.RESERVATION_NOTIFICATION, 64)
    if page[8] == 0:
        require(not any(page), "an empty page has contents")
