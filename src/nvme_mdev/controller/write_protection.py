"""Namespace write protection (Base 8.1.16): a guest's own lock, enforced by the data path.

It is the namespace's: what is set on one controller holds on all that share it. It is kept for as
long as the subsystem is, or, where the guest says so, until its power cycle, which is when the last
client leaves. Permanent protection is not offered: an image has no place to remember it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_features import WriteProtectionState

if TYPE_CHECKING:
    from nvme_mdev.controller.namespaces import Namespaces
    from nvme_mdev.controller.subsystem import Subsystem
    from nvme_mdev.datapath.queue_table import QueueTable


class WriteProtection:
    """The write protection state of each namespace, as a controller has it."""

    def __init__(self, subsystem: Subsystem, queues: QueueTable, namespaces: Namespaces) -> None:
        self._subsystem = subsystem
        self._queues = queues
        self._namespaces = namespaces

    def __getitem__(self, nsid: int) -> WriteProtectionState:
        return self._subsystem.shared[nsid].protection

    def __setitem__(self, nsid: int, value: WriteProtectionState) -> None:
        self._subsystem.shared.protect(nsid, value)
        self._subsystem.enforce(nsid)

    def enforce(self, nsid: int) -> None:
        """Let this controller's data path know: after a change, or a namespace was attached."""
        if self._namespaces.get(nsid) is not None:
            protected = self[nsid] != WriteProtectionState.NONE
            self._queues.lock_namespace(nsid, protected)

    def protects(self, nsid: int) -> bool:
        """Whether nothing can be written: by the guest's wish, or since the medium is read-only."""
        namespace = self._namespaces.get(nsid)
        read_only = namespace is not None and namespace.backend.read_only
        return read_only or self[nsid] != WriteProtectionState.NONE
