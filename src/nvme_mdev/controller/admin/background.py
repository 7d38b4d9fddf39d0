"""Commands that begin something and are complete then: whether it was begun already.

They are executed again when the process was killed before it had completed them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.spec.nvme_commands import AdminOpcode
from nvme_mdev.spec.nvme_maintenance import SanitizeState

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller


def is_begun(controller: Controller, command: AdminCommand) -> bool:
    """Whether what the command asks for is in progress."""
    sqe, life = command.sqe, controller.state.lifetime
    match sqe.opc:
        case AdminOpcode.DEVICE_SELF_TEST:
            same = life[Lifetime.SELF_TEST_NSID] == sqe.nsid
            return bool(same and controller.self_test.current == sqe.cdw10 & 0xF)
        case AdminOpcode.SANITIZE:
            running = controller.erasing.sanitize_state == SanitizeState.IN_PROGRESS
            return bool(running and life[Lifetime.SANITIZE_CDW10] == sqe.cdw10)
        case _:
            return False
