"""Keep Alive (Base 5.1.14): the command; :mod:`nvme_mdev.controller.keep_alive` has the timer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller


def keep_alive(controller: Controller, _command: AdminCommand) -> int:
    """The timer, if the host has asked for one, begins anew."""
    controller.keep_alive.restart()
    return 0
