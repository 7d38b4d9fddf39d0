"""The client's DMA map as a sorted table: regions by IOVA, never overlapping (see regions.pyx)."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.runtime cimport leaf_t, memory_map_t, region_t


#: A place in the table; for going through it.
cdef struct place_t:
    uint32_t leaf
    uint32_t index


cdef inline uint32_t leaf_of(memory_map_t *memory, uint64_t iova) noexcept nogil:
    """How many leaves begin at `iova` or below: the last of them has it, if any has."""
    cdef uint32_t low = 0
    cdef uint32_t high = memory.leaf_count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if memory.leaves[middle].first <= iova:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint32_t index_of(leaf_t *leaf, uint64_t iova) noexcept nogil:
    """How many regions of a leaf begin at `iova` or below."""
    cdef uint32_t low = 0
    cdef uint32_t high = leaf.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if leaf.entries[middle].iova <= iova:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline region_t *region_below(memory_map_t *memory, uint64_t iova) noexcept nogil:
    """The last region that begins at `iova` or below; NULL: there is none."""
    cdef uint32_t leaf = leaf_of(memory, iova)
    cdef leaf_t *found
    if leaf == 0:
        return NULL
    found = &memory.leaves[leaf - 1]
    return &memory.regions[found.entries[index_of(found, iova) - 1].region]


cdef inline place_t region_place(memory_map_t *memory, uint64_t iova) noexcept nogil:
    """The place of the first region that begins at `iova` or above."""
    cdef place_t place
    cdef uint32_t leaf = leaf_of(memory, iova - 1) if iova else 0
    place.leaf = place.index = 0
    if leaf:
        place.leaf = leaf - 1
        place.index = index_of(&memory.leaves[leaf - 1], iova - 1)
    return place


cdef inline region_t *region_next(memory_map_t *memory, place_t *place) noexcept nogil:
    """The region at a place, which then is the next one's; NULL: there is none left."""
    cdef leaf_t *leaf
    while place.leaf < memory.leaf_count:
        leaf = &memory.leaves[place.leaf]
        if place.index < leaf.count:
            place.index += 1
            return &memory.regions[leaf.entries[place.index - 1].region]
        place.leaf += 1
        place.index = 0
    return NULL


#: As `region_below`, not inline: for paths that seldom come here.
cdef region_t *region_search(memory_map_t *memory, uint64_t iova) noexcept nogil
#: A table without regions; MemoryError. And the end of one.
cdef int regions_create(memory_map_t *memory) except -1
cdef void regions_destroy(memory_map_t *memory) noexcept
#: Add a copy of a region that overlaps none; MemoryError.
cdef int region_add(memory_map_t *memory, region_t *region) except -1
#: Take out the region that begins at `iova`; there is one.
cdef void region_remove(memory_map_t *memory, uint64_t iova) noexcept
#: Take out all.
cdef void regions_clear(memory_map_t *memory) noexcept
