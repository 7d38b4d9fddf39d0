"""The settings that can be changed at run time, as they are typed."""

from __future__ import annotations

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service.settings import SETTINGS, parse_setting, parse_settings, setting


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("iothread_cpu=0", 0),
        ("iothread_cpu=any", None),
        ("poll_timeout_ms=0", 0),
        ("io_timeout_ms=86400000", 86400000),
        ("shadow_doorbell=off", False),
        ("shadow_doorbell=ON", True),
        ("mapped_doorbells=true", True),
    ],
)
def test_a_setting_is_read_as_it_is_meant(text: str, value: int | bool | None) -> None:
    assert parse_setting(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize(
    "text",
    [
        "iothread_cpu",
        "",
        "=1",
        "speed=1",
        "iothread_cpu=-1",
        "iothread_cpu=on",
        "iothread_cpu=8192",
        "iothread_cpu=",
        "iothread_cpu=1e1",
        "iothread_cpu=²",
        "poll_timeout_ms=any",
        "io_timeout_ms=0",
        "io_timeout_ms=86400001",
        "shadow_doorbell=1",
        "shadow_doorbell=any",
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_setting(text)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_boolean_is_no_number_and_a_number_no_boolean(name: str) -> None:
    value = 1 if SETTINGS[name].least is None else True
    with pytest.raises(UserError, match=name):
        setting(name).check(name, value)


def test_a_setting_given_twice_is_refused_by_its_name() -> None:
    assert parse_settings(["io_timeout_ms=1", "shadow_doorbell=off"]) == {
        "io_timeout_ms": 1,
        "shadow_doorbell": False,
    }
    with pytest.raises(UserError, match="the setting io_timeout_ms is given twice: give it once"):
        parse_settings(["io_timeout_ms=1", "shadow_doorbell=off", "io_timeout_ms=1"])
