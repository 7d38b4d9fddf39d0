"""The open targets of a daemon: what namespaces are made of, each open once.

A backing is opened for its first namespace and closed with its last: a namespace that several
controllers share has one backing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.errors import UserError
from nvme_mdev.service.limits import change_limits, limit_texts, parse_limits
from nvme_mdev.service.record import BackingRecord
from nvme_mdev.service.targets import Access, Target, check_ptpl_files, open_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.service.continuity import Kept

_log = logging.getLogger(__name__)

_UNLOCKED_WITHIN_S = 2.0
"""How long an image or device may stay locked by a process that is gone."""
_UNLOCK_RETRY_S = 0.005
_MADE_UP = frozenset({"null", "memory"})
"""Kinds of targets of which there can be any number."""


@dataclass(eq=False)
class Backing:
    """An open target."""

    number: int
    target: Target
    access: Access
    backend: Backend
    users: int = 0
    """Namespaces that are made of it."""

    @property
    def record(self) -> BackingRecord:
        """For the next process, which opens it again: what has to be made is there by then."""
        access = replace(self.access, create_size=None, limits={})
        if self.target.kind == "direct":
            # What is executed again would be in another place if a drive had other blocks by then.
            access = replace(access, block_size=self.backend.block_size)
        return BackingRecord(
            self.number,
            self.target.text,
            access,
            self.backend.size,
            limit_texts(self.backend.limits),
        )


class Backings:
    """All of them, by number."""

    def __init__(self, kept: Kept | None) -> None:
        """``kept``: where the contents of memory targets are kept; None: nowhere."""
        self._kept = kept
        self._open: dict[int, Backing] = {}
        self._next = 1

    def __iter__(self) -> Iterator[Backing]:
        return iter(self._open.values())

    def open(self, targets: Sequence[Target], access: Access, rollback: ExitStack) -> list[Backing]:
        """Open targets, all or none of them; UserError as of `open_targets`."""
        check_ptpl_files(targets)
        return self._take_all(targets, access, open_targets(targets, access, rollback))

    async def open_all(
        self, targets: Sequence[Target], access: Access, rollback: ExitStack
    ) -> list[Backing]:
        """Open targets while guests are served: in a thread, opening a device can wait for it."""
        self._check_not_served(targets)
        check_ptpl_files(targets, [one.target for one in self])
        backends = await asyncio.to_thread(open_targets, targets, access, rollback)
        return self._take_all(targets, access, backends)

    def _check_not_served(self, targets: Sequence[Target]) -> None:
        """UserError: the daemon has one of them open."""
        served = {one.target.identity for one in self if one.target.kind not in _MADE_UP}
        for target in targets:
            if target.absolute.identity in served:
                raise UserError(
                    f"{target.text} is a namespace of this daemon already: share that one"
                    " (nvme-mdev namespace attach, nvme-mdev controller add --share)"
                )

    def _take_all(
        self, targets: Sequence[Target], access: Access, backends: Sequence[Backend]
    ) -> list[Backing]:
        return [
            self._take(target.absolute, access, backend)
            for target, backend in zip(targets, backends, strict=True)
        ]

    async def reopen(self, record: BackingRecord) -> Backing | None:
        """Open what the process before us has served; None: it cannot be opened any more."""
        target = Target.parse(record.target)
        if target.kind == "null":
            target = replace(target, size=record.size)
        memory = self._kept.memory(record.number) if self._kept is not None else None
        try:
            backend = await self._open_unlocked(target, record.access, memory)
        except UserError as error:
            _log.error("%s is not served any more: %s", record.target, error)
            return None
        backend.set_limits(change_limits({}, parse_limits(record.limits)))
        backing = Backing(record.number, target, record.access, backend)
        self._open[backing.number] = backing
        self._next = max(self._next, backing.number + 1)
        return backing

    def claim(self, backing: Backing) -> None:
        """One more namespace is made of it."""
        backing.users += 1

    def release(self, backing: Backing) -> None:
        """One namespace less, which the record does not have any more; with the last it is closed.

        One that was never used is closed, too.
        """
        backing.users -= 1
        if backing.users <= 0 and self._open.pop(backing.number, None) is not None:
            backing.backend.close()
            if self._kept is not None:
                self._kept.forget_memory(backing.number)

    def close(self) -> None:
        """Close all of them."""
        for backing in self._open.values():
            backing.backend.close()
        self._open.clear()

    def _take(self, target: Target, access: Access, backend: Backend) -> Backing:
        backend.set_limits(access.limits_of(target))
        backing = Backing(self._next, target, access, backend)
        self._next += 1
        self._open[backing.number] = backing
        if self._kept is not None and isinstance(backend, MemoryBackend):
            self._kept.keep_memory(backing.number, backend.fd)
        return backing

    async def _open_unlocked(self, target: Target, access: Access, memory: int | None) -> Backend:
        """Open a target; the kernel may need a moment to unlock that of a process that died."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _UNLOCKED_WITHIN_S
        contents = {1: memory} if memory is not None else {}
        while True:
            try:
                with ExitStack() as rollback:
                    return open_targets([target], access, rollback, contents)[0]
            except UserError as error:
                cause = error.__cause__
                busy = isinstance(cause, OSError) and cause.errno == errno.EBUSY
                if not busy or loop.time() > deadline:
                    raise
            await asyncio.sleep(_UNLOCK_RETRY_S)
