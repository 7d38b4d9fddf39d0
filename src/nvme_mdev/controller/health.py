"""What the SMART log tells of the controller's life (Base 5.1.12.1.3), counted as it happens.

The numbers are in shared memory, so that they outlive resets, clients and the process; they begin
when the controller is made. A client that connects is a power cycle, one that leaves a loss of
power. Whether I/O is in flight is looked at once a tick: over the minutes that the log counts in,
that is as good as a stopwatch, and costs the data path nothing. How the media are the drives below
tell, where there are some: of several, the worst in each respect (`worst`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import Lifetime, Scratch
from nvme_mdev.spec.nvme_logs import CriticalWarning, SmartLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.controller.namespaces import Namespaces
    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.queue_table import QueueTable
    from nvme_mdev.datapath.state import ControllerState

ROOM_TEMPERATURE = 300
"""Kelvin. What is told where no medium has a sensor: software has no temperature."""
WARNING_TEMPERATURE = 343
"""WCTEMP in kelvin: what NVMe drives have, most of them."""
CRITICAL_TEMPERATURE = 353
"""CCTEMP in kelvin, likewise."""

_OF_MEDIA = ~CriticalWarning.TEMPERATURE
_HIGHEST = ("ctemp", "avspt", "pused", "wctt", "cctt", "tmt1tc", "tmt2tc", "tttmt1", "tttmt2")
"""Fields of the SMART log of which more is worse."""
_MEASURE_EVERY_S = 30.0
"""Between two looks at the sensors: a drive can have to wake up for one."""


def composite_temperature(state: ControllerState) -> int:
    """Kelvin: the warmest medium's, as it was told last."""
    return int(state.lifetime[Lifetime.TEMPERATURE]) or ROOM_TEMPERATURE


_SMART_WORDS = ctypes.sizeof(SmartLog) // 8


def _media_warnings(drive: SmartLog | None) -> CriticalWarning:
    return CriticalWarning(drive.cw) & _OF_MEDIA if drive is not None else CriticalWarning(0)


def _ask(backends: list[Backend]) -> tuple[list[int], list[SmartLog]]:
    """Temperatures in kelvin, and the SMART logs of drives below; of those that tell."""
    temperatures = [backend.temperature() for backend in backends]
    logs = []
    for backend in backends:
        with contextlib.suppress(OSError):
            logs.append(backend.smart())
    return (
        [value for value in temperatures if value is not None],
        [SmartLog.from_buffer_copy(log) for log in logs if log is not None],
    )


def worst(logs: list[SmartLog]) -> SmartLog:
    """One log for several drives: what is worst in each respect."""
    data = SmartLog()
    for log in logs:
        data.cw |= log.cw
        data.egcws |= log.egcws
        for field in _HIGHEST:
            setattr(data, field, max(getattr(data, field), getattr(log, field)))
        data.tsen[:] = [max(pair) for pair in zip(data.tsen, log.tsen, strict=True)]
        errors = max(_number(data.mdie), _number(log.mdie))
        data.mdie[:] = list(errors.to_bytes(len(data.mdie), "little"))
    data.avsp = min((log.avsp for log in logs), default=0)
    return data


def _number(field: ctypes.Array[ctypes.c_uint8]) -> int:
    return int.from_bytes(bytes(field), "little")


def take_over(data: SmartLog, drive: SmartLog) -> None:
    """The media's part of a SMART log is what the drives say; times are the longer ones.

    Commands, data, power cycles and hours are the virtual controller's own, and so is its
    composite temperature, which its thresholds are compared with.
    """
    for field in ("avsp", "avspt", "pused", "egcws", "tmt1tc", "tmt2tc", "tttmt1", "tttmt2"):
        setattr(data, field, getattr(drive, field))
    data.tsen[:] = list(drive.tsen)
    data.mdie[:] = list(drive.mdie)
    data.wctt, data.cctt = max(data.wctt, drive.wctt), max(data.cctt, drive.cctt)


class Health:
    """Counts the life of one controller."""

    def __init__(
        self,
        state: ControllerState,
        queues: QueueTable,
        namespaces: Namespaces,
        *,
        on_temperature: Callable[[], None],
        on_warning: Callable[[CriticalWarning], None],
    ) -> None:
        """``on_temperature``: the composite temperature is another one; ``on_warning``: a critical
        warning of another kind has begun."""
        self._state = state
        self._queues = queues
        self._namespaces = namespaces
        self._on_temperature = on_temperature
        self._on_warning = on_warning
        self._last = time.monotonic()
        self._measured: float | None = None
        self._measurement: asyncio.Task[None] | None = None

    @property
    def warnings(self) -> CriticalWarning:
        """The critical warnings in force, but for the temperature: the guest has its thresholds."""
        own = CriticalWarning(int(self._state.lifetime[Lifetime.WARNINGS]))
        return own | _media_warnings(self.drive)

    @property
    def drive(self) -> SmartLog | None:
        """What the drives below say of the media; None: there are none."""
        log = SmartLog.from_buffer_copy(self._drive_words)
        return log if any(self._drive_words) else None

    @property
    def _drive_words(self) -> memoryview:
        return self._state.lifetime[Lifetime.DRIVE_SMART : Lifetime.DRIVE_SMART + _SMART_WORDS]

    def media_tested(self, *, readable: bool) -> None:
        """A self-test is over: media that cannot be read are not to be relied on."""
        self._warn(CriticalWarning.RELIABILITY, not readable)

    def media_changed(self) -> None:
        """A medium became read-only, or writable again; as a warning it counts when all are so."""
        self._warn(
            CriticalWarning.READ_ONLY, all(one.backend.read_only for one in self._namespaces)
        )

    def _warn(self, warning: CriticalWarning, on: bool) -> None:
        before = self.warnings
        own = CriticalWarning(int(self._state.lifetime[Lifetime.WARNINGS]))
        self._state.lifetime[Lifetime.WARNINGS] = own | warning if on else own & ~warning
        self._tell_new_warnings(before)

    def _tell_new_warnings(self, before: CriticalWarning) -> None:
        for warning in self.warnings & ~before:
            self._on_warning(warning)

    def _drives_told(self, logs: list[SmartLog]) -> None:
        before = self.warnings
        told = bytes(worst(logs)) if logs else bytes(ctypes.sizeof(SmartLog))
        self._drive_words[:] = memoryview(told).cast("Q")
        self._tell_new_warnings(before)

    def power_on(self) -> None:
        """A client is there, or the controller is new."""
        if self._state.scratch[Scratch.USED]:
            self._state.lifetime[Lifetime.UNSAFE_SHUTDOWNS] += 1
            self._state.scratch[Scratch.USED] = 0
        self._state.lifetime[Lifetime.POWER_CYCLES] += 1

    def tick(self) -> None:
        """Time has passed; from time to time the media are asked for their temperature."""
        now = time.monotonic()
        elapsed, self._last = round((now - self._last) * 1000), now
        self._state.lifetime[Lifetime.POWERED_MS] += elapsed
        if self._queues.inflight() or self._queues.throttled:
            self._state.lifetime[Lifetime.BUSY_MS] += elapsed
        temperature = composite_temperature(self._state)
        if temperature >= CRITICAL_TEMPERATURE:
            self._state.lifetime[Lifetime.HOT_MS] += elapsed
        elif temperature >= WARNING_TEMPERATURE:
            self._state.lifetime[Lifetime.WARM_MS] += elapsed
        if self._measurement is None and (
            self._measured is None or now - self._measured >= _MEASURE_EVERY_S
        ):
            self._measured = now
            self._measurement = asyncio.get_running_loop().create_task(self._measure())

    async def _measure(self) -> None:
        """Not on the event loop: a sensor can take as long as its drive does."""
        try:
            backends = [namespace.backend for namespace in self._namespaces]
            temperatures, logs = await asyncio.to_thread(_ask, backends)
            self._drives_told(logs)
            warmest = max(temperatures, default=0)
            if warmest != self._state.lifetime[Lifetime.TEMPERATURE]:
                self._state.lifetime[Lifetime.TEMPERATURE] = warmest
                self._on_temperature()
        finally:
            self._measurement = None

    def stop(self) -> None:
        """No more measuring."""
        if self._measurement is not None:
            self._measurement.cancel()
