"""A submission queue's command slots: as many as it has needed at a time, up to `SLOTS`.

A controller that offers many deep queues would take 40 MiB for slots and requests that hardly any
guest needs. So they become ready a few at a time, when a command finds no free one, and the memory of
those that never did is never touched. How many are ready is in the shared state: what is behind
means nothing.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport store_release16
from nvme_mdev.datapath.layout cimport SLOT_FREE, SLOTS, STAGE_NONE, slot_t
from nvme_mdev.datapath.runtime cimport sq_t

cdef extern from "<sys/mman.h>" nogil:
    int MADV_REMOVE
    int madvise(void *address, size_t length, int advice)

cdef enum:
    #: Slots that become ready together: a page has them, and one has their requests.
    SLOTS_AT_ONCE = 16


cdef void make_ready(sq_t *sq, uint32_t first, uint32_t end) noexcept nogil:
    """Each request knows its slot and queue; the first free slot is the next to be taken."""
    cdef uint32_t i = end
    while i > first:
        i -= 1
        sq.requests[i].slot = &sq.slots[i]
        sq.requests[i].sq = sq
        if sq.slots[i].state == SLOT_FREE:
            sq.requests[i].done = <uint64_t> sq.free_requests
            sq.free_requests = &sq.requests[i]
            sq.free_count += 1
    sq.slots_ready = end


cdef void take_slots(sq_t *sq) noexcept:
    sq.slots = sq.controller.state.slots[sq.qid]
    make_ready(sq, 0, min(<uint32_t> sq.state.slots, sq.slot_count))


cdef uint32_t more_slots(sq_t *sq, uint32_t wanted) noexcept nogil:
    cdef uint32_t first, end, i
    while sq.free_count < wanted and sq.slots_ready < sq.slot_count:
        first = sq.slots_ready
        end = min(first + SLOTS_AT_ONCE, sq.slot_count)
        for i in range(first, end):
            sq.slots[i].state = SLOT_FREE
            sq.slots[i].stage = STAGE_NONE
        # For the next process: what was in them before does not count, what comes now does.
        store_release16(&sq.state.slots, <uint16_t> end)
        make_ready(sq, first, end)
    return min(wanted, sq.free_count)


cdef void give_back_slots(sq_t *sq) noexcept:
    if sq.slots_ready > SLOTS_AT_ONCE:
        # The next queue of this number may never be so busy.
        madvise(sq.slots, SLOTS * sizeof(slot_t), MADV_REMOVE)
