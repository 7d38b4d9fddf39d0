"""I/O within the system call, for media that answer at once: which these are, and for how long."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.uring import UringBackend

from .guest import PAGE, READ, WRITE, Guest, QueuePair, wait_for
from .test_block_devices import loop_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 16 << 20
FUA = 1 << 30
TMPFS = Path("/dev/shm")
ZRAM = Path("/sys/class/zram-control")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="block devices need root")


@contextmanager
def zram_device() -> Iterator[str]:
    """A zram device of its own."""
    number = int((ZRAM / "hot_add").read_text())
    device = Path("/sys/block") / f"zram{number}"
    node = Path(f"/dev/zram{number}")
    try:
        (device / "disksize").write_text(str(SIZE))
        if not node.exists():
            major, minor = map(int, (device / "dev").read_text().split(":"))
            os.mknod(node, 0o600 | 0o060000, os.makedev(major, minor))
        yield str(node)
    finally:
        (ZRAM / "hot_remove").write_text(str(number))
        node.unlink(missing_ok=True)


@pytest.fixture
def memory_file(tmp_path: Path) -> Iterator[Path]:
    path = TMPFS / f"nvme-mdev-{os.getpid()}-{tmp_path.name}"
    path.write_bytes(bytes(SIZE))
    yield path
    path.unlink()


def io_uring_operations() -> int:
    """SQEs that this process's io_urings have ever been given, by their fdinfo."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "io_uring" in str(link.readlink()):
                info = Path(f"/proc/self/fdinfo/{link.name}").read_text()
                total += next(
                    int(line.split()[1], 0)
                    for line in info.splitlines()
                    if line.startswith("SqTail:")
                )
        except FileNotFoundError:
            continue
    return total


def write_and_read(guest: Guest, queue: QueuePair, size: int, block: int = 512) -> None:
    """Data goes there and comes back, to other pages than it came from."""
    data = os.urandom(size)
    first = guest.allocate(size // PAGE)
    second = guest.allocate(size // PAGE)
    guest.poke(first, data)
    assert queue.io(WRITE, first, size, slba=8, block=block).status == 0
    assert queue.io(WRITE, first, size, slba=8, block=block, cdw12=FUA).status == 0
    assert queue.io(READ, second, size, slba=8, block=block).status == 0
    assert guest.peek(second, size) == data


def test_a_file_in_memory_is_read_and_written_without_io_uring(memory_file: Path) -> None:
    with Guest(UringBackend(str(memory_file))) as guest:
        queue = guest.queue()
        write_and_read(guest, queue, PAGE)
        write_and_read(guest, queue, 4 * PAGE)
        assert io_uring_operations() == 0
        assert memory_file.read_bytes()[8 * 512 : 8 * 512 + PAGE] != bytes(PAGE)


@pytest.mark.parametrize("processors", [1, 2, 3, 64])
def test_long_io_that_is_no_copy_goes_through_io_uring_where_its_workers_have_processors(
    memory_file: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    memory_file.write_bytes(b"")
    os.truncate(memory_file, SIZE)
    with Guest(UringBackend(str(memory_file))) as guest:
        queue = guest.queue()
        write_and_read(guest, queue, 4 * PAGE)
        assert io_uring_operations() == 0
        write_and_read(guest, queue, 32 * PAGE)
        assert (io_uring_operations() >= 3) is (processors > 2)


@as_root
@pytest.mark.skipif(not ZRAM.exists(), reason="no zram here")
def test_a_zram_device_is_read_and_written_without_io_uring() -> None:
    with zram_device() as device, Guest(UringBackend(device)) as guest:
        write_and_read(guest, guest.queue(), PAGE, block=PAGE)
        assert io_uring_operations() == 0


@as_root
def test_a_device_with_a_queue_goes_through_io_uring(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    with loop_device(image) as device, Guest(UringBackend(device)) as guest:
        write_and_read(guest, guest.queue(), PAGE)
        assert io_uring_operations() >= 3


def test_a_sparse_image_on_disk_goes_through_io_uring_though_holes_answer_at_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
    backend = UringBackend(str(path))
    try:
        assert not backend.inline_io
    finally:
        backend.close()


@pytest.mark.parametrize("wanted", [True, False])
def test_the_user_decides(memory_file: Path, wanted: bool) -> None:
    with Guest(UringBackend(str(memory_file), inline_io=wanted)) as guest:
        write_and_read(guest, guest.queue(), PAGE)
        assert (io_uring_operations() == 0) is wanted


def test_only_the_part_that_is_served_is_touched(memory_file: Path) -> None:
    backend = UringBackend(str(memory_file), offset=1 << 20, length=1 << 20)
    with Guest(backend) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        guest.poke(page, b"\xaa" * PAGE)
        assert queue.io(WRITE, page, PAGE, slba=0).status == 0
        assert io_uring_operations() == 0
    content = memory_file.read_bytes()
    assert content[1 << 20 : (1 << 20) + PAGE] == b"\xaa" * PAGE
    assert content.count(b"\xaa") == PAGE


@contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[None]:
    """Call it again and again meanwhile."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            function()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_medium_that_makes_the_thread_wait_goes_back_to_io_uring(memory_file: Path) -> None:
    backend = UringBackend(str(memory_file), length=1 << 20)
    fd = os.open(memory_file, os.O_RDWR)
    block = bytes(8 << 20)
    with Guest(backend) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        assert backend.inline_pauses == 0
        # While somebody else writes to the file, writing to it means to wait for its lock, where it
        # is no copy.
        with in_thread(lambda: os.pwrite(fd, block, 2 << 20)):

            def made_to_wait() -> bool:
                assert queue.io(WRITE, page, PAGE, slba=0, cdw12=FUA).status == 0
                return io_uring_operations() > 0

            wait_for(made_to_wait, "a write that has to wait")
        assert backend.inline_pauses > 0
    os.close(fd)
