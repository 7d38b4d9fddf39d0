"""The program under test: `nvme-mdev serve` in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = Path(sys.executable).with_name("nvme-mdev")
READY = "ready"  # the word in the line that says that clients may connect
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0


class DaemonError(Exception):
    """The daemon did not start or stop as it should; the message ends with its log."""


class Daemon:
    """A daemon that serves `targets` as the namespaces of one controller on `socket`.

    `wrapper` is a command that ends by executing the rest of its arguments. Leaving the context
    stops the daemon, which must end with status 0.
    """

    def __init__(
        self,
        socket: Path,
        targets: Sequence[Path | str],
        options: Sequence[str],
        log: Path,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.socket = socket
        self.targets = list(targets)
        self._log = log
        self._stopped = False
        names = [str(target) for target in targets]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *wrapper,
                    *(str(PROGRAM), "serve", *names, "--socket", str(socket), *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            self.wait_for_log(READY)
        except BaseException:
            self.kill()
            raise

    def wait_for_log(self, word: str, timeout: float = START_TIMEOUT) -> None:
        """Wait until its log contains this word."""
        deadline = time.monotonic() + timeout
        while word not in self.log.split():
            if not self.alive:
                raise DaemonError(f"the daemon ended with {self._process.returncode}: {self.log}")
            if time.monotonic() > deadline:
                raise DaemonError(f"no {word!r} in the daemon's log: {self.log}")
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.alive:
            self.stop()

    @property
    def image(self) -> Path:
        """The first target, where it is an image."""
        return Path(self.targets[0])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def serving_pid(self) -> int:
        """The process that its keeper started; waits until there is one."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        deadline = time.monotonic() + START_TIMEOUT
        while not (pids := children.read_text().split()):
            if time.monotonic() > deadline:
                raise DaemonError(f"the keeper has not started a serving process: {self.log}")
            time.sleep(0.001)
        return int(pids[0])

    @property
    def log(self) -> str:
        """What it wrote to its standard error and output so far."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop it with SIGTERM; it must end in time, with status 0, and without a traceback."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonError(f"the daemon did not stop on SIGTERM:\n{self.log}") from None
        self._stopped = True
        if status or "Traceback" in self.log:
            raise DaemonError(f"the daemon ended with status {status}:\n{self.log}")

    def trouble(self) -> str | None:
        """What is wrong with it: it ended although nobody stopped it, or raised an exception."""
        if not self.alive and not self._stopped:
            return f"the daemon ended with status {self._process.returncode}:\n{self.log}"
        return f"the daemon raised:\n{self.log}" if "Traceback" in self.log else None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stopped = True


def control(daemon: Daemon, *command: object, name: Path | None = None) -> Any:
    """Run a command on the daemon's controller, or another, as a user does; its result."""
    words = [str(word) for word in command]
    at = 2 if words[0] in {"namespace", "controller"} else 1
    done = subprocess.run(
        [PROGRAM, *words[:at], str(name or daemon.socket), *words[at:], "-o", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
