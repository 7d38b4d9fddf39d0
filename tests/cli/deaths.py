"""Killing serving processes under their keeper."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Daemon

#: Seconds between two kills: from the middle of the start to some time of service.
GAPS = (0.02, 0.8)


def serving_pid(daemon: Daemon) -> int:
    """The process under the keeper. ProcessLookupError: the keeper has ended."""
    keeper = daemon.process.pid
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if children := Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
            return int(children[0])
        if daemon.process.poll() is not None:
            raise ProcessLookupError(keeper)
        time.sleep(0.001)
    raise AssertionError("there is no serving process")


def kill(daemon: Daemon) -> None:
    os.kill(serving_pid(daemon), signal.SIGKILL)


@contextmanager
def killed_again_and_again(daemon: Daemon, kills: int) -> Iterator[threading.Event]:
    """Kill the serving process at random moments; the event is set when it has been done."""
    enough, failed = threading.Event(), threading.Event()
    moments = random.Random(os.getpid())

    def work() -> None:
        for _ in range(kills):
            if failed.wait(moments.uniform(*GAPS)):
                return
            kill(daemon)
        enough.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield enough
    finally:
        failed.set()
        thread.join()
