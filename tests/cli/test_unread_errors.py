"""A daemon whose standard error nobody reads."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from tests.cli.deaths import kill

from nvme_mdev.host.driver import NvmeHost

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Serve


def test_a_full_pipe_stops_neither_the_daemon_nor_its_keeper(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s", "-v")
    assert daemon.process.stderr is not None
    fcntl.fcntl(daemon.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    for _ in range(20):
        with NvmeHost(tmp_path / "s") as host:
            host.create_queue_pair().read(1, 0, 1)
    kill(daemon)
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair().read(1, 0, 1)
    # Somebody reads it at last; what is said next is how much was not read.
    os.read(daemon.process.stderr.fileno(), 1 << 16)
    stopped = daemon.stop()
    assert stopped.status == 0
    assert "lines were lost: nobody read them" in stopped.err
