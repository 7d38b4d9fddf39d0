"""Partition tables that our driver reads by itself."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host.errors import HostError
from nvme_mdev.host.partitions import Extent, find_partition

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS = 20000


class Disk:
    """A drive as bytes."""

    def __init__(self, block_size: int = 512) -> None:
        self.block_size = block_size
        self.data = bytearray(BLOCKS * block_size)

    def read(self, slba: int, blocks: int) -> bytes:
        assert slba + blocks <= BLOCKS
        return bytes(self.data[slba * self.block_size : (slba + blocks) * self.block_size])

    def put(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def find(self, number: int) -> Extent:
        return find_partition(number, self.block_size, BLOCKS, self.read)

    def gpt(self, partitions: dict[int, tuple[int, int]], lba: int, entries_lba: int) -> None:
        table = bytearray(128 * 128)
        for number, (first, last) in partitions.items():
            entry = struct.pack("<16s16sQQ", b"\x01" * 16, b"\x02" * 16, first, last)
            table[(number - 1) * 128 : (number - 1) * 128 + len(entry)] = entry
        fields = (b"EFI PART", b"\0\0\x01\0", 92)
        rest = (lba, BLOCKS - lba, 34, BLOCKS - 34, b"", entries_lba, 128, 128, zlib.crc32(table))
        blank = struct.pack("<8s4sII4xQQQQ16sQIII", *fields, 0, *rest)
        header = struct.pack("<8s4sII4xQQQQ16sQIII", *fields, zlib.crc32(blank), *rest)
        self.put(lba * self.block_size, header)
        self.put(entries_lba * self.block_size, bytes(table))


def mbr(*entries: tuple[int, int, int]) -> bytes:
    packed = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return packed.ljust(64, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_guid_partition_table(block_size: int) -> None:
    disk = Disk(block_size)
    disk.put(446, mbr((0xEE, 1, BLOCKS - 1)))
    disk.gpt({1: (2048, 4095), 3: (4096, 4096)}, 1, 2)
    assert disk.find(1) == Extent(2048, 2048)
    assert disk.find(3) == Extent(4096, 1)
    with pytest.raises(HostError, match="no partition p2: there are p1, p3"):
        disk.find(2)


def test_the_copy_at_the_end_is_taken_when_the_table_is_damaged() -> None:
    disk = Disk()
    disk.gpt({1: (2048, 4095)}, 1, 2)
    disk.gpt({1: (2048, 4095)}, BLOCKS - 1, BLOCKS - 33)
    disk.put(1024 + 32, b"\xff")
    assert disk.find(1) == Extent(2048, 2048)


def test_a_master_boot_record() -> None:
    disk = Disk()
    disk.put(446, mbr((0x83, 2048, 100), (0, 0, 0), (0x83, 4096, 50), (0x05, 8192, 100)))
    assert disk.find(1) == Extent(2048, 100)
    assert disk.find(3) == Extent(4096, 50)
    with pytest.raises(HostError, match="there are p1, p3"):
        disk.find(4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda disk: disk.put(512 + 16, b"\0\0\0\0"),
        lambda disk: disk.put(512 + 12, b"\xff\xff\xff\xff"),
        lambda disk: disk.put(512 + 80, b"\xff\xff\xff\xff"),
        lambda disk: disk.put(512, bytes(512)),
    ],
)
def test_a_damaged_table_has_no_partitions(damage: Callable[[Disk], None]) -> None:
    disk = Disk()
    disk.gpt({1: (2048, 4095)}, 1, 2)
    damage(disk)
    with pytest.raises(HostError, match="there are none"):
        disk.find(1)


@pytest.mark.parametrize(
    "extent", [(2048, BLOCKS), (BLOCKS + 5, BLOCKS + 9), (100, 99), (0, 2**64 - 1)]
)
def test_a_partition_that_does_not_lie_in_the_namespace(extent: tuple[int, int]) -> None:
    disk = Disk()
    disk.gpt({1: extent}, 1, 2)
    with pytest.raises(HostError, match="does not lie in its namespace"):
        disk.find(1)
