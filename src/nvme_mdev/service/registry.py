"""The controllers of a daemon, and the record of them for the next process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.controller.subsystem import Subsystem
from nvme_mdev.errors import UserError
from nvme_mdev.service.record import FORMAT, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.service.backings import Backings
    from nvme_mdev.service.continuity import Kept
    from nvme_mdev.service.served import ServedController


class Registry:
    """The controllers of this daemon, by name."""

    def __init__(self, backings: Backings, kept: Kept | None) -> None:
        """``kept``: where the next process finds what is served; None: there is none."""
        self.backings = backings
        self.kept = kept
        self.restart_asked = asyncio.Event()
        """The daemon is ready to be restarted (:mod:`.restart`), and is to end for that."""
        self._controllers: dict[str, ServedController] = {}
        self._subsystems: dict[str, Subsystem] = {}
        self._written: set[int] = set()

    def __iter__(self) -> Iterator[ServedController]:
        return iter(self._controllers.values())

    def subsystem(self, serial: str) -> Subsystem:
        """The NVM subsystem of a serial number, new or not."""
        return self._subsystems.setdefault(serial, Subsystem())

    def add(self, served: ServedController) -> None:
        """Make a controller known."""
        self._controllers[served.name] = served

    def rename(self, served: ServedController, name: str) -> None:
        """Give a controller the name that it got in the runtime directory."""
        del self._controllers[served.name]
        served.name = name
        self.add(served)

    def get(self, name: str | None) -> ServedController:
        """The controller of this name, or at this socket; UserError: there is none, or None is not
        clear."""
        if name is None and len(self._controllers) == 1:
            return next(iter(self))
        if name is not None and (found := self._controllers.get(name) or self._at(Path(name))):
            return found
        known = ", ".join(self._controllers)
        raise UserError(f"{name or 'which controller?'}: this daemon serves {known}")

    def _at(self, path: Path) -> ServedController | None:
        """The controller whose vfio-user socket has this absolute path."""
        return next((one for one in self if one.definition.socket.absolute() == path), None)

    def save(self) -> None:
        """Write down what is served: the next process serves that."""
        if self.kept is None:
            return
        used = {backing.number: backing for one in self for backing in one.backings.values()}
        self.kept.save(
            Record(
                FORMAT,
                [served.record for served in self],
                [backing.record for _, backing in sorted(used.items())],
            )
        )
        # What the record does not need any more is given up after it, what is new was kept before.
        for number in self._written - used.keys():
            self.kept.forget_memory(number)
        self._written = set(used)
