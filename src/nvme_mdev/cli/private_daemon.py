"""A daemon for a while, which leaves nothing behind: what `demo` and `bench report` measure."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import Self

_READY_TIMEOUT = 60.0
"""Arbitrary; on an emulated machine with others at work it was seen to take more than 20 s."""
_STOP_TIMEOUT = 10.0
_LOOK_INTERVAL = 0.002
"""Seconds between two looks at the log; `bench startup` is as exact as that."""
_PR_SET_PDEATHSIG = 1
"""``<sys/prctl.h>``."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP as KeyboardInterrupt, except while something must be whole."""

    def __init__(self) -> None:
        self._held = 0
        self._pending = False
        self._raised = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        self._pending = True
        self._raise()

    def _raise(self) -> None:
        """Once: what the first one unwinds, a second one must not disturb."""
        if self._pending and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait until the end of the block."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()


class Daemon(NamedTuple):
    """The daemon, and where it is."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def wait_ready(self) -> None:
        """Return when it serves; UserError with what it says when it does not."""
        deadline = time.monotonic() + _READY_TIMEOUT
        while "ready on" not in (text := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = text.strip().splitlines()[-1:] or ["it said nothing"]
                raise UserError(f"the daemon did not start: {last[0].removeprefix('nvme-mdev: ')}")
            time.sleep(_LOOK_INTERVAL)

    def stop(self) -> None:
        """End it, kindly first."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _die_with_parent() -> None:
    """In the daemon's process, before it starts: stop when we are killed without mercy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start(folder: Path, arguments: Sequence[str], iothread_cpu: int | None) -> Daemon:
    socket, log = folder / "nvme.sock", folder / "daemon.log"
    command = [sys.executable, "-m", "nvme_mdev.cli.main", "serve", "--no-control"]
    command += ["--socket", str(socket)]
    command += arguments
    if iothread_cpu is not None:
        command += ["--iothread-cpu", str(iothread_cpu)]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for us, and we stop the daemon in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread works meanwhile
        )
    return Daemon(process, socket, log)


@contextmanager
def serve_privately(
    interrupts: Interrupts, arguments: Callable[[Path], Sequence[str]], iothread_cpu: int | None
) -> Iterator[Daemon]:
    """A daemon with a private folder; gone without a trace afterwards.

    ``arguments`` makes the rest of its command line from that folder.
    """
    cleanup = ExitStack()
    try:
        with interrupts.held():
            folder = Path(tempfile.mkdtemp(prefix="nvme-mdev-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            daemon = _start(folder, arguments(folder), iothread_cpu)
            cleanup.callback(daemon.stop)
        try:
            daemon.wait_ready()
            yield daemon
        finally:
            with interrupts.held():
                cleanup.close()
    finally:
        # If a signal came just before `held` above; there is no second one.
        cleanup.close()
