"""What a controller takes of memory, besides the guest's: from the process' own mappings."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Serve

MIB = 1 << 20
LIMIT = 2 * MIB
CONTROLLERS = 4
QUEUES, ENTRIES = 128, 1024
GUEST = "nvme-mdev-host"
"""Name of the memfds that are guests' memory."""


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime directory of this test alone."""
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


def memory_use(pid: int) -> int:
    """Bytes of all mappings of a process but those of its guests' memory."""
    total, ours = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name.endswith(":") and name == "Pss:":
            total += int(rest.split()[0]) * 1024 * ours
        elif "-" in name and not name.endswith(":"):
            ours = GUEST not in line
    return total


def use(host: NvmeHost, depth: int) -> None:
    """Create every queue that is offered, and have so many commands outstanding on each."""
    for _ in range(QUEUES):
        queue = host.create_queue_pair(ENTRIES)
        for cid in [queue.start(commands.flush(1)) for _ in range(depth)]:
            queue.finish(cid)


def test_a_controller_takes_2_mib_at_most_however_many_deep_queues_it_has(
    serve: Serve, ask: Callable[..., Any], tmp_path: Path
) -> None:
    daemon = serve(
        *("null:1G", "--socket", tmp_path / "0", "--no-keeper"),
        *("--queues", QUEUES, "--queue-entries", ENTRIES),
    )
    with ExitStack() as stack:
        # What the first of them loads is the daemon's.
        use(stack.enter_context(NvmeHost(tmp_path / "0", memory_size=64 * MIB)), 1)
        before = memory_use(daemon.process.pid)
        for number in range(1, CONTROLLERS + 1):
            path = tmp_path / str(number)
            ask(
                *("controller", "add", "0", "null:1G", "--socket", path),
                *("--queues", QUEUES, "--queue-entries", ENTRIES),
            )
            use(stack.enter_context(NvmeHost(path, memory_size=64 * MIB)), 8)
        taken = (memory_use(daemon.process.pid) - before) / CONTROLLERS
        assert taken <= LIMIT
