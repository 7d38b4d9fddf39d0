"""The NVM subsystem: controllers that can share namespaces (Base 2.4.1, 3.2.1.1).

A namespace that is attached to several controllers has the same NSID on each. Controllers of one
subsystem have its serial number and its NQN in common, and differ in CNTLID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.controller.controller import Controller


class Subsystem:
    """The controllers of one NVM subsystem, by CNTLID."""

    def __init__(self) -> None:
        self._controllers: dict[int, Controller] = {}

    def __iter__(self) -> Iterator[Controller]:
        """The controllers, by ascending CNTLID."""
        return iter([self._controllers[cntlid] for cntlid in sorted(self._controllers)])

    def __len__(self) -> int:
        return len(self._controllers)

    def add(self, controller: Controller) -> None:
        """Take a controller in; ValueError: its CNTLID is in use."""
        cntlid = controller.settings.cntlid
        if cntlid in self._controllers:
            raise ValueError(f"controller {cntlid} exists")
        self._controllers[cntlid] = controller

    def remove(self, controller: Controller) -> None:
        """Let a controller go."""
        self._controllers.pop(controller.settings.cntlid, None)

    def attached(self, nsid: int) -> list[Controller]:
        """The controllers that the namespace is attached to."""
        return [one for one in self if one.namespaces.get(nsid) is not None]

    def holding(self, nsid: int) -> list[Controller]:
        """Those, and the controllers that have it but whose medium has gone."""
        return [one for one in self if one.namespaces.get(nsid) or nsid in one.namespaces.lost]

    @property
    def sharing(self) -> bool:
        """Whether there are several controllers, so that namespaces can be shared (CMIC, NMIC)."""
        return len(self._controllers) > 1
