"""The controllers of a daemon, and the record of them for the next process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.controller.subsystem import Subsystem
from nvme_mdev.errors import UserError
from nvme_mdev.service.record import FORMAT, Record
from nvme_mdev.service.runtime import publish, runtime_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from nvme_mdev.service.assembly import Plan
    from nvme_mdev.service.backings import Backings
    from nvme_mdev.service.continuity import Kept
    from nvme_mdev.service.served import ServedController

_log = logging.getLogger(__name__)


class Registry:
    """The controllers of this daemon, by name."""

    def __init__(self, backings: Backings, kept: Kept | None) -> None:
        """``kept``: where the next process finds what is served; None: there is none."""
        self.backings = backings
        self.kept = kept
        self.changing = asyncio.Lock()
        """Controllers come and go one at a time."""
        self.make: Callable[[Plan], Awaitable[ServedController]]
        """Makes a controller, see `nvme_mdev.service.assembly`."""
        self.control: Path | None = None
        """The control socket, once it listens."""
        self.restart_asked = asyncio.Event()
        """The daemon is ready to be restarted (:mod:`.restart`), and is to end for that."""
        self._controllers: dict[str, ServedController] = {}
        self._subsystems: dict[str, Subsystem] = {}
        self._last_number = 0

    def __iter__(self) -> Iterator[ServedController]:
        return iter(self._controllers.values())

    def __len__(self) -> int:
        return len(self._controllers)

    def free_number(self) -> int:
        """A number that no controller of this daemon has had."""
        return self._last_number + 1

    def peers(self, served: ServedController) -> list[ServedController]:
        """The controllers of its NVM subsystem, itself included."""
        return [one for one in self if one.controller.subsystem is served.controller.subsystem]

    def subsystem(self, serial: str) -> Subsystem:
        """The NVM subsystem of a serial number, new or not."""
        if serial not in self._subsystems:
            shared = None if self.kept is None else self.kept.shared_state(serial)
            self._subsystems[serial] = Subsystem(shared)
        return self._subsystems[serial]

    def forget_subsystem(self, served: ServedController) -> None:
        """A controller was taken down; with the last one its subsystem is gone."""
        if not self.peers(served):
            serial = served.definition.serial_number
            self._subsystems.pop(serial, None)
            if self.kept is not None:
                self.kept.forget_subsystem(serial)

    def forget_detached(self) -> None:
        """All controllers of the process before us are there again, as far as they can be."""
        for subsystem in self._subsystems.values():
            subsystem.forget_detached()

    def add(self, served: ServedController) -> None:
        """Make a controller known, under another name if its own is taken."""
        name, number = served.name, 1
        while served.name in self._controllers:
            number += 1
            served.name = f"{name}-{number}"
        self._controllers[served.name] = served
        self._last_number = max(self._last_number, served.number)

    def remove(self, served: ServedController) -> None:
        """Forget a controller."""
        del self._controllers[served.name]

    def publish(self, served: ServedController, *, exact: bool) -> None:
        """Make a controller known to this user's commands, or, unless ``exact``, by a name like it.

        UserError: another daemon has the name. Where no name can be had at all, a warning says so:
        the guest needs none.
        """
        if self.control is None:
            return
        try:
            entry = publish(served.name, self.control, exact=exact)
        except OSError as error:
            self._warn_unlisted(served, f"{runtime_directory()}: {error.strerror}")
            return
        if entry is None:
            self._warn_unlisted(served, "this user has no runtime directory ($XDG_RUNTIME_DIR)")
            return
        served.cleanup.callback(entry.remove)
        self.remove(served)
        served.name = entry.name
        self.add(served)

    def _warn_unlisted(self, served: ServedController, why: str) -> None:
        _log.warning(
            "%s is served, but nvme-mdev list cannot show it: %s: set NVME_MDEV_RUNTIME_DIR to a"
            " directory of yours, or name it by its control socket, %s",
            served.name,
            why,
            self.control,
        )

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
