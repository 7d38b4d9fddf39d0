"""The client's DMA map as a sorted table.

A virtual IOMMU maps single pages, up to 131072 of them, in any order, while the IOThreads stand still: so
adding one and taking one out must not move what is behind it. Regions stay where they are put (a
queue remembers the number of the one that it used last, which is all that most commands look at).
Their order is in leaves of up to 256 numbers with their IOVAs, which are split when they are full; the
leaves are a sorted table themselves, of 2000 at most, since small neighbours are joined.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.runtime cimport leaf_entry_t, leaf_t, memory_map_t, region_t

cdef enum:
    #: Regions of a leaf: 4 KiB of them.
    LEAF_MOST = 256
    REGIONS_AT_FIRST = 64


cdef region_t *region_search(memory_map_t *memory, uint64_t iova) noexcept nogil:
    return region_below(memory, iova)


cdef int regions_create(memory_map_t *memory) except -1:
    # Never without regions, so that a remembered number needs no check; unused ones have no size.
    memory.regions = <region_t *> line_calloc(REGIONS_AT_FIRST, sizeof(region_t))
    memory.free_regions = <uint32_t *> malloc(REGIONS_AT_FIRST * sizeof(uint32_t))
    if memory.regions == NULL or memory.free_regions == NULL:
        raise MemoryError
    memory.capacity = REGIONS_AT_FIRST
    return 0


cdef void regions_destroy(memory_map_t *memory) noexcept:
    cdef uint32_t i
    for i in range(memory.leaf_count):
        free(memory.leaves[i].entries)
    free(memory.leaves)
    free(memory.free_regions)
    free(memory.regions)


# -- where regions are -------------------------------------------------------------------------------


cdef int more_regions(memory_map_t *memory) except -1:
    """Twice as many; and room to give all of them back without asking for memory."""
    cdef uint32_t capacity = memory.capacity * 2
    cdef region_t *regions
    cdef uint32_t *numbers = <uint32_t *> realloc(
        memory.free_regions, capacity * sizeof(uint32_t))
    if numbers == NULL:
        raise MemoryError
    memory.free_regions = numbers
    regions = <region_t *> line_calloc(capacity, sizeof(region_t))
    if regions == NULL:
        raise MemoryError
    memcpy(regions, memory.regions, memory.capacity * sizeof(region_t))
    free(memory.regions)
    memory.regions = regions
    memory.capacity = capacity
    return 0


cdef int take_region(memory_map_t *memory, uint32_t *number) except -1:
    """The number of an unused region."""
    if memory.free_count:
        memory.free_count -= 1
        number[0] = memory.free_regions[memory.free_count]
        return 0
    if memory.used == memory.capacity:
        more_regions(memory)
    number[0] = memory.used
    memory.used += 1
    return 0


cdef void give_region(memory_map_t *memory, uint32_t number) noexcept:
    memset(&memory.regions[number], 0, sizeof(region_t))
    memory.free_regions[memory.free_count] = number
    memory.free_count += 1


# -- their order ---------------------------------------------------------------------------------------


cdef int new_leaf(memory_map_t *memory, uint32_t position, uint64_t first) except -1:
    """An empty leaf at a position."""
    cdef leaf_t *leaves
    cdef leaf_entry_t *entries = <leaf_entry_t *> malloc(LEAF_MOST * sizeof(leaf_entry_t))
    if entries == NULL:
        raise MemoryError
    leaves = <leaf_t *> realloc(memory.leaves, (memory.leaf_count + 1) * sizeof(leaf_t))
    if leaves == NULL:
        free(entries)
        raise MemoryError
    memory.leaves = leaves
    memmove(&leaves[position + 1], &leaves[position],
            (memory.leaf_count - position) * sizeof(leaf_t))
    memory.leaf_count += 1
    leaves[position].first = first
    leaves[position].count = 0
    leaves[position].entries = entries
    return 0


cdef inline bint is_full(memory_map_t *memory, uint32_t position) noexcept:
    return memory.leaves[position].count == LEAF_MOST


cdef inline uint64_t last_of(leaf_t *leaf) noexcept:
    return leaf.entries[leaf.count - 1].iova


cdef int split_leaf(memory_map_t *memory, uint32_t position, uint64_t iova) except -1:
    """Make two of a full leaf. Where regions come one after the other, the new one begins with the
    next, and the leaves become full."""
    cdef leaf_t *leaf = &memory.leaves[position]
    cdef uint32_t stay = LEAF_MOST // 2
    if iova > last_of(leaf):
        stay = LEAF_MOST
    elif iova < leaf.entries[0].iova:
        stay = 0
    new_leaf(memory, position + 1, iova if stay == LEAF_MOST else leaf.entries[stay].iova)
    leaf = &memory.leaves[position]
    memcpy(leaf[1].entries, &leaf.entries[stay], (LEAF_MOST - stay) * sizeof(leaf_entry_t))
    leaf[1].count = LEAF_MOST - stay
    leaf.count = stay
    if stay == 0:
        leaf.first = iova
    return 0


cdef leaf_t *leaf_with_room(memory_map_t *memory, uint64_t iova) except NULL:
    """Where a region that begins at `iova` goes."""
    cdef uint32_t position
    if memory.leaf_count == 0:
        new_leaf(memory, 0, iova)
    position = leaf_of(memory, iova)
    # Before all others: into the first.
    position = position - 1 if position else 0
    if is_full(memory, position) and position + 1 < memory.leaf_count and not is_full(
            memory, position + 1) and iova > last_of(&memory.leaves[position]):
        # Between two leaves: regions that come downwards would be leaves of their own.
        position += 1
    elif is_full(memory, position):
        split_leaf(memory, position, iova)
        position = leaf_of(memory, iova)
        position = position - 1 if position else 0
    return &memory.leaves[position]


cdef int region_add(memory_map_t *memory, region_t *region) except -1:
    cdef leaf_t *leaf
    cdef uint32_t index
    cdef uint32_t number = 0
    take_region(memory, &number)
    try:
        leaf = leaf_with_room(memory, region.iova)
    except BaseException:
        give_region(memory, number)
        raise
    index = index_of(leaf, region.iova)
    memmove(&leaf.entries[index + 1], &leaf.entries[index],
            (leaf.count - index) * sizeof(leaf_entry_t))
    leaf.entries[index].iova = region.iova
    leaf.entries[index].region = number
    leaf.count += 1
    leaf.first = leaf.entries[0].iova
    memory.regions[number] = region[0]
    memory.count += 1
    return 0


cdef void drop_leaf(memory_map_t *memory, uint32_t position) noexcept:
    cdef leaf_t *leaf = &memory.leaves[position]
    free(leaf.entries)
    memory.leaf_count -= 1
    memmove(leaf, leaf + 1, (memory.leaf_count - position) * sizeof(leaf_t))


cdef bint join(memory_map_t *memory, uint32_t position) noexcept:
    """Make one of a leaf and the next if that leaves half of it free: there are never many leaves with
    few regions."""
    cdef leaf_t *leaf
    if position + 1 >= memory.leaf_count:
        return False
    leaf = &memory.leaves[position]
    if leaf[0].count + leaf[1].count > LEAF_MOST // 2:
        return False
    memcpy(&leaf[0].entries[leaf[0].count], leaf[1].entries, leaf[1].count * sizeof(leaf_entry_t))
    leaf[0].count += leaf[1].count
    drop_leaf(memory, position + 1)
    return True


cdef void region_remove(memory_map_t *memory, uint64_t iova) noexcept:
    cdef uint32_t position = leaf_of(memory, iova) - 1
    cdef leaf_t *leaf = &memory.leaves[position]
    cdef uint32_t index = index_of(leaf, iova) - 1
    give_region(memory, leaf.entries[index].region)
    leaf.count -= 1
    memory.count -= 1
    if leaf.count == 0:
        drop_leaf(memory, position)
        return
    memmove(&leaf.entries[index], &leaf.entries[index + 1],
            (leaf.count - index) * sizeof(leaf_entry_t))
    leaf.first = leaf.entries[0].iova
    if not join(memory, position) and position:
        join(memory, position - 1)


cdef void regions_clear(memory_map_t *memory) noexcept:
    cdef uint32_t i
    for i in range(memory.leaf_count):
        free(memory.leaves[i].entries)
    memory.leaf_count = memory.count = memory.used = memory.free_count = 0
    memset(memory.regions, 0, memory.capacity * sizeof(region_t))
