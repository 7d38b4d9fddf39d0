"""Namespace write protection (Base 8.1.16): a guest's own lock, enforced by the data path.

It is the namespace's: what is set on one controller holds on all that share it. It is kept for as
long as the subsystem is, or, where the guest says so, until its power cycle, which is when the last
client leaves. Permanent protection is not offered: an image has no place to remember it.

A namespace is protected in this order: new writes are refused, on every controller that shares it;
those in flight are waited for; caches are flushed; then it counts, and the guests are told. So what
was written before the protection is on the medium, and nothing is written after it (5.1.25.1.31).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nvme_mdev.controller.drain import flush
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.spec.nvme_features import WriteProtectionState
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.controller.namespaces import Namespaces
    from nvme_mdev.controller.subsystem import Subsystem
    from nvme_mdev.datapath.queue_table import QueueTable


_POLL_S = 0.001
"""How often to look whether writes in flight are done; I/O takes about 0.1 ms."""


class WriteProtection:
    """The write protection state of each namespace, as a controller has it."""

    def __init__(self, subsystem: Subsystem, queues: QueueTable, namespaces: Namespaces) -> None:
        self._subsystem = subsystem
        self._queues = queues
        self._namespaces = namespaces

    def __getitem__(self, nsid: int) -> WriteProtectionState:
        return self._subsystem.shared[nsid].protection

    async def change(self, nsids: Sequence[int], wanted: WriteProtectionState) -> None:
        """Change the state of attached namespaces, of all or of none; NvmeError: it cannot be.

        A command that is forgotten, by a reset, changes nothing any more.
        """
        async with self._subsystem.protecting:
            locked = WriteProtectionState.UNTIL_POWER_CYCLE
            if any(self[nsid] == locked != wanted for nsid in nsids):
                raise NvmeError(CommandStatus.FEATURE_NOT_CHANGEABLE, Field.CDW11)
            refused = self._subsystem.refusing_writes
            try:
                if wanted != WriteProtectionState.NONE:
                    refused.update(nsids)
                    await self._settle(nsids)
                for nsid in nsids:
                    self._set(nsid, wanted)
            finally:
                refused.difference_update(nsids)
                for nsid in nsids:
                    self._subsystem.enforce(nsid)

    async def _settle(self, nsids: Sequence[int]) -> None:
        """Return when all that was written is on the media, and nothing more is written."""
        namespaces = [self._namespaces.get(nsid) for nsid in nsids]
        for nsid in nsids:
            self._subsystem.enforce(nsid)
        for nsid in nsids:
            await self._written(nsid)
        await flush([one.backend for one in namespaces if one and one.backend.volatile_cache])
        if None in namespaces or namespaces != [self._namespaces.get(nsid) for nsid in nsids]:
            # One has gone meanwhile, and perhaps another one come in its place.
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)

    async def _written(self, nsid: int) -> None:
        """Return when no write to the namespace is in flight, on any controller."""
        for one in self._subsystem.attached(nsid):
            while one.namespaces.get(nsid) and one.queues.namespaces.in_use(nsid, writing=True):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    def _set(self, nsid: int, value: WriteProtectionState) -> None:
        before = self.protects(nsid)
        self._subsystem.shared.protect(nsid, value)
        if self.protects(nsid) != before:
            self._subsystem.namespace_changed(nsid)

    def enforce(self, nsid: int) -> None:
        """Let this controller's data path know: after a change, or a namespace was attached."""
        if self._namespaces.get(nsid) is not None:
            protected = self[nsid] != WriteProtectionState.NONE
            refused = nsid in self._subsystem.refusing_writes
            self._queues.namespaces.lock(nsid, protected or refused)

    def protects(self, nsid: int) -> bool:
        """Whether nothing can be written: by the guest's wish, or since the medium is read-only."""
        namespace = self._namespaces.get(nsid)
        read_only = namespace is not None and namespace.backend.read_only
        return read_only or self[nsid] != WriteProtectionState.NONE
