"""How long a daemon and its controller take to be there: `nvme-mdev bench startup`."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from nvme_mdev.bench.machine import describe_machine
from nvme_mdev.bench.spread import Spread
from nvme_mdev.bench.table import format_ns
from nvme_mdev.host.driver import NvmeHost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ENTRIES = 64
"""Of a queue pair."""


class Step(Enum):
    """What is timed, in its order."""

    READY = "daemon started until ready"
    ATTACHED = "client connected, memory and doorbells mapped"
    ENABLED = "CC.EN until CSTS.RDY, admin queue used"
    QUEUE = "I/O queue pair created"
    FIRST = "its first command (Flush)"


@dataclass(slots=True)
class Startup:
    """Nanoseconds by step, a value a round."""

    times: dict[Step, list[float]] = field(default_factory=lambda: {step: [] for step in Step})

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Time the block, if it ends without an error."""
        before = time.monotonic_ns()
        yield
        self.times[step].append(time.monotonic_ns() - before)

    def rows(self) -> list[list[str]]:
        """As a table."""
        rows = [["", "median", "min", "max"]]
        for step, values in self.times.items():
            spread = Spread(tuple(values))
            rows.append([step.value, *map(format_ns, (spread.median, spread.least, spread.most))])
        return rows

    def to_json(self) -> dict[str, object]:
        """Each step under its name."""
        return {
            "machine": describe_machine(),
            "ns": {
                step.name.lower(): {"label": step.value, **Spread(tuple(values)).to_json()}
                for step, values in self.times.items()
            },
        }


def time_client(found: Startup, socket: Path) -> None:
    """A client's steps on a daemon that is ready. HostError: the controller fails."""
    with found.timed(Step.ATTACHED):
        host = NvmeHost(socket, enable=False)
    with host:
        with found.timed(Step.ENABLED):
            host.enable()
            host.identify_controller()
        with found.timed(Step.QUEUE):
            pair = host.create_queue_pair(_ENTRIES, interrupts=False)
        with found.timed(Step.FIRST):
            pair.flush(nsid=1)
