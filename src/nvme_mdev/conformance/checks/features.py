"""Set Features and Get Features (Base 5.1.11, 5.1.25, 4.4; NVM 4.1.3; PCIe 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import NSID_ALL, SQE, AdminOpcode, DsmAttribute
from nvme_mdev.spec.nvme_features import (
    ERROR_RECOVERY_DULBE,
    HOST_IDENTIFIER_EXHID,
    Arbitration,
    AsyncEventConfig,
    FeatureCapability,
    Fid,
    InterruptCoalescing,
    InterruptVectorConfiguration,
    Select,
    TemperatureThreshold,
    Timestamp,
)
from nvme_mdev.spec.nvme_identify_controller import Ctratt, Oaes, Oncs
from nvme_mdev.spec.nvme_logs import FeatureEffect, FeatureEffectsLog, LogPage
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("features")

_DATA = 4096
"""Bytes enough for the data structure of any feature."""
_OF_NAMESPACES = {
    Fid.ERROR_RECOVERY,
    Fid.RESERVATION_NOTIFICATION_MASK,
    Fid.RESERVATION_PERSISTENCE,
    Fid.NAMESPACE_WRITE_PROTECTION,
}
_MANDATORY = (
    Fid.ARBITRATION,
    Fid.POWER_MANAGEMENT,
    Fid.TEMPERATURE_THRESHOLD,
    Fid.ERROR_RECOVERY,
    Fid.NUMBER_OF_QUEUES,
    Fid.INTERRUPT_COALESCING,
    Fid.INTERRUPT_VECTOR_CONFIGURATION,
    Fid.WRITE_ATOMICITY,
    Fid.ASYNC_EVENT_CONFIGURATION,
)


def _nsid_for(subject: Subject, fid: int) -> int:
    """The NSID for a feature that is a namespace's, else 0."""
    return subject.nsid if fid in _OF_NAMESPACES else 0


def _get(subject: Subject, fid: int, select: Select = Select.CURRENT, value: int = 0) -> int:
    sqe = commands.get_features(fid, select=select, nsid=_nsid_for(subject, fid), value=value)
    return succeeds(subject.host.admin_queue, sqe, receive=_DATA).completion.result


def _set(subject: Subject, fid: int, value: int, *, nsid: int | None = None) -> None:
    number = _nsid_for(subject, fid) if nsid is None else nsid
    succeeds(subject.host.admin_queue, commands.set_features(fid, value, nsid=number))


def _round_trip(subject: Subject, fid: int, *values: int) -> None:
    before = _get(subject, fid)
    for value in (*values, before):
        _set(subject, fid, value)
        equal(_get(subject, fid), value, f"{Fid(fid).name} after it was set")


def _supported(subject: Subject) -> list[int]:
    page = FeatureEffectsLog.from_buffer_copy(
        subject.host.get_log_page(LogPage.FEATURE_EFFECTS, 1024, nsid=0)
    )
    return [fid for fid in range(256) if page.fids[fid] & FeatureEffect.FSUPP]


@GROUP.check("Base 3.1.3.6", "NVM 4.1.3")
def mandatory_features_are_there(subject: Subject) -> None:
    """Every mandatory feature of an I/O controller can be read."""
    for fid in _MANDATORY:
        _get(subject, fid)


@GROUP.check("Base 5.1.25", "Base 5.1.11")
def an_unknown_feature_is_refused(subject: Subject) -> None:
    """A reserved feature identifier is Invalid Field in Command, to get and to set."""
    for fid in (0x00, 0x7F, 0xBF):
        for sqe in (commands.get_features(fid), commands.set_features(fid, 0)):
            refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD, receive=_DATA)


@GROUP.check("Base 5.1.12.1.18", needs=needs.version(2, 0))
def features_in_the_log_are_there_and_others_are_not(subject: Subject) -> None:
    """Features of the Feature Identifiers log can be read, and all others are refused."""
    supported = _supported(subject)
    for fid in range(0xC0):
        sqe = commands.get_features(fid, nsid=_nsid_for(subject, fid))
        if fid == Fid.HOST_IDENTIFIER:
            sqe.cdw11 = _host_identifier_size(subject)
        status = subject.host.admin(sqe, receive=_DATA, check=False).completion.status
        if fid in supported:
            require(status.success, f"feature {fid:02X}h: {status}")
        else:
            wanted = status.code is GenericStatus.INVALID_FIELD
            require(wanted, f"feature {fid:02X}h, which is not in the log: {status}")


# -- SEL and SV ------------------------------------------------------------------------------


@GROUP.check("Base 5.1.11", needs=needs.oncs(Oncs.SSFS))
def every_feature_has_default_saved_and_capabilities(subject: Subject) -> None:
    """Default, saved and supported capabilities of each mandatory feature can be read."""
    for fid in _MANDATORY:
        for select in (Select.DEFAULT, Select.SAVED):
            _get(subject, fid, select)
        known = sum(FeatureCapability)
        capabilities = _get(subject, fid, Select.SUPPORTED_CAPABILITIES)
        require(not capabilities & ~known, f"{fid.name}: capabilities {capabilities:#x}")


@GROUP.check("Base 5.1.11", needs=needs.oncs(Oncs.SSFS))
def a_reserved_select_is_refused(subject: Subject) -> None:
    """SEL 100b to 111b is Invalid Field in Command."""
    for select in (4, 7):
        sqe = commands.get_features(Fid.ARBITRATION, select=select)
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 4.4", "Base 5.1.11", needs=needs.oncs(Oncs.SSFS))
def after_a_reset_the_value_is_the_saved_one_or_the_default(subject: Subject) -> None:
    """After a reset each mandatory feature has its saved value, or, not saveable, its default."""
    for fid in _MANDATORY:
        if fid in {Fid.NUMBER_OF_QUEUES, Fid.INTERRUPT_VECTOR_CONFIGURATION}:
            continue
        saveable = _get(subject, fid, Select.SUPPORTED_CAPABILITIES) & FeatureCapability.SAVEABLE
        wanted = _get(subject, fid, Select.SAVED if saveable else Select.DEFAULT)
        equal(_get(subject, fid), wanted, fid.name)


@GROUP.check("Base 5.1.25", needs=needs.oncs(Oncs.SSFS))
def what_is_not_saveable_is_not_saved(subject: Subject) -> None:
    """SV with a feature that is not saveable is Feature Identifier Not Saveable."""
    for fid in (Fid.ARBITRATION, Fid.INTERRUPT_COALESCING):
        if _get(subject, fid, Select.SUPPORTED_CAPABILITIES) & FeatureCapability.SAVEABLE:
            raise NotApplicable(f"{fid.name} is saveable")
        sqe = commands.set_features(fid, _get(subject, fid), save=True)
        refused(subject.host.admin_queue, sqe, CommandStatus.FEATURE_NOT_SAVEABLE)


@GROUP.check("Base 5.1.25", needs=needs.oncs(Oncs.SSFS))
def what_is_not_changeable_is_not_changed(subject: Subject) -> None:
    """Setting a feature that is not changeable is Feature Not Changeable."""
    for fid in _MANDATORY:
        if not _get(subject, fid, Select.SUPPORTED_CAPABILITIES) & FeatureCapability.CHANGEABLE:
            sqe = commands.set_features(fid, 0)
            refused(subject.host.admin_queue, sqe, CommandStatus.FEATURE_NOT_CHANGEABLE)
            return
    raise NotApplicable("every mandatory feature is changeable")


@GROUP.check("Base 5.1.25")
def a_feature_of_the_controller_is_no_namespaces(subject: Subject) -> None:
    """A namespace's NSID with a feature of the controller is Feature Not Namespace Specific."""
    for fid in (Fid.ARBITRATION, Fid.INTERRUPT_COALESCING, Fid.ASYNC_EVENT_CONFIGURATION):
        sqe = commands.set_features(fid, 0, nsid=subject.nsid)
        refused(subject.host.admin_queue, sqe, CommandStatus.FEATURE_NOT_NAMESPACE_SPECIFIC)


# -- the features ----------------------------------------------------------------------------


@GROUP.check("Base 5.1.25.1.1")
def arbitration_is_kept(subject: Subject) -> None:
    """Arbitration returns what was set."""
    _round_trip(subject, Fid.ARBITRATION, Arbitration(ab=0).pack(), Arbitration(7, 1, 2, 3).pack())


@GROUP.check("Base 5.1.25.1.2")
def a_power_state_that_is_not_there_is_refused(subject: Subject) -> None:
    """A power state above NPSS is Invalid Field in Command, one that is there is kept."""
    states = subject.controller.npss + 1
    if states < 32:
        sqe = commands.set_features(Fid.POWER_MANAGEMENT, states)
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)
    _round_trip(subject, Fid.POWER_MANAGEMENT, states - 1, 0)


@GROUP.check("Base 5.1.25.1.3")
def temperature_thresholds_are_kept(subject: Subject) -> None:
    """The over and under temperature thresholds are separate, and return what was set."""
    over, under = TemperatureThreshold(400), TemperatureThreshold(10, thsel=1)
    for one in (over, under):
        _set(subject, Fid.TEMPERATURE_THRESHOLD, one.pack())
    for one in (over, under):
        found = _get(subject, Fid.TEMPERATURE_THRESHOLD, value=one.pack() & ~0xFFFF)
        equal(found & 0xFFFF, one.tmpth, "threshold")


@GROUP.check("Base 5.1.25.1.3")
def a_threshold_of_no_sensor_is_refused(subject: Subject) -> None:
    """A reserved sensor or a reserved type of threshold is Invalid Field in Command."""
    for value in (TemperatureThreshold(300, tmpsel=9), TemperatureThreshold(300, thsel=2)):
        sqe = commands.set_features(Fid.TEMPERATURE_THRESHOLD, value.pack())
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("NVM 4.1.3.2")
def error_recovery_is_a_namespaces(subject: Subject) -> None:
    """Error Recovery returns the time limit that was set for the namespace."""
    _round_trip(subject, Fid.ERROR_RECOVERY, 123, 0)


@GROUP.check("NVM 4.1.3.2")
def an_error_for_deallocated_blocks_needs_support(subject: Subject) -> None:
    """DULBE is refused for a namespace whose NSFEAT says that there is no such error."""
    if subject.namespace.identify.nsfeat & 1 << 2:
        raise NotApplicable("NSFEAT.DAE is 1")
    sqe = commands.set_features(Fid.ERROR_RECOVERY, ERROR_RECOVERY_DULBE, nsid=subject.nsid)
    refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.1.25.1.4", needs=needs.volatile_cache)
def the_volatile_write_cache_can_be_turned_off(subject: Subject) -> None:
    """WCE can be cleared and set, and I/O works either way."""
    for value in (0, 1):
        _set(subject, Fid.VOLATILE_WRITE_CACHE, value)
        equal(_get(subject, Fid.VOLATILE_WRITE_CACHE) & 1, value, "WCE")
        succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 5.1.25.1.4", needs=needs.no_volatile_cache)
def no_cache_no_feature(subject: Subject) -> None:
    """Without a volatile write cache the feature is Invalid Field in Command."""
    for sqe in (
        commands.get_features(Fid.VOLATILE_WRITE_CACHE),
        commands.set_features(Fid.VOLATILE_WRITE_CACHE, 1),
    ):
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("Base 5.1.25.2.2")
def interrupt_coalescing_is_kept(subject: Subject) -> None:
    """Interrupt Coalescing is off after a reset, and returns what was set."""
    equal(_get(subject, Fid.INTERRUPT_COALESCING), 0, "Interrupt Coalescing after a reset")
    _round_trip(subject, Fid.INTERRUPT_COALESCING, InterruptCoalescing(3, 10).pack(), 0xFFFF)


@GROUP.check("Base 5.1.25.2.3", needs=needs.msix)
def interrupt_vectors_are_configured_one_by_one(subject: Subject) -> None:
    """Interrupt Vector Configuration returns what was set for the vector."""
    succeeds(subject.queue, commands.flush(subject.nsid))
    for cd in (True, False):
        value = InterruptVectorConfiguration(iv=1, cd=cd).pack()
        sqe = commands.set_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, value)
        status = subject.host.admin(sqe, check=False).completion.status
        if status.code is GenericStatus.INVALID_FIELD:
            raise NotApplicable("vector 1 cannot be configured while no CQ uses it")
        require(status.success, str(status))
        equal(_get(subject, Fid.INTERRUPT_VECTOR_CONFIGURATION, value=1), value, "the value")


@GROUP.check("Base 5.1.25.2.3")
def a_vector_that_is_not_there_is_not_configured(subject: Subject) -> None:
    """Interrupt Vector Configuration of a vector that is not there is Invalid Field in Command."""
    for value in (0xFFFF, max(subject.host.transport.msix_vectors(), 1)):
        for sqe in (
            commands.set_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, value),
            commands.get_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, value=value),
        ):
            refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD)


@GROUP.check("NVM 4.1.3.4")
def write_atomicity_is_kept(subject: Subject) -> None:
    """Write Atomicity Normal returns what was set."""
    _round_trip(subject, Fid.WRITE_ATOMICITY, 1, 0)


@GROUP.check("Base 5.1.25.1.5")
def event_configuration_is_kept(subject: Subject) -> None:
    """Asynchronous Event Configuration returns the bits that were set and are supported."""
    value = AsyncEventConfig.SMART_TEMPERATURE | AsyncEventConfig.SMART_SPARE
    if subject.controller.oaes & Oaes.NSAN:
        value |= AsyncEventConfig.NSAN
    _round_trip(subject, Fid.ASYNC_EVENT_CONFIGURATION, value, 0)


@GROUP.check("Base 5.1.25.1.7", needs=needs.oncs(Oncs.TSS))
def the_timestamp_runs(subject: Subject) -> None:
    """Timestamp returns what was set or a little later, and says that it was set."""
    stamp = Timestamp()
    stamp.timestamp[:] = list((1_700_000_000_000).to_bytes(6, "little"))
    sqe = SQE(opc=AdminOpcode.SET_FEATURES, cdw10=Fid.TIMESTAMP)
    succeeds(subject.host.admin_queue, sqe, send=bytes(stamp))
    sqe = commands.get_features(Fid.TIMESTAMP)
    found = Timestamp.from_buffer_copy(
        succeeds(subject.host.admin_queue, sqe, receive=_DATA).data[:8]
    )
    milliseconds = int.from_bytes(bytes(found.timestamp), "little")
    require(0 <= milliseconds - 1_700_000_000_000 < 600_000, f"{milliseconds} ms")
    equal(found.attributes >> 1 & 7, 1, "Timestamp Origin")


def _host_identifier_size(subject: Subject) -> int:
    return HOST_IDENTIFIER_EXHID if subject.controller.ctratt & Ctratt.HIDS else 0


@GROUP.check("Base 5.1.25.1.28", needs=needs.oncs(Oncs.RESERVS))
def the_host_identifier_is_kept(subject: Subject) -> None:
    """Host Identifier returns what was set, before any reservation is made."""
    exhid = _host_identifier_size(subject)
    identifier = bytes(range(1, 17))[: 16 if exhid else 8]
    sqe = SQE(opc=AdminOpcode.SET_FEATURES, cdw10=Fid.HOST_IDENTIFIER, cdw11=exhid)
    succeeds(subject.host.admin_queue, sqe, send=identifier)
    sqe = commands.get_features(Fid.HOST_IDENTIFIER, value=exhid)
    data = succeeds(subject.host.admin_queue, sqe, receive=_DATA).data
    equal(data[: len(identifier)], identifier, "the identifier")


@GROUP.check("Base 5.1.25.1.8", "Base 5.1.14", needs=needs.keep_alive)
def the_keep_alive_timer_is_kept(subject: Subject) -> None:
    """Keep Alive Timer returns the time that was set, rounded up to its granularity."""
    _set(subject, Fid.KEEP_ALIVE_TIMER, 60_000)
    found = _get(subject, Fid.KEEP_ALIVE_TIMER)
    granularity = subject.controller.kas * 100
    require(60_000 <= found <= 60_000 + granularity, f"{found} ms")


def _hints_are_taken(subject: Subject) -> None:
    """Dataset Management is refused when it would deallocate (Base 8.1.16.2), and only then."""
    if not subject.controller.oncs & Oncs.NVMDSMSV:
        return
    ranges = commands.pack_ranges([(0, 1)])
    deallocate = commands.dataset_management(subject.nsid, 1, DsmAttribute.AD)
    refused(subject.queue, deallocate, GenericStatus.NAMESPACE_WRITE_PROTECTED, send=ranges)
    hint = commands.dataset_management(subject.nsid, 1, DsmAttribute.IDR)
    succeeds(subject.queue, hint, send=ranges)


@GROUP.check("Base 5.1.25.1.31", "Base 8.1.16.2")
def namespace_write_protection_protects(subject: Subject) -> None:
    """A write protected namespace refuses what changes it until the protection is taken away."""
    if not subject.controller.nwpc & 1:
        raise NotApplicable("NWPC is 0")
    before = _get(subject, Fid.NAMESPACE_WRITE_PROTECTION)
    if before & 7:
        raise NotApplicable("the namespace is write protected already")
    _set(subject, Fid.NAMESPACE_WRITE_PROTECTION, 1)
    try:
        equal(_get(subject, Fid.NAMESPACE_WRITE_PROTECTION) & 7, 1, "the state")
        refused(
            subject.queue,
            commands.write(subject.nsid, 0, 1),
            GenericStatus.NAMESPACE_WRITE_PROTECTED,
            send=bytes(subject.block_size),
        )
        _hints_are_taken(subject)
    finally:
        _set(subject, Fid.NAMESPACE_WRITE_PROTECTION, 0)


@GROUP.check("Base 5.1.25", "Base 3.2.1.6")
def an_invalid_nsid_has_no_features(subject: Subject) -> None:
    """Set Features of a namespace with NSID above NN is Invalid Namespace or Format."""
    sqe = commands.set_features(Fid.ERROR_RECOVERY, 0, nsid=subject.invalid_nsid())
    refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_NAMESPACE_OR_FORMAT)


@GROUP.check("Base 3.2.1.6", "NVM 4.1.3.2")
def a_feature_can_be_set_for_all_namespaces(subject: Subject) -> None:
    """Set Features of a namespace feature with NSID FFFFFFFFh sets it for each namespace."""
    _set(subject, Fid.ERROR_RECOVERY, 77, nsid=NSID_ALL)
    equal(_get(subject, Fid.ERROR_RECOVERY) & 0xFFFF, 77, "Error Recovery")
    _set(subject, Fid.ERROR_RECOVERY, 0, nsid=NSID_ALL)
