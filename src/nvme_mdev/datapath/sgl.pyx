"""Scatter Gather Lists to segments (NVMe Base 2.x, section 4.3.2).

What is advertised (SGLS): data block, bit bucket, segment and last segment descriptors with an
address, of any alignment and length, and lists that describe more than the command moves.

A list is guest memory and may change while it is read: each half of a descriptor is loaded once,
then checked, then used. A chain is followed for a bounded number of descriptors, so one that leads
back to itself ends.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.uio cimport iovec

from nvme_mdev.datapath.atomics cimport load_relaxed64
from nvme_mdev.datapath.memory cimport GuestMemory, memory_translate
from nvme_mdev.datapath.prp cimport iova_of
from nvme_mdev.datapath.runtime cimport memory_map_t
from nvme_mdev.datapath.segments cimport add_segment
from nvme_mdev.datapath.status cimport (
    SC_DATA_TRANSFER_ERROR, SC_DNR, SC_SGL_COUNT_INVALID, SC_SGL_LENGTH_INVALID,
    SC_SGL_SEGMENT_INVALID, SC_SGL_TYPE_INVALID, SC_SUCCESS,
)

cdef enum:
    #: Descriptors of a command, those without a length and those of segments included: arbitrary,
    #: Linux and SPDK use at most 256.
    DESCRIPTORS = 2048

    #: Bytes that a bit bucket swallows in one segment.
    SINK = 1 << 16

#: Where the data for bit buckets goes; nothing is read from here.
cdef uint8_t sink[SINK]

#: A walk: what is still to come, and where the segments go.
cdef struct walk_t:
    memory_map_t *memory
    bint write
    uint64_t remaining
    iovec *iov
    uint32_t capacity
    uint32_t *count
    uint32_t *hint


cdef inline uint32_t kind_of(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> TYPE_SHIFT)


cdef const uint8_t *sgl_sink() noexcept nogil:
    return sink


cdef uint32_t add_bucket(walk_t *walk, uint64_t part) noexcept nogil:
    """Data that the guest does not want. The sink is used over and over."""
    cdef uint64_t piece
    while part:
        if walk.count[0] == walk.capacity:
            return SC_SGL_COUNT_INVALID | SC_DNR
        piece = min(part, <uint64_t> SINK)
        walk.iov[walk.count[0]].iov_base = sink
        walk.iov[walk.count[0]].iov_len = piece
        walk.count[0] += 1
        part -= piece
    return SC_SUCCESS


cdef inline uint32_t add_data(walk_t *walk, uint64_t address, uint64_t word) noexcept nogil:
    """A data block or bit bucket, as much of it as the command needs; the NVMe status."""
    cdef uint64_t part = <uint32_t> word
    cdef uint32_t status = SC_SUCCESS
    if kind_of(word) == TYPE_BIT_BUCKET and not walk.write:
        # Its length counts as 0 in a list that describes what the guest sends.
        return SC_SUCCESS
    if part > walk.remaining:
        part = walk.remaining
    if part == 0:
        return SC_SUCCESS
    if kind_of(word) == TYPE_DATA_BLOCK:
        status = add_segment(walk.memory, address, part, walk.write, walk.iov, walk.capacity,
                             walk.count, walk.hint)
    else:
        status = add_bucket(walk, part)
    walk.remaining -= part
    return status


cdef inline uint32_t load_descriptor(
    memory_map_t *memory, uint64_t iova, uint64_t *address, uint64_t *word, uint32_t *hint
) noexcept nogil:
    """Read a descriptor, each half once: aligned to 8 bytes, a half cannot straddle two mappings."""
    cdef uint64_t part = 8
    cdef uint8_t *at = memory_translate(memory, iova, &part, False, hint)
    if at == NULL:
        return SC_DATA_TRANSFER_ERROR | SC_DNR
    address[0] = load_relaxed64(<uint64_t *> at)
    # Wraps only where the first half was the last 8 bytes there are: then it is not mapped.
    part = 8
    at = memory_translate(memory, iova + 8, &part, False, hint)
    if at == NULL:
        return SC_DATA_TRANSFER_ERROR | SC_DNR
    word[0] = load_relaxed64(<uint64_t *> at)
    return SC_SUCCESS


cdef inline uint32_t check_type(uint64_t word) noexcept nogil:
    """Only the four types, and only with an address (subtype 0h)."""
    if word >> 56 & 0xf or kind_of(word) > TYPE_LAST_SEGMENT:
        return SC_SGL_TYPE_INVALID | SC_DNR
    return SC_SUCCESS


cdef uint32_t walk_segment(
    walk_t *walk, uint64_t *address, uint64_t *word, uint32_t *budget, uint32_t *list_hint
) noexcept nogil:
    """The descriptors of one segment. Those that describe the next one come back in its place;
    without one, `word` is 0."""
    cdef uint64_t at = address[0]
    cdef uint64_t length = <uint32_t> word[0]
    cdef bint last = kind_of(word[0]) == TYPE_LAST_SEGMENT
    cdef uint64_t i = 0
    cdef uint32_t status
    if length == 0 or length % DESCRIPTOR_SIZE or at & 7:
        return SC_SGL_SEGMENT_INVALID | SC_DNR
    while i < length:
        if budget[0] == 0:
            return SC_SGL_COUNT_INVALID | SC_DNR
        budget[0] -= 1
        status = load_descriptor(walk.memory, at + i, address, word, list_hint)
        if status == SC_SUCCESS:
            status = check_type(word[0])
        if status:
            return status
        i += DESCRIPTOR_SIZE
        if kind_of(word[0]) >= TYPE_SEGMENT:
            if i != length:
                return SC_SGL_COUNT_INVALID | SC_DNR
            return SC_SGL_SEGMENT_INVALID | SC_DNR if last else SC_SUCCESS
        status = add_data(walk, address[0], word[0])
        if status or walk.remaining == 0:
            return status
    word[0] = 0
    return SC_SUCCESS


cdef uint32_t sgl_walk(
    memory_map_t *memory, uint64_t address, uint64_t word, uint64_t length, bint write,
    iovec *iov, uint32_t capacity, uint32_t *count, uint32_t *hint,
) noexcept nogil:
    cdef walk_t walk
    cdef uint32_t budget = DESCRIPTORS
    cdef uint32_t list_hint = hint[0]
    cdef uint32_t status = check_type(word)
    walk.memory = memory
    walk.write = write
    walk.remaining = length
    walk.iov = iov
    walk.capacity = capacity
    walk.count = count
    walk.hint = hint
    count[0] = 0
    if status:
        return status
    if kind_of(word) < TYPE_SEGMENT:
        status = add_data(&walk, address, word)
    while status == SC_SUCCESS and walk.remaining and kind_of(word) >= TYPE_SEGMENT:
        status = walk_segment(&walk, &address, &word, &budget, &list_hint)
    if status == SC_SUCCESS and walk.remaining:
        return SC_SGL_LENGTH_INVALID | SC_DNR
    return status


def segments(GuestMemory memory, descriptor, length, *, capacity=1024, writable):
    cdef uint32_t hint = 0
    cdef uint32_t count = 0
    cdef iovec *iov = <iovec *> malloc(capacity * sizeof(iovec))
    if iov == NULL:
        raise MemoryError
    try:
        status = sgl_walk(
            &memory.table, int.from_bytes(descriptor[:8], "little"),
            int.from_bytes(descriptor[8:16], "little"), length, writable, iov, capacity, &count, &hint)
        if status:
            return status, []
        return 0, [
            (None if iov[i].iov_base == <void *> sink else iova_of(memory, iov[i].iov_base),
             iov[i].iov_len)
            for i in range(count)
        ]
    finally:
        free(iov)
