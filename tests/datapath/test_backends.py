"""Every backend does what the NVM commands promise, at every block size and alignment."""

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

from .guest import COMPARE, DSM, FLUSH, PAGE, READ, WRITE, WRITE_ZEROES, Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.datapath.backends.base import Backend

SIZE = 8 << 20
FUA = 1 << 30
DEAC = 1 << 25

Make = "Callable[..., Backend]"
deallocating = pytest.mark.parametrize("make", ["memory", "file", "tmpfs"], indirect=True)
"""What is encrypted is not deallocated."""


@pytest.fixture(params=["memory", "file", "tmpfs", "encrypted", "encrypted in memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    """A backend that stores data, of each kind: made when called."""

    def memory(**options: int) -> Backend:
        return MemoryBackend(SIZE, **options)

    def image(**options: int) -> Backend:
        path = tmp_path / "image"
        with path.open("wb") as file:
            file.truncate(SIZE)
        return UringBackend(str(path), **options)

    shm = Path(f"/dev/shm/nvme-mdev-test-{os.getpid()}-{id(request)}")

    def tmpfs(**options: int) -> Backend:
        with shm.open("wb") as file:
            file.truncate(SIZE)
        return UringBackend(str(shm), **options)

    def encrypted(image: Path) -> Callable[..., Backend]:
        def make(**options: int) -> Backend:
            with image.open("wb") as file:
                file.truncate(SIZE)
            return blank(str(image), **options)

        return make

    yield {
        "memory": memory,
        "file": image,
        "tmpfs": tmpfs,
        "encrypted": encrypted(tmp_path / "image"),
        "encrypted in memory": encrypted(shm),
    }[request.param]
    shm.unlink(missing_ok=True)
    shm.with_suffix(".key").unlink(missing_ok=True)


def pattern(size: int, seed: int = 1) -> bytes:
    """Data in which every 8 bytes differ."""
    return struct.pack(f"<{size // 8}Q", *range(seed << 32, (seed << 32) + size // 8))


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize("offset", [0, 512, 4, 4092])
@pytest.mark.parametrize("size", [4096, 8192, 65536, 1 << 20])
def test_what_is_written_is_read_back(
    make: Callable[..., Backend], block: int, offset: int, size: int
) -> None:
    with Guest(make(block_size=block)) as guest:
        queue = guest.queue()
        source = guest.allocate(size // PAGE + 1) + offset
        target = guest.allocate(size // PAGE + 1) + offset
        data = pattern(size)
        guest.poke(source, data)
        assert queue.io(WRITE, source, size, slba=8, block=block).status == 0
        assert queue.io(READ, target, size, slba=8, block=block).status == 0
        assert guest.peek(target, size) == data


def test_a_single_block_of_512_bytes_can_be_anywhere(make: Callable[..., Backend]) -> None:
    with Guest(make(block_size=512)) as guest:
        queue = guest.queue()
        page = guest.allocate(2)
        for lba in (0, 1, 7, 8, 12345):
            guest.poke(page, pattern(512, lba + 1))
            assert queue.io(WRITE, page, 512, slba=lba).status == 0
        for lba in (0, 1, 7, 8, 12345):
            assert queue.io(READ, page + PAGE, 512, slba=lba).status == 0
            assert guest.peek(page + PAGE, 512) == pattern(512, lba + 1)


def test_flush_and_fua_succeed(make: Callable[..., Backend]) -> None:
    with Guest(make()) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        assert queue.io(WRITE, page, 4096, slba=0, cdw12=FUA).status == 0
        assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0


@pytest.mark.parametrize("flags", [0, DEAC, FUA, DEAC | FUA])
def test_write_zeroes_zeroes_exactly_its_range(make: Callable[..., Backend], flags: int) -> None:
    with Guest(make(block_size=512)) as guest:
        queue = guest.queue()
        buffer = guest.allocate(16)
        data = pattern(65536)
        guest.poke(buffer, data)
        assert queue.io(WRITE, buffer, 65536, slba=0).status == 0
        zero = queue.command(WRITE_ZEROES, slba=3, blocks=100, cdw12=flags)
        assert queue.run(zero).status == 0
        assert queue.io(READ, buffer, 65536, slba=0).status == 0
        expected = data[: 3 * 512] + bytes(100 * 512) + data[103 * 512 :]
        assert guest.peek(buffer, 65536) == expected


@deallocating
def test_deallocated_ranges_read_as_zeroes(make: Callable[..., Backend]) -> None:
    with Guest(make(block_size=4096)) as guest:
        queue = guest.queue()
        buffer = guest.allocate(16)
        data = pattern(65536)
        guest.poke(buffer, data)
        assert queue.io(WRITE, buffer, 65536, slba=0, block=4096).status == 0
        ranges = guest.allocate(1)
        guest.poke(ranges, struct.pack("<IIQIIQIIQ", 0, 2, 1, 0, 0, 7, 0, 3, 9))
        dsm = queue.command(DSM, prp1=ranges, cdw10=2, cdw11=4)
        assert queue.run(dsm).status == 0
        assert queue.io(READ, buffer, 65536, slba=0, block=4096).status == 0
        expected = bytearray(data)
        expected[4096 : 3 * 4096] = bytes(2 * 4096)
        expected[9 * 4096 : 12 * 4096] = bytes(3 * 4096)
        assert guest.peek(buffer, 65536) == expected


@deallocating
def test_dataset_management_takes_256_ranges(make: Callable[..., Backend]) -> None:
    with Guest(make(block_size=4096)) as guest:
        queue = guest.queue()
        ranges = guest.allocate(1)
        guest.poke(ranges, b"".join(struct.pack("<IIQ", 0, 1, n * 2) for n in range(256)))
        assert queue.run(queue.command(DSM, prp1=ranges, cdw10=255, cdw11=4)).status == 0


@pytest.mark.parametrize("size", [512, 4096, 1 << 20])
def test_compare_tells_equal_from_different(make: Callable[..., Backend], size: int) -> None:
    with Guest(make(block_size=512)) as guest:
        queue = guest.queue()
        buffer = guest.allocate(size // PAGE + 1)
        guest.poke(buffer, pattern(size))
        assert queue.io(WRITE, buffer, size, slba=0).status == 0
        assert queue.io(COMPARE, buffer, size, slba=0).status == 0
        guest.poke(buffer + size - 1, b"\xff")
        assert queue.io(COMPARE, buffer, size, slba=0).status & 0x7FF == 0x285


def test_the_null_namespace_completes_everything_and_touches_nothing() -> None:
    with Guest(NullBackend(1 << 40)) as guest:
        queue = guest.queue()
        buffer = guest.allocate(1)
        guest.poke(buffer, b"\xa5" * PAGE)
        assert queue.io(WRITE, buffer, PAGE, slba=0).status == 0
        assert queue.io(READ, buffer, PAGE, slba=(1 << 31) - 8).status == 0
        assert guest.peek(buffer, PAGE) == b"\xa5" * PAGE
        assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0


def test_an_image_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        buffer = guest.allocate(16)
        guest.poke(buffer, pattern(65536))
        assert queue.io(WRITE, buffer, 65536, slba=128).status == 0
        assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0
        assert path.read_bytes()[65536 : 2 * 65536] == pattern(65536)


def test_deallocation_gives_disk_space_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xff" * SIZE)
    os.sync()
    before = path.stat().st_blocks
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        ranges = guest.allocate(1)
        guest.poke(ranges, struct.pack("<IIQ", 0, SIZE // 512, 0))
        assert queue.run(queue.command(DSM, prp1=ranges, cdw10=0, cdw11=4)).status == 0
    assert path.stat().st_blocks < before
    assert path.read_bytes() == bytes(SIZE)


def test_long_ranges_are_deallocated_to_the_byte_a_part_at_a_time(tmp_path: Path) -> None:
    mib = 1 << 20
    path = tmp_path / "image"
    ranges = [(mib, 100 * mib), (110 * mib, 512), (120 * mib, 27 * mib), (150 * mib, 130 * mib)]
    marks = [
        place
        for start, length in ranges
        for place in (start - 512, start, start + length - 512, start + length)
    ]
    # Where a part of 64 MiB ends, too.
    marks += [65 * mib - 512, 65 * mib, 216 * mib + 512, 216 * mib + 1024]
    with path.open("wb") as image:
        image.truncate(300 * mib)
        for place in marks:
            image.seek(place)
            image.write(b"\xee" * 512)
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        for at, (start, length) in enumerate(ranges):
            guest.poke(page + 16 * at, struct.pack("<IIQ", 0, length // 512, start // 512))
        command = queue.command(DSM, prp1=page, cdw10=len(ranges) - 1, cdw11=4)
        assert queue.run(command).status == 0
    with path.open("rb") as image:
        for place in marks:
            inside = any(start <= place < start + length for start, length in ranges)
            image.seek(place)
            assert image.read(512) == bytes([0 if inside else 0xEE]) * 512, place


def test_a_turn_may_bring_more_operations_than_io_uring_takes_at_a_time(tmp_path: Path) -> None:
    """2048 of them, in 8 commands: the ring has 256 entries."""
    path = tmp_path / "image"
    path.write_bytes(b"\xee" * SIZE)
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        for at in range(256):
            guest.poke(page + 16 * at, struct.pack("<IIQ", 0, 8, 16 * at))
        for _ in range(8):
            queue.put(queue.command(DSM, prp1=page, cdw10=255, cdw11=4))
        queue.ring()
        assert [queue.wait(ring=False).status for _ in range(8)] == [0] * 8
    content = path.read_bytes()
    assert content[: 512 * 8] == bytes(512 * 8)
    assert content[512 * 8 : 512 * 16] == b"\xee" * (512 * 8)


def test_a_read_only_image_refuses_every_kind_of_write(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(pattern(SIZE))
    with Guest(UringBackend(str(path), read_only=True)) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        protected = 0x4020
        assert queue.io(WRITE, page, 4096, slba=0).status == protected
        assert queue.run(queue.command(WRITE_ZEROES)).status == protected
        # No namespace deallocates anything here, so this is no command (ONCS).
        assert queue.run(queue.command(DSM, prp1=page, cdw10=0, cdw11=4)).status == 0x4001
        assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0
        assert queue.io(READ, page, 4096, slba=0).status == 0
        assert guest.peek(page, 4096) == pattern(SIZE)[:4096]


def test_a_file_that_was_cut_gives_a_media_error_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(path))) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        os.truncate(path, 1 << 20)
        assert queue.io(READ, page, 4096, slba=(4 << 20) // 512).status & 0x7FF == 0x281
        assert queue.io(READ, page, 4096, slba=0).status == 0


@pytest.mark.parametrize("size", [PAGE, 64 << 20], ids=["small", "larger than the caches"])
def test_memory_is_written_from_any_address_to_any_block(size: int) -> None:
    with Guest(MemoryBackend(size), pages=64) as guest:
        queue = guest.queue()
        source, target = guest.allocate(2), guest.allocate(2)
        for offset in (0, 4, 512, 2044):
            data = os.urandom(PAGE)
            guest.poke(source + offset, data)
            assert queue.io(WRITE, source + offset, PAGE, slba=size // 512 - 8).status == 0
            assert queue.io(READ, target + offset, PAGE, slba=size // 512 - 8).status == 0
            assert guest.peek(target + offset, PAGE) == data


def test_a_memory_namespace_of_part_of_a_page_is_resized_and_adopted() -> None:
    backend = MemoryBackend(2560)
    with Guest(backend) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        guest.poke(page, b"\xaa" * PAGE)
        assert queue.io(WRITE, page, 2560, slba=0).status == 0
        guest.table.namespaces.resize(1, 512)
        guest.table.namespaces.resize(1, 3 * PAGE)
        assert queue.io(READ, page, PAGE, slba=0).status == 0
        # What was cut off has not come back.
        assert guest.peek(page, PAGE) == b"\xaa" * 512 + bytes(PAGE - 512)
        guest.table.namespaces.resize(1, 1024)
        kept = os.dup(backend.fd)
    adopted = MemoryBackend(2560, fd=kept)
    assert adopted.size == 1024
    adopted.close()


def free_huge_pages() -> int:
    pages = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    return int((pages / "free_hugepages").read_text()) if pages.exists() else 0


@pytest.mark.skipif(free_huge_pages() < 4, reason="no huge pages are reserved")
def test_a_memory_namespace_in_huge_pages_keeps_them_and_its_size() -> None:
    size = (2 << 20) + 512
    backend = MemoryBackend(size, huge_pages=True)
    with Guest(backend) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        guest.poke(page, b"\xaa" * PAGE)
        assert queue.io(WRITE, page, PAGE, slba=0).status == 0
        assert queue.run(queue.command(WRITE_ZEROES, blocks=8, cdw12=DEAC)).status == 0
        assert queue.io(READ, page, PAGE, slba=0).status == 0
        assert guest.peek(page, PAGE) == bytes(PAGE)
        assert backend.size == size
        kept = os.dup(backend.fd)
    adopted = MemoryBackend(size, fd=kept, huge_pages=True)
    assert adopted.size == size
    adopted.close()


def test_deallocating_a_memory_namespace_in_huge_pages_changes_nothing() -> None:
    """Its pages are not given back, and zeroing them would only take long."""
    fd = os.memfd_create("namespace")  # adopted as one of huge pages: there may be none
    os.ftruncate(fd, 2 << 20)
    os.lseek(fd, 2 << 20, os.SEEK_SET)  # where such a backend keeps its size
    with Guest(MemoryBackend(2 << 20, fd=fd, huge_pages=True)) as guest:
        queue = guest.queue()
        buffer, ranges = guest.allocate(16), guest.allocate(1)
        guest.poke(buffer, pattern(65536))
        assert queue.io(WRITE, buffer, 65536, slba=0).status == 0
        guest.poke(ranges, struct.pack("<IIQ", 0, 4096, 0) * 256)
        assert queue.run(queue.command(DSM, prp1=ranges, cdw10=255, cdw11=4)).status == 0
        guest.poke(buffer, bytes(65536))
        assert queue.io(READ, buffer, 65536, slba=0).status == 0
        assert guest.peek(buffer, 65536) == pattern(65536)


def test_huge_pages_that_are_not_there_are_refused() -> None:
    with pytest.raises(OSError, match="memory"):
        MemoryBackend(1 << 46, huge_pages=True)
