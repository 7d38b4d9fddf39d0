"""What an idle controller costs, and how soon it picks up the first command after a rest.

The latency is that of one read by polling, from before its doorbell is rung to its completion, in
Python on the host's side, which adds some microseconds; the same read again right away is the
measure of that. What the processor does meanwhile is the server's time in user mode and in the
kernel (/proc/PID/stat), the peer of the socket being the server.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.bench.spread import Spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.host.driver import NvmeHost
    from nvme_mdev.host.io import IoQueue

_CREDENTIALS = struct.Struct("iII")
_ENTRIES = 32
_UTIME = 11
"""Where utime is in /proc/PID/stat behind the command's name; stime follows."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What was found."""

    mapped: bool
    """The doorbells are mapped: the server can only sleep in short steps, or poll."""
    first: Spread
    """Latency of the first read after each rest, nanoseconds."""
    next: Spread
    """Latency of the read right after it."""
    load: Spread | None
    """Percent of one processor that the server used during each rest; None: not to be seen."""

    def to_json(self) -> dict[str, object]:
        """Numbers by name."""
        return {
            "doorbells": "mapped" if self.mapped else "socket",
            "first_ns": self.first.to_json(),
            "next_ns": self.next.to_json(),
            "server_percent_of_cpu": self.load.to_json() if self.load is not None else None,
        }


def measure(
    host: NvmeHost, nsid: int, rests: int, rest_s: float, show: Callable[[float], None]
) -> Idle:
    """Let the controller rest again and again; the first half of a rest is its time to doze off."""
    queue = host.create_queue_pair(_ENTRIES)
    queue.read(nsid, 0, 1)
    first, following, load = [], [], []
    for number in range(rests):
        time.sleep(rest_s / 2)
        before = _cpu_time_s(host)
        time.sleep(rest_s / 2)
        after = _cpu_time_s(host)
        first.append(_read_ns(queue, nsid))
        following.append(_read_ns(queue, nsid))
        if before is not None and after is not None:
            load.append(100 * (after - before) / (rest_s / 2))
        show((number + 1) / rests)
    return Idle(
        host.doorbells_mapped,
        Spread(tuple(first)),
        Spread(tuple(following)),
        Spread(tuple(load)) if load else None,
    )


def _read_ns(queue: IoQueue, nsid: int) -> float:
    before = time.perf_counter_ns()
    queue.read(nsid, 0, 1)
    return float(time.perf_counter_ns() - before)


def _cpu_time_s(host: NvmeHost) -> float | None:
    """Processor time of the server so far; None: it is not ours to see."""
    duplicate = socket.socket(fileno=os.dup(host.transport.client.fileno()))
    with duplicate:
        credentials = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = _CREDENTIALS.unpack(credentials)[0]
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / os.sysconf("SC_CLK_TCK")
