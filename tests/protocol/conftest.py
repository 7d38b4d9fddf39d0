"""Fixtures of the protocol tests: a running server, and the check that no fd is left."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from harness import Peer, Running, open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_fd_is_left() -> Iterator[None]:
    """Every test ends with as many open file descriptors as it began with."""
    gc.collect()
    before = open_fds()
    yield
    gc.collect()
    left = {fd: name for fd, name in open_fds().items() if fd not in before}
    assert not left


@pytest.fixture
def running(no_fd_is_left: None, tmp_path: Path) -> Iterator[Running]:
    """A server with a fake device."""
    running = Running(tmp_path / "s")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def peer(running: Running) -> Iterator[Peer]:
    """A raw client that has agreed on a version."""
    with running.negotiated() as peer:
        yield peer


@pytest.fixture
def memfd(no_fd_is_left: None) -> Iterator[int]:
    """Guest memory of 2 MiB."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 2 << 20)
    yield fd
    os.close(fd)
