"""DMA memory: windows of shared memory that the controller sees, and what is laid out in them.

A window is a memfd, mapped here and sent to the controller with VFIO_USER_DMA_MAP. An IOVA is not
the address in this process, on purpose: a controller that mixes the two up is found out.

PRP entries and lists: NVMe Base 2.x, section 4.3.1.
"""

from __future__ import annotations

import mmap
import os
from bisect import insort
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host.errors import DmaMemoryError
from nvme_mdev.spec.nvme_commands import PRP_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

PAGE_SIZE = 4096
"""Bytes; the allocator's unit, and the memory page size that the driver gives the controller."""
_MADV_POPULATE_WRITE = 23
"""``<linux/mman.h>``, since Linux 5.14: fault the pages in, for writing."""


def round_up(size: int, unit: int) -> int:
    """The smallest multiple of ``unit`` that is at least ``size``."""
    return -(-size // unit) * unit


class DmaBuffer:
    """A piece of DMA memory: the same bytes as an IOVA and as a memoryview."""

    def __init__(self, memory: DmaMemory, offset: int, size: int) -> None:
        self.memory = memory
        self.offset = offset
        """Bytes from the start of the window."""
        self.size = size
        """Bytes asked for; whole pages belong to it."""
        self.iova = memory.iova + offset
        """Where the controller sees it."""

    @property
    def view(self) -> memoryview:
        """The bytes, writable. Release it (or drop it) before the window is closed."""
        return self.memory.view[self.offset : self.offset + self.size]

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """A copy of ``size`` bytes (default: all after ``offset``)."""
        end = self.size if size is None else offset + size
        return bytes(self.memory.view[self.offset + offset : self.offset + end])

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Copy ``data`` in at byte ``offset``; DmaMemoryError if it does not fit."""
        if offset < 0 or offset + len(data) > self.size:
            raise DmaMemoryError(f"{len(data)} bytes at {offset} do not fit into {self.size}")
        start = self.offset + offset
        self.memory.view[start : start + len(data)] = data

    def fill(self, value: int) -> None:
        """Set every byte."""
        self.write(bytes([value]) * self.size)

    def free(self) -> None:
        """Give the pages back; the controller must be done with them."""
        self.memory.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class DmaMemory:
    """One window: a shared, prefaulted memfd and a first-fit allocator of pages in it."""

    def __init__(self, size: int, iova: int) -> None:
        self.iova = iova
        """Where the controller sees byte 0."""
        self.size = round_up(size, PAGE_SIZE)
        """Bytes, whole pages."""
        self.fd = os.memfd_create("nvme-mdev-host", os.MFD_CLOEXEC)
        try:
            os.truncate(self.fd, self.size)
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self._prefault()
        self.view = memoryview(self._map)
        """Every byte of the window, writable."""
        self._free: list[tuple[int, int]] = [(0, self.size)]

    def _prefault(self) -> None:
        """Back it with memory now, with huge pages where the system lets us."""
        with suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:  # an older kernel
            for offset in range(0, self.size, PAGE_SIZE):
                self._map[offset] = 0

    def close(self) -> None:
        """Unmap it; whoever still holds a view keeps the mapping alive, not the descriptor."""
        with suppress(BufferError):
            self.view.release()
            self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def holds(self, iova: int, size: int = 1) -> bool:
        """Whether a range of IOVAs lies in the window."""
        return self.iova <= iova and iova + size <= self.iova + self.size

    def allocate(self, size: int, *, align: int = PAGE_SIZE) -> DmaBuffer:
        """Zeroed pages for ``size`` bytes, aligned to ``align`` (a multiple of the page size).

        DmaMemoryError when the window has no such hole.
        """
        length = round_up(max(size, 1), PAGE_SIZE)
        for index, (start, end) in enumerate(self._free):
            offset = round_up(self.iova + start, align) - self.iova
            if offset + length <= end:
                pieces = [(start, offset), (offset + length, end)]
                self._free[index : index + 1] = [p for p in pieces if p[0] < p[1]]
                self.view[offset : offset + length] = bytes(length)
                return DmaBuffer(self, offset, size)
        raise DmaMemoryError(
            f"no room for {size} bytes in a DMA window of {self.size}: attach with more memory"
        )

    def release(self, buffer: DmaBuffer) -> None:
        """Take a buffer's pages back and join them with their neighbours."""
        insort(
            self._free,
            (buffer.offset, buffer.offset + round_up(max(buffer.size, 1), PAGE_SIZE)),
        )
        joined: list[tuple[int, int]] = []
        for start, end in self._free:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        self._free = joined

    @property
    def available(self) -> int:
        """Bytes that are not allocated, in one piece or many."""
        return sum(end - start for start, end in self._free)


class Prps(NamedTuple):
    """PRP1 and PRP2 of a command, and the pages that hold its list."""

    prp1: int
    prp2: int
    lists: tuple[DmaBuffer, ...] = ()

    def free(self) -> None:
        """Give the list pages back."""
        for page in self.lists:
            page.free()


def page_entries(iova: int, length: int, page_size: int = PAGE_SIZE) -> list[int]:
    """The PRP entries of a contiguous buffer: its start, then each further page."""
    first_page = iova - iova % page_size
    return [iova, *range(first_page + page_size, iova + length, page_size)]


def write_prp_list(
    memory: DmaMemory,
    entries: Sequence[int],
    *,
    page_size: int = PAGE_SIZE,
    list_offset: int = 0,
) -> tuple[int, tuple[DmaBuffer, ...]]:
    """Lay out a PRP list; the IOVA of its first entry, and its pages.

    The list begins ``list_offset`` bytes (a multiple of 8) into its first page. A page's last
    slot points to the next page of the list when more entries follow than fit.
    """
    pages = [memory.allocate(page_size)]
    offset = list_offset
    remaining = list(entries)
    while True:
        slots = (page_size - offset) // PRP_SIZE
        if len(remaining) <= slots:
            pages[-1].write(_pack(remaining), offset)
            break
        pages.append(memory.allocate(page_size))
        here, remaining = remaining[: slots - 1], remaining[slots - 1 :]
        pages[-2].write(_pack([*here, pages[-1].iova]), offset)
        offset = 0
    return pages[0].iova + list_offset, tuple(pages)


def build_prps(
    memory: DmaMemory,
    entries: Sequence[int],
    *,
    page_size: int = PAGE_SIZE,
    list_offset: int = 0,
) -> Prps:
    """PRP1 and PRP2 for any entries; more than two make a list in ``memory``.

    Nothing is checked: entries may be unaligned, unmapped or repeated.
    """
    if len(entries) <= 2:
        prp1, prp2 = [*entries, 0, 0][:2]
        return Prps(prp1, prp2)
    prp2, pages = write_prp_list(memory, entries[1:], page_size=page_size, list_offset=list_offset)
    return Prps(entries[0], prp2, pages)


def prps_for(memory: DmaMemory, iova: int, length: int, *, page_size: int = PAGE_SIZE) -> Prps:
    """PRP1 and PRP2 for ``length`` bytes from ``iova`` on; none for no bytes."""
    if length == 0:
        return Prps(0, 0)
    return build_prps(memory, page_entries(iova, length, page_size), page_size=page_size)


def _pack(entries: Sequence[int]) -> bytes:
    return b"".join(entry.to_bytes(PRP_SIZE, "little") for entry in entries)
