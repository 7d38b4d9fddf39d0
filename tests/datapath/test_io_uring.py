"""What io_uring is asked for besides moving data: registered memory, cancellation, full disks."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.medium import _alignments, open_medium
from nvme_mdev.datapath.backends.uring import UringBackend
from tests.encryption import blank

from .guest import FLUSH, PAGE, READ, WRITE, Guest, wait_for
from .test_block_devices import loop_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .guest import QueuePair

MIB = 1 << 20
SIZE = 16 * MIB
CAPACITY_EXCEEDED = 0x4081
ABORT_REQUESTED = 0x007
NOT_READY = 0x082

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def registered_bytes() -> int:
    """Bytes of memory that this process's io_urings have registered, by their fdinfo."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "io_uring" in str(link.readlink()):
                info = Path(f"/proc/self/fdinfo/{link.name}").read_text()
                total += sum(int(size) for size in re.findall(r"0x[0-9a-f]+/(\d+)", info))
        except FileNotFoundError:
            continue
    return total


@as_root  # others have a small limit of locked memory
def test_guest_memory_is_registered_as_it_is_used_and_released_with_its_mapping(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with Guest(UringBackend(str(path)), pages=16384) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        assert registered_bytes() == 0
        assert queue.io(WRITE, page, PAGE, slba=0).status == 0
        first = registered_bytes()
        assert 0 < first <= guest.size // 2
        for _ in range(3):
            assert queue.io(READ, page, PAGE, slba=0).status == 0
        assert registered_bytes() == first
        guest.next_page = 12000
        assert queue.io(READ, guest.allocate(1), PAGE, slba=0).status == 0
        assert registered_bytes() == 2 * first
        assert guest.table.dma.try_unmap_all() == guest.size
        assert registered_bytes() == 0


@contextmanager
def small_file_system(tmp_path: Path, sectors: int = 512) -> Iterator[Path]:
    """A small ext4 of its own, mounted."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    with loop_device(disk, "--sector-size", str(sectors)) as device:
        subprocess.run(["mkfs.ext4", "-q", "-m0", "-b4096", device], check=True)
        subprocess.run(["mount", device, str(mount_point)], check=True)
        try:
            yield mount_point
        finally:
            subprocess.run(["umount", str(mount_point)], check=True)


@as_root
def test_a_full_disk_is_capacity_exceeded_and_what_was_flushed_stays(tmp_path: Path) -> None:
    with small_file_system(tmp_path) as mount_point:
        image = mount_point / "image"
        with image.open("wb") as file:
            file.truncate(256 << 20)
        with Guest(UringBackend(str(image))) as guest:
            queue = guest.queue()
            buffer = guest.allocate(256)
            guest.poke(buffer, b"\x5a" * (1 << 20))
            statuses = []
            for megabyte in range(40):
                statuses.append(queue.io(WRITE, buffer, 1 << 20, slba=megabyte * 2048).status)
                if not statuses[-1]:
                    assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0
            assert set(statuses) == {0, CAPACITY_EXCEEDED}
            good = statuses.index(CAPACITY_EXCEEDED)
            assert queue.io(READ, buffer, 1 << 20, slba=0).status == 0
        with image.open("rb") as file:
            assert file.read(good << 20) == b"\x5a" * (good << 20)


class Frozen:
    """A guest with a write under way that cannot end before `thaw`: its file system is frozen."""

    def __init__(self, guest: Guest, mount_point: Path) -> None:
        self.guest, self.mount_point = guest, mount_point
        self.queue = guest.queue()
        self.frozen = True
        subprocess.run(["fsfreeze", "--freeze", str(mount_point)], check=True)
        self.queue.put(self.queue.command(WRITE, prp1=guest.allocate(1)))
        self.cid = self.queue.cid
        self.queue.ring()

    def thaw(self) -> None:
        if self.frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.mount_point)], check=True)
            self.frozen = False


@pytest.fixture(params=["plain", "encrypted"])
def frozen(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Frozen]:
    with small_file_system(tmp_path) as mount_point:
        image = mount_point / "image"
        image.write_bytes(bytes(1 << 20))
        backend = (blank if request.param == "encrypted" else UringBackend)(str(image))
        os.sync()
        with Guest(backend) as guest:
            made = Frozen(guest, mount_point)
            try:
                wait_for(lambda: guest.table.inflight() == 1, "the write to be under way")
                yield made
            finally:
                made.thaw()


@as_root
@pytest.mark.parametrize("frozen", ["plain"], indirect=True)
def test_misaligned_writes_beyond_what_is_copied_at_a_time_are_to_be_tried_again(
    frozen: Frozen,
) -> None:
    with (frozen.mount_point / "image").open("rb") as image:
        if _alignments(image.fileno(), 512)[0] <= 4:
            pytest.skip("direct I/O takes all that a PRP can name")
    guest, queue = frozen.guest, frozen.queue
    prp1, prp2 = guest.prps(guest.allocate(257) + 4, MIB)

    def write() -> bytes:
        return queue.command(WRITE, blocks=MIB // 512, prp1=prp1, prp2=prp2)

    for _ in range(34):
        queue.put(write())
    queue.ring()
    assert [queue.wait().status for _ in range(2)] == [NOT_READY] * 2
    frozen.thaw()
    assert [queue.wait().status for _ in range(33)] == [0] * 33
    assert queue.run(write()).status == 0


@as_root
def test_an_expired_command_is_reported_once_and_ends_when_it_can(frozen: Frozen) -> None:
    """Whether the kernel can still cancel it there depends on how far it has come."""
    table = frozen.guest.table
    assert table.cancel_expired(60000) == []
    time.sleep(0.02)
    assert table.cancel_expired(10) == [(1, frozen.cid)]
    assert table.cancel_expired(10) == []
    frozen.thaw()
    completion = frozen.queue.wait()
    assert completion.cid == frozen.cid
    assert completion.status in (0, ABORT_REQUESTED)


def crowd(frozen: Frozen) -> QueuePair:
    """A queue with 100 writes, of which 63 have a buffer."""
    guest, queue = frozen.guest, frozen.guest.queue(2, 128)
    for _ in range(100):
        queue.put(queue.command(WRITE, slba=8, prp1=guest.allocate(1)))
    queue.ring()
    wait_for(lambda: guest.table.inflight() == 101, "the writes to be under way")
    return queue


@as_root
@pytest.mark.parametrize("frozen", ["encrypted"], indirect=True)
def test_a_command_that_waits_for_a_buffer_can_be_aborted(frozen: Frozen) -> None:
    queue = crowd(frozen)
    assert frozen.guest.table.abort_command(2, queue.cid)
    frozen.thaw()
    completions = [queue.wait() for _ in range(100)]
    statuses = {one.cid: one.status for one in completions}
    assert {cid for cid, status in statuses.items() if status} == {queue.cid}
    assert statuses[queue.cid] == ABORT_REQUESTED


@as_root
@pytest.mark.parametrize("frozen", ["encrypted"], indirect=True)
def test_commands_that_expire_while_they_wait_for_a_buffer_end_with_that(frozen: Frozen) -> None:
    guest, queue = frozen.guest, crowd(frozen)
    time.sleep(0.02)
    assert len(guest.table.cancel_expired(10)) == 101
    frozen.thaw()
    statuses = [queue.wait().status for _ in range(100)]
    # How far those with a buffer had come is up to the kernel.
    assert statuses.count(ABORT_REQUESTED) >= 100 - 63
    assert set(statuses) <= {0, ABORT_REQUESTED}
    assert queue.run(queue.command(WRITE, prp1=guest.allocate(1))).status == 0


@as_root
def test_memory_in_use_by_the_kernel_is_not_unmapped_and_giving_up_goes_on(frozen: Frozen) -> None:
    guest, queue = frozen.guest, frozen.queue
    assert guest.table.dma.try_unmap_all() is None
    queue.put(queue.command(READ, prp1=guest.allocate(1)))
    queue.ring()
    time.sleep(0.02)
    assert queue.poll() is None, "the queue is held for the unmapping"
    guest.table.dma.give_up_unmap()
    assert queue.wait().cid == queue.cid
    frozen.thaw()
    assert queue.wait().cid == frozen.cid


def write_uncached(path: Path, size: int) -> None:
    """An image of zeroes, none of it in the page cache; skips where there is no direct I/O."""
    with path.open("wb") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    medium = open_medium(str(path), read_only=False)
    medium.close()
    if medium.direct_fd is None:
        pytest.skip("no direct I/O here")
    assert cached_pages(path) == []


def cached_pages(path: Path) -> list[int]:
    """The pages of a file that are in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        pages = (ctypes.c_ubyte * (len(memory) // PAGE))()
        start = ctypes.c_char.from_buffer(memory)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(memory)), pages)
        del start
        assert failed == 0
    return [page for page, flags in enumerate(pages) if flags & 1]


def test_a_write_from_misaligned_memory_leaves_nothing_in_the_page_cache(tmp_path: Path) -> None:
    """It is direct, as its neighbours in a page are: the kernel does not keep both coherent."""
    path = tmp_path / "image"
    write_uncached(path, MIB)
    data = os.urandom(16 * PAGE)
    with Guest(UringBackend(str(path), block_size=4096)) as guest:
        queue = guest.queue()
        buffer = guest.allocate(17) + 4
        guest.poke(buffer, data)
        assert queue.io(WRITE, buffer, PAGE, slba=1, block=4096).status == 0
        assert queue.io(WRITE, buffer, 16 * PAGE, slba=8, block=4096).status == 0
        assert cached_pages(path) == []
    image = path.read_bytes()
    assert image[PAGE : 2 * PAGE] == data[:PAGE]
    assert image[8 * PAGE : 24 * PAGE] == data


@as_root
@pytest.mark.parametrize(("block", "cached"), [(512, [1, 8, 9, 10, 11]), (4096, [])])
def test_all_is_buffered_where_blocks_are_smaller_than_direct_io_wants(
    tmp_path: Path, block: int, cached: list[int]
) -> None:
    with small_file_system(tmp_path, sectors=4096) as mount_point:
        path = mount_point / "image"
        write_uncached(path, MIB)
        data = os.urandom(4 * PAGE)
        with Guest(UringBackend(str(path), block_size=block)) as guest:
            queue = guest.queue()
            buffer = guest.allocate(5)
            for offset, page, size in ((0, 1, PAGE), (4, 8, 4 * PAGE)):
                guest.poke(buffer + offset, data)
                slba = page * PAGE // block
                assert queue.io(WRITE, buffer + offset, size, slba=slba, block=block).status == 0
            assert cached_pages(path) == cached
        image = path.read_bytes()
        assert image[PAGE : 2 * PAGE] == data[:PAGE]
        assert image[8 * PAGE : 12 * PAGE] == data
