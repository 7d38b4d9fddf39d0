"""A whole controller from its parts, without a socket."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nvme_mdev.controller.controller import Controller
from nvme_mdev.controller.settings import ControllerSettings
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.queue_table import QueueTable
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.pci.function import PciFunction
from nvme_mdev.service.nvme_device import NvmeDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.controller.subsystem import Subsystem
    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.iothread import IOThread

SERIAL = "TEST0001"
SIZE = 16 << 20


class Assembly:
    """State, queue table, controller, PCI function and device; made within an event loop."""

    def __init__(
        self,
        iothread: IOThread,
        backends: Sequence[Backend],
        *,
        nsids: Sequence[int] = (),
        mapped_doorbells: bool = True,
        subsystem: Subsystem | None = None,
        **settings: Any,
    ) -> None:
        self._cleanup = ExitStack()
        chosen = ControllerSettings(**{"serial": SERIAL, **settings})
        self.state = ControllerState()
        self._cleanup.callback(self.state.close)
        self.queues = QueueTable(
            self.state,
            GuestMemory(),
            iothread,
            max_transfer=chosen.max_transfer,
            max_nsid=chosen.max_nsid,
        )
        self._cleanup.callback(self.queues.close)
        self.controller = Controller(
            chosen,
            self.state,
            self.queues,
            dict(zip(nsids or range(1, len(backends) + 1), backends, strict=True)),
            subsystem,
        )
        self.function = PciFunction(self.controller)
        self.device = NvmeDevice(self.function, mapped_doorbells=mapped_doorbells)
        self.controller.start()
        self._cleanup.callback(self.controller.stop)

    def close(self) -> None:
        """Free everything; the client has gone."""
        self._cleanup.close()
