"""Get Log Page (Base 5.1.12)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from nvme_mdev.controller import features
from nvme_mdev.controller.admin.erase import sanitize_log
from nvme_mdev.controller.admin.identify import optional_commands
from nvme_mdev.controller.admin.self_test import self_test_log
from nvme_mdev.controller.error_log import newest_first
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.health import composite_temperature, take_over
from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.controller.settings import firmware_revision
from nvme_mdev.datapath.clock import tsc_hz
from nvme_mdev.spec.nvme_commands import (
    GET_LOG_PAGE_OT,
    GET_LOG_PAGE_RAE,
    NSID_ALL,
    RESERVATION_OPCODES,
    Csi,
    NvmOpcode,
)
from nvme_mdev.spec.nvme_identify_controller import Oncs
from nvme_mdev.spec.nvme_logs import (
    ChangedNamespacesLog,
    CommandEffect,
    CommandsEffectsLog,
    CriticalWarning,
    ErrorLogEntry,
    FeatureEffect,
    FeatureEffectsLog,
    FirmwareSlotLog,
    LogPage,
    LogPageSupport,
    SmartLog,
    SupportedLogPages,
)
from nvme_mdev.spec.nvme_registers import Css
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus
from nvme_mdev.spec.vendor import (
    PATH_COUNTERS_LID,
    PATH_COUNTERS_MAGIC,
    PATH_COUNTERS_VERSION,
    PathCountersLog,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.spec.nvme_reservations import ReservationNotificationLog

    _Builder = Callable[[Controller, AdminCommand], bytes | ctypes.Structure]

_UNITS_PER_DATA_UNIT = 1000
"""512-byte units in a data unit of the SMART log."""
_MS_PER_MINUTE = 60_000
_MS_PER_HOUR = 3_600_000
_ACTIVE_SLOT = 1
"""The only firmware slot there is."""
_FULL_SPARE_PERCENT = 100
_SPARE_THRESHOLD_PERCENT = 10
"""Arbitrary: the spare does not wear out."""


def get_log_page(controller: Controller, command: AdminCommand) -> int:
    """Get Log Page: return a part of the page that LID names."""
    sqe = command.sqe
    page_id = sqe.cdw10 & 0xFF
    length = ((sqe.cdw11 & 0xFFFF) << 16 | sqe.cdw10 >> 16) * 4 + 4
    offset = sqe.cdw13 << 32 | sqe.cdw12
    build = _pages(controller).get(page_id)
    if build is None:
        raise NvmeError(CommandStatus.INVALID_LOG_PAGE, Field.CDW10)
    if length > controller.settings.max_transfer:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10_HIGH)
    if sqe.cdw14 & GET_LOG_PAGE_OT:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW14)
    page = bytes(build(controller, command))
    if offset % 4 or offset > len(page):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW12)
    command.respond(page[offset : offset + length].ljust(length, b"\0"))
    if not sqe.cdw10 & GET_LOG_PAGE_RAE:
        _was_read(controller, page_id)
    return 0


def _was_read(controller: Controller, page_id: int) -> None:
    if page_id == LogPage.CHANGED_NAMESPACES:
        controller.events.clear_changed_namespaces()
    if page_id == LogPage.RESERVATION_NOTIFICATION:
        controller.notices.remove_oldest()
    controller.events.log_page_read(page_id)
    if page_id == LogPage.RESERVATION_NOTIFICATION:
        controller.notices.deliver()


def _pages(controller: Controller) -> dict[int, _Builder]:
    """The log pages that this controller has: some belong to commands that it may not have."""
    without = set()
    if not controller.self_test.offered:
        without.add(LogPage.DEVICE_SELF_TEST)
    if not controller.erasing.offered:
        without.add(LogPage.SANITIZE_STATUS)
    return {page: build for page, build in _PAGES.items() if page not in without}


def _supported_log_pages(controller: Controller, _command: AdminCommand) -> SupportedLogPages:
    data = SupportedLogPages()
    for page_id in _pages(controller):
        data.lids[page_id] = LogPageSupport.LSUPP
    return data


def _error(controller: Controller, _command: AdminCommand) -> bytes:
    """A sanitize operation leaves no trace of the data: not which block was at fault (Base 5.1)."""
    page = bytearray(newest_first(controller.state))
    if controller.erasing.sanitize_refusal is not None:
        for at in range(0, len(page), ctypes.sizeof(ErrorLogEntry)):
            ErrorLogEntry.from_buffer(page, at).lba = 0
    return bytes(page)


def _smart(controller: Controller, command: AdminCommand) -> SmartLog:
    """SMART / Health Information, of the controller only (LPA bit 0 is 0)."""
    if command.sqe.nsid not in (0, NSID_ALL):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
    counters = controller.state.counters()
    life = controller.state.lifetime
    data = SmartLog(
        cw=controller.health.warnings
        | (CriticalWarning.TEMPERATURE if controller.features.temperature_warning else 0),
        ctemp=composite_temperature(controller.state),
        avsp=_FULL_SPARE_PERCENT,
        avspt=_SPARE_THRESHOLD_PERCENT,
        wctt=life[Lifetime.WARM_MS] // _MS_PER_MINUTE,
        cctt=life[Lifetime.HOT_MS] // _MS_PER_MINUTE,
    )
    drive = controller.health.drive
    if drive is not None:
        take_over(data, drive)
    for field, value in (
        (data.dur, _data_units(counters["read_units"])),
        (data.duw, _data_units(counters["write_units"])),
        (data.hrc, counters["read_commands"]),
        (data.hwc, counters["write_commands"]),
        (data.cbt, life[Lifetime.BUSY_MS] // _MS_PER_MINUTE),
        (data.pwrc, life[Lifetime.POWER_CYCLES]),
        (data.poh, life[Lifetime.POWERED_MS] // _MS_PER_HOUR),
        (data.upl, life[Lifetime.UNSAFE_SHUTDOWNS]),
        # Each error of a drive below is one of its own count, too.
        (data.mdie, max(counters["media_errors"], int.from_bytes(data.mdie, "little"))),
        (data.neile, controller.state.error_count),
    ):
        field[:] = list(value.to_bytes(16, "little"))
    return data


def _data_units(units: int) -> int:
    """Thousands of 512 bytes, rounded up."""
    return -(-units // _UNITS_PER_DATA_UNIT)


def _firmware_slot(_controller: Controller, _command: AdminCommand) -> FirmwareSlotLog:
    data = FirmwareSlotLog(afi=_ACTIVE_SLOT)
    data.frs[0].revision = firmware_revision().ljust(8).encode("ascii")
    return data


def _changed_namespaces(controller: Controller, _command: AdminCommand) -> ChangedNamespacesLog:
    return ChangedNamespacesLog.from_buffer_copy(controller.state.changed_namespaces)


def _commands_effects(controller: Controller, command: AdminCommand) -> CommandsEffectsLog:
    # The dispatch table has the handlers of this file, so it cannot be imported before it.
    from nvme_mdev.controller.admin.dispatch import supported

    # With one command set alone (CC.CSS = 000b) the field means nothing.
    if controller.registers.cc.css == Css.IOCS and command.sqe.cdw14 >> 24 != Csi.NVM:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.LOG_CSI)
    data = CommandsEffectsLog()
    for opcode, entry in supported(controller).items():
        data.acs[opcode] = entry.effects
    for io_opcode, effects in io_effects(optional_commands(controller.namespaces)).items():
        data.iocs[io_opcode] = effects
    return data


def io_effects(oncs: Oncs) -> dict[NvmOpcode, CommandEffect]:
    """The I/O commands that ONCS allows, with their effects."""
    changes = CommandEffect.CSUPP | CommandEffect.LBCC
    effects = {
        NvmOpcode.FLUSH: CommandEffect.CSUPP,
        NvmOpcode.READ: CommandEffect.CSUPP,
        NvmOpcode.WRITE: changes,
    }
    if oncs & Oncs.NVMCMPS:
        effects[NvmOpcode.COMPARE] = CommandEffect.CSUPP
    if oncs & Oncs.NVMWZSV:
        effects[NvmOpcode.WRITE_ZEROES] = changes
    if oncs & Oncs.NVMWUSV:
        effects[NvmOpcode.WRITE_UNCORRECTABLE] = changes
    if oncs & Oncs.NVMVFYS:
        effects[NvmOpcode.VERIFY] = CommandEffect.CSUPP
    if oncs & Oncs.NVMCPYS:
        effects[NvmOpcode.COPY] = changes
    if oncs & Oncs.NVMDSMSV:
        effects[NvmOpcode.DATASET_MANAGEMENT] = changes
    if oncs & Oncs.RESERVS:
        for opcode in RESERVATION_OPCODES:
            effects[opcode] = CommandEffect.CSUPP
    return effects


def _feature_effects(controller: Controller, _command: AdminCommand) -> FeatureEffectsLog:
    data = FeatureEffectsLog()
    for fid in features.supported(controller.settings, controller.namespaces):
        scope = (
            FeatureEffect.SCOPE_NAMESPACE
            if fid in features.NAMESPACE_SPECIFIC
            else FeatureEffect.SCOPE_CONTROLLER
        )
        data.fids[fid] = FeatureEffect.FSUPP | scope
    return data


def _reservation_notification(
    controller: Controller, _command: AdminCommand
) -> ReservationNotificationLog:
    return controller.notices.oldest()


def _path_counters(controller: Controller, _command: AdminCommand) -> PathCountersLog:
    """The data path's own counters, for ``nvme-mdev bench``."""
    statistics = controller.queues.statistics()
    data = PathCountersLog(
        magic=PATH_COUNTERS_MAGIC, version=PATH_COUNTERS_VERSION, tsc_hz=tsc_hz()
    )
    for field, counter in (
        (data.translated, statistics.translated),
        (data.completed, statistics.completed),
        (data.interrupts, statistics.interrupts),
    ):
        field.count = counter.count
        field.timed = counter.timed
        field.cycles = counter.cycles
    return data


_PAGES: dict[int, _Builder] = {
    LogPage.SUPPORTED_LOG_PAGES: _supported_log_pages,
    LogPage.ERROR: _error,
    LogPage.SMART: _smart,
    LogPage.FIRMWARE_SLOT: _firmware_slot,
    LogPage.CHANGED_NAMESPACES: _changed_namespaces,
    LogPage.COMMANDS_EFFECTS: _commands_effects,
    LogPage.DEVICE_SELF_TEST: self_test_log,
    LogPage.FEATURE_EFFECTS: _feature_effects,
    LogPage.RESERVATION_NOTIFICATION: _reservation_notification,
    LogPage.SANITIZE_STATUS: sanitize_log,
    PATH_COUNTERS_LID: _path_counters,
}
"""LID to the function that builds the page; :func:`_pages` says which there are."""
