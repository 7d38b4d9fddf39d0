"""A bad command gets the status that the specification names, and an entry in the error log."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.state import ERROR_LOG_ENTRIES

from .guest import COMPARE, DSM, FLUSH, MORE, PAGE, READ, WRITE, WRITE_ZEROES, Guest, QueuePair

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS = 2048
DNR = 0x4000


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(MemoryBackend(BLOCKS * 512), max_transfer=64 << 10) as made:
        yield made


@pytest.fixture
def queue(guest: Guest) -> QueuePair:
    return guest.queue()


CASES = {
    "unknown opcode": ({"opcode": 0x7F}, 0x001),
    "an opcode between others": ({"opcode": 0x0A}, 0x001),
    "an opcode next to reservations": ({"opcode": 0x12}, 0x001),
    "vendor opcode": ({"opcode": 0xC0}, 0x001),
    "reserved FUSE": ({"opcode": READ, "flags": 3}, 0x002),
    "reserved flags": ({"opcode": READ, "flags": 4}, 0x002),
    "SGL for metadata": ({"opcode": READ, "flags": 0x80}, 0x002),
    "reserved PSDT": ({"opcode": READ, "flags": 0xC0}, 0x002),
    "directive": ({"opcode": WRITE, "cdw12": 1 << 20}, 0x002),
    "NSID 0": ({"opcode": READ, "nsid": 0}, 0x00B),
    "NSID beyond NN": ({"opcode": READ, "nsid": 257}, 0x00B),
    "NSID of flush beyond NN": ({"opcode": FLUSH, "nsid": 257, "cdw10": 0}, 0x00B),
    "broadcast NSID of read": ({"opcode": READ, "nsid": 0xFFFFFFFF}, 0x002),
    "broadcast NSID of report": ({"opcode": 0x0E, "nsid": 0xFFFFFFFF}, 0x002),
    "broadcast NSID of an unknown opcode": ({"opcode": 0x7F, "nsid": 0xFFFFFFFF}, 0x001),
    "inactive NSID": ({"opcode": READ, "nsid": 2}, 0x002),
    "inactive NSID of flush": ({"opcode": FLUSH, "nsid": 2, "cdw10": 0}, 0x002),
    "first LBA outside": ({"opcode": READ, "slba": BLOCKS}, 0x080),
    "last LBA outside": ({"opcode": WRITE, "slba": BLOCKS - 1, "blocks": 2}, 0x080),
    "LBA that wraps": ({"opcode": READ, "slba": 2**64 - 1, "blocks": 2}, 0x080),
    "zeroes outside": ({"opcode": WRITE_ZEROES, "slba": 1, "blocks": BLOCKS}, 0x080),
    "more than MDTS": ({"opcode": READ, "blocks": 129}, 0x002),
    "compare of more than MDTS": ({"opcode": COMPARE, "blocks": 129}, 0x002),
    "PRP1 not dword aligned": ({"opcode": READ, "prp1": 1}, 0x013),
    "PRP1 outside memory": ({"opcode": READ, "prp1": 0x1000}, 0x004),
    "PRP1 at the end of the address space": ({"opcode": READ, "prp1": 2**64 - 512}, 0x004),
    "range list outside memory": ({"opcode": DSM, "prp1": 0x1000, "cdw10": 0, "cdw11": 4}, 0x004),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_command_gets_its_status(guest: Guest, queue: QueuePair, case: str) -> None:
    fields, expected = CASES[case]
    fields = {"prp1": guest.allocate(1), **fields}
    completion = queue.run(queue.command(**fields))
    assert completion.status == expected | DNR
    assert completion.more
    good = queue.command(READ, prp1=guest.allocate(1))
    assert queue.run(good).status == 0, "the queue goes on"


def test_a_range_outside_the_namespace_changes_nothing(guest: Guest, queue: QueuePair) -> None:
    page = guest.allocate(1)
    guest.poke(page, b"\xaa" * PAGE)
    assert queue.io(WRITE, page, PAGE, slba=0).status == 0
    ranges = guest.allocate(1)
    guest.poke(ranges, struct.pack("<IIQIIQ", 0, 8, 0, 0, 1, BLOCKS))
    completion = queue.run(queue.command(DSM, prp1=ranges, cdw10=1, cdw11=4))
    assert completion.status == 0x080 | DNR
    assert queue.io(READ, page, PAGE, slba=0).status == 0
    assert guest.peek(page, PAGE) == b"\xaa" * PAGE


def test_attributes_without_deallocate_are_hints(guest: Guest, queue: QueuePair) -> None:
    page = guest.allocate(1)
    guest.poke(page, b"\xaa" * PAGE)
    assert queue.io(WRITE, page, PAGE, slba=0).status == 0
    ranges = guest.allocate(1)
    guest.poke(ranges, struct.pack("<IIQ", 0, 8, 0))
    assert queue.run(queue.command(DSM, prp1=ranges, cdw10=0, cdw11=3)).status == 0
    assert queue.io(READ, page, PAGE, slba=0).status == 0
    assert guest.peek(page, PAGE) == b"\xaa" * PAGE


def test_the_error_log_has_the_entry(guest: Guest, queue: QueuePair) -> None:
    queue.run(queue.command(READ, slba=BLOCKS + 5, prp1=guest.allocate(1)))
    assert guest.state.error_count == 1
    entry = struct.unpack("<QHHHHQI", bytes(guest.state.error_log[:28]))
    assert entry == (1, 1, queue.cid, (0x080 | DNR | MORE) << 1, 40, BLOCKS + 5, 1)


def test_the_error_log_keeps_the_newest(guest: Guest, queue: QueuePair) -> None:
    for _ in range(ERROR_LOG_ENTRIES + 3):
        queue.run(queue.command(0x7F))
    assert guest.state.error_count == ERROR_LOG_ENTRIES + 3
    first = struct.unpack("<Q", bytes(guest.state.error_log[:8]))[0]
    assert first == ERROR_LOG_ENTRIES + 1


def test_a_command_is_executed_as_it_was_fetched(guest: Guest, queue: QueuePair) -> None:
    """The slot's copy counts: what the guest does to the ring after the doorbell is too late."""
    page = guest.allocate(1)
    guest.poke(page, b"\x55" * 512)
    sqe = queue.command(WRITE, slba=7, prp1=page)
    where = queue.sq + queue.tail * 64
    queue.put(sqe)
    queue.ring()
    queue.wait()
    guest.poke(where, b"\xff" * 64)
    assert queue.io(READ, page + 1024, 512, slba=7).status == 0
    assert guest.peek(page + 1024, 512) == b"\x55" * 512


def test_counters_for_smart_count_512_byte_units(guest: Guest, queue: QueuePair) -> None:
    page = guest.allocate(1)
    queue.io(WRITE, page, PAGE, slba=0)
    queue.io(READ, page, 512, slba=0)
    queue.io(READ, page, 1024, slba=0)
    assert guest.state.counters() == {
        "read_commands": 2,
        "write_commands": 1,
        "read_units": 3,
        "write_units": 8,
        "media_errors": 0,
    }
