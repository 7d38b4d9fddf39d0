"""Completions: counted, recorded in the slot, posted as a batch, and the interrupts for them."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.coalescing cimport hold_back, raise_held_back
from nvme_mdev.datapath.commands cimport command_lba
from nvme_mdev.datapath.compound cimport compound_over, compound_posted, compound_retry
from nvme_mdev.datapath.layout cimport io_counters_t, path_counters_t
from nvme_mdev.datapath.queues cimport (
    count_interrupt, cq_post, is_timed, log_error, raise_interrupt, request_done, slot_record, sq_release, tell_relay,
)
from nvme_mdev.datapath.runtime cimport (
    DONE_CAPACITY, ENTRIES_URGENT, INTERRUPTS_AT_ONCE, INTERRUPTS_NONE, OP_COMPARE, OP_COPY,
    OP_READ, OP_VERIFY, OP_WRITE, REQUEST_PREEMPTED, aggregation_t, cq_t, iothread_t, request_t,
    sq_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_NONE, SC_ABORT_PREEMPT, SC_ABORT_REQUESTED, SC_DNR, SC_MASK, SC_MORE,
    SC_UNRECOVERED_READ, SC_WRITE_FAULT,
)


cdef inline void count_read(io_counters_t *counters, uint64_t units) noexcept nogil:
    counters.read_commands += 1
    counters.read_units += units


cdef inline void count_write(io_counters_t *counters, uint64_t units) noexcept nogil:
    counters.write_commands += 1
    counters.write_units += units


cdef inline io_counters_t *moved_of(request_t *request) noexcept nogil:
    """What the thread has moved of the request's namespace (Flush of all has none)."""
    return &request.ns.moved[request.sq.host_queue]


cdef inline void count_io(request_t *request) noexcept nogil:
    """What counts as what: NVM Command Set 1.x, section 1.4.2."""
    cdef io_counters_t *counters = request.sq.io_counters
    cdef uint64_t units = request.length >> 9
    if request.operation == OP_READ or request.operation == OP_COMPARE:
        count_read(counters, units)
        count_read(moved_of(request), units)
    elif request.operation == OP_WRITE:
        count_write(counters, units)
        count_write(moved_of(request), units)
    elif request.operation == OP_VERIFY:
        counters.read_units += units
        moved_of(request).read_units += units
    elif request.operation == OP_COPY:
        counters.read_commands += 1
        count_write(counters, units)
        moved_of(request).read_commands += 1
        count_write(moved_of(request), units)


cdef inline void count_media_error(request_t *request) noexcept nogil:
    """Media and Data Integrity Errors of the SMART log: what was written cannot be had, or not kept."""
    cdef uint32_t status = request.status & SC_MASK
    if status == SC_UNRECOVERED_READ or status == SC_WRITE_FAULT:
        request.sq.io_counters.media_errors += 1


cdef bint is_drives_own(request_t *request) noexcept nogil:
    """What a drive says (direct mode) goes to the guest as it is; it blames no field."""
    return (request.ns != NULL and request.ns.backend != NULL and not request.ns.backend.emulates
            and request.error_location == LOCATION_NONE)


cdef void note_error(request_t *request) noexcept nogil:
    """A command ends with an error: the log has it, and no interrupt is held back for it."""
    cdef sq_t *sq = request.sq
    if request.flags & REQUEST_PREEMPTED and request.status & SC_MASK == SC_ABORT_REQUESTED:
        # Since another host has preempted its own (Base 2.x, section 8.1.22.7).
        request.status = SC_ABORT_PREEMPT | SC_DNR
    if not is_drives_own(request):
        request.status |= SC_MORE
    count_media_error(request)
    log_error(sq.controller.state, sq.qid, request.slot.sqe.cid, request.status,
              request.error_location, command_lba(request), request.slot.sqe.nsid)
    sq.cq.dirty += ENTRIES_URGENT


cdef inline void count_end(request_t *request) noexcept nogil:
    """A command is about to be posted: the counters have it, or the error log."""
    if request.status:
        note_error(request)
    else:
        count_io(request)


cdef inline void post_one(request_t *request) noexcept nogil:
    """Post the request's CQE. Where it goes is recorded before."""
    cdef sq_t *sq = request.sq
    cdef cq_t *cq = sq.cq
    if not sq.controller.stopped:
        count_end(request)
        slot_record(request.slot, cq.tail, cq.phase)
        cq_post(cq, request.result, sq.head, sq.qid, request.slot.sqe.cid, request.status)
        cq.dirty += 1


cdef inline void release_one(request_t *request) noexcept nogil:
    """Give the slot of a command that is complete back."""
    cdef sq_t *sq = request.sq
    sq.cq.reserved_entries -= 1
    sq.inflight -= 1
    sq_release(sq, request)


cdef bint complete_compound(iothread_t *thread, request_t *request) noexcept nogil:
    """False: the command goes on; it may have put itself, and its partner, at the end of `done`."""
    if not compound_over(thread, request):
        return False
    post_one(request)
    compound_posted(thread, request)
    release_one(request)
    return True


cdef inline void interrupt_for(iothread_t *thread, cq_t *cq) noexcept nogil:
    """Raise a CQ's interrupt for what was posted since the last, or hold it back."""
    cdef uint64_t before = 0
    cdef bint timed
    if cq.interrupts != INTERRUPTS_AT_ONCE and (
            cq.interrupts == INTERRUPTS_NONE or tell_relay(cq) or hold_back(thread, cq)):
        cq.dirty = 0
        return
    cq.dirty = 0
    timed = is_timed(thread, cq.path_counters.interrupts)
    if timed:
        before = read_tsc()
    if raise_interrupt(cq):
        count_interrupt(cq, timed, before)


cdef void send_held_back(iothread_t *thread) noexcept nogil:
    """Send the interrupts whose aggregation time is over."""
    cdef uint64_t now = read_tsc()
    cdef aggregation_t *aggregation = thread.aggregations
    cdef aggregation_t *following
    cdef cq_t *cq
    while aggregation != NULL:
        following = aggregation.next
        # Also if it is further off than it ever was: the counter began anew while the host slept.
        if aggregation.deadline - now - 1 >= aggregation.cq.controller.irq.aggregation_time:
            cq = raise_held_back(thread, aggregation)
            if cq != NULL:
                count_interrupt(cq, True, now)
        aggregation = following


cdef inline uint32_t record_run(iothread_t *thread, uint32_t first) noexcept nogil:
    """Record where the completions of a run go: plain commands of one SQ. The index behind it."""
    cdef sq_t *sq = thread.done[first].sq
    cdef cq_t *cq = sq.cq
    cdef uint32_t tail = cq.tail
    cdef uint32_t phase = cq.phase
    cdef uint32_t end = first
    cdef request_t *request = thread.done[first]
    while True:
        count_end(request)
        slot_record(request.slot, tail, phase)
        tail += 1
        if tail == cq.size:
            tail = 0
            phase ^= 1
        end += 1
        if end == thread.done_count:
            return end
        request = thread.done[end]
        if request.sq != sq or request.compound != NULL:
            return end


cdef inline uint32_t post_run(iothread_t *thread, uint32_t first) noexcept nogil:
    """Post the completions of a run; the index behind it.

    The CQEs are written with nothing in between: a guest that polls takes their line away as often
    as it can, and each time the next store waits for it.
    """
    cdef sq_t *sq = thread.done[first].sq
    cdef uint32_t end, i
    cdef request_t *request
    if sq.controller.stopped:
        release_one(thread.done[first])
        return first + 1
    end = record_run(thread, first)
    for i in range(first, end):
        request = thread.done[i]
        cq_post(sq.cq, request.result, sq.head, sq.qid, request.slot.sqe.cid, request.status)
    for i in range(first, end):
        sq_release(sq, thread.done[i])
    sq.cq.dirty += end - first
    sq.cq.reserved_entries -= end - first
    sq.inflight -= end - first
    return end


cdef inline void post_done(iothread_t *thread) noexcept nogil:
    # There is at least one. The cycles go to the controller of the last: batches seldom mix.
    cdef path_counters_t *counters = thread.done[0].sq.path_counters
    cdef bint timed = is_timed(thread, counters.completed)
    cdef uint64_t before = read_tsc() if timed else 0
    cdef uint32_t i = 0
    cdef uint32_t end
    cdef uint32_t posted = 0
    cdef cq_t *touched[DONE_CAPACITY]
    cdef cq_t *cq
    cdef uint32_t touched_count = 0
    while i < thread.done_count:
        cq = thread.done[i].sq.cq
        if not cq.dirty:
            touched[touched_count] = cq
            touched_count += 1
        end = i + 1
        if thread.done[i].compound != NULL:
            if not complete_compound(thread, thread.done[i]):
                i += 1
                continue
        elif end < thread.done_count:
            end = post_run(thread, i)
        else:
            post_one(thread.done[i])
            release_one(thread.done[i])
        counters = cq.path_counters
        counters.completed += end - i
        posted += end - i
        i = end
    thread.done_count = 0
    if timed:
        counters.completed_timed += posted
        counters.completed_cycles += read_tsc() - before
    for i in range(touched_count):
        if touched[i].dirty:
            interrupt_for(thread, touched[i])


cdef void post_all(iothread_t *thread) noexcept nogil:
    # For `queue_table.pyx`, which has taken commands from those that wait.
    if thread.done_count:
        post_done(thread)


cdef void complete_deferred(iothread_t *thread, request_t *request) noexcept nogil:
    request_done(thread, request)
    post_done(thread)


cdef void complete_retried(iothread_t *thread) noexcept nogil:
    """Commands that had to wait, and, as long as these make others go on, those."""
    while thread.retry:
        compound_retry(thread)
        if not thread.done_count:
            return
        post_done(thread)


cdef void complete_done(iothread_t *thread) noexcept nogil:
    post_done(thread)
    if thread.retry:
        complete_retried(thread)
