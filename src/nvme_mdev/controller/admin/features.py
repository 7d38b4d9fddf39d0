"""Set Features and Get Features (Base 5.1.25, 5.1.11).

A feature without an entry in one of the two tables below is a value of 32 bits that is checked
against a mask, kept, and given back. Those that are data are in :mod:`.feature_data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller import features
from nvme_mdev.controller.admin.feature_data import get_data, set_data
from nvme_mdev.controller.drain import flush
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.features import UNDER_THRESHOLD_SHIFT
from nvme_mdev.controller.keep_alive import GRANULARITY_MS
from nvme_mdev.controller.reservation_commands import set_persistence
from nvme_mdev.spec.nvme_commands import (
    GET_FEATURES_SEL_SHIFT,
    NSID_ALL,
    NSID_NONE,
    SET_FEATURES_SV,
)
from nvme_mdev.spec.nvme_features import (
    ARBITRATION_MASK,
    ERROR_RECOVERY_DULBE,
    ERROR_RECOVERY_TLER_MASK,
    IO_COMMAND_SET_COMBINATION_MASK,
    POWER_MANAGEMENT_PS_MASK,
    TEMPERATURE_ALL_SENSORS,
    VOLATILE_WRITE_CACHE_WCE,
    WRITE_ATOMICITY_DN,
    WRITE_PROTECTION_STATE_MASK,
    AsyncEventConfig,
    FeatureCapability,
    Fid,
    InterruptVectorConfiguration,
    NumberOfQueues,
    Select,
    TemperatureThreshold,
    TemperatureThresholdType,
    WriteProtectionState,
)
from nvme_mdev.spec.nvme_reservations import NOTIFICATION_MASK, PERSISTENCE_PTPL
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvme_mdev.controller.admin.command import AdminCommand, Outcome
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.datapath.backends.base import Backend

_OFFERED_PROTECTION = frozenset(
    {
        WriteProtectionState.NONE,
        WriteProtectionState.PROTECTED,
        WriteProtectionState.UNTIL_POWER_CYCLE,
    }
)
_OF_RESERVATIONS = frozenset({Fid.RESERVATION_NOTIFICATION_MASK, Fid.RESERVATION_PERSISTENCE})
"""Whatever is asked of them is asked of one namespace, never of all."""
_KATO_MAX = 0xFFFF_FFFF
_COMPOSITE = 0
"""TMPSEL of the composite temperature, the only one there is."""


def set_features(controller: Controller, command: AdminCommand) -> Outcome:
    """Set Features: check, keep, and make it work."""
    fid = _fid(controller, command)
    save = command.sqe.cdw10 & SET_FEATURES_SV
    if save and fid not in features.SAVEABLE:
        raise NvmeError(CommandStatus.FEATURE_NOT_SAVEABLE, Field.CDW10)
    if fid not in features.NAMESPACE_SPECIFIC and command.sqe.nsid not in (NSID_NONE, NSID_ALL):
        controller.namespaces.check_nsid(command.sqe.nsid)
        raise NvmeError(CommandStatus.FEATURE_NOT_NAMESPACE_SPECIFIC, Field.NSID)
    outcome = _set(controller, command, fid)
    if save:
        controller.features.save(fid)
    return outcome


def _set(controller: Controller, command: AdminCommand, fid: Fid) -> Outcome:
    if fid in features.DATA:
        return set_data(controller, command, fid)
    setter = _SETTERS.get(fid)
    if setter is not None:
        return setter(controller, command)
    controller.features[fid] = command.sqe.cdw11 & _MASKS[fid]
    return 0


def get_features(controller: Controller, command: AdminCommand) -> int:
    """Get Features: the value that SEL asks for. What was never saved has its default there."""
    fid = _fid(controller, command)
    select = command.sqe.cdw10 >> GET_FEATURES_SEL_SHIFT & 0x7
    if select == Select.SUPPORTED_CAPABILITIES:
        return _capabilities(fid)
    if select not in (Select.CURRENT, Select.DEFAULT, Select.SAVED):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
    if fid in features.DATA:
        return get_data(controller, command, fid, current=select == Select.CURRENT)
    if select != Select.CURRENT:
        return _kept(controller, command, fid, saved=select == Select.SAVED)
    getter = _GETTERS.get(fid)
    return controller.features[fid] if getter is None else getter(controller, command)


def _fid(controller: Controller, command: AdminCommand) -> Fid:
    number = command.sqe.cdw10 & 0xFF
    for fid in features.supported(controller.settings, controller.namespaces):
        if fid == number:
            return fid
    raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)


def _capabilities(fid: Fid) -> int:
    capabilities = FeatureCapability.CHANGEABLE
    if fid in features.NAMESPACE_SPECIFIC:
        capabilities |= FeatureCapability.NAMESPACE_SPECIFIC
    if fid in features.SAVEABLE:
        capabilities |= FeatureCapability.SAVEABLE
    return capabilities


def _kept(controller: Controller, command: AdminCommand, fid: Fid, *, saved: bool) -> int:
    """The saved value, or the default."""
    if fid is Fid.INTERRUPT_VECTOR_CONFIGURATION:
        return _vector(controller, command)
    if fid in _OF_RESERVATIONS:
        _check_active(controller, command)
    value = controller.features.saved(fid) if saved else features.defaults(controller.settings)[fid]
    if fid is Fid.TEMPERATURE_THRESHOLD:
        under = _threshold(command).thsel == TemperatureThresholdType.UNDER
        return value >> UNDER_THRESHOLD_SHIFT if under else value & 0xFFFF
    return value


# --- setting ---


def _set_arbitration(controller: Controller, command: AdminCommand) -> int:
    controller.features[Fid.ARBITRATION] = command.sqe.cdw11 & ARBITRATION_MASK
    controller.queues.set_arbitration(controller.features.burst, *controller.features.weights)
    return 0


def _set_power_management(controller: Controller, command: AdminCommand) -> int:
    """There is one power state; the workload hint is kept."""
    if command.sqe.cdw11 & POWER_MANAGEMENT_PS_MASK:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW11)
    controller.features[Fid.POWER_MANAGEMENT] = command.sqe.cdw11 & 0xFF
    return 0


def _threshold(command: AdminCommand) -> TemperatureThreshold:
    """The threshold that cdw11 names, if it is one."""
    value = TemperatureThreshold.unpack(command.sqe.cdw11)
    if value.tmpsel != _COMPOSITE or value.thsel not in tuple(TemperatureThresholdType):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW11_HIGH)
    return value


def _set_temperature(controller: Controller, command: AdminCommand) -> int:
    value = TemperatureThreshold.unpack(command.sqe.cdw11)
    if value.tmpsel != TEMPERATURE_ALL_SENSORS or value.thsel > TemperatureThresholdType.UNDER:
        value = _threshold(command)
    if value.thsel == TemperatureThresholdType.OVER:
        controller.features.over_temperature = value.tmpth
    else:
        controller.features.under_temperature = value.tmpth
    controller.events.temperature()
    return 0


def _set_error_recovery(controller: Controller, command: AdminCommand) -> int:
    """Per namespace; deallocated blocks are no errors (NSFEAT), so DULBE cannot be set."""
    nsids = _concerned(controller, command)
    if command.sqe.cdw11 & ERROR_RECOVERY_DULBE:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW11_HIGH)
    for nsid in nsids:
        controller.features.set_error_recovery(nsid, command.sqe.cdw11 & ERROR_RECOVERY_TLER_MASK)
    return 0


def _set_write_cache(controller: Controller, command: AdminCommand) -> Outcome:
    """Without the cache each write is durable when it completes; so must be what it holds now."""
    enable = command.sqe.cdw11 & VOLATILE_WRITE_CACHE_WCE
    was_enabled = controller.features[Fid.VOLATILE_WRITE_CACHE]
    controller.features[Fid.VOLATILE_WRITE_CACHE] = enable
    if was_enabled and not enable:
        return _flush(controller.namespaces.volatile())
    return 0


async def _flush(backends: Sequence[Backend]) -> int:
    await flush(backends)
    return 0


def _set_number_of_queues(controller: Controller, command: AdminCommand) -> int:
    """Every queue that there is, is given, whatever was asked for; not while some exist."""
    wanted = NumberOfQueues.unpack(command.sqe.cdw11)
    if NumberOfQueues.INVALID in (wanted.nsq, wanted.ncq):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW11)
    queues = controller.queues
    if any(
        queues.has_sq(qid) or queues.has_cq(qid)
        for qid in range(1, controller.settings.io_queues + 1)
    ):
        raise NvmeError(GenericStatus.COMMAND_SEQUENCE_ERROR)
    return controller.features[Fid.NUMBER_OF_QUEUES]


def _set_vector_configuration(controller: Controller, command: AdminCommand) -> int:
    vector = _vector(controller, command)
    value = InterruptVectorConfiguration.unpack(command.sqe.cdw11)
    controller.state.vector_config[vector] = value.pack()
    controller.queues.interrupts.configure_coalescing()
    return 0


def _set_coalescing(controller: Controller, command: AdminCommand) -> int:
    controller.features[Fid.INTERRUPT_COALESCING] = command.sqe.cdw11 & 0xFFFF
    controller.queues.interrupts.configure_coalescing()
    return 0


def _set_async_events(controller: Controller, command: AdminCommand) -> int:
    """Events that there are not (OAES) cannot be asked for."""
    before = controller.features.async_events
    wanted = AsyncEventConfig(command.sqe.cdw11) & features.ASYNC_EVENTS
    controller.features[Fid.ASYNC_EVENT_CONFIGURATION] = wanted
    controller.events.wanted(wanted & ~before, controller.health.warnings)
    return 0


def _set_keep_alive(controller: Controller, command: AdminCommand) -> int:
    """KATO in milliseconds, rounded up to the granularity (KAS); 0 for none."""
    timeout = -(-command.sqe.cdw11 // GRANULARITY_MS) * GRANULARITY_MS
    controller.features[Fid.KEEP_ALIVE_TIMER] = min(timeout, _KATO_MAX)
    controller.keep_alive.restart()
    return 0


def _set_command_set(_controller: Controller, command: AdminCommand) -> int:
    """There is one combination: the NVM command set."""
    if command.sqe.cdw11 & IO_COMMAND_SET_COMBINATION_MASK:
        raise NvmeError(CommandStatus.IOCS_COMBINATION_REJECTED, Field.CDW11)
    return 0


def _set_write_protection(controller: Controller, command: AdminCommand) -> Outcome:
    """Of one namespace, or of all that are attached."""
    wanted = command.sqe.cdw11 & WRITE_PROTECTION_STATE_MASK
    if wanted not in _OFFERED_PROTECTION:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW11)
    return _protect(controller, _concerned(controller, command), WriteProtectionState(wanted))


async def _protect(
    controller: Controller, nsids: Sequence[int], wanted: WriteProtectionState
) -> int:
    await controller.write_protection.change(nsids, wanted)
    return 0


def _concerned(controller: Controller, command: AdminCommand) -> list[int]:
    """The namespace that a feature is set of, or all that are attached."""
    controller.namespaces.check_nsid(command.sqe.nsid, broadcast=True)
    if command.sqe.nsid == NSID_ALL:
        return [namespace.nsid for namespace in controller.namespaces]
    _check_active(controller, command)
    return [command.sqe.nsid]


def _reserving(controller: Controller, command: AdminCommand) -> list[int]:
    """As `_concerned`, but what is no namespace is an invalid field here, whatever its NSID (Base
    5.1.25.1.29, 5.1.25.1.30)."""
    if command.sqe.nsid != NSID_ALL:
        _check_active(controller, command)
    return _concerned(controller, command)


def _set_notification_mask(controller: Controller, command: AdminCommand) -> int:
    for nsid in _reserving(controller, command):
        controller.notices.set_mask(nsid, command.sqe.cdw11 & NOTIFICATION_MASK)
    return 0


def _set_persistence(controller: Controller, command: AdminCommand) -> Outcome:
    """Of one namespace, or of all that are attached; only where there is a place to keep it."""
    nsids = _reserving(controller, command)
    wanted = bool(command.sqe.cdw11 & PERSISTENCE_PTPL)
    for nsid in nsids:
        namespace = controller.namespaces.get(nsid)
        if wanted and (namespace is None or namespace.backend.ptpl_file is None):
            raise NvmeError(CommandStatus.FEATURE_NOT_CHANGEABLE, Field.CDW11)
    return _persist(controller, nsids, wanted)


async def _persist(controller: Controller, nsids: Sequence[int], wanted: bool) -> int:
    for nsid in nsids:
        await set_persistence(controller, nsid, ptpl=wanted)
    return 0


# --- getting ---


def _get_write_protection(controller: Controller, command: AdminCommand) -> int:
    controller.namespaces.check_nsid(command.sqe.nsid)
    _check_active(controller, command)
    return controller.write_protection[command.sqe.nsid]


def _get_notification_mask(controller: Controller, command: AdminCommand) -> int:
    _check_active(controller, command)
    return controller.notices.mask(command.sqe.nsid)


def _get_persistence(controller: Controller, command: AdminCommand) -> int:
    _check_active(controller, command)
    return int(controller.subsystem.shared[command.sqe.nsid].reservations.ptpl)


def _get_temperature(controller: Controller, command: AdminCommand) -> int:
    if _threshold(command).thsel == TemperatureThresholdType.UNDER:
        return controller.features.under_temperature
    return controller.features.over_temperature


def _get_error_recovery(controller: Controller, command: AdminCommand) -> int:
    controller.namespaces.check_nsid(command.sqe.nsid)
    _check_active(controller, command)
    return controller.features.error_recovery(command.sqe.nsid)


def _get_vector_configuration(controller: Controller, command: AdminCommand) -> int:
    return controller.state.vector_config[_vector(controller, command)]


def _vector(controller: Controller, command: AdminCommand) -> int:
    vector = InterruptVectorConfiguration.unpack(command.sqe.cdw11).iv
    if vector >= controller.settings.vectors:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW11)
    return vector


def _check_active(controller: Controller, command: AdminCommand) -> None:
    if controller.namespaces.get(command.sqe.nsid) is None:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)


_MASKS: dict[Fid, int] = {
    Fid.WRITE_ATOMICITY: WRITE_ATOMICITY_DN,
    Fid.SOFTWARE_PROGRESS_MARKER: 0xFF,
}
"""The bits that are kept of features that need nothing more."""

_SETTERS: dict[Fid, Callable[[Controller, AdminCommand], Outcome]] = {
    Fid.ARBITRATION: _set_arbitration,
    Fid.POWER_MANAGEMENT: _set_power_management,
    Fid.TEMPERATURE_THRESHOLD: _set_temperature,
    Fid.ERROR_RECOVERY: _set_error_recovery,
    Fid.VOLATILE_WRITE_CACHE: _set_write_cache,
    Fid.NUMBER_OF_QUEUES: _set_number_of_queues,
    Fid.INTERRUPT_COALESCING: _set_coalescing,
    Fid.INTERRUPT_VECTOR_CONFIGURATION: _set_vector_configuration,
    Fid.ASYNC_EVENT_CONFIGURATION: _set_async_events,
    Fid.KEEP_ALIVE_TIMER: _set_keep_alive,
    Fid.IO_COMMAND_SET_PROFILE: _set_command_set,
    Fid.RESERVATION_NOTIFICATION_MASK: _set_notification_mask,
    Fid.RESERVATION_PERSISTENCE: _set_persistence,
    Fid.NAMESPACE_WRITE_PROTECTION: _set_write_protection,
}
"""Features that are more than a value."""

_GETTERS: dict[Fid, Callable[[Controller, AdminCommand], int]] = {
    Fid.TEMPERATURE_THRESHOLD: _get_temperature,
    Fid.ERROR_RECOVERY: _get_error_recovery,
    Fid.INTERRUPT_VECTOR_CONFIGURATION: _get_vector_configuration,
    Fid.RESERVATION_NOTIFICATION_MASK: _get_notification_mask,
    Fid.RESERVATION_PERSISTENCE: _get_persistence,
    Fid.NAMESPACE_WRITE_PROTECTION: _get_write_protection,
}
"""Features whose value depends on more than the FID."""
