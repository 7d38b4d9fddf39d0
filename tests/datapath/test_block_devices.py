"""Real block devices (loop devices on a file): claimed, flushed, written through, discarded."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.uring import UringBackend

from .guest import (
    DSM,
    FID_VOLATILE_WRITE_CACHE,
    FLUSH,
    READ,
    WRITE,
    WRITE_ZEROES,
    Guest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 16 << 20
FUA = 1 << 30

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")


@contextmanager
def loop_device(image: Path, *options: str) -> Iterator[str]:
    """A loop device on the image, detached at the end."""
    device = subprocess.run(
        ["losetup", "--find", "--show", *options, str(image)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        yield device
    finally:
        # A test that failed may have left it read-only, which outlives the detaching.
        subprocess.run(["blockdev", "--setrw", device], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"\xff" * SIZE)
    return path


@pytest.fixture
def device(image: Path) -> Iterator[str]:
    with loop_device(image) as path:
        yield path


def flushes(device: str) -> int:
    """Flush requests that the device has completed (Documentation/block/stat)."""
    return int(Path(f"/sys/block/{Path(device).name}/stat").read_text().split()[15])


def read_device(device: str, offset: int, size: int) -> bytes:
    with Path(device).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file.fileno(), size, offset)


@pytest.mark.parametrize("sectors", [512, 4096])
def test_data_goes_to_the_device_and_back(image: Path, sectors: int) -> None:
    with (
        loop_device(image, "--sector-size", str(sectors)) as device,
        Guest(UringBackend(device)) as guest,
    ):
        assert guest.backends[0].block_size == sectors
        queue = guest.queue()
        buffer = guest.allocate(64)
        guest.poke(buffer, bytes(range(256)) * 512)
        assert queue.io(WRITE, buffer, 131072, slba=8, block=sectors).status == 0
        target = guest.allocate(64)
        assert queue.io(READ, target, 131072, slba=8, block=sectors).status == 0
        assert guest.peek(target, 131072) == bytes(range(256)) * 512
    assert read_device(str(image), 8 * sectors, 131072) == bytes(range(256)) * 512


def test_a_device_is_claimed_while_it_is_served(device: str) -> None:
    backend = UringBackend(device)
    with pytest.raises(OSError, match="served already") as caught:
        UringBackend(device)
    assert caught.value.errno == errno.EBUSY
    backend.close()
    UringBackend(device).close()


def test_blocks_smaller_than_the_devices_are_refused(image: Path) -> None:
    with (
        loop_device(image, "--sector-size", "4096") as device,
        pytest.raises(ValueError, match="blocks of 4096"),
    ):
        UringBackend(device, block_size=512)


def test_a_read_only_device_is_served_only_read_only(image: Path) -> None:
    with loop_device(image, "--read-only") as device:
        with pytest.raises(OSError, match="ead-only") as caught:
            UringBackend(device)
        assert caught.value.errno in (errno.EROFS, errno.EACCES)
        backend = UringBackend(device, read_only=True)
        assert backend.read_only
        backend.close()


def test_a_flush_reaches_the_device(device: str) -> None:
    with Guest(UringBackend(device)) as guest:
        queue = guest.queue()
        before = flushes(device)
        assert queue.io(WRITE, guest.allocate(1), 4096, slba=0).status == 0
        assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0
        assert flushes(device) == before + 1


def test_a_flush_of_all_namespaces_reaches_a_device_whatever_its_nsid(device: str) -> None:
    nsid = 4_000_000_000
    with Guest(MemoryBackend(1 << 20), max_nsid=nsid) as guest:
        backend = UringBackend(device)
        guest.backends = (*guest.backends, backend)
        guest.table.namespaces.set(nsid, backend)
        queue = guest.queue()
        before = flushes(device)
        write = queue.command(WRITE, nsid=nsid, prp1=guest.allocate(1))
        assert queue.run(write).status == 0
        assert queue.run(queue.command(FLUSH, nsid=0xFFFFFFFF, cdw10=0)).status == 0
        assert flushes(device) == before + 1


def test_a_write_is_durable_with_fua_or_without_a_write_cache_and_else_is_not(device: str) -> None:
    with Guest(UringBackend(device)) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        before = flushes(device)
        assert queue.io(WRITE, page, 4096, slba=0).status == 0
        assert flushes(device) == before
        assert queue.io(WRITE, page, 4096, slba=0, cdw12=FUA).status == 0
        assert flushes(device) == before + 1
        assert queue.run(queue.command(WRITE_ZEROES, blocks=8, cdw12=FUA)).status == 0
        assert flushes(device) == before + 2
        guest.state.features[FID_VOLATILE_WRITE_CACHE] = 0
        assert queue.io(WRITE, page, 4096, slba=0).status == 0
        assert flushes(device) == before + 3


def test_deallocation_is_a_discard(image: Path, device: str) -> None:
    before = image.stat().st_blocks
    with Guest(UringBackend(device)) as guest:
        assert guest.backends[0].can_deallocate
        queue = guest.queue()
        ranges = guest.allocate(1)
        guest.poke(ranges, struct.pack("<IIQIIQ", 0, 8192, 0, 0, 8192, 16384))
        assert queue.run(queue.command(DSM, prp1=ranges, cdw10=1, cdw11=4)).status == 0
        os.sync()
    assert image.stat().st_blocks < before
    assert read_device(str(image), 4 << 20, 4096) == b"\xff" * 4096


@pytest.mark.parametrize("deallocate", [0, 1 << 25])
def test_write_zeroes_zeroes_the_device(device: str, deallocate: int) -> None:
    with Guest(UringBackend(device)) as guest:
        queue = guest.queue()
        zero = queue.command(WRITE_ZEROES, slba=1, blocks=4096, cdw12=deallocate)
        assert queue.run(zero).status == 0
        page = guest.allocate(1)
        assert queue.io(READ, page, 4096, slba=0).status == 0
        assert guest.peek(page, 4096) == b"\xff" * 512 + bytes(3584)


def test_a_device_that_fails_reports_a_media_error(tmp_path: Path) -> None:
    """The loop device's file is cut under it: the kernel gives EIO."""
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    with loop_device(image) as device, Guest(UringBackend(device)) as guest:
        os.truncate(image, 4096)
        queue = guest.queue()
        page = guest.allocate(1)
        assert queue.io(READ, page, 4096, slba=16384).status & 0x7FF == 0x281
        assert queue.io(READ, page, 4096, slba=0).status == 0


# -- parts of a device -------------------------------------------------------------------------

MIB = 1 << 20


@pytest.fixture
def partitions(device: str) -> Iterator[str]:
    """The loop device with two partitions: at 1 MiB, 4 MiB long, and at 8 MiB, 2 MiB long."""
    for number, start, sectors in (("1", "2048", "8192"), ("2", "16384", "4096")):
        subprocess.run(["addpart", device, number, start, sectors], check=True)
        node = Path(f"{device}p{number}")
        if not node.exists():  # no udev here
            numbers = Path(f"/sys/class/block/{node.name}/dev").read_text().split(":")
            os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(*map(int, numbers)))
    yield device
    for number in ("1", "2"):
        subprocess.run(["delpart", device, number], check=True)
        Path(f"{device}p{number}").unlink(missing_ok=True)


def test_a_partition_is_served_alone_and_its_neighbour_can_be_too(
    image: Path, partitions: str
) -> None:
    first, second = UringBackend(f"{partitions}p1"), UringBackend(f"{partitions}p2")
    with Guest(first, second) as guest:
        assert (first.size, second.size) == (4 * MIB, 2 * MIB)
        queue = guest.queue()
        page = guest.allocate(1)
        guest.poke(page, b"1" * 4096)
        assert queue.io(WRITE, page, 4096, slba=0).status == 0
        guest.poke(page, b"2" * 4096)
        assert queue.io(WRITE, page, 4096, slba=4088, nsid=2).status == 0
        assert queue.io(WRITE, page, 4096, slba=4089, nsid=2).status & 0x7FF == 0x80
        with pytest.raises(OSError, match="busy") as refused:
            UringBackend(partitions)
        assert refused.value.errno == errno.EBUSY
    content = image.read_bytes()
    assert content[MIB : MIB + 4096] == b"1" * 4096
    assert content[10 * MIB - 4096 : 10 * MIB] == b"2" * 4096
    assert content[10 * MIB :] == b"\xff" * (6 * MIB)


def test_parts_of_one_device_share_the_claim_and_only_where_they_do_not_overlap(
    image: Path, device: str
) -> None:
    first = UringBackend(device, offset=MIB, length=MIB)
    second = UringBackend(device, offset=2 * MIB)
    for offset, length in ((0, 2 * MIB), (MIB, 512), (15 * MIB, MIB), (0, None)):
        with pytest.raises(OSError, match="served already") as refused:
            UringBackend(device, offset=offset, length=length)
        assert refused.value.errno == errno.EBUSY
    with Guest(first, second) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        for nsid in (1, 2):
            guest.poke(page, b"%d" % nsid * 4096)
            assert queue.io(WRITE, page, 4096, slba=8, nsid=nsid).status == 0
            assert queue.run(queue.command(WRITE_ZEROES, blocks=1, nsid=nsid)).status == 0
            ranges = guest.allocate(1)
            guest.poke(ranges, struct.pack("<IIQ", 0, 8, 128))
            deallocate = queue.command(DSM, prp1=ranges, cdw10=0, cdw11=4, nsid=nsid)
            assert queue.run(deallocate).status == 0
        with pytest.raises(OSError, match="busy") as refused:
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
        assert refused.value.errno == errno.EBUSY
    # With the last of them the claim is gone.
    os.close(os.open(device, os.O_RDWR | os.O_EXCL))
    expected = bytearray(b"\xff" * SIZE)
    for nsid, start in ((1, MIB), (2, 2 * MIB)):
        expected[start : start + 512] = bytes(512)
        expected[start + 4096 : start + 8192] = b"%d" % nsid * 4096
        expected[start + 65536 : start + 65536 + 4096] = bytes(4096)
    assert read_device(str(image), 0, SIZE) == bytes(expected)


def test_an_offset_that_direct_io_does_not_have_goes_through_the_buffered_descriptor(
    image: Path,
) -> None:
    with (
        loop_device(image, "--sector-size", "4096") as device,
        Guest(UringBackend(device, offset=4096, block_size=4096)) as guest,
    ):
        queue = guest.queue()
        page = guest.allocate(1)
        guest.poke(page, b"x" * 4096)
        assert queue.io(WRITE, page, 4096, slba=1, block=4096).status == 0
    assert image.read_bytes()[8192:12288] == b"x" * 4096
    with pytest.raises(ValueError, match="not a multiple of the block size"):
        UringBackend(str(image), offset=512, block_size=4096)


def test_a_device_that_becomes_read_only_says_so(device: str) -> None:
    backend = UringBackend(device)
    try:
        assert not backend.medium_read_only()
        subprocess.run(["blockdev", "--setro", device], check=True)
        assert backend.medium_read_only()
        subprocess.run(["blockdev", "--setrw", device], check=True)
        assert not backend.medium_read_only()
    finally:
        backend.close()


def test_a_device_without_a_medium_is_gone(image: Path, device: str) -> None:
    backend = UringBackend(device)
    try:
        os.truncate(image, 0)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        with pytest.raises(OSError, match="nothing is left"):
            backend.medium_size()
    finally:
        backend.close()
