"""Fused Compare and Write (NVMe Base 2.x, section 3.4.2): two commands, executed as one."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from tests.encryption import blank

from .guest import COMPARE, PAGE, READ, WRITE, Guest, QueuePair

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 4 << 20
FIRST, SECOND = 1, 2
DNR = 0x4000
MISCOMPARE = 0x285 | DNR
FAILED_FUSED = 0x009
MISSING_FUSED = 0x00A | DNR
INVALID_FIELD = 0x002 | DNR


@pytest.fixture(params=["memory", "file", "encrypted"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    if request.param == "memory":
        with Guest(MemoryBackend(SIZE)) as made:
            yield made
        return
    path = Path(f"/dev/shm/nvme-mdev-fused-{os.getpid()}-{id(request)}")
    path.write_bytes(bytes(SIZE))
    make = blank if request.param == "encrypted" else UringBackend
    with Guest(make(str(path))) as made:
        yield made
    path.unlink()
    path.with_suffix(".key").unlink(missing_ok=True)


@pytest.fixture
def queue(guest: Guest) -> QueuePair:
    return guest.queue()


class Pair:
    """Buffers of a pair, and its commands."""

    def __init__(self, queue: QueuePair) -> None:
        self.queue = queue
        self.guest = queue.guest
        self.old = self.guest.allocate(1)
        self.new = self.guest.allocate(1)

    def commands(
        self, old: bytes, new: bytes, *, slba: int = 8, first: int = COMPARE, second: int = WRITE
    ) -> tuple[bytes, bytes]:
        """The first and the second command, of a block."""
        self.guest.poke(self.old, old.ljust(512, b"\0"))
        self.guest.poke(self.new, new.ljust(512, b"\0"))
        return (
            self.queue.command(first, slba=slba, prp1=self.old, flags=FIRST),
            self.queue.command(second, slba=slba, prp1=self.new, flags=SECOND),
        )

    def run(self, old: bytes, new: bytes, **more: int) -> tuple[int, int]:
        """Both statuses."""
        return self.run_commands(*self.commands(old, new, **more))

    def run_commands(self, *commands: bytes) -> tuple[int, ...]:
        for sqe in commands:
            self.queue.put(sqe)
        self.queue.ring()
        done = [self.queue.wait() for _ in commands]
        assert [one.cid for one in done] == [struct.unpack("<H", sqe[2:4])[0] for sqe in commands]
        return tuple(one.status for one in done)

    def block(self, slba: int = 8) -> bytes:
        page = self.guest.allocate(1)
        assert self.queue.io(READ, page, 512, slba=slba).status == 0
        return self.guest.peek(page, 512).rstrip(b"\0")


@pytest.fixture
def pair(queue: QueuePair) -> Pair:
    return Pair(queue)


def test_the_write_happens_when_the_blocks_are_as_expected(pair: Pair) -> None:
    assert pair.run(b"", b"mine") == (0, 0)
    assert pair.block() == b"mine"
    assert pair.run(b"mine", b"") == (0, 0)
    assert pair.block() == b""


def test_nothing_is_written_when_they_are_not(pair: Pair) -> None:
    assert pair.run(b"yours", b"mine") == (MISCOMPARE, FAILED_FUSED)
    assert pair.block() == b""


def test_many_blocks_at_once(queue: QueuePair) -> None:
    guest = queue.guest
    size = 300 << 10
    old, new = guest.allocate(76), guest.allocate(76)
    guest.poke(new, bytes(range(256)) * (size // 256))
    old_prps, new_prps = guest.prps(old, size), guest.prps(new, size)
    for expected in ([0, 0], [MISCOMPARE, FAILED_FUSED]):
        for opcode, flags, prps in ((COMPARE, FIRST, old_prps), (WRITE, SECOND, new_prps)):
            queue.put(
                queue.command(opcode, blocks=size // 512, prp1=prps[0], prp2=prps[1], flags=flags)
            )
        queue.ring()
        assert [queue.wait().status for _ in range(2)] == expected


@pytest.mark.parametrize(
    ("first", "second"), [(READ, WRITE), (COMPARE, READ), (WRITE, WRITE), (COMPARE, COMPARE)]
)
def test_only_compare_and_write_can_be_fused(pair: Pair, first: int, second: int) -> None:
    assert pair.run(b"", b"x", first=first, second=second) == (INVALID_FIELD, INVALID_FIELD)
    assert pair.block() == b""


@pytest.mark.parametrize("change", [{"slba": 9}, {"blocks": 2}, {"nsid": 2}])
def test_both_have_to_name_the_same_blocks(pair: Pair, change: dict[str, int]) -> None:
    first, _ = pair.commands(b"", b"x")
    fields = {"slba": 8, "prp1": pair.new, "flags": SECOND, **change}
    second = pair.queue.command(WRITE, **fields)
    assert pair.run_commands(first, second) == (INVALID_FIELD, INVALID_FIELD)
    assert pair.block() == b""


def test_what_is_wrong_with_one_of_them_ends_both(pair: Pair) -> None:
    queue = pair.queue
    bad = queue.command(COMPARE, slba=8, prp1=0x1000, flags=FIRST)
    good = queue.command(WRITE, slba=8, prp1=pair.new, flags=SECOND)
    assert pair.run_commands(bad, good) == (0x004 | DNR, FAILED_FUSED)
    good = queue.command(COMPARE, slba=8, prp1=pair.old, flags=FIRST)
    bad = queue.command(WRITE, slba=8, prp1=0x1000, flags=SECOND)
    assert pair.run_commands(good, bad) == (FAILED_FUSED, 0x004 | DNR)
    assert pair.run(b"", b"", slba=SIZE // 512) == (0x080 | DNR, FAILED_FUSED)


def test_a_first_command_alone(pair: Pair) -> None:
    first, _ = pair.commands(b"", b"x")
    assert pair.run_commands(first) == (MISSING_FUSED,)
    assert pair.run(b"", b"x") == (0, 0)


def test_a_second_command_alone(pair: Pair) -> None:
    _, second = pair.commands(b"", b"x")
    assert pair.run_commands(second) == (MISSING_FUSED,)
    assert pair.block() == b""


def test_a_first_command_with_another_command_behind_it(pair: Pair) -> None:
    first, second = pair.commands(b"", b"x")
    other = pair.queue.command(READ, prp1=pair.guest.allocate(1))
    for sqe in (first, other, second):
        pair.queue.put(sqe)
    pair.queue.ring()
    statuses = {(done := pair.queue.wait()).cid: done.status for _ in range(3)}
    assert sorted(statuses.values()) == sorted([MISSING_FUSED, 0, MISSING_FUSED])
    assert pair.block() == b""


def test_two_first_commands(pair: Pair) -> None:
    first, second = pair.commands(b"", b"x")
    again = pair.queue.command(COMPARE, slba=8, prp1=pair.old, flags=FIRST)
    assert pair.run_commands(first, again, second) == (MISSING_FUSED, 0, 0)


@pytest.mark.parametrize("burst", [1, 2, 3, 64])
def test_a_pair_across_the_end_of_a_batch_and_of_the_ring(guest: Guest, burst: int) -> None:
    guest.table.set_arbitration(burst)
    pair = Pair(guest.queue(entries=5, cq_entries=5))
    value = b""
    for turn in range(20):
        following = b"%d" % turn
        if turn % 3 == 0:
            first, second = pair.commands(value, following)
            filler = pair.queue.command(READ, prp1=guest.allocate(1))
            for sqe in (filler, first, second):
                pair.queue.put(sqe)
            pair.queue.ring()
            assert [pair.queue.wait().status for _ in range(3)] == [0, 0, 0]
        else:
            assert pair.run(value, following) == (0, 0)
        value = following
    assert pair.block() == value


def test_a_pair_waits_for_room_in_the_completion_queue(guest: Guest) -> None:
    pair = Pair(guest.queue(entries=16, cq_entries=4))
    filler = [pair.queue.command(READ, prp1=guest.allocate(1)) for _ in range(2)]
    first, second = pair.commands(b"", b"x")
    for sqe in (*filler, first, second):
        pair.queue.put(sqe)
    pair.queue.ring()
    # Two of three entries are taken: the pair has to wait for both of its own.
    assert [pair.queue.wait(ring=False).status for _ in range(2)] == [0, 0]
    pair.queue.doorbell(pair.queue.head, completion=True)
    assert [pair.queue.wait().status for _ in range(2)] == [0, 0]
    assert pair.block() == b"x"


def test_a_pair_has_no_place_in_a_completion_queue_for_one(guest: Guest) -> None:
    pair = Pair(guest.queue(entries=4, cq_entries=2))
    first, second = pair.commands(b"", b"x")
    assert pair.run_commands(first, second) == (MISSING_FUSED, MISSING_FUSED)


def test_an_uncorrectable_block_fails_the_pair(pair: Pair) -> None:
    assert pair.queue.run(pair.queue.command(0x04, slba=8)).status == 0
    assert pair.run(b"", b"x") == (0x281 | DNR, FAILED_FUSED)


def test_a_counter_that_two_queues_count_with_pairs_loses_no_step(guest: Guest) -> None:
    """Each step reads, adds one, and writes when nobody else has: atomic, or steps get lost."""
    steps = 150
    failures: list[Exception] = []

    def count(qid: int) -> None:
        queue = guest.queue(qid)
        pair = Pair(queue)
        page = guest.allocate(1)
        for _ in range(steps):
            while True:
                assert queue.io(READ, page, 512, slba=8).status == 0
                value = struct.unpack("<Q", guest.peek(page, 8))[0]
                old, new = struct.pack("<Q", value), struct.pack("<Q", value + 1)
                first, second = pair.run(old, new)
                if first == second == 0:
                    break
                assert (first, second) == (MISCOMPARE, FAILED_FUSED)

    # Buffers are allocated by one thread at a time.
    pairs = threading.Lock()
    original = guest.allocate

    def allocate(pages: int) -> int:
        with pairs:
            return original(pages)

    guest.allocate = allocate  # type: ignore[method-assign]

    def run(qid: int) -> None:
        try:
            count(qid)
        except Exception as error:  # told below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(qid,)) for qid in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    queue = guest.queue(3)
    page = guest.allocate(1)
    assert queue.io(READ, page, 512, slba=8).status == 0
    assert struct.unpack("<Q", guest.peek(page, 8))[0] == 2 * steps


def test_commands_on_the_same_blocks_wait_and_complete(guest: Guest) -> None:
    """Pairs, reads and writes of the same block, all at once, on two queues."""
    queues = [guest.queue(1, entries=128), guest.queue(2, entries=128)]
    page = guest.allocate(1)
    for queue in queues:
        for n in range(30):
            queue.put(queue.command(WRITE, slba=8, prp1=page))
            queue.put(queue.command(COMPARE, slba=8, prp1=page, flags=FIRST))
            queue.put(queue.command(WRITE, slba=8, prp1=page, flags=SECOND))
            queue.put(queue.command(READ, slba=8 - n % 2, blocks=2, prp1=page + PAGE // 2))
    for queue in queues:
        queue.ring()
    for queue in queues:
        assert [queue.wait().status for _ in range(120)] == [0] * 120
    assert guest.table.inflight() == 0


def test_a_namespace_on_several_iothreads_has_no_fused_commands() -> None:
    with Guest(MemoryBackend(SIZE), iothreads=2) as guest:
        pair = Pair(guest.queue())
        assert pair.run(b"", b"mine") == (INVALID_FIELD, INVALID_FIELD)
        assert pair.block() == b""
        assert guest.backends[0].threads == 2
