"""Namespace write protection (Base 8.1.16): the guest's own lock, enforced by the data path.

It is kept for as long as the controller is, or, where the guest says so, until the power cycle,
which is when the client leaves. Permanent protection is not offered: an image has no place to
remember it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.controller.settings import MAX_NSID
from nvme_mdev.spec.nvme_features import WriteProtectionState

if TYPE_CHECKING:
    from nvme_mdev.controller.namespaces import Namespaces
    from nvme_mdev.datapath.queue_table import QueueTable
    from nvme_mdev.datapath.state import ControllerState


class WriteProtection:
    """The write protection state of each namespace of a controller."""

    def __init__(self, state: ControllerState, queues: QueueTable, namespaces: Namespaces) -> None:
        self._words = state.lifetime
        self._queues = queues
        self._namespaces = namespaces

    def __getitem__(self, nsid: int) -> WriteProtectionState:
        return WriteProtectionState(self._words[Lifetime.WRITE_PROTECTION + nsid - 1])

    def __setitem__(self, nsid: int, value: WriteProtectionState) -> None:
        self._words[Lifetime.WRITE_PROTECTION + nsid - 1] = value
        self.enforce(nsid)

    def enforce(self, nsid: int) -> None:
        """Let the data path know: after a change, and when a namespace is attached."""
        if self._namespaces.get(nsid) is not None:
            protected = self[nsid] != WriteProtectionState.NONE
            self._queues.lock_namespace(nsid, protected)

    def protects(self, nsid: int) -> bool:
        """Whether nothing can be written: by the guest's wish, or since the medium is read-only."""
        namespace = self._namespaces.get(nsid)
        read_only = namespace is not None and namespace.backend.read_only
        return read_only or self[nsid] != WriteProtectionState.NONE

    def forget(self, nsid: int) -> None:
        """The namespace is gone; another one with this NSID begins unprotected."""
        self[nsid] = WriteProtectionState.NONE

    def power_cycle(self) -> None:
        """End what lasts until the next power cycle."""
        for nsid in range(1, MAX_NSID + 1):
            if self[nsid] == WriteProtectionState.UNTIL_POWER_CYCLE:
                self[nsid] = WriteProtectionState.NONE
