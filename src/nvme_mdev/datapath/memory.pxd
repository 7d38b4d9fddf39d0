"""Guest memory: IOVA to address, for the data path and (with copies) for the control plane."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from posix.uio cimport iovec

from nvme_mdev.datapath.regions cimport region_search
from nvme_mdev.datapath.runtime cimport memory_map_t, region_t

#: The memory that a registered-buffer number stands for.
cdef void buffer_range(uint32_t buffer, iovec *memory) noexcept nogil


cdef inline region_t *memory_find(memory_map_t *memory, uint64_t iova, uint32_t *hint) noexcept nogil:
    """The region that holds `iova`, or NULL. `hint`: number of the one to try first, updated."""
    cdef region_t *region = &memory.regions[hint[0]]
    if iova - region.iova < region.size:
        return region
    region = region_search(memory, iova)
    if region == NULL or iova - region.iova >= region.size:
        return NULL
    hint[0] = <uint32_t> (region - memory.regions)
    return region


cdef inline uint8_t *memory_translate(
    memory_map_t *memory, uint64_t iova, uint64_t *length, bint write, uint32_t *hint
) noexcept nogil:
    """Address of `iova`; NULL if it is not mapped for this access.

    `length`: bytes wanted, cut to what is contiguous. The subtraction cannot wrap: the region
    holds `iova`, and `memory_find` compares offsets, not ends.
    """
    cdef region_t *region = memory_find(memory, iova, hint)
    cdef uint64_t offset, reach
    if region == NULL:
        return NULL
    offset = iova - region.iova
    reach = region.writable_size if write else region.readable_size
    if offset >= reach:
        return NULL
    if length[0] > reach - offset:
        length[0] = reach - offset
    return region.address + offset


#: A client's file in this process, whole: DMA_MAPs of parts of it share the one mapping.
cdef struct file_mapping_t:
    uint64_t device
    uint64_t inode
    #: Offset in the file of the mapping's first byte (0 unless the file cannot be shared so).
    uint64_t offset
    uint64_t size
    uint8_t *address
    uint32_t writable
    #: Regions that lie in it; 0: the entry is free.
    uint32_t users
    uint32_t buffer_base
    uint32_t whole
    #: The file, open for whoever maps it elsewhere (`GuestMemory.add_mapper`).
    int fd


cdef class GuestMemory:
    cdef memory_map_t table
    #: The files are large and mostly holes.
    cdef bint sparse
    cdef file_mapping_t *files
    #: Entries of `files` that have ever been used, from the first on.
    cdef uint32_t file_count
    cdef bint is_free(self, uint64_t first, uint64_t length)
    cdef int close_region(self, region_t *region) except -1
    cdef file_mapping_t *find_file(self, uint64_t device, uint64_t inode, uint64_t end, bint writable)
    cdef file_mapping_t *open_file(self, int fd, uint64_t offset, uint64_t size, bint writable) except NULL
    #: (first, count) of registered-buffer numbers whose memory is gone: to be unregistered, then
    #: given to `release_buffers`.
    cdef readonly list dropped_buffers
    #: Who maps the files, too, and for how many users.
    cdef dict mappers
    cdef int map_elsewhere(self, file_mapping_t *file) except -1
    cdef int close_file(self, file_mapping_t *file) except -1
    cdef int copy(self, uint64_t iova, uint8_t *buffer, uint64_t size, bint write) except -1
