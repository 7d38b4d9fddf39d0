"""The settings of a controller that can be changed while it runs: names, limits, when they work."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvme_mdev.service.api import SettingValue

#: A day: longer than anyone waits, short enough for every timer.
MAX_TIMEOUT_MS = 24 * 3600 * 1000
#: The kernel is built for at most this many processors (CONFIG_NR_CPUS).
MAX_CPU = 8191


class When(enum.Enum):
    """When a change takes effect."""

    AT_ONCE = "at once"
    AT_RESET = "when the guest resets or enables the controller the next time"
    UNCONNECTED = "for the next client; refused while one is connected"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: a number from ``least`` to ``most``, or, without these, on or off."""

    when: When
    summary: str
    least: int | None = None
    most: int | None = None
    can_be_any: bool = False
    """None (``any``) is a value, too."""
    can_be_list: bool = False
    """So are several, commas between them."""

    def check(self, name: str, value: SettingValue) -> None:
        """UserError: not a value of this setting."""
        if value is None:
            good = self.can_be_any
        elif isinstance(value, str):
            good = self.can_be_list and all(map(self._is_number, value.split(",")))
        elif self.least is None or self.most is None:
            good = isinstance(value, bool)
        else:
            good = not isinstance(value, bool) and self.least <= value <= self.most
        if not good:
            raise UserError(f"{name}: {self.wanted}")

    def _is_number(self, text: str) -> bool:
        """Whether it is one that the setting can have."""
        if not (text.isascii() and text.isdecimal()) or self.least is None or self.most is None:
            return False
        return self.least <= int(text) <= self.most

    @property
    def wanted(self) -> str:
        """What a value is, for people."""
        if self.least is None:
            return "give on or off"
        also = ", several with commas between them" if self.can_be_list else ""
        also += ", or any" if self.can_be_any else ""
        return f"give a number from {self.least} to {self.most}{also}"

    def parse(self, name: str, text: str) -> SettingValue:
        """A value as it is typed; UserError: it is none."""
        value = _WORDS.get(text.lower(), text)
        if self.least is not None and text.isascii() and text.isdecimal():
            value = int(text)
        try:
            self.check(name, value)
        except UserError:
            raise UserError(f"{name}={text}: {self.wanted}") from None
        return value


_WORDS: dict[str, SettingValue] = {
    "on": True,
    "off": False,
    "true": True,
    "false": False,
    "any": None,
}

SETTINGS: dict[str, Setting] = {
    "iothread_cpu": Setting(
        When.AT_ONCE,
        "the processor of the polling thread, or of each",
        0,
        MAX_CPU,
        can_be_any=True,
        can_be_list=True,
    ),
    "poll_timeout_ms": Setting(
        When.AT_ONCE, "poll so long after the last command, then sleep", 0, MAX_TIMEOUT_MS
    ),
    "io_timeout_ms": Setting(
        When.AT_ONCE,
        "cancel I/O that the host has not completed by then, not counting time in which the daemon"
        " did not run",
        1,
        MAX_TIMEOUT_MS,
    ),
    "shadow_doorbell": Setting(When.AT_RESET, "offer Doorbell Buffer Config"),
    "mapped_doorbells": Setting(When.UNCONNECTED, "let the client map the doorbell registers"),
}
"""By name, in the order in which they are shown."""


def setting(name: str) -> Setting:
    """The setting of this name; UserError: there is none."""
    found = SETTINGS.get(name)
    if found is None:
        raise UserError(f"{name!r} is not a setting: there are {', '.join(SETTINGS)}")
    return found


def parse_setting(text: str) -> tuple[str, SettingValue]:
    """``name=value`` as it is typed; UserError: the name is unknown or the value is none of its."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not a setting: write name=value (poll_timeout_ms=200)")
    return name, setting(name).parse(name, value)


def parse_settings(texts: Iterable[str]) -> dict[str, SettingValue]:
    """Several of them, by name; UserError: as of `parse_setting`, or one is given twice."""
    found: dict[str, SettingValue] = {}
    for text in texts:
        name, value = parse_setting(text)
        if name in found:
            raise UserError(f"the setting {name} is given twice: give it once")
        found[name] = value
    return found
