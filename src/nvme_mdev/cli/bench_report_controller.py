"""``nvme-mdev bench report`` on a controller that we drive ourselves, and nobody else meanwhile.

That is a drive bound to vfio-pci or a vfio-user socket. Nothing is bound or unbound here. Since one
driver has it at a time, each row takes it for a measurement and lets go of it again.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.cli.private_daemon import Interrupts, serve_privately
from nvme_mdev.errors import UserError
from nvme_mdev.service.direct import PREFIX, VFIO, VFIO_USER, DirectName
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvme_mdev.bench.report import AttachedAnew
    from nvme_mdev.host.driver import NvmeHost


@dataclass(frozen=True, slots=True)
class BareController:
    """A TARGET that is a namespace of such a controller."""

    text: str
    """As it was written."""
    name: DirectName
    size: int | None
    """Bytes that are read from; None: all."""

    @classmethod
    def parse(cls, text: str, size: int | None) -> BareController | None:
        """``vfio:0000:44:00.0/n1`` or ``vfio-user:SOCKET/n1``; None: it is something else.

        UserError: it names no controller, or a part of a namespace.
        """
        name = text.removeprefix(PREFIX)
        if not name.startswith((VFIO, VFIO_USER)):
            return None
        if name in {VFIO, VFIO_USER}:
            raise UserError(f"{text}: write vfio:0000:44:00.0/n1 or vfio-user:SOCKET/n1")
        found = DirectName.parse(text).absolute
        if found.partition is not None:
            raise UserError(f"{text}: all of a namespace is measured: leave p{found.partition} out")
        return cls(text, found, size)

    def rows(
        self, interrupts: Interrupts, arguments: Sequence[str], cpu: int
    ) -> list[AttachedAnew]:
        """Our driver on the controller, then the daemon in direct mode on it.

        ``arguments``: more of the daemon's; ``cpu``: its IOThread's.
        """
        from nvme_mdev.bench.report import DIRECT, HOST, AttachedAnew
        from nvme_mdev.host.attaching import attach_patiently

        target = [f"{self.name},read-only", *arguments]

        @contextmanager
        def through_the_daemon() -> Iterator[NvmeHost]:
            with (
                serve_privately(interrupts, lambda _folder: target, cpu) as daemon,
                attach_patiently(str(daemon.socket)) as host,
            ):
                yield host

        def on_the_controller() -> NvmeHost:
            return attach_patiently(self.name.address)

        return [
            AttachedAnew(HOST, on_the_controller, self.name.nsid, self.size),
            AttachedAnew(DIRECT, through_the_daemon, 1, self.size),
        ]

    def notes(self) -> tuple[str, ...]:
        """What is said below the tables."""
        from nvme_mdev.bench.report import NOTES_OF_A_CONTROLLER

        return NOTES_OF_A_CONTROLLER

    def behind(self) -> dict[str, str]:
        """What each row is of, in words."""
        from nvme_mdev.bench.report import DIRECT, HOST

        read = "" if self.size is None else f", {format_size(self.size)} of it"
        bare = str(self.name).removeprefix(PREFIX)
        return {HOST: f"{bare}{read}", DIRECT: f"{self.name}{read}"}
