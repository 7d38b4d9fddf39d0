"""PRP entries and lists to segments (NVMe Base 2.x, section 4.3.1).

A list is guest memory and may change while it is read: each entry is loaded once, then checked,
then used. A segment is an address in this process; neighbours in memory become one segment, and a
page that straddles two mappings becomes two.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

from nvme_mdev.datapath.atomics cimport load_relaxed64
from nvme_mdev.datapath.memory cimport GuestMemory, memory_translate
from nvme_mdev.datapath.regions cimport place_t, region_next, region_place
from nvme_mdev.datapath.runtime cimport PAGE_SIZE, memory_map_t, region_t
from nvme_mdev.datapath.segments cimport add_segment
from nvme_mdev.datapath.status cimport (
    SC_DATA_TRANSFER_ERROR, SC_DNR, SC_PRP_OFFSET_INVALID, SC_SUCCESS,
)


cdef inline uint32_t load_entry(
    memory_map_t *memory, uint64_t iova, uint64_t *entry, uint32_t *hint
) noexcept nogil:
    """Read one PRP list entry, once; the NVMe status."""
    cdef uint64_t part = 8
    cdef uint8_t *address = memory_translate(memory, iova, &part, False, hint)
    # Aligned to 8 bytes, mappings to pages: it cannot straddle two.
    if address == NULL:
        return SC_DATA_TRANSFER_ERROR | SC_DNR
    entry[0] = load_relaxed64(<uint64_t *> address)
    return SC_SUCCESS


cdef uint32_t prp_list(
    memory_map_t *memory, uint64_t list_, uint64_t length, uint32_t page_size, bint write,
    iovec *iov, uint32_t capacity, uint32_t *count, uint32_t *hint,
) noexcept nogil:
    """Walk a PRP list, chained ones too. The last entry of a page is a pointer if more is to come."""
    cdef uint64_t offset_mask = page_size - 1
    cdef uint64_t entry, part
    cdef uint32_t status
    cdef uint32_t list_hint = hint[0]
    if list_ & 7:
        return SC_PRP_OFFSET_INVALID | SC_DNR
    while length:
        status = load_entry(memory, list_, &entry, &list_hint)
        if status:
            return status
        if (list_ & offset_mask) == page_size - 8 and length > page_size:
            # Each page of list describes data or, with one entry a page, is followed at most
            # `length / page_size` times: what it points to is used for data next.
            if entry & offset_mask:
                return SC_PRP_OFFSET_INVALID | SC_DNR
            list_ = entry
            status = load_entry(memory, list_, &entry, &list_hint)
            if status:
                return status
        if entry & offset_mask:
            return SC_PRP_OFFSET_INVALID | SC_DNR
        part = page_size if length > page_size else length
        status = add_segment(memory, entry, part, write, iov, capacity, count, hint)
        if status:
            return status
        length -= part
        list_ += 8
    return SC_SUCCESS


cdef uint32_t prp_walk(
    memory_map_t *memory, uint64_t prp1, uint64_t prp2, uint64_t length, uint32_t page_size,
    bint write, iovec *iov, uint32_t capacity, uint32_t *count, uint32_t *hint,
) noexcept nogil:
    cdef uint64_t offset_mask = page_size - 1
    cdef uint64_t first = page_size - (prp1 & offset_mask)
    cdef uint32_t status
    count[0] = 0
    if prp1 & 3:
        return SC_PRP_OFFSET_INVALID | SC_DNR
    if first > length:
        first = length
    status = add_segment(memory, prp1, first, write, iov, capacity, count, hint)
    length -= first
    if status or length == 0:
        return status
    if length <= page_size:
        if prp2 & offset_mask:
            return SC_PRP_OFFSET_INVALID | SC_DNR
        return add_segment(memory, prp2, length, write, iov, capacity, count, hint)
    return prp_list(memory, prp2, length, page_size, write, iov, capacity, count, hint)


cdef class Segments:
    """A walk's result for the control plane: owns the segments."""

    cdef iovec *iov
    cdef uint32_t count
    cdef uint32_t status

    def __cinit__(self, GuestMemory memory, prp1, prp2, length, page_size, write):
        # Every 4 KiB of data can be a segment, and the first and last may be cut.
        cdef uint32_t capacity = <uint32_t> (length // PAGE_SIZE + 2)
        cdef uint32_t hint = 0
        self.iov = <iovec *> malloc(capacity * sizeof(iovec))
        if self.iov == NULL:
            raise MemoryError
        self.status = prp_walk(
            &memory.table, prp1, prp2, length, page_size, write, self.iov, capacity, &self.count, &hint
        )

    def __dealloc__(self):
        free(self.iov)


cdef uint64_t iova_of(GuestMemory memory, void *address) noexcept:
    cdef place_t place = region_place(&memory.table, 0)
    cdef region_t *region = region_next(&memory.table, &place)
    while region != NULL:
        if region.address != NULL and <uint64_t> address - <uint64_t> region.address < region.size:
            return region.iova + (<uint64_t> address - <uint64_t> region.address)
        region = region_next(&memory.table, &place)
    return 0


def segments(GuestMemory memory, prp1, prp2, length, *, page_size=4096, writable):
    cdef Segments walk = Segments(memory, prp1, prp2, length, page_size, writable)
    if walk.status:
        return walk.status, []
    return 0, [(iova_of(memory, walk.iov[i].iov_base), walk.iov[i].iov_len)
               for i in range(walk.count)]


def read(GuestMemory memory, prp1, prp2, length, *, page_size=4096):
    cdef Segments walk = Segments(memory, prp1, prp2, length, page_size, False)
    if walk.status:
        return walk.status, b""
    return 0, b"".join([
        (<const char *> walk.iov[i].iov_base)[:walk.iov[i].iov_len] for i in range(walk.count)
    ])


def write(GuestMemory memory, prp1, prp2, data, *, page_size=4096):
    cdef const uint8_t[::1] view = data
    cdef Segments walk = Segments(memory, prp1, prp2, len(data), page_size, True)
    cdef uint64_t done = 0
    if walk.status:
        return walk.status
    for i in range(walk.count):
        memcpy(walk.iov[i].iov_base, &view[done], walk.iov[i].iov_len)
        done += walk.iov[i].iov_len
    return 0
