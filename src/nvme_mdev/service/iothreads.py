"""The polling threads of a daemon: dedicated ones, and named ones that controllers share."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.service.definition import Definition

_ONLINE_CPUS = Path("/sys/devices/system/cpu/online")


class IOThreads:
    """Starts threads when a controller needs them, stops them when none does."""

    def __init__(self, lifeline: int) -> None:
        """``lifeline``: what each thread's io_uring holds, see `Kept.lifeline`; -1: nothing."""
        self._lifeline = lifeline
        self._shared: dict[str, IOThread] = {}
        self._users: dict[IOThread, int] = {}

    def take(self, definition: Definition) -> list[IOThread]:
        """Threads for a controller, to be given back; UserError: they cannot be had.

        A named one that runs already keeps its settings.
        """
        taken: list[IOThread] = []
        try:
            for number, cpu in enumerate(definition.cpus):
                names = definition.iothread_names
                taken.append(
                    self._share(names[number], cpu, definition)
                    if names
                    else self._start(f"iothread-{number}", cpu, definition)
                )
        except BaseException:
            self.give_back(taken)
            raise
        return taken

    def give_back(self, threads: Sequence[IOThread]) -> None:
        """Stop those that nobody uses any more."""
        for thread in threads:
            self._users[thread] -= 1
            if self._users[thread] == 0:
                del self._users[thread]
                self._shared = {name: one for name, one in self._shared.items() if one != thread}
                thread.stop()

    def _share(self, name: str, cpu: int | None, definition: Definition) -> IOThread:
        thread = self._shared.get(name)
        if thread is None:
            thread = self._shared[name] = self._start(name, cpu, definition)
            return thread
        if cpu is not None and cpu != thread.cpu:
            where = "any CPU" if thread.cpu is None else f"CPU {thread.cpu}"
            raise UserError(
                f"--iothread {name} runs on {where} for another controller: leave --iothread-cpu"
                " out, or give another name"
            )
        self._users[thread] += 1
        return thread

    def _start(self, name: str, cpu: int | None, definition: Definition) -> IOThread:
        thread = IOThread(name, cpu=cpu, poll_timeout_ms=definition.poll_timeout_ms)
        try:
            thread.start()
        except OSError as error:
            raise UserError(_why_not_started(error, cpu)) from error
        thread.lifeline = self._lifeline
        self._users[thread] = 1
        return thread


def pin(threads: Sequence[IOThread], cpus: Sequence[int | None]) -> None:
    """Pin each thread to its processor, None: to none; UserError: there is no such processor."""
    for thread, cpu in zip(threads, cpus, strict=True):
        if cpu is None:
            thread.unpin()
            continue
        try:
            thread.configure(cpu=cpu)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UserError(f"iothread_cpu={cpu}: there is no such CPU here") from error


def _why_not_started(error: OSError, cpu: int | None) -> str:
    if cpu is not None and error.errno == errno.EINVAL:
        return f"--iothread-cpu {cpu}: there is no such CPU here: choose one of {_online_cpus()}"
    return f"the polling thread does not start: {os.strerror(error.errno or 0)}"


def _online_cpus() -> str:
    """The processors as a list like ``0-3,8``."""
    try:
        return _ONLINE_CPUS.read_text().strip()
    except OSError:  # no /sys, in a chroot
        return f"0-{(os.cpu_count() or 1) - 1}"
