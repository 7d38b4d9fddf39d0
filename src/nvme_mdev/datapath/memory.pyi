"""The client's DMA map: which IOVA is which byte of this process."""

from typing import Protocol

#: Regions that one client may map, as VERSION tells it (max_dma_maps).
MAX_REGIONS: int

class Mapper(Protocol):
    """Somebody who moves data to and from guest memory by itself, such as a controller below."""

    def map(self, address: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Reach `size` bytes of a file from `offset` on at the address that they have here.

        `fd` stays open until they are unmapped. OSError: it cannot.
        """

    def unmap(self, address: int, size: int) -> None:
        """No longer reach them when this returns; never fails."""

class GuestMemoryError(Exception):
    """An IOVA range that is not mapped, or not mapped for this access."""

class GuestMemory:
    """A sorted table of mapped IOVA ranges.

    Changed by one thread only (the control plane's), while every IOThread that uses it is
    paused: `DmaWindows.map` and `DmaWindows.try_unmap` see to that.
    """

    def __init__(self, *, sparse: bool = False) -> None:
        """`sparse`: files are large and mostly holes; they are neither registered with io_uring nor
        put into huge pages."""

    def map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """Map `size` bytes of `fd` at `offset` (the caller closes fd; None: known, inaccessible).

        ValueError: size 0 or not a multiple of 4096, wraps 64 bits, overlaps a mapping.
        OSError: the kernel refused the mapping, or (ENOSPC) there are MAX_REGIONS already.
        """

    def unmap(self, iova: int, size: int) -> int:
        """Remove every mapping that lies inside the range; bytes removed (0 is no error).

        ValueError: the range would cut a mapping in two.
        """

    def clear(self) -> int:
        """Remove every mapping; bytes removed."""

    def add_mapper(self, mapper: Mapper) -> None:
        """Have it map what is mapped here, now and later. Its uses are counted.

        OSError: it cannot, and has mapped nothing.
        """

    def remove_mapper(self, mapper: Mapper) -> None:
        """One use less; with the last it unmaps everything."""

    #: (first, count) of registered-buffer numbers whose memory is gone.
    dropped_buffers: list[tuple[int, int]]

    def covers(self, iova: int, size: int, *, writable: bool) -> bool:
        """Whether all of a range can be read, or written."""

    def overlaps(self, iova: int, size: int) -> bool:
        """Whether anything is mapped in a range."""

    def ranges(self) -> list[tuple[int, int, bool, bool]]:
        """(iova, size, accessible, writable) of every mapping, ascending."""

    def read(self, iova: int, size: int) -> bytes:
        """Copy bytes out (GuestMemoryError: unmapped)."""

    def write(self, iova: int, data: bytes) -> None:
        """Copy bytes in (GuestMemoryError: unmapped or read-only)."""

def release_buffers(first: int, count: int) -> None:
    """Buffer numbers that no io_uring has registered any more can be used again."""
