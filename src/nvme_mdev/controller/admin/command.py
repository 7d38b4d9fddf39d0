"""An admin command on its way: its fields, and its data in guest memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.datapath import prp
from nvme_mdev.spec.nvme_commands import SQE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.datapath.memory import GuestMemory

Outcome: TypeAlias = "int | Coroutine[Any, Any, int] | None"
"""What a handler returns, see :mod:`nvme_mdev.controller.admin`."""
Handler: TypeAlias = "Callable[[Controller, AdminCommand], Outcome]"


class AdminCommand:
    """One fetched admin command. It works on the slot's copy of the SQE, not on guest memory."""

    __slots__ = ("_memory", "_page_size", "slot", "sqe")

    def __init__(self, slot: int, sqe: bytes, memory: GuestMemory, page_size: int) -> None:
        """``slot``: where the queue table keeps it; ``page_size``: CC.MPS in bytes."""
        self.slot = slot
        self.sqe = SQE.from_buffer_copy(sqe)
        self._memory = memory
        self._page_size = page_size

    def receive(self, size: int) -> bytes:
        """The data that the PRPs point to; NvmeError when they do not point to memory."""
        status, data = prp.read(
            self._memory, self.sqe.prp1, self.sqe.prp2, size, page_size=self._page_size
        )
        if status:
            raise NvmeError(status, Field.PRP1)
        return data

    def respond(self, data: bytes) -> None:
        """Copy ``data`` to where the PRPs point; NvmeError when they do not point to memory."""
        if data:
            status = prp.write(
                self._memory, self.sqe.prp1, self.sqe.prp2, data, page_size=self._page_size
            )
            if status:
                raise NvmeError(status, Field.PRP1)
