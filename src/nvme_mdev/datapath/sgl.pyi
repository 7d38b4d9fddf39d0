"""Scatter Gather Lists to segments (NVMe Base 2.x, section 4.3.2)."""

from nvme_mdev.datapath.memory import GuestMemory

def segments(
    memory: GuestMemory, descriptor: bytes, length: int, *, capacity: int = 1024, writable: bool
) -> tuple[int, list[tuple[int | None, int]]]:
    """Walk an SGL for `length` bytes as the data path does, from its first descriptor (16 bytes).

    Returns (status, [(IOVA, size), ...]) with at most `capacity` segments: status 0, or the NVMe
    status field (SCT << 8 | SC, and Do Not Retry) of what is wrong with the list, with an empty
    list. IOVA None: what a bit bucket swallows. Segments that touch in memory are merged.
    """
