"""Asynchronous events: queued, reported once, masked until their log page is read."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from nvme_mdev.controller.events import Events
from nvme_mdev.spec.nvme_commands import ErrorEventInfo
from nvme_mdev.spec.nvme_features import AsyncEventConfig
from nvme_mdev.spec.nvme_logs import LogPage

INVALID_REGISTER = 0x01_00_00
INVALID_VALUE = 0x01_01_00
NS_CHANGED = 0x04_00_02
TOO_HOT = 0x02_01_01


class State:
    def __init__(self) -> None:
        self.scratch = memoryview(array("I", bytes(4096)))
        self.changed_namespaces = memoryview(array("I", bytes(4096)))


class Features:
    async_events = AsyncEventConfig.NSAN | AsyncEventConfig.SMART_TEMPERATURE
    temperature_warning = True


class Guest:
    """Has some requests outstanding and collects what they were completed with."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.events: list[int] = []
        self.state: Any = State()
        self.features: Any = Features()
        self.view = self.look()

    def look(self) -> Events:
        """The events as another process would see them: from the same memory."""
        return Events(self.state, self.features, self.report)

    def report(self, event: int) -> bool:
        if not self.requests:
            return False
        self.requests -= 1
        self.events.append(event)
        return True


def test_an_event_completes_a_request() -> None:
    guest = Guest(1)
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_VALUE)
    assert guest.events == [INVALID_VALUE]


def test_an_event_waits_for_a_request() -> None:
    guest = Guest(0)
    guest.view.namespace_changed(1)
    guest.requests = 1
    guest.view.deliver()
    assert guest.events == [NS_CHANGED]


def test_an_event_that_waits_is_in_the_shared_memory() -> None:
    guest = Guest(0)
    guest.view.namespace_changed(1)
    guest.requests = 1
    guest.look().deliver()
    assert guest.events == [NS_CHANGED]


def test_a_type_is_masked_until_its_log_page_is_read() -> None:
    guest = Guest(3)
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_VALUE)
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_REGISTER)
    assert guest.events == [INVALID_VALUE]
    guest.view.log_page_read(LogPage.ERROR)
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_REGISTER)
    assert guest.events == [INVALID_VALUE, INVALID_REGISTER]


def test_reading_a_log_page_clears_what_it_tells() -> None:
    guest = Guest(1)
    guest.view.namespace_changed(1)
    guest.view.namespace_changed(2)
    guest.view.log_page_read(LogPage.CHANGED_NAMESPACES)
    guest.requests = 1
    guest.view.deliver()
    assert guest.events == [NS_CHANGED]


def test_one_type_does_not_mask_another() -> None:
    guest = Guest(3)
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_VALUE)
    guest.view.temperature()
    guest.view.namespace_changed(1)
    assert guest.events == [INVALID_VALUE, TOO_HOT, NS_CHANGED]


def test_the_same_event_waits_once() -> None:
    guest = Guest(0)
    for _ in range(1000):
        guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_VALUE)
    guest.requests = 10
    guest.view.deliver()
    assert guest.events == [INVALID_VALUE]


@pytest.mark.parametrize("wanted", [AsyncEventConfig(0), AsyncEventConfig.FAN])
def test_events_that_the_guest_does_not_want_are_not_raised(wanted: AsyncEventConfig) -> None:
    guest = Guest(2)
    guest.features.async_events = wanted
    guest.view.namespace_changed(1)
    guest.view.temperature()
    assert guest.events == []


def test_changed_namespaces_are_listed_once_and_ascending() -> None:
    guest = Guest(0)
    for nsid in (3, 1, 3, 2):
        guest.view.namespace_changed(nsid)
    assert guest.state.changed_namespaces.tolist()[:4] == [1, 2, 3, 0]


def test_too_many_changed_namespaces_become_one_entry() -> None:
    guest = Guest(0)
    for nsid in range(1, 1026):
        guest.view.namespace_changed(nsid)
    guest.view.namespace_changed(7)
    assert guest.state.changed_namespaces.tolist()[:2] == [0xFFFF_FFFF, 0]


def test_a_reset_forgets_events_and_masks() -> None:
    guest = Guest(1)
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_VALUE)
    guest.view.namespace_changed(1)
    guest.view.reset()
    guest.requests = 2
    guest.view.deliver()
    guest.view.doorbell_error(ErrorEventInfo.INVALID_DOORBELL_VALUE)
    assert guest.events == [INVALID_VALUE, INVALID_VALUE]
