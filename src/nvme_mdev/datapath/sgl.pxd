"""Scatter Gather Lists to segments (NVMe Base 2.x, section 4.3.2)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

from nvme_mdev.datapath.runtime cimport memory_map_t

cdef enum:
    #: SGL Descriptor Type, the upper four bits of a descriptor's last byte.
    TYPE_DATA_BLOCK = 0
    TYPE_BIT_BUCKET = 1
    TYPE_SEGMENT = 2
    TYPE_LAST_SEGMENT = 3
    TYPE_SHIFT = 60
    DESCRIPTOR_SIZE = 16

#: Where the segments of bit buckets are.
cdef const uint8_t *sgl_sink() noexcept nogil
#: Walk the SGL whose first descriptor is (`address`, `word`), the DPTR of a command, for `length`
#: bytes into at most `capacity` segments; the NVMe status. `write`: the data goes to the guest, and
#: a bit bucket swallows its part of it.
cdef uint32_t sgl_walk(
    memory_map_t *memory, uint64_t address, uint64_t word, uint64_t length, bint write,
    iovec *iov, uint32_t capacity, uint32_t *count, uint32_t *hint,
) noexcept nogil
