"""Files that are memory: what they have is copied through a mapping, nothing else is touched."""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.medium import open_medium
from nvme_mdev.datapath.backends.uring import UringBackend

from .guest import DSM, PAGE, READ, WRITE, WRITE_ZEROES, Guest, QueuePair

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 16 << 20
TMPFS = Path("/dev/shm")
FUA = 1 << 30
DEAC = 1 << 25
STRETCH = 64
"""Pages that are asked about at a time, and accesses until they are again."""

UNRECOVERED_READ, CAPACITY_EXCEEDED = 0x281, 0x081
DNR = 0x4000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[Path]:
    """A file in tmpfs that is all hole."""
    path = TMPFS / f"nvme-mdev-{os.getpid()}-{tmp_path.name}"
    with path.open("wb") as file:
        file.truncate(SIZE)
    yield path
    path.unlink()


@pytest.fixture
def full(sparse: Path) -> Path:
    """A file in tmpfs without a hole, each page of which holds its number."""
    sparse.write_bytes(b"".join(page_of(number) for number in range(SIZE // PAGE)))
    return sparse


@contextmanager
def mounted(mount_point: Path, *arguments: str) -> Iterator[Path]:
    """A file system of its own."""
    mount_point.mkdir()
    subprocess.run(["mount", *arguments, "none", str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def page_of(number: int) -> bytes:
    return struct.pack("<I", number) * (PAGE // 4)


def touched(path: Path) -> int:
    """Bytes of the file that this process has touched through a mapping."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(path)):
            total += next(int(more.split()[1]) << 10 for more in lines if more.startswith("Rss:"))
    return total


def allocated(path: Path) -> int:
    """Bytes of memory that the file takes."""
    return path.stat().st_blocks * 512


def read(queue: QueuePair, iova: int, number: int, status: int = 0) -> bytes:
    """Read one page of the namespace; what the guest has then."""
    assert queue.io(READ, iova, PAGE, slba=number * 8).status == status
    return queue.guest.peek(iova, PAGE)


def write(queue: QueuePair, iova: int, number: int, data: bytes, **more: int) -> int:
    """Write one page of the namespace; the status."""
    queue.guest.poke(iova, data)
    return queue.io(WRITE, iova, PAGE, slba=number * 8, **more).status


def deallocate(queue: QueuePair, iova: int, number: int, pages: int) -> None:
    """Dataset Management: give back some pages."""
    queue.guest.poke(iova, struct.pack("<IIQ", 0, pages * 8, number * 8))
    assert queue.run(queue.command(DSM, prp1=iova, cdw10=0, cdw11=4)).status == 0


def test_what_the_file_has_is_read_and_written_through_the_mapping(full: Path) -> None:
    backend = UringBackend(str(full))
    assert backend.mapped
    with Guest(backend) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        assert touched(full) == 0
        assert read(queue, page, 70) == page_of(70)
        assert 0 < touched(full) <= 16 * PAGE
        assert write(queue, page, 2000, b"\xee" * PAGE) == 0
        assert read(queue, page, 2000) == b"\xee" * PAGE
        assert read(queue, page, 2001) == page_of(2001)
    content = full.read_bytes()
    assert content[2000 * PAGE : 2001 * PAGE] == b"\xee" * PAGE
    assert content[: 2000 * PAGE] == b"".join(map(page_of, range(2000)))


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 256])
@pytest.mark.parametrize("first", [0, 1, 60, 64])
def test_io_across_the_stretches_that_are_asked_about_at_a_time(
    full: Path, first: int, pages: int
) -> None:
    with Guest(UringBackend(str(full))) as guest:
        queue, data = guest.queue(), guest.allocate(pages)
        assert queue.io(READ, data, pages * PAGE, slba=first * 8).status == 0
        assert touched(full) >= pages * PAGE
        wanted = b"".join(map(page_of, range(first, first + pages)))
        assert guest.peek(data, pages * PAGE) == wanted


def test_force_unit_access_is_left_to_the_kernel(full: Path) -> None:
    with Guest(UringBackend(str(full))) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        assert write(queue, page, 3, b"\xdd" * PAGE, cdw12=FUA) == 0
        assert touched(full) == 0
        assert read(queue, page, 3) == b"\xdd" * PAGE


def test_reading_holes_again_and_again_takes_no_memory(sparse: Path) -> None:
    with Guest(UringBackend(str(sparse))) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        for number in [*range(2 * STRETCH), *range(2 * STRETCH)]:
            guest.poke(page, b"\xff" * PAGE)
            assert read(queue, page, number) == bytes(PAGE)
        assert allocated(sparse) == 0
        assert touched(sparse) == 0


def test_a_page_that_has_been_written_is_reached_through_the_mapping_before_long(
    sparse: Path,
) -> None:
    with Guest(UringBackend(str(sparse))) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        for _ in range(STRETCH + 1):
            assert write(queue, page, 5, page_of(5)) == 0
        assert allocated(sparse) == PAGE
        assert touched(sparse) == 0
        assert read(queue, page, 5) == page_of(5)
        assert touched(sparse) == PAGE
        assert read(queue, page, 6) == bytes(PAGE)
        assert allocated(sparse) == PAGE


def test_a_write_across_a_hole_fills_it(full: Path) -> None:
    with Guest(UringBackend(str(full))) as guest:
        queue, data = guest.queue(), guest.allocate(4)
        deallocate(queue, data, 101, 2)
        guest.poke(data, b"\xbb" * (4 * PAGE))
        assert queue.io(WRITE, data, 4 * PAGE, slba=100 * 8).status == 0
        assert allocated(full) == SIZE
    assert full.read_bytes()[99 * PAGE : 105 * PAGE] == (
        page_of(99) + b"\xbb" * (4 * PAGE) + page_of(104)
    )


@pytest.mark.parametrize(("first", "pages"), [(0, 1), (10, 100), (64, 64), (0, SIZE // PAGE)])
def test_what_was_deallocated_reads_as_zeroes_and_stays_free(
    full: Path, first: int, pages: int
) -> None:
    with Guest(UringBackend(str(full))) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        for number in range(0, SIZE // PAGE, STRETCH):
            assert read(queue, page, number) == page_of(number)
        deallocate(queue, page, first, pages)
        assert allocated(full) == SIZE - pages * PAGE
        for number in range(first, first + pages):
            assert read(queue, page, number) == bytes(PAGE)
        assert allocated(full) == SIZE - pages * PAGE
        if first:
            assert read(queue, page, first - 1) == page_of(first - 1)


def test_write_zeroes_that_deallocates_leaves_holes_that_stay(full: Path) -> None:
    with Guest(UringBackend(str(full))) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        assert read(queue, page, 7) == page_of(7)
        command = queue.command(WRITE_ZEROES, slba=7 * 8, blocks=8, cdw12=DEAC)
        assert queue.run(command).status == 0
        assert read(queue, page, 7) == bytes(PAGE)
        assert allocated(full) == SIZE - PAGE


def test_what_maintenance_has_given_back_stays_free(full: Path) -> None:
    backend = UringBackend(str(full))
    with Guest(backend) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        assert read(queue, page, 1) == page_of(1)
        raw = backend.raw()
        assert raw is not None
        assert raw.deallocate(0, SIZE)
        assert read(queue, page, 1) == bytes(PAGE)
        assert allocated(full) == 0


def test_a_file_that_was_cut_fails_what_is_gone_and_serves_the_rest(full: Path) -> None:
    backend = UringBackend(str(full))
    with Guest(backend) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        half = SIZE // PAGE // 2
        for number in (half - 1, half, half + 1):
            assert read(queue, page, number) == page_of(number)
        os.truncate(full, SIZE // 2)
        guest.poke(page, b"\x55" * PAGE)
        read(queue, page, half, UNRECOVERED_READ)
        assert not backend.mapped
        assert read(queue, page, half - 1) == page_of(half - 1)
        assert write(queue, page, half - 1, b"\xcc" * PAGE) == 0
        # Mapped anew when the size is known.
        guest.table.namespaces.resize(1, SIZE // 2)
        assert backend.mapped
        assert read(queue, page, half - 1) == b"\xcc" * PAGE
    assert full.stat().st_size == SIZE // 2


def test_a_write_beyond_a_cut_is_not_lost_in_a_page_of_ours(full: Path) -> None:
    """The system call that does it again makes the file longer, as it does for every other file."""
    with Guest(UringBackend(str(full))) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        assert read(queue, page, 3000) == page_of(3000)
        os.truncate(full, SIZE // 2)
        assert write(queue, page, 3000, b"\xab" * PAGE) == 0
        assert read(queue, page, 3000) == b"\xab" * PAGE
    assert full.read_bytes()[3000 * PAGE :] == b"\xab" * PAGE


def test_a_file_that_has_grown_is_mapped_to_its_new_end(full: Path) -> None:
    backend = UringBackend(str(full))
    with Guest(backend) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        with full.open("ab") as file:
            file.write(b"\x99" * SIZE)
        guest.table.namespaces.resize(1, 2 * SIZE)
        assert backend.mapped
        assert read(queue, page, 2 * SIZE // PAGE - 1) == b"\x99" * PAGE
        assert touched(full) > 0


@pytest.mark.parametrize("offset", [512, PAGE, 3 * PAGE + 1024])
def test_a_part_is_mapped_to_the_byte(full: Path, offset: int) -> None:
    length = 1 << 20
    with Guest(UringBackend(str(full), offset=offset, length=length)) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        whole = full.read_bytes()
        for number in (0, 63, 64, length // PAGE - 1):
            start = offset + number * PAGE
            assert read(queue, page, number) == whole[start : start + PAGE]
            assert write(queue, page, number, bytes(reversed(whole[start : start + PAGE]))) == 0
        assert touched(full) > 0
    content = full.read_bytes()
    for number in (0, 63, 64, length // PAGE - 1):
        start = offset + number * PAGE
        assert content[start : start + PAGE] == bytes(reversed(whole[start : start + PAGE]))
    assert content[:offset] == whole[:offset]
    assert content[offset + length :] == whole[offset + length :]


def test_a_read_only_file_is_read_through_the_mapping(full: Path) -> None:
    full.chmod(0o400)
    with Guest(UringBackend(str(full), read_only=True)) as guest:
        queue, page = guest.queue(), guest.allocate(1)
        assert read(queue, page, 9) == page_of(9)
        assert touched(full) > 0
        assert write(queue, page, 9, bytes(PAGE)) & ~DNR == 0x020
    assert full.stat().st_size == SIZE


def test_a_reader_who_is_not_told_of_holes_maps_nothing(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mincore(2) tells owners and writers alone."""
    stranger = full.stat().st_uid + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    for read_only in (True, False):
        medium = open_medium(str(full), read_only=read_only)
        assert medium.mappable is not read_only
        medium.close()


@pytest.mark.parametrize("inline_io", [True, False])
def test_a_user_who_wants_io_uring_gets_no_mapping(full: Path, inline_io: bool) -> None:
    backend = UringBackend(str(full), inline_io=inline_io)
    assert backend.mapped is inline_io
    backend.close()


def test_a_file_on_disk_is_not_mapped(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    backend = UringBackend(str(image), inline_io=True)
    assert not backend.mapped
    backend.close()


@as_root
def test_a_full_tmpfs_fails_the_write_and_serves_the_rest(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m") as directory:
        image = directory / "image"
        with image.open("wb") as file:
            file.write(page_of(0))
            file.truncate(SIZE)
        backend = UringBackend(str(image))
        with Guest(backend) as guest:
            queue, page = guest.queue(), guest.allocate(1)
            statuses = [write(queue, page, number, page_of(number)) for number in range(1, 300)]
            assert statuses[:255] == [0] * 255
            assert set(statuses[255:]) == {CAPACITY_EXCEEDED | DNR}
            # What there is can be overwritten, and is there.
            assert write(queue, page, 0, b"\x77" * PAGE) == 0
            assert read(queue, page, 0) == b"\x77" * PAGE
            assert read(queue, page, 255) == page_of(255)
            assert backend.mapped


@as_root
def test_a_file_in_hugetlbfs_is_served_read_only_and_not_mapped(tmp_path: Path) -> None:
    """It has no write(2), and tells nobody where it has holes."""
    with mounted(tmp_path / "huge", "-t", "hugetlbfs") as directory:
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(SIZE)
        with pytest.raises(ValueError, match="serve it read-only"):
            open_medium(str(image), read_only=False)
        medium = open_medium(str(image), read_only=True)
        assert medium.in_memory
        assert not medium.mappable
        medium.close()
