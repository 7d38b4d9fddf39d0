"""A thread that Ctrl-C does not lose track of."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Worker:
    """Runs a function in a daemon thread.

    A ``KeyboardInterrupt`` in `Thread.start` leaves a thread that runs and is not known to; one in
    `Thread.join` makes a thread that still runs pass for ended (CPython before 3.13). So the
    function's end is an event of its own.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        """``work`` raises nothing."""
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start it; it runs from here on. RuntimeError: there can be no more threads."""
        try:
            self._thread.start()
        except RuntimeError:
            self._ended.set()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it ended within so many seconds; None: as long as it takes."""
        return self._ended.wait(timeout)

    @property
    def running(self) -> bool:
        """It has not ended; it need not have begun."""
        return not self._ended.is_set()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()
