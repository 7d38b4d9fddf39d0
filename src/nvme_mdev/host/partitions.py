"""Partition tables, read through the driver, for a drive that the host's kernel does not see.

GUID Partition Table (UEFI Specification 2.x, section 5.3) and the four primary partitions of a
master boot record. Numbers are those that Linux gives.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

_GPT_SIGNATURE = b"EFI PART"
_GPT_HEADER = struct.Struct("<8s4sII4xQQQQ16sQIII")
"""Signature, revision, header size, its CRC, own LBA, other LBA, first and last usable LBA, GUID,
LBA of the entries, their number, their size, their CRC."""
_GPT_ENTRY = struct.Struct("<16s16sQQ")
"""Type (zero: unused), GUID, first LBA, last LBA."""
_CRC_OFFSET = 16
_MAX_ENTRIES_SIZE = 1 << 20
"""Bytes; 128 entries of 128 bytes are usual."""
_MBR_SIGNATURE = b"\x55\xaa"
_MBR_TABLE = 446
_MBR_ENTRY = struct.Struct("<4xB3xII")
"""Type (0: unused), first sector, sectors."""
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)


class Extent(NamedTuple):
    """A partition's place."""

    start: int
    """First logical block."""
    blocks: int


def find_partition(
    number: int, block_size: int, blocks: int, read: Callable[[int, int], bytes]
) -> Extent:
    """The partition of this number; HostError: there is none, or the table makes no sense.

    ``read(slba, blocks)`` reads logical blocks of ``block_size`` bytes; there are ``blocks``.
    """
    table = _gpt(block_size, blocks, read) or _mbr(read(0, 1))
    if number not in table:
        there = ", ".join(f"p{one}" for one in sorted(table)) or "none"
        raise HostError(f"there is no partition p{number}: there are {there}")
    extent = table[number]
    if extent.blocks <= 0 or extent.start + extent.blocks > blocks:
        raise HostError(f"partition p{number} does not lie in its namespace: repair the table")
    return extent


def _gpt(block_size: int, blocks: int, read: Callable[[int, int], bytes]) -> dict[int, Extent]:
    """Of the header at the beginning, or else at the end; empty: there is no table."""
    for lba in (1, blocks - 1):
        header = read(lba, 1)
        entries = _gpt_entries(header, block_size, blocks, read)
        if entries is not None:
            return entries
    return {}


def _gpt_entries(
    header: bytes, block_size: int, blocks: int, read: Callable[[int, int], bytes]
) -> dict[int, Extent] | None:
    """What a valid header leads to; None: it is none."""
    fields = _GPT_HEADER.unpack_from(header)
    signature, size, crc = fields[0], fields[2], fields[3]
    lba, number, entry_size, entries_crc = fields[9:13]
    if signature != _GPT_SIGNATURE or not _GPT_HEADER.size <= size <= len(header):
        return None
    blank = header[:_CRC_OFFSET] + bytes(4) + header[_CRC_OFFSET + 4 : size]
    length = number * entry_size
    if zlib.crc32(blank) != crc or entry_size < 128 or not 0 < length <= _MAX_ENTRIES_SIZE:
        return None
    count = -(-length // block_size)
    if lba + count > blocks:
        return None
    table = b"".join(read(lba + at, 1) for at in range(count))[:length]
    if zlib.crc32(table) != entries_crc:
        return None
    found = {}
    for index in range(number):
        kind, _, first, last = _GPT_ENTRY.unpack_from(table, index * entry_size)
        if any(kind):
            found[index + 1] = Extent(first, last - first + 1)
    return found


def _mbr(block: bytes) -> dict[int, Extent]:
    if block[510:512] != _MBR_SIGNATURE:
        return {}
    found = {}
    for index in range(4):
        kind, first, sectors = _MBR_ENTRY.unpack_from(block, _MBR_TABLE + 16 * index)
        if kind and kind != _PROTECTIVE and kind not in _EXTENDED:
            # Linux counts these in logical blocks, whatever their size.
            found[index + 1] = Extent(first, sectors)
    return found
