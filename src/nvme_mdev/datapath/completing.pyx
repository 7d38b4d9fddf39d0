"""Completions: counted, recorded in the slot, posted as a batch, and the interrupts for them."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc, seldom
from nvme_mdev.datapath.coalescing cimport hold_back, raise_held_back
from nvme_mdev.datapath.commands cimport command_lba
from nvme_mdev.datapath.compound cimport compound_over, compound_posted, compound_retry
from nvme_mdev.datapath.layout cimport io_counters_t, nvme_cqe_t, path_counters_t
from nvme_mdev.datapath.queues cimport (
    CQES_PER_PAGE, count_interrupt, cq_entry, cq_move, cq_post, cqe_write, is_timed, log_error,
    raise_interrupt, request_done, slot_record, sq_release, tell_relay,
)
from nvme_mdev.datapath.runtime cimport (
    DONE_CAPACITY, ENTRIES_URGENT, INTERRUPTS_AT_ONCE, INTERRUPTS_NONE, OP_COMPARE, OP_COPY, OP_FLUSH,
    OP_READ, OP_VERIFY, OP_WRITE, REQUEST_PREEMPTED, aggregation_t, cq_t, iothread_t, namespace_t,
    request_t, sq_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_NONE, SC_ABORT_PREEMPT, SC_ABORT_REQUESTED, SC_DNR, SC_MASK, SC_MORE,
    SC_UNRECOVERED_READ, SC_WRITE_FAULT,
)


#: Commands that went well and count alike.
cdef struct tally_t:
    namespace_t *ns
    uint32_t operation
    uint64_t commands
    #: Of 512 bytes.
    uint64_t units


cdef inline void count_read(io_counters_t *counters, uint64_t commands, uint64_t units) noexcept nogil:
    counters.read_commands += commands
    counters.read_units += units


cdef inline void count_write(io_counters_t *counters, uint64_t commands, uint64_t units) noexcept nogil:
    counters.write_commands += commands
    counters.write_units += units


cdef inline void count_io(
    sq_t *sq, namespace_t *ns, uint32_t operation, uint64_t commands, uint64_t units
) noexcept nogil:
    """What counts as what: NVM Command Set 1.x, section 1.4.2. (Flush of all has no namespace.)"""
    cdef io_counters_t *counters = sq.io_counters
    if operation == OP_READ or operation == OP_COMPARE:
        count_read(counters, commands, units)
        count_read(&ns.moved[sq.host_queue], commands, units)
    elif operation == OP_WRITE:
        count_write(counters, commands, units)
        count_write(&ns.moved[sq.host_queue], commands, units)
    elif operation == OP_VERIFY:
        count_read(counters, 0, units)
        count_read(&ns.moved[sq.host_queue], 0, units)
    elif operation == OP_COPY:
        count_read(counters, commands, 0)
        count_write(counters, commands, units)
        count_read(&ns.moved[sq.host_queue], commands, 0)
        count_write(&ns.moved[sq.host_queue], commands, units)


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
        count_io(request.sq, request.ns, request.operation, 1, request.length >> 9)


cdef inline void tally_end(tally_t *tally, sq_t *sq) noexcept nogil:
    if tally.commands:
        count_io(sq, tally.ns, tally.operation, tally.commands, tally.units)


cdef inline void tally(tally_t *tally, request_t *request) noexcept nogil:
    """Count a command that went well with those before it, if it is one like them."""
    if seldom(tally.operation != request.operation or tally.ns != request.ns):
        tally_end(tally, request.sq)
        tally.operation = request.operation
        tally.ns = request.ns
        tally.commands = tally.units = 0
    tally.commands += 1
    tally.units += request.length >> 9


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
    """Count the commands of a run, plain ones of one SQ, and record where their completions go. How
    many they are."""
    cdef request_t **next_ = &thread.done[first]
    cdef request_t **end = &thread.done[thread.done_count]
    cdef request_t *request = next_[0]
    cdef sq_t *sq = request.sq
    cdef uint32_t tail = sq.cq.tail
    cdef uint32_t phase = sq.cq.phase
    cdef uint32_t size = sq.cq.size
    cdef tally_t done
    done.ns = NULL
    done.operation = OP_FLUSH
    done.commands = done.units = 0
    while True:
        if seldom(request.status):
            note_error(request)
        else:
            tally(&done, request)
        slot_record(request.slot, tail, phase)
        tail += 1
        if tail == size:
            tail = 0
            phase ^= 1
        next_ += 1
        if next_ == end:
            break
        request = next_[0]
        if request.sq != sq or request.compound != NULL:
            break
    tally_end(&done, sq)
    return <uint32_t> (next_ - thread.done) - first


cdef inline void write_run(request_t **run, uint32_t count) noexcept nogil:
    """Write the CQEs of a run, with nothing in between: a guest that polls takes their line away as
    often as it can, and each time the next store waits for it."""
    cdef sq_t *sq = run[0].sq
    cdef cq_t *cq = sq.cq
    cdef uint32_t queue = sq.head | sq.qid << 16
    cdef uint32_t tail = cq.tail
    cdef uint32_t phase = cq.phase
    cdef request_t **end = run + count
    cdef request_t **piece
    cdef nvme_cqe_t *entry
    while run < end:
        # What lies in one piece.
        entry = cq_entry(cq, tail)
        piece = run + min(<uint32_t> (end - run), CQES_PER_PAGE - (tail & (CQES_PER_PAGE - 1)), cq.size - tail)
        tail += <uint32_t> (piece - run)
        while run < piece:
            cqe_write(entry, run[0].result, queue, run[0].slot.sqe.cid, run[0].status, phase)
            entry += 1
            run += 1
        if tail == cq.size:
            tail = 0
            phase ^= 1
    cq_move(cq, tail, phase)


cdef inline uint32_t post_run(iothread_t *thread, uint32_t first) noexcept nogil:
    """Post the completions of a run; the index behind it."""
    cdef request_t **run = &thread.done[first]
    cdef sq_t *sq = run[0].sq
    cdef uint32_t count, i
    if sq.controller.stopped:
        release_one(run[0])
        return first + 1
    count = record_run(thread, first)
    write_run(run, count)
    for i in range(count):
        sq_release(sq, run[i])
    sq.cq.dirty += count
    sq.cq.reserved_entries -= count
    sq.inflight -= count
    return first + count


cdef inline void end_timing(path_counters_t *counters, uint32_t count, uint64_t before) noexcept nogil:
    counters.completed_timed += count
    counters.completed_cycles += read_tsc() - before


cdef void post_many(iothread_t *thread) noexcept nogil:
    # The cycles go to the controller of the last: batches seldom mix.
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
        if thread.done[i].compound == NULL:
            end = post_run(thread, i)
        elif complete_compound(thread, thread.done[i]):
            end = i + 1
        else:
            i += 1
            continue
        counters = cq.path_counters
        counters.completed += end - i
        posted += end - i
        i = end
    thread.done_count = 0
    if timed:
        end_timing(counters, posted, before)
    for i in range(touched_count):
        if touched[i].dirty:
            interrupt_for(thread, touched[i])


cdef inline void post_single(iothread_t *thread, request_t *request) noexcept nogil:
    """As `post_many`, of one plain command: the usual case where little is outstanding."""
    cdef cq_t *cq = request.sq.cq
    cdef path_counters_t *counters = cq.path_counters
    cdef bint timed = is_timed(thread, counters.completed)
    cdef uint64_t before = read_tsc() if timed else 0
    thread.done_count = 0
    post_one(request)
    release_one(request)
    counters.completed += 1
    if timed:
        end_timing(counters, 1, before)
    if cq.dirty:
        interrupt_for(thread, cq)


cdef inline void post_done(iothread_t *thread) noexcept nogil:
    # There is at least one.
    if thread.done_count == 1 and thread.done[0].compound == NULL:
        post_single(thread, thread.done[0])
    else:
        post_many(thread)


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
