"""What a test works with: daemons, guests attached to them, and the images behind."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .daemon import Daemon, DaemonError
from .guest import Guest
from .machines import vfio_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .prepare import Lab

MIB = 1 << 20
LOG_LINES = 60  # of each log, in the report of a failed test


class Rig:
    """Starts daemons and guests, and ends them all with the context.

    At the end it fails the test when a guest's kernel complained about its disk, or when a daemon
    ended by itself, raised an exception, or did not stop cleanly.
    """

    live: ClassVar[list[Rig]] = []

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.daemons: list[Daemon] = []
        self.guests: list[Guest] = []
        # Short, since the path of a socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="nvme-mdev-rig-"))
        self.live.append(self)

    def image(self, size: int = 128 * MIB, name: str = "disk") -> Path:
        """A new sparse image."""
        path = self.directory / f"{name}.img"
        with path.open("xb") as image:
            image.truncate(size)
        return path

    def serve(
        self, *targets: Path | str, options: Sequence[str] = (), wrapper: Sequence[str] = ()
    ) -> Daemon:
        """A daemon with these targets, or with a new image."""
        number = len(self.daemons)
        daemon = Daemon(
            self.directory / f"{number}.sock",
            targets or [self.image(name=f"disk{number}")],
            options,
            self.directory / f"{number}.log",
            wrapper,
        )
        self.daemons.append(daemon)
        return daemon

    def start(
        self,
        *daemons: Daemon,
        devices: Sequence[dict[str, object]] = (),
        **machine: Any,  # as Guest's
    ) -> Guest:
        """A guest with these devices, then a controller of each daemon; not waited for."""
        controllers = [vfio_user(daemon.socket, bootindex=i) for i, daemon in enumerate(daemons, 1)]
        guest = Guest(self.lab, [*devices, *controllers], **machine)
        self.guests.append(guest)
        return guest

    def boot(self, *daemons: Daemon, **machine: Any) -> Guest:
        """A guest with a controller of each daemon, whose kernel sees all their namespaces."""
        guest = self.start(*daemons, **machine).wait_ready()
        for controller in range(len(daemons)):
            guest.wait_for_path(f"/dev/nvme{controller}n1")
        return guest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        trouble = []
        for guest in self.guests:
            guest.close()
            if complaints := guest.complaints():
                trouble.append("the guest's kernel complained:\n" + "\n".join(complaints))
        for daemon in self.daemons:
            if problem := daemon.trouble():
                trouble.append(problem)
            if daemon.alive:
                try:
                    daemon.stop()
                except DaemonError as error:
                    trouble.append(str(error))
        if trouble:
            trouble += [f"--- {title} ---\n{text}" for title, text in self.logs()]
        self.live.remove(self)
        shutil.rmtree(self.directory)
        assert not trouble, "\n".join(trouble)

    def logs(self) -> list[tuple[str, str]]:
        """Titles and texts of all that was said, for the report of a failed test."""
        told = [(f"daemon {i}", daemon.log) for i, daemon in enumerate(self.daemons)]
        for i, guest in enumerate(self.guests):
            told += [(f"guest {i}: {name}", guest.log(name)) for name in ("qemu", "console")]
        return [(title, "\n".join(text.splitlines()[-LOG_LINES:])) for title, text in told]


def checksum(path: Path) -> str:
    """Digest of a file: `Guest.checksum` of the host. MD5 is what an emulated CPU does fastest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def allocated(path: Path) -> int:
    """Bytes of the host's disk that a file takes."""
    return path.stat().st_blocks * 512


def content(path: Path, offset: int, size: int) -> bytes:
    """A piece of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
