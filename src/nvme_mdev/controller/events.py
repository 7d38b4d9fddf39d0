"""Asynchronous events, from their cause to the completion of a request (Base 5.1.2).

An event waits until the guest has an Asynchronous Event Request outstanding. Reporting one masks
all of its type until the guest reads the log page that the event named, without Retain
Asynchronous Event. What waits and what is masked is in shared memory; the requests themselves are
admin commands without a completion.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import MAX_EVENTS, Scratch
from nvme_mdev.spec.nvme_commands import (
    AsyncEventType,
    ErrorEventInfo,
    IoEventInfo,
    NoticeEventInfo,
    SmartEventInfo,
    async_event_result,
)
from nvme_mdev.spec.nvme_features import AsyncEventConfig
from nvme_mdev.spec.nvme_identify import NSID_LIST_ENTRIES
from nvme_mdev.spec.nvme_logs import CriticalWarning, LogPage

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.controller.features import Features
    from nvme_mdev.datapath.state import ControllerState

_log = logging.getLogger(__name__)

_TYPE_MASK = 0x7
_LOG_PAGE_SHIFT = 16
_TOO_MANY_CHANGES = 0xFFFF_FFFF
"""First entry of the Changed Namespace List when the list is not long enough."""


class Events:
    """A view on the events in a controller's state."""

    def __init__(
        self, state: ControllerState, features: Features, report: Callable[[int], bool]
    ) -> None:
        """``report``: complete one request with this dword 0; False when none is outstanding."""
        self._scratch = state.scratch
        self._changed = state.changed_namespaces
        self._features = features
        self._report = report

    def reset(self) -> None:
        """Forget what waits and what is masked (Controller Level Reset)."""
        self._scratch[Scratch.EVENTS_MASKED] = 0
        self._scratch[Scratch.EVENT_COUNT] = 0

    # -- causes ------------------------------------------------------------------------------

    def doorbell_error(self, info: ErrorEventInfo) -> None:
        """The guest rang a doorbell that is not there, or with an invalid value."""
        self._raise(AsyncEventType.ERROR, info, LogPage.ERROR)

    def temperature(self) -> None:
        """The temperature, or a threshold, changed: tell if it is too high or too low now."""
        wanted = self._features.async_events & AsyncEventConfig.SMART_TEMPERATURE
        if wanted and self._features.temperature_warning:
            self._raise(AsyncEventType.SMART, SmartEventInfo.TEMPERATURE_THRESHOLD, LogPage.SMART)

    def critical_warning(self, warning: CriticalWarning) -> None:
        """A critical warning has begun: the bits of the feature are those of the SMART log."""
        if self._features.async_events & warning:
            info = _SMART_EVENTS.get(warning, SmartEventInfo.RELIABILITY)
            self._raise(AsyncEventType.SMART, info, LogPage.SMART)

    def wanted(self, enabled: AsyncEventConfig, warnings: CriticalWarning) -> None:
        """The guest wants these from now on: what holds already is told now (Base 5.1.25.1.5).

        ``warnings``: the critical warnings in force, but for the temperature.
        """
        if enabled & AsyncEventConfig.SMART_TEMPERATURE:
            self.temperature()
        for warning in warnings:
            if enabled & warning:
                self.critical_warning(warning)
        if enabled & AsyncEventConfig.NSAN and any(self._changed):
            self._notice_change()

    def sanitizing(self) -> None:
        """A sanitize operation begins: that one before it is over is no news (Base 8.1.24.4)."""
        page = LogPage.SANITIZE_STATUS
        self._store([event for event in self._waiting() if event >> _LOG_PAGE_SHIFT != page])

    def sanitized(self) -> None:
        """A sanitize operation is over, well or not."""
        self._raise(
            AsyncEventType.IO_COMMAND_SET,
            IoEventInfo.SANITIZE_COMPLETED,
            LogPage.SANITIZE_STATUS,
        )

    def reservation(self) -> None:
        """There is a reservation notification to be read."""
        self._raise(
            AsyncEventType.IO_COMMAND_SET,
            IoEventInfo.RESERVATION_LOG_AVAILABLE,
            LogPage.RESERVATION_NOTIFICATION,
        )

    def namespace_changed(self, nsid: int) -> None:
        """A namespace came, went, or has another size."""
        self._list_changed(nsid)
        if self._features.async_events & AsyncEventConfig.NSAN:
            self._notice_change()

    def clear_changed_namespaces(self) -> None:
        """The guest has read the Changed Namespace List."""
        self._set_changed([])

    def log_page_read(self, page: int) -> None:
        """The guest has read a log page, without Retain Asynchronous Event."""
        self._store([event for event in self._waiting() if event >> _LOG_PAGE_SHIFT != page])
        self._scratch[Scratch.EVENTS_MASKED] &= ~_TYPES_OF_PAGE.get(page, 0)
        self.deliver()

    def deliver(self) -> None:
        """Complete requests with what waits and is not masked, the oldest first."""
        waiting = self._waiting()
        for event in list(waiting):
            bit = 1 << (event & _TYPE_MASK)
            if self._scratch[Scratch.EVENTS_MASKED] & bit:
                continue
            if not self._report(event):
                return
            self._scratch[Scratch.EVENTS_MASKED] |= bit
            waiting.remove(event)
            self._store(waiting)

    # -- in shared memory --------------------------------------------------------------------

    def _raise(self, kind: AsyncEventType, info: int, page: LogPage) -> None:
        event = async_event_result(kind, info, page)
        waiting = self._waiting()
        if event not in waiting and len(waiting) < MAX_EVENTS:
            _log.debug("asynchronous event %s, information %d", kind.name, info)
            self._store([*waiting, event])
        self.deliver()

    def _notice_change(self) -> None:
        self._raise(
            AsyncEventType.NOTICE,
            NoticeEventInfo.NS_ATTRIBUTE_CHANGED,
            LogPage.CHANGED_NAMESPACES,
        )

    def _waiting(self) -> list[int]:
        count = self._scratch[Scratch.EVENT_COUNT]
        return self._scratch[Scratch.EVENTS : Scratch.EVENTS + count].tolist()

    def _store(self, events: list[int]) -> None:
        for index, event in enumerate(events):
            self._scratch[Scratch.EVENTS + index] = event
        self._scratch[Scratch.EVENT_COUNT] = len(events)

    def _list_changed(self, nsid: int) -> None:
        changed = {entry for entry in self._changed.tolist() if entry} | {nsid}
        if _TOO_MANY_CHANGES in changed or len(changed) > NSID_LIST_ENTRIES:
            changed = {_TOO_MANY_CHANGES}
        self._set_changed(sorted(changed))

    def _set_changed(self, nsids: list[int]) -> None:
        for index in range(NSID_LIST_ENTRIES):
            self._changed[index] = nsids[index] if index < len(nsids) else 0


_SMART_EVENTS = {CriticalWarning.SPARE: SmartEventInfo.SPARE_BELOW_THRESHOLD}
"""Critical warnings that have an event of their own; all others are about reliability."""

_TYPES_OF_PAGE: dict[int, int] = {
    LogPage.ERROR: 1 << AsyncEventType.ERROR,
    LogPage.SMART: 1 << AsyncEventType.SMART,
    LogPage.CHANGED_NAMESPACES: 1 << AsyncEventType.NOTICE,
    LogPage.RESERVATION_NOTIFICATION: 1 << AsyncEventType.IO_COMMAND_SET,
    LogPage.SANITIZE_STATUS: 1 << AsyncEventType.IO_COMMAND_SET,
}
"""The event types that reading a log page unmasks."""
