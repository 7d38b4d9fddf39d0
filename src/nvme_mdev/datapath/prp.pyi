"""PRP entries and lists to segments (NVMe Base 2.x, section 4.3.1)."""

from nvme_mdev.datapath.memory import GuestMemory

def segments(
    memory: GuestMemory, prp1: int, prp2: int, length: int, *, page_size: int = 4096, writable: bool
) -> tuple[int, list[tuple[int, int]]]:
    """Walk PRP1/PRP2 for `length` bytes as the data path does.

    Returns (status, [(IOVA, size), ...]): status 0, or the NVMe status field (SCT << 8 | SC) of
    what is wrong with the PRPs, with an empty list. Segments that touch in memory are merged.
    """

def read(
    memory: GuestMemory, prp1: int, prp2: int, length: int, *, page_size: int = 4096
) -> tuple[int, bytes]:
    """Copy a command's data out of guest memory: (status, data)."""

def write(memory: GuestMemory, prp1: int, prp2: int, data: bytes, *, page_size: int = 4096) -> int:
    """Copy data to where a command's PRPs point; the status."""
