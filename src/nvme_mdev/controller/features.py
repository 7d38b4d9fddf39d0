"""The features: their values in shared memory, their defaults (Base 5.1.25, PCIe Transport 4.2).

How a feature is set is in :mod:`nvme_mdev.controller.admin.features`. The data path reads
Arbitration, Volatile Write Cache and the two interrupt features from the same memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.feature_data import FeatureData
from nvme_mdev.controller.health import WARNING_TEMPERATURE, composite_temperature
from nvme_mdev.controller.memory_map import SAVED, Lifetime, Scratch
from nvme_mdev.spec.nvme_features import (
    VOLATILE_WRITE_CACHE_WCE,
    Arbitration,
    AsyncEventConfig,
    Fid,
    InterruptVectorConfiguration,
    NumberOfQueues,
    WriteProtectionState,
)

if TYPE_CHECKING:
    from nvme_mdev.controller.namespaces import Namespaces
    from nvme_mdev.controller.places import Places
    from nvme_mdev.controller.settings import ControllerSettings
    from nvme_mdev.datapath.state import ControllerState

RECOMMENDED_ARBITRATION_BURST = 6
"""RAB and the default of Arbitration Burst: 64 commands, as many as the data path takes at most."""
_NO_BURST_LIMIT = 7

UNDER_THRESHOLD_SHIFT = 16
"""The under temperature threshold lives above the over temperature threshold."""


ASYNC_EVENTS = (
    AsyncEventConfig.SMART_SPARE
    | AsyncEventConfig.SMART_TEMPERATURE
    | AsyncEventConfig.SMART_RELIABILITY
    | AsyncEventConfig.SMART_READ_ONLY
    | AsyncEventConfig.SMART_VOLATILE_BACKUP
    | AsyncEventConfig.NSAN
)
"""The events that the guest can ask for: every critical warning, since OAES does not speak of them,
and what OAES has. Errors come unasked."""

SAVEABLE = frozenset(
    {
        Fid.ARBITRATION,
        Fid.POWER_MANAGEMENT,
        Fid.TEMPERATURE_THRESHOLD,
        Fid.VOLATILE_WRITE_CACHE,
        Fid.INTERRUPT_COALESCING,
        Fid.WRITE_ATOMICITY,
        Fid.SOFTWARE_PROGRESS_MARKER,
    }
)
"""What a reset and the next client find as it was saved. The controller's end is the end of it."""

NAMESPACE_SPECIFIC = frozenset(
    {
        Fid.ERROR_RECOVERY,
        Fid.RESERVATION_NOTIFICATION_MASK,
        Fid.RESERVATION_PERSISTENCE,
        Fid.NAMESPACE_WRITE_PROTECTION,
    }
)

DATA = frozenset({Fid.TIMESTAMP, Fid.HOST_BEHAVIOR_SUPPORT, Fid.HOST_IDENTIFIER})
"""Features that do not fit a dword (:mod:`nvme_mdev.controller.feature_data`)."""


def defaults(settings: ControllerSettings) -> dict[Fid, int]:
    """Every feature whose value is a dword, with its default."""
    queues = settings.io_queues - 1
    return {
        Fid.ARBITRATION: Arbitration(ab=RECOMMENDED_ARBITRATION_BURST).pack(),
        Fid.POWER_MANAGEMENT: 0,
        Fid.TEMPERATURE_THRESHOLD: WARNING_TEMPERATURE,
        Fid.ERROR_RECOVERY: 0,
        Fid.VOLATILE_WRITE_CACHE: VOLATILE_WRITE_CACHE_WCE,
        Fid.NUMBER_OF_QUEUES: NumberOfQueues(nsq=queues, ncq=queues).pack(),
        Fid.INTERRUPT_COALESCING: 0,
        Fid.INTERRUPT_VECTOR_CONFIGURATION: 0,
        Fid.WRITE_ATOMICITY: 0,
        Fid.ASYNC_EVENT_CONFIGURATION: AsyncEventConfig(0),
        Fid.KEEP_ALIVE_TIMER: 0,
        Fid.IO_COMMAND_SET_PROFILE: 0,
        Fid.SOFTWARE_PROGRESS_MARKER: 0,
        Fid.RESERVATION_NOTIFICATION_MASK: 0,
        Fid.RESERVATION_PERSISTENCE: 0,
        Fid.NAMESPACE_WRITE_PROTECTION: WriteProtectionState.NONE,
    }


def supported(settings: ControllerSettings, namespaces: Namespaces) -> set[Fid]:
    """The features that there are with these namespaces: no cache, no Volatile Write Cache."""
    fids = set(defaults(settings)) | DATA
    if not namespaces.volatile():
        fids.discard(Fid.VOLATILE_WRITE_CACHE)
    return fids


class Features:
    """A view on the features in a controller's state."""

    def __init__(
        self, state: ControllerState, settings: ControllerSettings, places: Places
    ) -> None:
        self._state = state
        self._settings = settings
        self._places = places
        self.data = FeatureData(state)

    def reset(self) -> None:
        """What a reset does: back to what was saved, or to the default."""
        for fid in defaults(self._settings):
            self._state.features[fid] = self.saved(fid)
        for vector in range(self._settings.vectors):
            self._state.vector_config[vector] = InterruptVectorConfiguration(vector, False).pack()
        for nsid in self._places:
            self.set_error_recovery(nsid, 0)
        self.data.reset()

    def saved(self, fid: Fid) -> int:
        """What a reset makes of a feature: the value saved, or the default."""
        word = int(self._state.lifetime[Lifetime.SAVED_FEATURES + fid])
        return word & 0xFFFF_FFFF if word & SAVED else defaults(self._settings)[fid]

    def save(self, fid: Fid) -> None:
        """Save the current value."""
        self._state.lifetime[Lifetime.SAVED_FEATURES + fid] = self[fid] | SAVED

    def __getitem__(self, fid: Fid) -> int:
        return self._state.features[fid]

    def __setitem__(self, fid: Fid, value: int) -> None:
        self._state.features[fid] = value

    @property
    def burst(self) -> int:
        """Most commands of one queue in a turn; 0 for no limit."""
        exponent = Arbitration.unpack(self[Fid.ARBITRATION]).ab
        return 0 if exponent == _NO_BURST_LIMIT else 1 << exponent

    @property
    def weights(self) -> tuple[int, int, int]:
        """Commands of the high, medium and low priority class in an arbitration round."""
        arbitration = Arbitration.unpack(self[Fid.ARBITRATION])
        return arbitration.hpw + 1, arbitration.mpw + 1, arbitration.lpw + 1

    @property
    def async_events(self) -> AsyncEventConfig:
        """Which asynchronous events the guest wants."""
        return AsyncEventConfig(self[Fid.ASYNC_EVENT_CONFIGURATION])

    @property
    def over_temperature(self) -> int:
        """Kelvin at which the composite temperature is too high."""
        return self[Fid.TEMPERATURE_THRESHOLD] & 0xFFFF

    @over_temperature.setter
    def over_temperature(self, kelvin: int) -> None:
        self[Fid.TEMPERATURE_THRESHOLD] = kelvin | self.under_temperature << UNDER_THRESHOLD_SHIFT

    @property
    def under_temperature(self) -> int:
        """Kelvin at which the composite temperature is too low."""
        return self[Fid.TEMPERATURE_THRESHOLD] >> UNDER_THRESHOLD_SHIFT

    @under_temperature.setter
    def under_temperature(self, kelvin: int) -> None:
        self[Fid.TEMPERATURE_THRESHOLD] = self.over_temperature | kelvin << UNDER_THRESHOLD_SHIFT

    @property
    def temperature_warning(self) -> bool:
        """Whether the temperature is at or beyond a threshold (critical warning, bit 1)."""
        temperature = composite_temperature(self._state)
        return self.over_temperature <= temperature or self.under_temperature >= temperature

    def error_recovery(self, nsid: int) -> int:
        """Error Recovery of a namespace."""
        return self._state.scratch[Scratch.ERROR_RECOVERY + self._places[nsid]]

    def set_error_recovery(self, nsid: int, value: int) -> None:
        """Set Error Recovery of a namespace."""
        self._state.scratch[Scratch.ERROR_RECOVERY + self._places[nsid]] = value
