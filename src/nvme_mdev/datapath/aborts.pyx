"""Aborting I/O commands (see aborts.pxd).

A command in flight is cancelled in its backend; one that waits for its namespace's limits just ends,
and with it the other of its fused pair. One that waits in the SQ (the queue is paused, or
behind others) is completed at once, and dropped when it is fetched. Which one that is cannot be told by
its identifier, which the guest can use again at once, but by its number: the how manieth command of
the queue it is. The notes on that are in shared memory: a command must not be completed twice after
a death. A note is made before the completion is posted, with the place where that goes; whether it
went is seen there.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t
from libc.string cimport memcpy

from nvme_mdev.datapath.atomics cimport load_acquire32, store_release32
from nvme_mdev.datapath.commands cimport sqe_lba
from nvme_mdev.datapath.layout cimport ABORTS, SLOT_BUSY, nvme_sqe_t, sq_state_t
from nvme_mdev.datapath.queues cimport (
    cq_holds, cq_move_behind, cq_post, cq_read_head, cq_room, log_error, publish_head, raise_interrupt,
    sq_entry, sq_waiting, tell_relay,
)
from nvme_mdev.datapath.runtime cimport HELD_MEMORY, REQUEST_THROTTLED, cq_t, request_t, sq_t
from nvme_mdev.datapath.status cimport LOCATION_NONE, SC_ABORT_FAILED_FUSED, SC_ABORT_REQUESTED, SC_MORE
from nvme_mdev.datapath.throttle cimport throttle_end, throttle_forget

cdef enum:
    #: States of a note; the phase tag of the completion is above.
    NOTE_FREE = 0
    NOTE_POSTING = 1
    NOTE_POSTED = 2
    STATE_MASK = 3
    PHASE_SHIFT = 2


cdef bint is_stale(sq_t *sq, uint32_t note) noexcept nogil:
    """Whether the command that a note is about has come and gone."""
    return (sq.state.aborted_state[note] == NOTE_FREE
            or <int32_t> (sq.state.aborted_sequence[note] - sq.fetched) < 0)


cdef bint is_noted(sq_state_t *state, uint32_t sequence) noexcept nogil:
    cdef uint32_t note
    for note in range(ABORTS):
        if state.aborted_state[note] != NOTE_FREE and state.aborted_sequence[note] == sequence:
            return True
    return False


cdef uint32_t skip_aborted(sq_t *sq, uint32_t tail) noexcept nogil:
    cdef uint32_t waiting, ahead, note
    while sq.head != tail and is_noted(sq.state, sq.fetched):
        sq.fetched += 1
        sq.head = 0 if sq.head + 1 == sq.size else sq.head + 1
    publish_head(sq)
    waiting = sq_waiting(sq, tail)
    sq.aborted = 0
    for note in range(ABORTS):
        if not is_stale(sq, note):
            sq.aborted = 1
            ahead = sq.state.aborted_sequence[note] - sq.fetched
            if ahead < waiting:
                waiting = ahead
    return (sq.head + waiting) % sq.size


cdef bint has_room(cq_t *cq) noexcept:
    if cq.held:
        return False
    return cq_room(cq) > 0 or (cq_read_head(cq) and cq_room(cq) > 0)


cdef bint abort_waiting(sq_t *sq, uint32_t cid) noexcept:
    cdef uint32_t tail = load_acquire32(sq.tail_doorbell)
    cdef uint32_t i, index, note
    cdef nvme_sqe_t sqe
    if tail >= sq.size:
        return False
    for i in range(sq_waiting(sq, tail)):
        index = (sq.head + i) % sq.size
        if sq.pages[index >> 6] == NULL:
            return False
        if sq_entry(sq, index).cid == cid and not is_noted(sq.state, sq.fetched + i):
            break
    else:
        return False
    for note in range(ABORTS):
        if is_stale(sq, note):
            break
    else:
        return False
    if not has_room(sq.cq):
        return False
    memcpy(&sqe, sq_entry(sq, index), sizeof(sqe))
    sqe.cid = <uint16_t> cid
    post_aborted(sq, note, sq.fetched + i, &sqe)
    return True


cdef void post_aborted(sq_t *sq, uint32_t note, uint32_t sequence, nvme_sqe_t *sqe) noexcept:
    """Complete a command that is still in the SQ; `sqe`: a copy of it."""
    cdef uint32_t cid = sqe.cid
    cdef cq_t *cq = sq.cq
    cdef sq_state_t *state = sq.state
    store_release32(&state.aborted_state[note], NOTE_FREE)
    state.aborted_sequence[note] = sequence
    state.aborted_place[note] = cq.tail | cid << 16
    store_release32(&state.aborted_state[note], NOTE_POSTING | cq.phase << PHASE_SHIFT)
    sq.aborted = 1
    log_error(sq.controller.state, sq.qid, cid, SC_ABORT_REQUESTED | SC_MORE, LOCATION_NONE,
              sqe_lba(sqe), sqe.nsid)
    cq_post(cq, 0, sq.head, sq.qid, cid, SC_ABORT_REQUESTED | SC_MORE)
    store_release32(&state.aborted_state[note], NOTE_POSTED)
    if not tell_relay(cq) and cq.interrupts:
        raise_interrupt(cq)


cdef bint abort_throttled(sq_t *sq, uint32_t cid) noexcept:
    cdef request_t *request
    cdef request_t *partner
    cdef uint32_t i
    for i in range(sq.slots_ready):
        request = &sq.requests[i]
        if (sq.slots[i].state == SLOT_BUSY and request.flags & REQUEST_THROTTLED
                and sq.slots[i].sqe.cid == cid and not sq.cq.held & HELD_MEMORY):
            if not throttle_forget(sq.thread, request, &partner):
                return False
            throttle_end(sq.thread, request, SC_ABORT_REQUESTED)
            if partner != NULL:
                throttle_end(sq.thread, partner, SC_ABORT_FAILED_FUSED)
            return True
    return False


cdef request_t *abort_in_flight(sq_t *sq, uint32_t cid) noexcept:
    cdef request_t *request
    cdef uint32_t i
    for i in range(sq.slots_ready):
        request = &sq.requests[i]
        if (sq.slots[i].state == SLOT_BUSY and sq.slots[i].sqe.cid == cid and request.ns != NULL
                and not request.flags & REQUEST_THROTTLED):
            request.ns.backend.ops.cancel(sq.thread, request)
            return request
    return NULL


cdef void adopt_aborts(sq_t *sq) noexcept:
    cdef sq_state_t *state = sq.state
    cdef uint32_t note, index, phase
    for note in range(ABORTS):
        if state.aborted_state[note] & STATE_MASK == NOTE_POSTING:
            index = state.aborted_place[note] & 0xffff
            phase = state.aborted_state[note] >> PHASE_SHIFT & 1
            if cq_holds(sq.cq, sq.qid, index, phase, state.aborted_place[note] >> 16):
                cq_move_behind(sq.cq, index, phase)
                store_release32(&state.aborted_state[note], NOTE_POSTED)
            else:
                # Not aborted yet: the Abort command is executed again.
                store_release32(&state.aborted_state[note], NOTE_FREE)
        if state.aborted_state[note] != NOTE_FREE:
            sq.aborted = 1
