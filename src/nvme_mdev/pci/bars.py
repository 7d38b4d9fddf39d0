"""The base address registers: how large, and what is behind them.

BAR0 is the controller's (PCIe Transport 3.1); BAR4 holds the MSI-X table and the pending bits. The
client decodes addresses and sends us offsets, so what a guest writes to a BAR is only remembered.
"""

from __future__ import annotations

from typing import NamedTuple

from nvme_mdev.controller.controller import BAR0_SIZE
from nvme_mdev.spec.pci import BarFlags, MsixTableEntry

MSIX_BAR = 4
"""A BAR of its own, so that BAR0 can be mapped without the table, which clients emulate."""
MSIX_BAR_SIZE = 0x2000
MSIX_TABLE_OFFSET = 0
MSIX_PBA_OFFSET = 0x1000
MSIX_TABLE_ENTRY_SIZE = 16


class Bar(NamedTuple):
    """A memory BAR; a 64-bit one takes the next register, too."""

    number: int
    size: int
    """Bytes, a power of two."""
    flags: BarFlags


BARS = (
    Bar(0, BAR0_SIZE, BarFlags.MEM_64),
    Bar(MSIX_BAR, MSIX_BAR_SIZE, BarFlags.MEM_64),
)
"""Not prefetchable: reading a register, or the table, may not be done twice or merged."""


class MsixTable:
    """MSI-X table and pending bit array: plain memory.

    Clients of vfio-user keep the real table themselves and tell us eventfds; what is written here
    is given back, no more.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def reset(self, vectors: int) -> None:
        """All zero but the mask bit of each vector (PCI Express Base 7.7.2.8)."""
        self._memory[:] = bytes(len(self._memory))
        entry = bytes(MsixTableEntry(vector_control=1))
        for vector in range(vectors):
            start = MSIX_TABLE_OFFSET + vector * MSIX_TABLE_ENTRY_SIZE
            self._memory[start : start + MSIX_TABLE_ENTRY_SIZE] = entry

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the BAR."""
        return bytes(self._memory[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write to the table; the pending bits are read-only."""
        end = min(offset + len(data), MSIX_PBA_OFFSET)
        if offset < end:
            self._memory[offset:end] = data[: end - offset]
