"""What an idle controller costs, and how soon it picks up the first command after a rest.

The latency is that of one read by polling, from its doorbell to its completion; the same read again
right away tells what of it is the read itself. What the processor does meanwhile is the server's
time in user mode and in the kernel, the peer of the socket being the server: by the clock of its
process (clock_getcpuclockid(3)), since /proc/PID/stat counts hundredths of a second. A server that
looks at mapped doorbells sleeps a millisecond at a time: what such sleeps cost anybody on this
machine is measured beside it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.bench.spread import Spread
from nvme_mdev.errors import UserError
from nvme_mdev.host.memory import prps_for
from nvme_mdev.host.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.host.driver import NvmeHost

_libc = ctypes.CDLL(None, use_errno=True)
_CREDENTIALS = struct.Struct("iII")
_ENTRIES = 32
_NAP_S = 0.001
_NAPS = 500


@dataclass(frozen=True, slots=True)
class Idle:
    """What was found."""

    mapped: bool
    """The doorbells are mapped: the server can only sleep in short steps, or poll."""
    first: Spread
    """Latency of the first read after each rest, from its doorbell on, nanoseconds."""
    next: Spread
    """Latency of the read right after it."""
    load: Spread | None
    """Percent of one processor that the server used during each rest; None: not to be seen."""
    naps: float
    """Percent of one processor that a process uses that does nothing but sleep for 1 ms again and
    again."""

    def to_json(self) -> dict[str, object]:
        """Numbers by name."""
        return {
            "doorbells": "mapped" if self.mapped else "socket",
            "first_ns": self.first.to_json(),
            "next_ns": self.next.to_json(),
            "server_percent_of_cpu": self.load.to_json() if self.load is not None else None,
            "bare_naps_percent_of_cpu": self.naps,
        }


def measure(
    host: NvmeHost, nsid: int, rests: int, rest_s: float, show: Callable[[float], None]
) -> Idle:
    """Let the controller rest again and again; the first half of a rest is its time to doze off.

    UserError: the controller does not complete a read.
    """
    read = _one_read(host, nsid)
    _doorbell_to_completion_ns(read)
    first, following, load = [], [], []
    for number in range(rests):
        time.sleep(rest_s / 2)
        before = _cpu_time_s(host)
        time.sleep(rest_s / 2)
        after = _cpu_time_s(host)
        first.append(_doorbell_to_completion_ns(read))
        following.append(_doorbell_to_completion_ns(read))
        if before is not None and after is not None:
            load.append(100 * (after - before) / (rest_s / 2))
        show((number + 1) / rests)
    return Idle(
        host.doorbells_mapped,
        Spread(tuple(first)),
        Spread(tuple(following)),
        Spread(tuple(load)) if load else None,
        _bare_naps(),
    )


def _one_read(host: NvmeHost, nsid: int) -> Workload:
    """The first block, read once whenever it runs."""
    queue = host.create_queue_pair(_ENTRIES)
    block_size = host.block_size(nsid)
    buffer = host.memory.allocate(block_size)
    prps = prps_for(host.memory, buffer.iova, block_size, page_size=host.page_size)
    return Workload(
        queue,
        nsid=nsid,
        block_size=block_size,
        blocks_per_io=1,
        first_block=0,
        units=1,
        prps=[(prps.prp1, prps.prp2)],
        data=buffer.view,
        data_stride=block_size,
        commands=1,
    )


def _doorbell_to_completion_ns(read: Workload) -> float:
    read.run()
    if read.failure:
        raise UserError(f"the controller does not complete a read: {read.failure.name.lower()}")
    return float(read.measured(write=False).clat.total)


def _bare_naps() -> float:
    begun, used = time.monotonic(), time.thread_time()
    for _ in range(_NAPS):
        time.sleep(_NAP_S)
    return 100 * (time.thread_time() - used) / (time.monotonic() - begun)


def _cpu_time_s(host: NvmeHost) -> float | None:
    """Processor time of the server so far; None: it is not ours to see."""
    duplicate = socket.socket(fileno=os.dup(host.transport.client.fileno()))
    with duplicate:
        credentials = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = _CREDENTIALS.unpack(credentials)[0]
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        return None
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return None
