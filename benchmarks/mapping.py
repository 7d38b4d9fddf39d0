"""What guest memory in many pieces costs: to map, to find, to unmap.

The client's side is left out: what is timed is `GuestMemory`, as the server calls it for a message,
and a turn of the IOThread whose commands' pages are anywhere in it.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.datapath.guest import IOVA, READ, Guest

from nvme_mdev.bench.spread import Spread
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.probe import take_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

TIB = 1 << 40
PAGE = 4096
START = 1 << 44
"""Behind the guest's own memory."""
PIECES, PAGES = 64, 100_000
BATCH, TURNS = 32, 300
ROUNDS = 5


class Mapping(NamedTuple):
    """Microseconds for a piece, nanoseconds for a command: several rounds of each."""

    name: str
    map_us: Spread
    unmap_us: Spread
    command_ns: Spread
    """4 KiB of null, 32 a turn, each command's page in a piece picked at random."""


def _sparse(size: int) -> int:
    fd = os.memfd_create("pieces")
    os.ftruncate(fd, size)
    return fd


def _orders(count: int) -> dict[str, list[int]]:
    upwards = list(range(count))
    anywhere = upwards[:]
    random.Random(1).shuffle(anywhere)  # noqa: S311 (an order)
    return {"upwards": upwards, "downwards": upwards[::-1], "in any order": anywhere}


def _map_times(fds: Sequence[int], size: int, order: Sequence[int]) -> tuple[Spread, Spread]:
    """Microseconds to map and to unmap a piece."""
    rounds = [_time_map(fds, size, order) for _ in range(ROUNDS)]
    return Spread(tuple(to_map for to_map, _ in rounds)), Spread(tuple(undo for _, undo in rounds))


def _command_times(fds: Sequence[int], size: int, count: int) -> Spread:
    """Nanoseconds of a command whose page is in any of the pieces."""
    return Spread(tuple(_time_command(fds, size, count) for _ in range(ROUNDS)))


def _time_map(fds: Sequence[int], size: int, order: Sequence[int]) -> tuple[float, float]:
    """Of one round; piece n is the nth of its size in its file."""
    memory = GuestMemory()
    shared = len(fds) == 1
    before = time.perf_counter()
    for number in order:
        fd, offset = (fds[0], number * size) if shared else (fds[number], 0)
        memory.map(START + 2 * number * size, size, fd, offset, readable=True, writable=True)
    between = time.perf_counter()
    for number in order:
        memory.unmap(START + 2 * number * size, size)
    after = time.perf_counter()
    return (between - before) / len(order) * 1e6, (after - between) / len(order) * 1e6


def _time_command(fds: Sequence[int], size: int, count: int) -> float:
    """Of one round: the median of its turns."""
    pick = random.Random(2)  # noqa: S311 (a load)
    with Guest(NullBackend(1 << 30), running=False) as guest:
        for number in range(count):
            fd, offset = (fds[0], number * size) if len(fds) == 1 else (fds[number], 0)
            iova = START + 2 * number * size
            guest.memory.map(iova, size, fd, offset, readable=True, writable=True)
        queue = guest.queue(1, 256, interrupts=False)
        taken = []
        for _ in range(TURNS):
            for _ in range(BATCH):
                iova = START + 2 * pick.randrange(count) * size if count else IOVA
                queue.put(queue.command(READ, blocks=8, prp1=iova))
            queue.doorbell(queue.tail)
            before = time.perf_counter_ns()
            take_turns(guest.iothread, 1)
            taken.append((time.perf_counter_ns() - before) / BATCH)
            while completion := queue.poll():
                assert completion.status == 0
            queue.doorbell(queue.head, completion=True)
    return sorted(taken)[len(taken) // 2]


def measure() -> list[Mapping]:
    """Everything, one after the other."""
    nothing = Spread((0.0,))
    rows = [Mapping("one piece", nothing, nothing, _command_times([], PAGE, 0))]
    files = [_sparse(TIB // PIECES) for _ in range(PIECES)]
    one = _sparse(TIB)
    for name, fds, size, count in (
        ("1 TiB in 64 pieces, a file each", files, TIB // PIECES, PIECES),
        ("1 TiB in 64 pieces of one file", [one], TIB // PIECES, PIECES),
        ("10,000 pages", [one], PAGE, PAGES // 10),
        ("100,000 pages", [one], PAGE, PAGES),
    ):
        command = _command_times(fds, size, count)
        for order_name, order in _orders(count).items():
            rows.append(Mapping(f"{name}, {order_name}", *_map_times(fds, size, order), command))
    for fd in (*files, one):
        os.close(fd)
    return rows
