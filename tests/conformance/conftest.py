"""Daemons for the conformance suite: one of each kind for all tests of a worker."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.encryption import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def _daemon(socket: Path, *arguments: str) -> Iterator[Path]:
    words = [*arguments, "--socket", str(socket), "--no-keeper"]
    with subprocess.Popen(
        [sys.executable, "-m", "nvme_mdev.cli.main", "serve", *words],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        # Else it would wait, in the end, for somebody to read what it logs.
        reading = threading.Thread(target=said.extend, args=(process.stderr,))
        reading.start()
        try:
            assert "ready" in said[0], said[0]
            yield socket
            assert process.poll() is None, "the daemon has ended: " + "".join(said)
        finally:
            process.terminate()
            process.wait(timeout=60)
            reading.join()
    assert process.returncode == 0
    assert "Traceback" not in "".join(said), said


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """The socket of a daemon that serves these targets with these options; each is started once."""
    directory = tmp_path_factory.mktemp("conformance")
    (directory / "protected").write_bytes(bytes(1 << 20))
    make_key(directory / "key")
    with ExitStack() as daemons:
        running: dict[tuple[str, ...], Path] = {}

        def start(*arguments: str) -> Path:
            if arguments not in running:
                socket = directory / f"{len(running)}.sock"
                words = [word.replace("DIR", str(directory)) for word in arguments]
                running[arguments] = daemons.enter_context(_daemon(socket, *words))
            return running[arguments]

        yield start
