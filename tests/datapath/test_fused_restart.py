"""A fused pair whose process is killed in the middle is neither lost nor executed twice."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from .guest import COMPARE, WRITE
from .test_restart import ENTRIES, SLOT_SIZE, Killed

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST, SECOND = 1, 2
STAGE = 84
COMPARED, OVER = 1, 2
MISCOMPARE = 0x285 | 0x4000


class Pair(Killed):
    """A killed process with a pair in its queue: LBA 0 is to become "new" if it is "old"."""

    def __init__(self, nsid: int) -> None:
        super().__init__(nsid=nsid)
        guest = self.guest
        self.old, self.new = guest.allocate(1), guest.allocate(1)
        guest.poke(self.old, b"old".ljust(512, b"\0"))
        guest.poke(self.new, b"new".ljust(512, b"\0"))
        fill = self.queue.command(WRITE, nsid=nsid, prp1=self.old)
        assert self.queue.run(fill).status == 0
        self.commands = (
            self.queue.command(COMPARE, nsid=nsid, prp1=self.old, flags=FIRST),
            self.queue.command(WRITE, nsid=nsid, prp1=self.new, flags=SECOND),
        )
        for sqe in self.commands:
            self.queue.put(sqe)
        self.kill()
        self.queue.doorbell(self.queue.tail)

    def fetch(self, count: int) -> None:
        """The first so many of both are in slots, the head is published."""
        for index in range(count):
            self.copy_sqe(index, self.commands[index])
            self.make_busy(index, index)
        self.publish_head(count)

    def note(self, slot: int, stage: int, status: int = 0) -> None:
        self.set_word(self._slots + slot * SLOT_SIZE + STAGE, stage | status << 16)

    def write_block(self, data: bytes) -> None:
        """What the process that is dead has written."""
        page = bytearray(512)
        page[: len(data)] = data
        with open(f"/proc/self/fd/{self.backend.fd}", "r+b") as file:  # noqa: PTH123
            file.write(page)

    def block(self) -> bytes:
        with open(f"/proc/self/fd/{self.backend.fd}", "rb") as file:  # noqa: PTH123
            return file.read(512).rstrip(b"\0")

    def statuses(self) -> list[int]:
        """Of both, in the order of their completions, which is that of the queue."""
        done = [self.queue.wait() for _ in self.commands]
        cids = [struct.unpack("<H", sqe[2:4])[0] for sqe in self.commands]
        assert [one.cid for one in done] == cids
        return [one.status for one in done]

    def check_clean(self) -> None:
        """Nothing is left over: the slots serve other commands as ever."""
        self.complete(3 * ENTRIES)
        assert self.queue.poll() is None
        assert self.guest.table.inflight() == 0


@pytest.fixture(params=[1, 4_000_000_000])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    process = Pair(request.param)
    yield process
    process.close()


@pytest.mark.parametrize("fetched", [0, 1, 2])
def test_a_pair_that_was_fetched_is_executed(pair: Pair, fetched: int) -> None:
    pair.fetch(fetched)
    pair.adopt()
    assert pair.statuses() == [0, 0]
    assert pair.block() == b"new"
    pair.check_clean()


def test_a_pair_in_the_middle_is_not_compared_again(pair: Pair) -> None:
    pair.fetch(2)
    pair.note(0, COMPARED)
    pair.write_block(b"new")
    pair.adopt()
    assert pair.statuses() == [0, 0]
    assert pair.block() == b"new"
    pair.check_clean()


@pytest.mark.parametrize("posted", [False, True])
def test_a_pair_that_is_over_completes_as_it_was(pair: Pair, posted: bool) -> None:
    pair.fetch(2)
    pair.note(1, OVER, 0x009)
    pair.note(0, OVER, MISCOMPARE)
    if posted:
        pair.record_index(0)
        pair.record_phase(0)
        pair.write_cqe(0)
        pair.move_tail()
        pair.note(0, 0)
        pair.free(0)
    pair.adopt()
    first, second = pair.statuses()
    assert first == (0 if posted else MISCOMPARE), "as it was posted by hand"
    assert second == 0x009
    assert pair.block() == b"old"
    pair.check_clean()


def test_being_killed_again_while_a_pair_is_adopted_changes_nothing(pair: Pair) -> None:
    pair.fetch(1)
    pair.adopt()
    pair.kill()
    pair.adopt()
    assert pair.statuses() == [0, 0]
    assert pair.block() == b"new"
    pair.check_clean()


def test_a_command_on_the_range_of_a_pair_in_the_middle_comes_after_it(pair: Pair) -> None:
    """The write of the pair is done first: what another queue wrote was not compared with."""
    pair.fetch(2)
    pair.note(0, COMPARED)
    pair.guest.poke(pair.page, b"later".ljust(512, b"\0"))
    # An older command of the same queue that waited for the range when the process died.
    pair.copy_sqe(2, pair.command(b"later", cid=99))
    pair.make_busy(2, -4)
    pair.adopt()
    done = sorted(pair.queue.wait().status for _ in range(3))
    assert done == [0, 0, 0]
    assert pair.block() == b"later"
