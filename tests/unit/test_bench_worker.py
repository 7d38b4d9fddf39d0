"""A worker's thread is known to run for as long as it does."""

from __future__ import annotations

import signal
import threading
from typing import NoReturn

import pytest

from nvme_mdev.bench.worker import Worker


def test_it_runs_until_its_function_returns() -> None:
    release = threading.Event()
    worker = Worker(lambda: release.wait() and None, "worker")
    worker.start()
    assert worker.running
    assert not worker.wait(0.01)
    release.set()
    assert worker.wait()
    assert not worker.running


def test_one_whose_waiter_is_interrupted_still_runs() -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    release = threading.Event()
    worker = Worker(lambda: release.wait() and None, "worker")
    worker.start()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            worker.wait(60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert worker.running
    release.set()
    assert worker.wait(60)


def test_one_that_cannot_be_started_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    worker = Worker(lambda: None, "worker")
    with pytest.raises(RuntimeError):
        worker.start()
    assert not worker.running
