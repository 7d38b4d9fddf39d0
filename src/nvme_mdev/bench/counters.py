"""The three counters of NVME MDEV, as our daemon tells them: vendor specific log page C0h.

Only a controller whose model number is ours is asked, since other products use that page for
something else. The page has 512 bytes, little endian: magic ``NMDV``, version (32 bits), rate of
the time-stamp counter (64 bits, Hz), then for commands translated, commands completed and
interrupts sent a count, how many of these were timed, and the cycles spent on those, 64 bits each.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.spec.vendor import (
    PATH_COUNTERS_LID,
    PATH_COUNTERS_MAGIC,
    PATH_COUNTERS_VERSION,
    PathCountersLog,
)

if TYPE_CHECKING:
    from nvme_mdev.host.driver import NvmeHost

MODEL = "nvme-mdev"
"""Our Identify Controller's model number."""
LOG_SIZE = ctypes.sizeof(PathCountersLog)
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Counter:
    """How often something was done, and the time-stamp counter cycles spent on those timed."""

    count: int
    timed: int
    cycles: int

    def since(self, before: Counter) -> Counter:
        """What was added after ``before``."""
        return Counter(
            self.count - before.count, self.timed - before.timed, self.cycles - before.cycles
        )

    def plus(self, other: Counter) -> Counter:
        """Both together."""
        return Counter(
            self.count + other.count, self.timed + other.timed, self.cycles + other.cycles
        )

    @property
    def mean_cycles(self) -> float:
        """Cycles for one; 0 when none was timed."""
        return self.cycles / self.timed if self.timed else 0.0


@dataclass(frozen=True, slots=True)
class DeviceCounters:
    """What the daemon's data path did, over the life of the controller or between two readings."""

    tsc_hz: int
    translated: Counter
    completed: Counter
    interrupts: Counter

    @classmethod
    def unpack(cls, page: bytes) -> DeviceCounters | None:
        """From the log page; None when it is not ours, or of another version."""
        log = PathCountersLog.from_buffer_copy(page)
        known = log.magic == PATH_COUNTERS_MAGIC and log.version == PATH_COUNTERS_VERSION
        if not known or log.tsc_hz == 0:
            return None
        counters = [
            Counter(counter.count, counter.timed, counter.cycles)
            for counter in (log.translated, log.completed, log.interrupts)
        ]
        return cls(log.tsc_hz, *counters)

    def since(self, before: DeviceCounters) -> DeviceCounters:
        """What was added after ``before``."""
        return DeviceCounters(
            self.tsc_hz,
            self.translated.since(before.translated),
            self.completed.since(before.completed),
            self.interrupts.since(before.interrupts),
        )

    def plus(self, other: DeviceCounters) -> DeviceCounters:
        """What was counted in two runs on the same machine."""
        return DeviceCounters(
            self.tsc_hz,
            self.translated.plus(other.translated),
            self.completed.plus(other.completed),
            self.interrupts.plus(other.interrupts),
        )

    def mean_ns(self, counter: Counter) -> float:
        """Nanoseconds for one."""
        return counter.mean_cycles * 1e9 / self.tsc_hz

    def named(self) -> dict[str, Counter]:
        """The counters under the original's names, in its order."""
        return {
            "commands translated": self.translated,
            "commands completed": self.completed,
            "interrupts sent": self.interrupts,
        }

    def to_json(self) -> dict[str, object]:
        """For the JSON result."""
        return {
            name.replace(" ", "_"): {
                "count": counter.count,
                "mean_cycles": counter.mean_cycles,
                "mean_ns": self.mean_ns(counter),
            }
            for name, counter in self.named().items()
        }


def read_counters(host: NvmeHost) -> DeviceCounters | None:
    """The controller's counters; None when it is not ours or does not tell them."""
    if host.model != MODEL:
        return None
    try:
        return DeviceCounters.unpack(host.get_log_page(PATH_COUNTERS_LID, LOG_SIZE))
    except NvmeStatusError:
        return None
