"""The base address registers: how large, and what is behind them.

BAR0 is the controller's (PCIe Transport 3.1); BAR4 holds the MSI-X table and the pending bits. The
client decodes addresses and sends us offsets, so what a guest writes to a BAR is only remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.controller.controller import BAR0_SIZE
from nvme_mdev.spec.pci import BarFlags, MsixTableEntry

if TYPE_CHECKING:
    from nvme_mdev.datapath.queue_table import QueueTable

MSIX_BAR = 4
"""A BAR of its own, so that BAR0 can be mapped without the table, which clients emulate."""
MSIX_BAR_SIZE = 0x2000
MSIX_TABLE_OFFSET = 0
MSIX_PBA_OFFSET = 0x1000
MSIX_TABLE_ENTRY_SIZE = 16
MSIX_MASKED = 1
"""Mask bit of Vector Control."""
_VECTOR_CONTROL = 12
"""Byte of an entry that holds the mask bit."""
_PBA_SIZE = 24
"""Bytes of pending bits, for 129 vectors in words of 64."""


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
    """MSI-X table and pending bit array.

    Clients of vfio-user that keep a table of their own (QEMU) tell us eventfds and write nothing
    here: so a vector is masked by its entry from the first write on that says so, not before.
    """

    def __init__(self, memory: memoryview, queues: QueueTable, vectors: int) -> None:
        self._memory = memory
        self._queues = queues
        self._vectors = vectors

    def reset(self) -> None:
        """All zero but the mask bit of each vector (PCI Express Base 7.7.2.8)."""
        self._memory[:] = bytes(len(self._memory))
        entry = bytes(MsixTableEntry(vector_control=MSIX_MASKED))
        for vector in range(self._vectors):
            start = MSIX_TABLE_OFFSET + vector * MSIX_TABLE_ENTRY_SIZE
            self._memory[start : start + MSIX_TABLE_ENTRY_SIZE] = entry

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the BAR."""
        if offset + size > MSIX_PBA_OFFSET:
            pending = sum(1 << vector for vector in self._queues.interrupts.pending_vectors())
            self._memory[MSIX_PBA_OFFSET : MSIX_PBA_OFFSET + _PBA_SIZE] = pending.to_bytes(
                _PBA_SIZE, "little"
            )
        return bytes(self._memory[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write to the table, and mask or unmask; the pending bits are read-only."""
        end = min(offset + len(data), MSIX_TABLE_OFFSET + self._vectors * MSIX_TABLE_ENTRY_SIZE)
        if offset >= end:
            return
        self._memory[offset:end] = data[: end - offset]
        for vector in range(self._vectors):
            control = vector * MSIX_TABLE_ENTRY_SIZE + MSIX_TABLE_OFFSET + _VECTOR_CONTROL
            if offset <= control < end:
                masked = bool(self._memory[control] & MSIX_MASKED)
                self._queues.interrupts.mask_vector(vector, masked, by_table=True)
