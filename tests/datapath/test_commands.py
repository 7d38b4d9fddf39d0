"""The commands of the NVM command set beyond Read and Write, on every kind of backend."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from tests.encryption import blank

from .guest import COMPARE, DSM, FLUSH, MORE, PAGE, READ, WRITE, WRITE_ZEROES, Guest, QueuePair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.datapath.backends.base import Backend

SIZE = 16 << 20
BLOCKS = SIZE // 512
WRITE_UNCORRECTABLE, VERIFY, COPY = 0x04, 0x0C, 0x19
FUA, DEAC = 1 << 30, 1 << 25
DNR = 0x4000
NSID_ALL = 0xFFFFFFFF
UNREADABLE = 0x281 | DNR
SIZE_LIMIT = 0x183 | DNR
OUT_OF_RANGE = 0x080 | DNR

Make = "Callable[..., Backend]"


@pytest.fixture(params=["memory", "file", "encrypted"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Backend]]:
    """A backend that stores data, of each kind: made when called."""
    images: list[Path] = []

    def memory(**options: int) -> Backend:
        return MemoryBackend(SIZE, **options)

    def new_image() -> str:
        path = Path(f"/dev/shm/nvme-mdev-commands-{os.getpid()}-{id(images)}-{len(images)}")
        images.append(path)
        with path.open("wb") as file:
            file.truncate(SIZE)
        return str(path)

    def image(**options: int) -> Backend:
        return UringBackend(new_image(), **options)

    def encrypted(**options: int) -> Backend:
        return blank(new_image(), **options)

    yield {"memory": memory, "file": image, "encrypted": encrypted}[request.param]
    for path in images:
        path.unlink()
        path.with_suffix(".key").unlink(missing_ok=True)


@pytest.fixture
def queue(make: Callable[..., Backend]) -> Iterator[QueuePair]:
    with Guest(make()) as guest:
        yield guest.queue()


def pattern(size: int, seed: int = 1) -> bytes:
    """Data in which every 8 bytes differ."""
    return struct.pack(f"<{size // 8}Q", *range(seed << 32, (seed << 32) + size // 8))


def fill(queue: QueuePair, slba: int, data: bytes) -> None:
    """Write data from a block on."""
    buffer = queue.guest.allocate(16)
    for at in range(0, len(data), 16 * PAGE):
        part = data[at : at + 16 * PAGE]
        queue.guest.poke(buffer, part)
        assert queue.io(WRITE, buffer, len(part), slba=slba + at // 512).status == 0


def content(queue: QueuePair, slba: int, size: int) -> bytes:
    """What is on blocks."""
    data = b""
    buffer = queue.guest.allocate(17)
    while len(data) < size:
        part = min(size - len(data), 16 * PAGE)
        assert queue.io(READ, buffer, part, slba=slba + len(data) // 512).status == 0
        data += queue.guest.peek(buffer, part)
    return data


def error_entry(guest: Guest) -> tuple[int, ...]:
    """The newest entry: SQID, CID, status, parameter error location, LBA, NSID."""
    at = (guest.state.error_count - 1) % 64 * 64
    return struct.unpack("<HHHHQI", bytes(guest.state.error_log[at + 8 : at + 28]))


# -- Flush ------------------------------------------------------------------------------------


def test_flush_of_all_namespaces(make: Callable[..., Backend]) -> None:
    with Guest(make(), make()) as guest:
        queue = guest.queue()
        assert queue.run(queue.command(FLUSH, nsid=NSID_ALL, cdw10=0)).status == 0
        guest.table.namespaces.retire(1)
        assert queue.run(queue.command(FLUSH, nsid=NSID_ALL, cdw10=0)).status == 0


def test_flush_of_all_namespaces_without_any() -> None:
    with Guest() as guest:
        queue = guest.queue()
        assert queue.run(queue.command(FLUSH, nsid=NSID_ALL, cdw10=0)).status == 0


@pytest.mark.parametrize("opcode", [READ, WRITE, DSM, VERIFY, COPY, WRITE_ZEROES])
def test_only_flush_takes_the_broadcast_nsid(queue: QueuePair, opcode: int) -> None:
    assert queue.run(queue.command(opcode, nsid=NSID_ALL)).status == 0x002 | DNR


# -- Force Unit Access of what is read --------------------------------------------------------


@pytest.mark.parametrize("opcode", [READ, COMPARE, VERIFY])
def test_force_unit_access_of_what_is_read(queue: QueuePair, opcode: int) -> None:
    buffer = queue.guest.allocate(1)
    queue.guest.poke(buffer, pattern(PAGE))
    assert queue.io(WRITE, buffer, PAGE, slba=8).status == 0
    assert queue.io(opcode, buffer, PAGE, slba=8, cdw12=FUA).status == 0
    assert queue.guest.peek(buffer, PAGE) == pattern(PAGE)


# -- Compare ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 1 << 17, (1 << 17) + 512, 1 << 20])
@pytest.mark.parametrize("offset", [0, 4, 512])
def test_compare_names_the_first_block_that_differs(
    queue: QueuePair, size: int, offset: int
) -> None:
    guest = queue.guest
    buffer = guest.allocate(size // PAGE + 1) + offset
    guest.poke(buffer, pattern(size))
    assert queue.io(WRITE, buffer, size, slba=100).status == 0
    assert queue.io(COMPARE, buffer, size, slba=100).status == 0
    for wrong in (size - 1, size // 2 + 3, 0):
        guest.poke(buffer + wrong, b"\xff")
        assert queue.io(COMPARE, buffer, size, slba=100).status == 0x285 | DNR
        assert error_entry(guest)[4] == 100 + wrong // 512


def test_more_compares_than_bounce_buffers_all_complete(make: Callable[..., Backend]) -> None:
    with Guest(make()) as guest:
        queue = guest.queue(entries=256)
        fill(queue, 0, pattern(1 << 18))
        buffer = guest.allocate(65)
        guest.poke(buffer, pattern(1 << 18))
        prp1, prp2 = guest.prps(buffer, 1 << 18)
        for _ in range(200):
            queue.put(queue.command(COMPARE, blocks=512, prp1=prp1, prp2=prp2))
        queue.ring()
        assert [queue.wait().status for _ in range(200)] == [0] * 200


# -- Verify -----------------------------------------------------------------------------------


def test_verify_reads_any_length_and_moves_nothing(queue: QueuePair) -> None:
    assert queue.run(queue.command(VERIFY, blocks=BLOCKS)).status == 0
    assert queue.run(queue.command(VERIFY, slba=3, blocks=777)).status == 0
    assert queue.run(queue.command(VERIFY, slba=1, blocks=BLOCKS)).status == OUT_OF_RANGE


def test_verify_finds_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        os.truncate(path, 1 << 20)
        assert queue.run(queue.command(VERIFY, blocks=2048)).status == 0
        assert queue.run(queue.command(VERIFY, slba=1024, blocks=4096)).status == 0x281
        assert error_entry(guest)[4] == 2048


# -- Write Uncorrectable ----------------------------------------------------------------------


def spoil(queue: QueuePair, slba: int, blocks: int) -> None:
    assert queue.run(queue.command(WRITE_UNCORRECTABLE, slba=slba, blocks=blocks)).status == 0


def read_status(queue: QueuePair, slba: int, blocks: int = 1) -> int:
    buffer = queue.guest.allocate(blocks * 512 // PAGE + 1)
    return queue.io(READ, buffer, blocks * 512, slba=slba).status


def test_an_uncorrectable_block_is_unreadable_for_everything(queue: QueuePair) -> None:
    guest = queue.guest
    fill(queue, 0, pattern(64 << 10))
    spoil(queue, 10, 5)
    buffer = guest.allocate(16)
    sources = guest.allocate(1)
    guest.poke(sources, struct.pack("<QQQQ", 0, 0, 20, 0))
    for command in (
        queue.command(READ, slba=3, blocks=8, prp1=buffer),
        queue.command(COMPARE, slba=14, blocks=1, prp1=buffer),
        queue.command(VERIFY, slba=0, blocks=100),
        queue.command(COPY, cdw10=1000, cdw11=0, cdw12=0, prp1=sources),
    ):
        assert queue.run(command).status == UNREADABLE
    assert read_status(queue, 9) == read_status(queue, 15) == 0
    queue.run(queue.command(READ, slba=3, blocks=8, prp1=buffer))
    assert error_entry(guest) == (1, queue.cid, (UNREADABLE | MORE) << 1, 0xFFFF, 10, 1)


@pytest.mark.parametrize(
    "repair", ["write", "zeroes", "deallocate", "copy"], ids=lambda name: f"by {name}"
)
def test_an_uncorrectable_block_is_readable_again_when_it_is_written(
    queue: QueuePair, repair: str
) -> None:
    guest = queue.guest
    if repair == "deallocate" and not guest.backends[0].can_deallocate:
        pytest.skip("nothing is deallocated there")
    spoil(queue, 10, 20)
    ranges = guest.allocate(1)
    if repair == "write":
        fill(queue, 15, pattern(4 * 512))
    elif repair == "zeroes":
        assert queue.run(queue.command(WRITE_ZEROES, slba=15, blocks=4)).status == 0
    elif repair == "deallocate":
        guest.poke(ranges, struct.pack("<IIQ", 0, 4, 15))
        assert queue.run(queue.command(DSM, prp1=ranges, cdw10=0, cdw11=4)).status == 0
    else:
        guest.poke(ranges, struct.pack("<QQHHIQ", 0, 100, 3, 0, 0, 0))
        assert queue.run(queue.command(COPY, cdw10=15, cdw11=0, prp1=ranges)).status == 0
    statuses = [read_status(queue, lba) for lba in range(8, 32)]
    assert statuses == [
        UNREADABLE if 10 <= lba < 15 or 19 <= lba < 30 else 0 for lba in range(8, 32)
    ]


@pytest.mark.parametrize("make", ["memory", "file"], indirect=True)
def test_hints_leave_an_uncorrectable_block_alone(queue: QueuePair) -> None:
    spoil(queue, 10, 1)
    ranges = queue.guest.allocate(1)
    queue.guest.poke(ranges, struct.pack("<IIQ", 0, 4, 8))
    assert queue.run(queue.command(DSM, prp1=ranges, cdw10=0, cdw11=3)).status == 0
    assert read_status(queue, 10) == UNREADABLE


def test_uncorrectable_blocks_are_those_of_their_namespace(make: Callable[..., Backend]) -> None:
    with Guest(make(), make()) as guest:
        queue = guest.queue()
        spoil(queue, 7, 1)
        buffer = guest.allocate(1)
        assert queue.io(READ, buffer, 512, slba=7, nsid=2).status == 0
        guest.table.namespaces.clear_uncorrectable(1)
        assert queue.io(READ, buffer, 512, slba=7).status == 0


def test_a_namespace_that_comes_back_has_its_uncorrectable_blocks(
    make: Callable[..., Backend],
) -> None:
    """The table is the controller's, not the backend's: another process finds it."""
    backend = make()
    with Guest(backend) as guest:
        queue = guest.queue()
        spoil(queue, 7, 1)
        guest.table.namespaces.set(1, None)
        guest.table.namespaces.set(1, backend)
        assert read_status(queue, 7) == UNREADABLE
        assert read_status(queue, 8) == 0


def test_uncorrectable_blocks_that_follow_one_another_take_one_entry(queue: QueuePair) -> None:
    for lba in range(1100):
        spoil(queue, lba, 1)
    assert read_status(queue, 0) == read_status(queue, 1099) == UNREADABLE
    assert read_status(queue, 1100) == 0


def test_the_table_of_uncorrectable_blocks_is_bounded(queue: QueuePair) -> None:
    for lba in range(0, 2048, 2):
        spoil(queue, lba, 1)
    full = queue.run(queue.command(WRITE_UNCORRECTABLE, slba=4000))
    assert full.status == 0x006 | DNR
    assert read_status(queue, 2046) == UNREADABLE
    fill(queue, 0, pattern(512))
    spoil(queue, 4000, 1)
    assert read_status(queue, 4000) == UNREADABLE


def test_a_read_only_namespace_cannot_be_spoilt(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(path), read_only=True)) as guest:
        queue = guest.queue()
        assert queue.run(queue.command(WRITE_UNCORRECTABLE)).status == 0x020 | DNR
        copy = queue.command(COPY, cdw10=0, cdw11=0, prp1=guest.allocate(1))
        assert queue.run(copy).status == 0x020 | DNR


# -- Copy -------------------------------------------------------------------------------------


def sources(*ranges: tuple[int, int]) -> bytes:
    """Source ranges (first block, blocks), descriptor format 0h."""
    return b"".join(struct.pack("<QQHHIQ", 0, slba, blocks - 1, 0, 0, 0) for slba, blocks in ranges)


def copy(queue: QueuePair, to: int, *ranges: tuple[int, int], cdw12: int = 0) -> int:
    """Copy; the status."""
    data = sources(*ranges)
    where = queue.guest.allocate(len(data) // PAGE + 1)
    queue.guest.poke(where, data)
    prp1, prp2 = queue.guest.prps(where, len(data))
    cdw12 |= (len(ranges) - 1) & 0xFF
    command = queue.command(
        COPY, cdw10=to & 0xFFFFFFFF, cdw11=to >> 32, cdw12=cdw12, prp1=prp1, prp2=prp2
    )
    return queue.run(command).status


@pytest.mark.parametrize("flags", [0, FUA])
def test_copy_puts_source_ranges_one_behind_the_other(queue: QueuePair, flags: int) -> None:
    data = pattern(1 << 20)
    fill(queue, 0, data)
    ranges = [(3, 5), (100, 1), (50, 700), (0, 2)]
    assert copy(queue, 10000, *ranges, cdw12=flags) == 0
    expected = b"".join(data[slba * 512 : (slba + blocks) * 512] for slba, blocks in ranges)
    assert content(queue, 10000, len(expected)) == expected
    assert content(queue, 10000 + len(expected) // 512, 512) == bytes(512)
    assert content(queue, 9999, 512) == bytes(512)


def test_copy_of_as_much_as_there_may_be(queue: QueuePair) -> None:
    for part in range(4):
        fill(queue, part * 2048, pattern(1 << 20, part + 1))
    assert copy(queue, 16384, *[(part * 2048, 2048) for part in (3, 1, 0, 2)]) == 0
    for place, part in enumerate((3, 1, 0, 2)):
        assert content(queue, 16384 + place * 2048, 1 << 20) == pattern(1 << 20, part + 1)
    assert copy(queue, 20000, *[(n, 1) for n in range(128)]) == 0


COPIES: dict[str, tuple[int, list[tuple[int, int]], int, int]] = {
    "129 source ranges": (0, [(1, 1)] * 129, 0, SIZE_LIMIT),
    "a source range of more than MSSRL": (4096, [(0, 2049)], 0, SIZE_LIMIT),
    "more than MCL": (16384, [(0, 2048)] * 4 + [(0, 1)], 0, SIZE_LIMIT),
    "a source outside": (0, [(0, 1), (BLOCKS - 1, 2)], 0, OUT_OF_RANGE),
    "a source that wraps": (0, [(2**64 - 1, 2)], 0, OUT_OF_RANGE),
    "a destination outside": (BLOCKS - 1, [(0, 1), (1, 1)], 0, OUT_OF_RANGE),
    "a destination that wraps": (2**64 - 1, [(0, 2)], 0, OUT_OF_RANGE),
    "descriptor format 1h": (0, [(0, 1)], 1 << 8, 0x002 | DNR),
    "descriptor format 2h": (0, [(0, 1)], 2 << 8, 0x002 | DNR),
    "a directive": (0, [(0, 1)], 1 << 20, 0x002 | DNR),
}


@pytest.mark.parametrize("case", COPIES)
def test_a_bad_copy_gets_its_status_and_copies_nothing(queue: QueuePair, case: str) -> None:
    to, ranges, cdw12, status = COPIES[case]
    fill(queue, 0, pattern(4096))
    assert copy(queue, to, *ranges, cdw12=cdw12) == status
    assert content(queue, 0, 4096) == pattern(4096)


@pytest.mark.parametrize(
    ("last", "status", "lba"),
    [
        ((499, 2), UNREADABLE, 500),
        ((BLOCKS - 1, 2), OUT_OF_RANGE, BLOCKS),
        ((0, 2049), SIZE_LIMIT, 1000),
    ],
)
def test_copy_tells_of_no_source_range_when_nothing_was_written(
    queue: QueuePair, last: tuple[int, int], status: int, lba: int
) -> None:
    fill(queue, 0, pattern(1024))
    spoil(queue, 500, 1)
    where = queue.guest.allocate(1)
    queue.guest.poke(where, sources((0, 1), (1, 1), last, (2, 1)))
    done = queue.run(queue.command(COPY, cdw10=1000, cdw11=0, cdw12=3, prp1=where))
    assert (done.status, done.result) == (status, 0)
    assert content(queue, 1000, 2048) == bytes(2048)
    assert error_entry(queue.guest)[4] == lba


def test_copy_tells_the_first_source_range_that_the_medium_could_not_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        os.truncate(path, 1 << 20)
        where = guest.allocate(1)
        guest.poke(where, sources((0, 8), (4096, 8)))
        done = queue.run(queue.command(COPY, cdw10=64, cdw11=0, cdw12=1, prp1=where))
        assert (done.status, done.result) == (0x281, 1)


def test_what_commands_count_as_in_the_smart_log(queue: QueuePair) -> None:
    assert queue.run(queue.command(VERIFY, blocks=10)).status == 0
    assert copy(queue, 100, (0, 3)) == 0
    spoil(queue, 0, 1)
    counters = queue.guest.state.counters()
    assert (counters["read_commands"], counters["write_commands"]) == (1, 1)
    assert (counters["read_units"], counters["write_units"]) == (10, 3)


def test_a_null_namespace_has_all_commands() -> None:
    with Guest(NullBackend(SIZE)) as guest:
        queue = guest.queue()
        buffer = guest.allocate(1)
        assert queue.run(queue.command(VERIFY, blocks=100)).status == 0
        assert copy(queue, 100, (0, 3)) == 0
        assert queue.io(COMPARE, buffer, PAGE, slba=0).status == 0
        spoil(queue, 5, 1)
        assert queue.io(READ, buffer, PAGE, slba=0).status == UNREADABLE
        assert queue.io(WRITE, buffer, PAGE, slba=0).status == 0
        assert queue.io(READ, buffer, PAGE, slba=0).status == 0


# -- Write Zeroes -----------------------------------------------------------------------------


def test_write_zeroes_that_may_deallocate_gives_space_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xff" * SIZE)
    os.sync()
    before = path.stat().st_blocks
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        assert queue.run(queue.command(WRITE_ZEROES, blocks=BLOCKS, cdw12=DEAC)).status == 0
    assert path.stat().st_blocks < before
    assert path.read_bytes() == bytes(SIZE)
