"""Going on where a process was killed: queues that are in the middle of something.

What may have been stored last, and what is done then, is a table in docs/design.md ("Killed under a
running guest"); the stores themselves are in `queues.pxd`.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t

from nvme_mdev.datapath.aborts cimport adopt_aborts
from nvme_mdev.datapath.atomics cimport load_acquire32, read_tsc, store_relaxed32
from nvme_mdev.datapath.compound cimport COMPOUND_FIRST, compound_drop
from nvme_mdev.datapath.completing cimport complete_done
from nvme_mdev.datapath.fetching cimport submit_batch
from nvme_mdev.datapath.layout cimport CQ_UNDECIDED, SLOT_BUSY, STAGE_COMPARED, STAGE_NONE, slot_t
from nvme_mdev.datapath.parsing cimport command_parse
from nvme_mdev.datapath.queue_setup cimport take_cq, take_sq
from nvme_mdev.datapath.queues cimport (
    cq_holds, cq_move_behind, publish_head, quiet_index, rung_behind_tail, sq_release, sq_unfetch,
)
from nvme_mdev.datapath.range_locks cimport reserve_range
from nvme_mdev.datapath.runtime cimport HELD_MEMORY, controller_t, cq_t, iothread_t, request_t, sq_t
from nvme_mdev.datapath.status cimport COMPOUND


# -- adopting -----------------------------------------------------------------------------------


cdef int adopt_cq(controller_t *controller, uint32_t qid) except -1:
    cdef cq_t *cq = &controller.cqs[qid]
    cdef uint32_t head
    take_cq(controller, qid, controller.state.cq[qid].size)
    if cq.held:
        raise ValueError(f"CQ {qid} is not in guest memory")
    head = load_acquire32(cq.head_doorbell)
    if head == 0 and rung_behind_tail(cq):
        head = load_acquire32(cq.head_doorbell)
    # An invalid value is found again, and told, when room is needed.
    cq.head = head if head < cq.size else cq.tail
    return 0


cdef int adopt_sq(controller_t *controller, uint32_t qid) except -1:
    cdef sq_t *sq = &controller.sqs[qid]
    cdef uint32_t i
    cdef uint32_t ahead = 0
    take_sq(controller, qid, controller.state.sq[qid].size)
    # The host may have paused it, too.
    if sq.held & HELD_MEMORY or sq.cq.size == 0:
        raise ValueError(f"SQ {qid} is not in guest memory, or has no CQ")
    for i in range(sq.slots_ready):
        if sq.slots[i].state == SLOT_BUSY:
            # Fetched, and killed before the head was published.
            if <int32_t> (sq.slots[i].sequence - sq.fetched) >= <int32_t> ahead:
                ahead = sq.slots[i].sequence - sq.fetched + 1
            settle(sq, i)
    adopt_aborts(sq)
    sq.fetched += ahead
    sq.head = (sq.head + ahead) % sq.size
    publish_head(sq)
    if sq.event_idx != NULL:
        sq.event_idx_head = sq.head
        store_relaxed32(sq.event_idx, quiet_index(sq.head, sq.size))
    return 0


cdef void settle(sq_t *sq, uint32_t index) noexcept:
    """Release the slot if its command's completion was posted."""
    cdef cq_t *cq = sq.cq
    cdef slot_t *slot = &sq.slots[index]
    # No CQE has an undecided phase.
    if not cq_holds(cq, sq.qid, slot.cq_index, slot.cq_phase, slot.sqe.cid):
        slot.cq_phase = CQ_UNDECIDED
        return
    cq_move_behind(cq, slot.cq_index, slot.cq_phase)
    slot.stage = STAGE_NONE
    sq_release(sq, &sq.requests[index])


# -- executing again ----------------------------------------------------------------------------


cdef request_t *oldest_after(sq_t *sq, uint32_t sequence) noexcept nogil:
    """The busy slot whose command was fetched first, of those not before `sequence`; NULL: none."""
    cdef request_t *oldest = NULL
    cdef uint32_t i
    for i in range(sq.slots_ready):
        if sq.slots[i].state == SLOT_BUSY and <int32_t> (sq.slots[i].sequence - sequence) >= 0 and (
                oldest == NULL or <int32_t> (sq.slots[i].sequence - oldest.slot.sequence) < 0):
            oldest = &sq.requests[i]
    return oldest


cdef uint32_t fetch_again(sq_t *sq, request_t *request, request_t **batch) noexcept nogil:
    """Parse a command that was fetched by a process before us, and the other one of its pair."""
    cdef request_t *next_
    request.started = read_tsc()
    request.status = <uint16_t> command_parse(request)
    batch[0] = request
    if request.status != COMPOUND:
        # It ends with an error, before its stage is looked at.
        request.slot.stage = STAGE_NONE
        return 1
    if request.compound.kind != COMPOUND_FIRST:
        return 1
    next_ = oldest_after(sq, request.slot.sequence + 1)
    if next_ != NULL and next_.slot.sequence == request.slot.sequence + 1:
        next_.started = request.started
        next_.status = <uint16_t> command_parse(next_)
        batch[1] = next_
        return 2
    if request.slot.sequence + 1 != sq.fetched or load_acquire32(sq.tail_doorbell) == sq.head:
        return 1
    # The second was not fetched yet: both are, later.
    compound_drop(request)
    sq_unfetch(sq, request)
    return 0


cdef int reserve_compared(iothread_t *thread, void *queue) noexcept nogil:
    """Pairs whose comparison had succeeded get their ranges before anything is executed again."""
    cdef sq_t *sq = <sq_t *> queue
    cdef uint32_t i
    for i in range(sq.slots_ready):
        if sq.slots[i].state == SLOT_BUSY and sq.slots[i].stage == STAGE_COMPARED:
            reserve_range(thread, &sq.requests[i])
    return 0


cdef int execute_again(iothread_t *thread, void *queue) noexcept nogil:
    """Execute what a process before us has fetched and not completed, in the order of fetching.

    The room in the CQ was promised then, and the guest has only made more since.
    """
    cdef sq_t *sq = <sq_t *> queue
    cdef uint32_t sequence = sq.fetched - 0x7fffffff
    cdef request_t *batch[2]
    cdef request_t *request = oldest_after(sq, sequence)
    cdef uint32_t i, count
    while request != NULL:
        count = fetch_again(sq, request, batch)
        sq.inflight += count
        sq.cq.reserved_entries += count
        for i in range(count):
            sequence = batch[i].slot.sequence + 1
        submit_batch(thread, batch, count)
        if thread.done_count:
            complete_done(thread)
        request = oldest_after(sq, sequence)
    return 0
