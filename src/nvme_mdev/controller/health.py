"""What the SMART log tells of the controller's life (Base 5.1.12.1.3), counted as it happens.

The numbers are in shared memory, so that they outlive resets, clients and the process; they begin
when the controller is made. A client that connects is a power cycle, one that leaves a loss of
power. Whether I/O is in flight is looked at once a tick: over the minutes that the log counts in,
that is as good as a stopwatch, and costs the data path nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import Lifetime, Scratch
from nvme_mdev.spec.nvme_logs import CriticalWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.controller.namespaces import Namespaces
    from nvme_mdev.datapath.queue_table import QueueTable
    from nvme_mdev.datapath.state import ControllerState

ROOM_TEMPERATURE = 300
"""Kelvin. What is told where no medium has a sensor: software has no temperature."""
WARNING_TEMPERATURE = 343
"""WCTEMP in kelvin: what NVMe drives have, most of them."""
CRITICAL_TEMPERATURE = 353
"""CCTEMP in kelvin, likewise."""

_MEASURE_EVERY_S = 30.0
"""Between two looks at the sensors: a drive can have to wake up for one."""


def composite_temperature(state: ControllerState) -> int:
    """Kelvin: the warmest medium's, as it was told last."""
    return int(state.lifetime[Lifetime.TEMPERATURE]) or ROOM_TEMPERATURE


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
        """The critical warnings in force, but for the temperature."""
        return CriticalWarning(int(self._state.lifetime[Lifetime.WARNINGS]))

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
        after = before | warning if on else before & ~warning
        self._state.lifetime[Lifetime.WARNINGS] = after
        if after & ~before:
            self._on_warning(warning)

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
            readers = [namespace.backend.temperature for namespace in self._namespaces]
            found = await asyncio.to_thread(lambda: [reader() for reader in readers])
            warmest = max((value for value in found if value is not None), default=0)
            if warmest != self._state.lifetime[Lifetime.TEMPERATURE]:
                self._state.lifetime[Lifetime.TEMPERATURE] = warmest
                self._on_temperature()
        finally:
            self._measurement = None

    def stop(self) -> None:
        """No more measuring."""
        if self._measurement is not None:
            self._measurement.cancel()
