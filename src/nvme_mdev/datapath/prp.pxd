"""PRP entries and lists to segments (NVMe Base 2.x, section 4.3.1)."""

from libc.stdint cimport uint32_t, uint64_t
from posix.uio cimport iovec

from nvme_mdev.datapath.memory cimport GuestMemory
from nvme_mdev.datapath.runtime cimport memory_map_t

#: Walk PRP1/PRP2 for `length` bytes into at most `capacity` segments; the NVMe status.
cdef uint32_t prp_walk(
    memory_map_t *memory, uint64_t prp1, uint64_t prp2, uint64_t length, uint32_t page_size,
    bint write, iovec *iov, uint32_t capacity, uint32_t *count, uint32_t *hint,
) noexcept nogil
#: IOVA of an address that a walk gave; the lowest where it is mapped more than once.
cdef uint64_t iova_of(GuestMemory memory, void *address) noexcept
