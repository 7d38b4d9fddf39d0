"""Real block devices (loop devices on a file): claimed, flushed, written through, discarded."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
    with pytest.raises(OSError, match="busy") as caught:
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
