"""Limits of namespaces, a turn at a time, with a clock that stands still until it is told."""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.clock import tsc_hz
from nvme_mdev.datapath.limits import MAX_BURST_S, Limit
from nvme_mdev.datapath.probe import pass_time, stop_clock, take_turns

from .guest import COMPARE, DSM, FLUSH, IOVA, PAGE, READ, WRITE, WRITE_ZEROES, Guest, QueuePair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.datapath.backends.base import Backend

ENTRIES = 128
DATA = IOVA + 1024 * PAGE
SUCCESS, INVALID_FIELD = 0x000, 0x4002
ABORT_REQUESTED, SQ_DELETED, FAILED_FUSED = 0x007, 0x008, 0x009
PREEMPTED = 0x401B
FUSED_FIRST, FUSED_SECOND = 1, 2
VERIFY, COPY = 0x0C, 0x19


@contextmanager
def a_guest(*backends: Backend, **limits: Limit) -> Iterator[Guest]:
    """A guest whose first namespace has limits; time stands still."""
    with Guest(*backends, running=False) as guest:
        stop_clock(guest.iothread)
        backends[0].set_limits(limits)
        yield guest


def seconds(guest: Guest, time: float | Fraction) -> None:
    """Let so much time pass, and a rounding error."""
    pass_time(guest.iothread, int(tsc_hz() * time) + 1)


def put(
    queue: QueuePair, count: int, opcode: int = READ, *, blocks: int = 1, nsid: int = 1
) -> None:
    for _ in range(count):
        queue.put(queue.command(opcode, nsid=nsid, blocks=blocks, prp1=DATA))
    queue.doorbell(queue.tail)


def completions(queue: QueuePair) -> list[tuple[int, int]]:
    """CID and status of what has completed, after some turns."""
    take_turns(queue.guest.iothread, 4)
    found = []
    while completion := queue.poll():
        found.append((completion.cid, completion.status))
    queue.doorbell(queue.head, completion=True)
    return found


def done(queue: QueuePair) -> int:
    """Commands that have succeeded, after some turns."""
    found = completions(queue)
    assert all(status == SUCCESS for _, status in found)
    return len(found)


# -- how many, and when ------------------------------------------------------------------------


def test_a_burst_is_had_at_once_and_then_the_rate() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1000, 5)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 20)
        assert done(queue) == 5
        for _ in range(3):
            seconds(guest, Fraction(1, 1000))
            assert done(queue) == 1
        seconds(guest, Fraction(4, 1000))
        assert done(queue) == 4


def test_a_token_is_not_there_before_its_time() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1000, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 2)
        assert done(queue) == 1
        pass_time(guest.iothread, tsc_hz() // 1000 - 1)
        assert done(queue) == 0
        pass_time(guest.iothread, 2)
        assert done(queue) == 1


def test_tokens_gather_up_to_the_burst_and_no_further() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(100, 7)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 20)
        assert done(queue) == 7
        seconds(guest, 3600)
        assert done(queue) == 7


def test_bandwidth_is_limited_whatever_the_size_of_a_command() -> None:
    with a_guest(NullBackend(1 << 24), bps=Limit(8192, 8192)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 2, blocks=8)
        put(queue, 100, blocks=1)
        assert done(queue) == 2
        seconds(guest, Fraction(1, 16))
        assert done(queue) == 1
        seconds(guest, Fraction(1, 2))
        assert done(queue) == 8


def test_a_command_larger_than_the_burst_goes_with_a_full_bucket_and_owes_the_rest() -> None:
    with a_guest(NullBackend(1 << 24), bps=Limit(1024, 512)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 1, blocks=8)
        put(queue, 1, blocks=1)
        assert done(queue) == 1
        seconds(guest, Fraction(3583, 1024))
        assert done(queue) == 0
        # What is owed, and then one block.
        seconds(guest, Fraction(513, 1024))
        assert done(queue) == 1


def test_reads_and_writes_have_limits_of_their_own() -> None:
    with a_guest(NullBackend(1 << 24), read_iops=Limit(10, 2), write_iops=Limit(10, 3)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10, WRITE)
        put(queue, 10, READ)
        assert done(queue) == 5
        seconds(guest, Fraction(1, 10))
        assert done(queue) == 2


def test_reads_do_not_wait_behind_writes_that_have_to() -> None:
    with a_guest(NullBackend(1 << 24), write_iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10, WRITE)
        put(queue, 10, READ)
        assert done(queue) == 11


def test_of_a_limit_for_everything_reads_and_writes_get_the_same() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(10, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10, READ)
        put(queue, 10, WRITE)
        assert done(queue) == 1
        reads = Counter()
        for _ in range(8):
            seconds(guest, Fraction(1, 10))
            ((cid, _),) = completions(queue)
            reads[cid <= 10] += 1
        assert reads == {True: 4, False: 4}


def test_what_counts_as_what() -> None:
    """Flush never waits; Dataset Management and Write Zeroes write, Compare and Verify read."""
    with a_guest(MemoryBackend(1 << 24), read_iops=Limit(1, 1), write_iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 1, READ)
        put(queue, 1, WRITE)
        assert done(queue) == 2
        put(queue, 4, FLUSH)
        assert done(queue) == 4
        for opcode in (READ, COMPARE, VERIFY, WRITE, WRITE_ZEROES):
            put(queue, 1, opcode)
            queue.put(queue.command(DSM, cdw10=0, cdw11=4, prp1=DATA + PAGE))
            queue.doorbell(queue.tail)
            assert done(queue) == 0
        assert guest.table.throttled == 10
        seconds(guest, 100)
        # One token of each kind was held.
        assert done(queue) == 2


def test_dataset_management_and_write_zeroes_need_a_command_and_its_bytes() -> None:
    with a_guest(MemoryBackend(1 << 24), write_bps=Limit(512, 512)) as guest:
        queue = guest.queue(1, ENTRIES)
        guest.poke(DATA + PAGE, (0).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(8))
        for _ in range(3):
            queue.put(queue.command(DSM, cdw10=0, cdw11=4, prp1=DATA + PAGE))
        put(queue, 2, WRITE_ZEROES)
        assert done(queue) == 4


def test_copy_reads_and_writes() -> None:
    with a_guest(MemoryBackend(1 << 24), iops=Limit(1, 2), read_bps=Limit(512, 512)) as guest:
        queue = guest.queue(1, ENTRIES)
        entry = bytes(8) + (0).to_bytes(8, "little") + (0).to_bytes(2, "little") + bytes(14)
        guest.poke(DATA + PAGE, entry)
        for _ in range(2):
            queue.put(queue.command(COPY, slba=64, prp1=DATA + PAGE))
        queue.doorbell(queue.tail)
        assert done(queue) == 1
        seconds(guest, 1)
        assert done(queue) == 0
        seconds(guest, 1)
        assert done(queue) == 1


@pytest.mark.parametrize(
    ("limit", "opcode", "times"), [("read_bps", READ, 1), ("write_bps", WRITE, 1), ("bps", READ, 2)]
)
def test_a_copy_whose_list_grows_while_it_waits_owes_what_it_has_become(
    limit: str, opcode: int, times: int
) -> None:
    def entries(blocks: int) -> bytes:
        return struct.pack("<8xQH14x", 0, blocks - 1) * 4

    limits = {limit: Limit(512 * times, 2048 * times)}
    with a_guest(MemoryBackend(1 << 24), **limits) as guest:
        queue = guest.queue(1, ENTRIES)
        guest.poke(DATA + PAGE, entries(1))
        for _ in range(2):
            queue.put(queue.command(COPY, cdw10=64, cdw11=0, cdw12=3, prp1=DATA + PAGE))
        queue.doorbell(queue.tail)
        assert done(queue) == 1
        guest.poke(DATA + PAGE, entries(8))
        seconds(guest, 4)
        assert done(queue) == 1
        put(queue, 1, opcode)
        # Its four entries have become seven blocks longer each; a block is paid off a second.
        seconds(guest, 28)
        assert done(queue) == 0
        seconds(guest, 1)
        assert done(queue) == 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=st.integers(1, 10**6),
    burst=st.integers(1, 40),
    steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 50)), max_size=12),
)
def test_a_bucket_gives_what_its_definition_says(
    rate: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    """Against a model in exact fractions; each step is some commands, then some tokens' time."""
    with a_guest(NullBackend(1 << 24), iops=Limit(rate, burst)) as guest:
        queue = guest.queue(1, 1024)
        tokens, waiting = Fraction(burst), 0
        for count, wait in steps:
            put(queue, count)
            waiting += count
            expected = min(waiting, int(tokens))
            assert done(queue) == expected
            tokens -= expected
            waiting -= expected
            # Halves of a token: rounding cannot make a whole one of them, or none.
            time = Fraction(2 * wait + 1, 4 * rate) if wait else Fraction(0)
            seconds(guest, time)
            tokens = min(Fraction(burst), tokens + time * rate)


# -- others ------------------------------------------------------------------------------------


def test_commands_for_other_namespaces_of_the_queue_go_on() -> None:
    with a_guest(NullBackend(1 << 24), NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 50, nsid=1)
        put(queue, 50, nsid=2)
        assert done(queue) == 51
        assert guest.table.throttled == 49


def test_controllers_that_share_a_namespace_share_its_limit_in_turn() -> None:
    backend = NullBackend(1 << 24)
    with Guest(backend, NullBackend(1 << 24), running=False) as one:
        # A second namespace of the same medium, which is what another controller's is.
        one.table.namespaces.set(3, backend)
        stop_clock(one.iothread)
        backend.set_limits({"iops": Limit(10, 1)})
        queue = one.queue(1, ENTRIES)
        put(queue, 20, nsid=1)
        put(queue, 20, nsid=3)
        assert done(queue) == 1
        shares = Counter()
        for _ in range(10):
            seconds(one, Fraction(1, 10))
            ((cid, _),) = completions(queue)
            shares[cid <= 20] += 1
        assert shares == {True: 5, False: 5}


def test_invalid_commands_are_refused_without_waiting() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 2)
        queue.put(queue.command(READ, slba=1 << 40, prp1=DATA))
        queue.doorbell(queue.tail)
        assert [status for _, status in completions(queue)] == [SUCCESS, 0x4080]


# -- changing, taking away ---------------------------------------------------------------------


def test_without_limits_what_waits_goes_on() -> None:
    backend = NullBackend(1 << 24)
    with a_guest(backend, iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 50)
        assert done(queue) == 1
        backend.set_limits({})
        assert done(queue) == 49
        put(queue, 50)
        assert done(queue) == 50


def test_a_new_limit_is_for_what_waits_too() -> None:
    backend = NullBackend(1 << 24)
    with a_guest(backend, iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 50)
        assert done(queue) == 1
        backend.set_limits({"iops": Limit(100, 3)})
        assert done(queue) == 3
        seconds(guest, Fraction(1, 100))
        assert done(queue) == 1


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("speed", Limit(1, 1)),
        ("iops", Limit(0, 1)),
        ("iops", Limit(1 << 41, 1)),
        ("bps", Limit(1, 0)),
        ("bps", Limit(1, MAX_BURST_S + 1)),
    ],
)
def test_limits_that_cannot_be_had_are_refused_and_change_nothing(name: str, limit: Limit) -> None:
    backend = NullBackend(1 << 24)
    backend.set_limits({"iops": Limit(2, 2)})
    with pytest.raises(ValueError, match=name):
        backend.set_limits({name: limit})
    assert backend.limits == {"iops": Limit(2, 2)}


def test_a_namespace_that_goes_ends_what_waits_for_it() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10)
        assert done(queue) == 1
        guest.table.namespaces.retire(1)
        assert not guest.table.namespaces.in_use(1)
        assert [status for _, status in completions(queue)] == [INVALID_FIELD] * 9


def test_a_namespace_of_a_paused_controller_that_goes_ends_what_waits_for_it() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10)
        assert done(queue) == 1
        guest.table.paused = True
        guest.table.namespaces.set(1, None)
        assert [status for _, status in completions(queue)] == [INVALID_FIELD] * 9


def test_what_waits_keeps_nobody_from_pausing_and_stays_until_resumed() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10)
        assert done(queue) == 1
        guest.table.paused = True
        assert guest.table.inflight() == 0
        seconds(guest, 100)
        assert done(queue) == 0
        guest.table.paused = False
        assert done(queue) == 1


def test_memory_can_be_unmapped_under_what_waits() -> None:
    """Its addresses are looked up again when its time has come."""
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        page = 0x7000_0000
        guest.table.dma.map(page, PAGE, guest.fd, 0, readable=True, writable=True)
        for _ in range(3):
            queue.put(queue.command(READ, prp1=page))
        queue.doorbell(queue.tail)
        assert done(queue) == 1
        assert guest.table.dma.try_unmap(page, PAGE) == PAGE
        seconds(guest, 1)
        assert [status for _, status in completions(queue)] == [0x4004]
        guest.table.dma.map(page, PAGE, guest.fd, 0, readable=True, writable=True)
        seconds(guest, 1)
        assert done(queue) == 1


def test_what_waits_is_kept_while_its_queues_are_not_mapped() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 5)
        assert done(queue) == 1
        assert guest.table.dma.try_unmap(IOVA, guest.size) == guest.size
        seconds(guest, 100)
        assert done(queue) == 0
        assert guest.table.abort_command(1, 2) is False
        guest.table.dma.map(IOVA, guest.size, guest.fd, 0, readable=True, writable=True)
        assert done(queue) == 1


def test_a_queue_without_its_memory_can_be_deleted_under_what_waits() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 5)
        assert done(queue) == 1
        assert guest.table.dma.try_unmap(IOVA, guest.size) == guest.size
        guest.table.hold(1)
        guest.table.end_throttled(1)
        guest.table.delete_sq(1)


# -- ending one by one -------------------------------------------------------------------------


def test_a_command_that_waits_is_aborted_at_once() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 4)
        assert done(queue) == 1
        assert guest.table.abort_command(1, 3) is True
        assert completions(queue) == [(3, ABORT_REQUESTED)]
        for cid in (2, 4):
            seconds(guest, 1)
            assert completions(queue) == [(cid, SUCCESS)]
        put(queue, 1)
        seconds(guest, 1)
        assert done(queue) == 1


@pytest.mark.parametrize("aborted", [2, 3])
def test_of_a_fused_pair_that_waits_both_are_aborted(aborted: int) -> None:
    with a_guest(MemoryBackend(1 << 24), iops=Limit(1, 2)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 1)
        put_pair(queue)
        assert done(queue) == 1
        assert guest.table.throttled == 2
        assert guest.table.abort_command(1, aborted) is True
        assert dict(completions(queue)) == {
            aborted: ABORT_REQUESTED,
            5 - aborted: FAILED_FUSED,
        }
        assert guest.table.throttled == 0


def put_pair(queue: QueuePair) -> None:
    queue.put(queue.command(COMPARE, prp1=DATA + PAGE, flags=FUSED_FIRST))
    queue.put(queue.command(WRITE, prp1=DATA + PAGE, flags=FUSED_SECOND))
    queue.doorbell(queue.tail)


@pytest.mark.parametrize("nsid", [0, 2, 3])
def test_a_fused_pair_of_two_namespaces_does_not_wait_and_an_abort_finds_none_of_it(
    nsid: int,
) -> None:
    """Whether the second's is another, or none."""
    with a_guest(MemoryBackend(1 << 24), MemoryBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 1)
        assert done(queue) == 1
        first = queue.command(COMPARE, prp1=DATA + PAGE, flags=FUSED_FIRST)
        second = queue.command(WRITE, nsid=nsid, prp1=DATA + PAGE, flags=FUSED_SECOND)
        queue.put(first)
        queue.put(second)
        queue.doorbell(queue.tail)
        take_turns(guest.iothread, 1)
        assert guest.table.throttled == 0
        assert guest.table.abort_command(1, queue.cid) is False
        assert completions(queue) == [(2, INVALID_FIELD), (3, INVALID_FIELD)]
        seconds(guest, 100)
        assert completions(queue) == []
        assert guest.table.submission_queues()[0].inflight == 0


def test_a_fused_pair_waits_as_one_and_is_two_commands() -> None:
    with a_guest(MemoryBackend(1 << 24), iops=Limit(1, 2)) as guest:
        queue = guest.queue(1, ENTRIES)
        guest.poke(DATA + PAGE, bytes(PAGE))
        put(queue, 1)
        put_pair(queue)
        assert done(queue) == 1
        seconds(guest, 1)
        assert done(queue) == 2
        put(queue, 1)
        assert done(queue) == 0


def test_a_command_behind_a_fused_pair_of_its_batch_waits_for_its_range() -> None:
    """With limits as without."""
    backend = MemoryBackend(1 << 24)
    with a_guest(backend, iops=Limit(1000, 100)) as guest:
        queue = guest.queue(1, ENTRIES)
        guest.poke(DATA + PAGE, bytes(PAGE))
        guest.poke(DATA + 2 * PAGE, b"\1" * PAGE)
        queue.put(queue.command(COMPARE, prp1=DATA + PAGE, flags=FUSED_FIRST))
        queue.put(queue.command(WRITE, prp1=DATA + 2 * PAGE, flags=FUSED_SECOND))
        queue.put(queue.command(READ, prp1=DATA + 3 * PAGE))
        queue.doorbell(queue.tail)
        assert done(queue) == 3
        assert guest.peek(DATA + 3 * PAGE, 512) == b"\1" * 512


def test_what_waits_of_a_host_that_is_preempted_ends_at_once() -> None:
    with a_guest(NullBackend(1 << 24), NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 5)
        assert done(queue) == 1
        assert guest.table.namespaces.preempt(2) == []
        assert completions(queue) == []
        assert guest.table.namespaces.preempt(1) == []
        assert [status for _, status in completions(queue)] == [PREEMPTED] * 4


def test_a_deleted_queue_ends_what_waits_and_leaves_others() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        first, second = guest.queue(1, ENTRIES), guest.queue(2, ENTRIES)
        put(first, 3)
        put(second, 3)
        assert done(first) == 1
        guest.table.hold(1)
        guest.table.end_throttled(1)
        assert [status for _, status in completions(first)] == [SQ_DELETED] * 2
        guest.table.delete_sq(1)
        assert guest.table.throttled == 3
        seconds(guest, 1)
        assert done(second) == 1


def test_a_reset_ends_what_waits_without_completions() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 100)
        assert done(queue) == 1
        guest.table.stop()
        assert guest.table.inflight() == guest.table.throttled == 0
        assert completions(queue) == []
        guest.table.disable()


def test_more_than_a_batch_of_completions_end_with_a_queue() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, 1024)
        put(queue, 1000)
        assert len(completions(queue)) == 1
        take_turns(guest.iothread, 32)
        assert guest.table.throttled == 999
        guest.table.hold(1)
        guest.table.end_throttled(1)
        assert len(completions(queue)) == 999


# -- what is told ------------------------------------------------------------------------------


def test_what_waits_is_counted_and_is_in_flight_for_its_queue() -> None:
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 10)
        assert done(queue) == 1
        assert guest.table.namespaces.throttled(1) == (9, 9)
        assert guest.table.submission_queues()[0].inflight == 9
        seconds(guest, 1)
        assert done(queue) == 1
        assert guest.table.namespaces.throttled(1) == (8, 9)


def test_waiting_is_no_time_that_the_host_takes() -> None:
    """`io_timeout_ms` is about I/O that the host has."""
    with a_guest(NullBackend(1 << 24), iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 3)
        assert done(queue) == 1
        assert guest.table.cancel_expired(0) == []


def test_limits_set_again_hold_on_a_clock_that_has_begun_anew() -> None:
    """As the processor's does when it was without power: until they are, nobody's turn comes."""
    backend = NullBackend(1 << 24)
    with a_guest(backend, iops=Limit(1, 1)) as guest:
        queue = guest.queue(1, ENTRIES)
        put(queue, 3)
        assert done(queue) == 1
        seconds(guest, -100)
        seconds(guest, 50)
        assert done(queue) == 0
        backend.set_limits(backend.limits)
        assert done(queue) == 1
        seconds(guest, 1)
        assert done(queue) == 1


def test_a_slot_is_had_again_by_what_comes_later() -> None:
    """Nothing is lost of a queue, however often it fills up."""
    with a_guest(NullBackend(1 << 24), iops=Limit(1000, 10)) as guest:
        queue = guest.queue(1, 16)
        total = 0
        for _ in range(40):
            put(queue, 15 - guest.table.throttled)
            total += done(queue)
            seconds(guest, Fraction(5, 1000))
        assert total == 10 + 39 * 5
