"""Asynchronous Event Request: limits, masking, causes (Base 5.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import completed, equal, require
from nvme_mdev.conformance.subject import QUIET, TIMEOUT
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import (
    AsyncEventType,
    ErrorEventInfo,
    NoticeEventInfo,
    SmartEventInfo,
)
from nvme_mdev.spec.nvme_features import (
    AsyncEventConfig,
    Fid,
    TemperatureThreshold,
    WriteProtectionState,
)
from nvme_mdev.spec.nvme_identify_controller import Nwpc, Oaes
from nvme_mdev.spec.nvme_identify_namespace import Nsattr
from nvme_mdev.spec.nvme_logs import CriticalWarning, LogPage, SmartLog
from nvme_mdev.spec.nvme_status import CommandStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("events")

_TOO_HOT = TemperatureThreshold(1).pack()
"""A threshold of 1 K, which every temperature is above."""
_NEVER_HOT = TemperatureThreshold(0xFFFF).pack()


def _doorbell_error(subject: Subject) -> None:
    """Ring the doorbell of a queue that is not there."""
    subject.host.write_doorbell(1, 1)


def _one(subject: Subject) -> tuple[int, int, int]:
    found = subject.host.events(TIMEOUT)
    require(len(found) == 1, f"{len(found)} events instead of one")
    return found[0]


def _none(subject: Subject) -> None:
    equal(subject.host.events(QUIET), [], "events")


@GROUP.check("Base 5.1.2")
def requests_wait_for_an_event(subject: Subject) -> None:
    """An Asynchronous Event Request is not completed while there is no event."""
    subject.host.request_events(1)
    _none(subject)


@GROUP.check("Base 5.1.2", "Base 5.1.13.2.1")
def as_many_requests_as_aerl_says(subject: Subject) -> None:
    """AERL + 1 requests can be outstanding; the next one is AER Limit Exceeded."""
    limit = subject.controller.aerl + 1
    host = subject.attach(admin_entries=limit + 8)
    host.request_events(limit)
    _none(subject)
    completion = host.admin(commands.async_event_request(), check=False).completion
    completed(completion, CommandStatus.AER_LIMIT_EXCEEDED)
    _none(subject)


@GROUP.check("Base 5.1.2")
def an_event_waits_for_a_request(subject: Subject) -> None:
    """An event without an outstanding request is reported by the next request."""
    _doorbell_error(subject)
    subject.host.request_events()
    wanted = (AsyncEventType.ERROR, ErrorEventInfo.INVALID_DOORBELL_REGISTER, LogPage.ERROR)
    equal(_one(subject), wanted, "the event")


@GROUP.check("Base 5.1.2")
def a_reported_event_masks_its_type(subject: Subject) -> None:
    """After an event no other of its type is reported until its log page is read."""
    subject.host.request_events(2)
    _doorbell_error(subject)
    _one(subject)
    _doorbell_error(subject)
    _none(subject)
    subject.host.get_log_page(LogPage.ERROR, 64)
    _doorbell_error(subject)
    _one(subject)


@GROUP.check("Base 5.1.2", "Base 5.1.12")
def retain_asynchronous_event_keeps_the_mask(subject: Subject) -> None:
    """Reading the log page with RAE = 1 does not unmask the event type."""
    subject.host.request_events(2)
    _doorbell_error(subject)
    _one(subject)
    subject.host.get_log_page(LogPage.ERROR, 64, rae=True)
    _doorbell_error(subject)
    _none(subject)


@GROUP.check("Base 5.1.2")
def another_log_page_does_not_unmask(subject: Subject) -> None:
    """Reading the log page of another event type does not unmask this one."""
    subject.host.request_events(2)
    _doorbell_error(subject)
    _one(subject)
    subject.host.get_log_page(LogPage.SMART, 512)
    _doorbell_error(subject)
    _none(subject)


@GROUP.check("Base 5.1.2", "Base 3.7.2")
def a_reset_ends_requests_and_events(subject: Subject) -> None:
    """After a reset no request is outstanding, and no event of before is reported."""
    host = subject.host
    limit = subject.controller.aerl + 1
    host.request_events(min(limit, 8))
    _doorbell_error(subject)
    _one(subject)
    _doorbell_error(subject)
    host.enable()
    host.request_events(min(limit, 8))
    _none(subject)
    _doorbell_error(subject)
    _one(subject)


def _configure(subject: Subject, events: int) -> None:
    subject.host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, events)


@GROUP.check("Base 5.1.2", "Base 5.1.25.1.3", "Base 5.1.12.1.3")
def a_temperature_beyond_its_threshold_is_an_event(subject: Subject) -> None:
    """A temperature at or above its threshold is a critical warning, and an event if wanted."""
    host = subject.host
    _configure(subject, AsyncEventConfig.SMART_TEMPERATURE)
    host.request_events()
    host.set_features(Fid.TEMPERATURE_THRESHOLD, _TOO_HOT)
    wanted = (AsyncEventType.SMART, SmartEventInfo.TEMPERATURE_THRESHOLD, LogPage.SMART)
    equal(_one(subject), wanted, "the event")
    smart = SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))
    require(smart.cw & CriticalWarning.TEMPERATURE, "no critical warning")
    host.set_features(Fid.TEMPERATURE_THRESHOLD, _NEVER_HOT)
    smart = SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))
    require(not smart.cw & CriticalWarning.TEMPERATURE, "the critical warning stays")


@GROUP.check("Base 5.1.2", "Base 5.1.25.1.5")
def a_health_event_that_is_not_wanted_is_not_reported(subject: Subject) -> None:
    """A temperature beyond its threshold is no event while its configuration bit is 0."""
    host = subject.host
    _configure(subject, 0)
    host.request_events()
    host.set_features(Fid.TEMPERATURE_THRESHOLD, _TOO_HOT)
    _none(subject)


@GROUP.check("Base 5.1.25.1.5")
def what_holds_when_its_notice_is_enabled_is_an_event(subject: Subject) -> None:
    """A temperature beyond its threshold is an event as soon as its configuration bit is 1."""
    host = subject.host
    _configure(subject, 0)
    host.request_events()
    host.set_features(Fid.TEMPERATURE_THRESHOLD, _TOO_HOT)
    _none(subject)
    _configure(subject, AsyncEventConfig.SMART_TEMPERATURE)
    wanted = (AsyncEventType.SMART, SmartEventInfo.TEMPERATURE_THRESHOLD, LogPage.SMART)
    equal(_one(subject), wanted, "the event")


@GROUP.check("Base 5.1.2")
def event_types_are_masked_separately(subject: Subject) -> None:
    """A masked event type does not keep back an event of another type."""
    host = subject.host
    _configure(subject, AsyncEventConfig.SMART_TEMPERATURE)
    host.request_events(2)
    _doorbell_error(subject)
    equal(_one(subject)[0], AsyncEventType.ERROR, "type of the first event")
    host.set_features(Fid.TEMPERATURE_THRESHOLD, _TOO_HOT)
    equal(_one(subject)[0], AsyncEventType.SMART, "type of the second event")


@GROUP.check("Base 5.1.2.1", "Base 5.1.12.1.5")
def a_changed_identify_namespace_is_an_event(subject: Subject) -> None:
    """Write protection, which is in Identify Namespace, is an event of a host that wants them."""
    if not subject.controller.oaes & Oaes.NSAN:
        raise NotApplicable("OAES has no namespace attribute notices")
    if not subject.controller.nwpc & Nwpc.NWPS:
        raise NotApplicable("NWPC is 0")
    host, nsid = subject.host, subject.nsid
    if subject.namespace.identify.nsattr & Nsattr.CWP:
        raise NotApplicable("the namespace is write protected already")
    host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096)
    _configure(subject, AsyncEventConfig.NSAN)
    host.request_events()
    host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, WriteProtectionState.PROTECTED, nsid=nsid)
    try:
        wanted = (
            AsyncEventType.NOTICE,
            NoticeEventInfo.NS_ATTRIBUTE_CHANGED,
            LogPage.CHANGED_NAMESPACES,
        )
        equal(_one(subject), wanted, "the event")
        listed = memoryview(host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096)).cast("I")
        require(nsid in listed, f"namespace {nsid} is not in the changed list")
    finally:
        host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, WriteProtectionState.NONE, nsid=nsid)
