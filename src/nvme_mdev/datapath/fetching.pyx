"""Commands: fetched as a batch, parsed, and handed to their backends."""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

from nvme_mdev.datapath.aborts cimport skip_aborted
from nvme_mdev.datapath.arbitration cimport CLASS_LOW, CLASS_URGENT, class_credit, class_next
from nvme_mdev.datapath.atomics cimport load_acquire32, prefetch_read, read_tsc, seldom, store_relaxed32, store_release32
from nvme_mdev.datapath.completing cimport complete_done, send_held_back
from nvme_mdev.datapath.compound cimport COMPOUND_FIRST, compound_drop, compound_start
from nvme_mdev.datapath.layout cimport path_counters_t
from nvme_mdev.datapath.parsing cimport command_parse
from nvme_mdev.datapath.queues cimport (
    cq_prefetch, cq_read_head, cq_room, cq_used, is_timed, publish_head, request_done, signal_fd,
    sq_entry, sq_fetch, sq_prefetch, sq_suppress_event, sq_unfetch, sq_waiting,
)
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_LIMITED, BATCH, HELD_ERROR, OP_FLUSH, arbiter_t, cq_t, iothread_t, request_t, sq_t,
)
from nvme_mdev.datapath.slots cimport more_slots
from nvme_mdev.datapath.status cimport COMPOUND, LIMITED, SC_SUCCESS
from nvme_mdev.datapath.throttle cimport limit_time, throttle_charge, throttle_hold, throttle_next

cdef enum:
    #: Bytes of a command without data of the guest's (which MDTS bounds) after which a turn takes no
    #: more of its queue.
    LONG = 1 << 20
    #: Commands after which completions are posted, for a guest that polls to go on meanwhile.
    PIECE = 16


cdef void doorbell_error(sq_t *sq, uint32_t *record) noexcept nogil:
    """An invalid doorbell value: the queue is not served any more, the control plane is told."""
    sq.held |= HELD_ERROR
    store_relaxed32(record, 1)
    store_release32(&sq.controller.errors, 1)
    signal_fd(sq.controller.notify_fd)


cdef inline uint32_t batch_size(sq_t *sq, uint32_t tail) noexcept nogil:
    """Commands to fetch now: what waits, what there are slots for, what the CQ has room for."""
    cdef uint32_t count = sq_waiting(sq, tail)
    cdef cq_t *cq = sq.cq
    if count > sq.burst:
        count = sq.burst
    if count > sq.free_count:
        count = more_slots(sq, count)
    if cq.held:
        return 0
    # Not only when there is no room left: EventIdx is kept behind the head that was read.
    if count > cq_room(cq) or cq_used(cq) > cq.size >> 1:
        if not cq_read_head(cq):
            doorbell_error(sq, &sq.controller.cq_error[cq.qid])
            return 0
        if count > cq_room(cq):
            count = cq_room(cq)
    return count


cdef inline request_t *fetch(sq_t *sq, uint64_t now) noexcept nogil:
    """Fetch and parse the next command."""
    cdef request_t *request = sq_fetch(sq)
    request.started = now
    request.status = <uint16_t> command_parse(request)
    return request


cdef uint32_t complete_pair(sq_t *sq, request_t **batch, uint32_t count, uint32_t tail) noexcept nogil:
    """The last of a batch is compound: the first of a fused pair goes with the second, or not at all.

    Both are in the SQ when its doorbell is rung (Base 2.x, section 3.4.2). Without a slot, or room in
    the CQ, for the second, the first is put back. In a CQ for one entry a pair has no place.
    """
    cdef request_t *last = batch[count - 1]
    if last.compound.kind != COMPOUND_FIRST or tail == sq.head:
        return count
    if more_slots(sq, 1) and (cq_room(sq.cq) > count or (cq_read_head(sq.cq) and cq_room(sq.cq) > count)):
        batch[count] = fetch(sq, last.started)
        return count + 1
    if sq.cq.size <= 2:
        return count
    compound_drop(last)
    sq_unfetch(sq, last)
    return count - 1


cdef inline bint is_limited(request_t *request) noexcept nogil:
    return request.status == LIMITED or (
        request.status == COMPOUND and request.ns != NULL and request.ns.backend != NULL
        and request.ns.backend.attention & ATTENTION_LIMITED)


cdef uint32_t go_on(
    iothread_t *thread, request_t **batch, uint32_t index, uint32_t count
) noexcept nogil:
    """Begin a command that has, or needs, no leave of its namespace's limits."""
    cdef request_t *request = batch[index]
    if request.status == LIMITED:
        request.status = SC_SUCCESS
    if request.status == COMPOUND:
        return compound_start(thread, batch, index, count)
    if request.status == SC_SUCCESS:
        request.ns.backend.ops.submit(thread, request)
    else:
        request_done(thread, request)
    return 1


cdef uint32_t begin(
    iothread_t *thread, request_t **batch, uint32_t index, uint32_t count
) noexcept nogil:
    """Begin a command that is not simply handed to its backend; how many of the batch that was."""
    cdef uint32_t waiting = 0
    if is_limited(batch[index]):
        waiting = throttle_hold(thread, batch, index, count)
    return waiting if waiting else go_on(thread, batch, index, count)


cdef inline void submit(iothread_t *thread, request_t **batch, uint32_t count) noexcept nogil:
    """Hand parsed commands to their backends."""
    cdef request_t *request
    cdef uint32_t i = 0
    while i < count:
        request = batch[i]
        if request.status:
            i += begin(thread, batch, i, count)
        else:
            request.ns.backend.ops.submit(thread, request)
            i += 1


cdef bint can_fetch(sq_t *sq, uint32_t tail) noexcept nogil:
    return batch_size(sq, tail) != 0


cdef void submit_batch(iothread_t *thread, request_t **batch, uint32_t count) noexcept nogil:
    # For `recovery.pyx`.
    submit(thread, batch, count)


#: A batch on its way: commands that are left of it, and that it has.
cdef struct progress_t:
    int32_t left
    int32_t count


cdef inline void end_with(progress_t *progress, uint32_t count) noexcept nogil:
    """The piece of so many commands is the last: what is behind it waits for others' turns."""
    progress.count -= progress.left - <int32_t> count
    progress.left = <int32_t> count


cdef inline uint32_t fetch_piece(
    iothread_t *thread, sq_t *sq, uint32_t tail, uint64_t now, progress_t *progress
) noexcept nogil:
    """Fetch and parse the next commands of a batch; how many."""
    cdef request_t **batch = thread.batch
    cdef uint32_t count = min(<uint32_t> progress.left, <uint32_t> PIECE)
    cdef uint32_t i
    cdef request_t *request
    for i in range(count):
        request = fetch(sq, now)
        batch[i] = request
        if request.operation > OP_FLUSH and request.length >= LONG:
            # A medium in memory does it at once, and others' turns are to come: one at a time.
            count = i + 1
            end_with(progress, count)
            break
    if batch[count - 1].status == COMPOUND:
        i = complete_pair(sq, batch, count, tail)
        if i < count:
            end_with(progress, i)
        count = i
    return count


cdef inline void start_piece(
    iothread_t *thread, sq_t *sq, uint32_t count, bint timed, uint64_t before
) noexcept nogil:
    """Submit commands that were fetched and parsed since `before`, and post what is done at once."""
    cdef path_counters_t *counters = sq.path_counters
    publish_head(sq)
    sq.inflight += count
    sq.cq.reserved_entries += count
    if is_timed(thread, counters.translated) and timed:
        counters.translated_timed += count
        counters.translated_cycles += read_tsc() - before
    counters.translated += count
    submit(thread, thread.batch, count)
    sq_suppress_event(sq)
    if thread.done_count:
        complete_done(thread)


cdef uint32_t serve_many(iothread_t *thread, sq_t *sq, uint32_t tail, uint32_t count) noexcept nogil:
    """A batch, a piece at a time."""
    cdef uint64_t before = read_tsc()
    cdef uint32_t piece
    cdef progress_t progress
    progress.count = progress.left = <int32_t> count
    sq_prefetch(sq, count)
    if count > 4:
        cq_prefetch(sq.cq, count)
    while progress.left > 0:
        piece = fetch_piece(thread, sq, tail, before, &progress)
        start_piece(thread, sq, piece, progress.left == progress.count, before)
        progress.left -= <int32_t> piece
    # The second of a pair can be one more.
    return <uint32_t> (progress.count - progress.left)


cdef uint32_t serve_one(iothread_t *thread, sq_t *sq, uint32_t tail) noexcept nogil:
    """A batch of one command: the usual case where little is outstanding."""
    cdef uint64_t before = read_tsc()
    cdef uint32_t count = 1
    cdef request_t *request = fetch(sq, before)
    thread.batch[0] = request
    if seldom(request.status == COMPOUND):
        count = complete_pair(sq, thread.batch, count, tail)
    start_piece(thread, sq, count, True, before)
    return count


cdef uint32_t serve(iothread_t *thread, sq_t *sq, uint32_t tail) noexcept nogil:
    """Fetch, parse and submit a batch of a queue's commands; how many."""
    cdef uint32_t count
    # It comes while the batch is decided, and the clock read.
    prefetch_read(sq_entry(sq, sq.head))
    if seldom(tail >= sq.size):
        doorbell_error(sq, &sq.controller.sq_error[sq.qid])
        return 0
    if seldom(sq.aborted):
        tail = skip_aborted(sq, tail)
    count = batch_size(sq, tail)
    if count > 1:
        return serve_many(thread, sq, tail, count)
    return serve_one(thread, sq, tail) if count else 0


cdef uint32_t arbitrate(iothread_t *thread, arbiter_t *arbiter) noexcept nogil:
    """One round of a controller's queues by their priority classes; how many commands."""
    cdef uint32_t priority, credit, count, refused
    cdef uint32_t work = 0
    cdef sq_t *sq
    for priority in range(CLASS_URGENT, CLASS_LOW + 1):
        credit = class_credit(arbiter, priority)
        # A queue without slots, or room in its CQ, is passed over.
        refused = 0
        while credit and refused < arbiter.count[priority]:
            sq = class_next(arbiter, priority, credit)
            if sq == NULL:
                break
            count = serve(thread, sq, load_acquire32(sq.tail_doorbell))
            refused = 0 if count else refused + 1
            work += count
            credit -= min(count, credit)
        if work and priority == CLASS_URGENT:
            break
    return work


cdef uint32_t begin_throttled(iothread_t *thread) noexcept nogil:
    """Begin commands whose namespaces' limits allow it now, a batch at most; how many."""
    cdef request_t *batch[2]
    cdef uint64_t now = limit_time(thread)
    cdef uint64_t charged
    cdef uint32_t count, i, begun
    cdef uint32_t work = 0
    while work < BATCH:
        count = throttle_next(thread, now, batch)
        if not count:
            break
        for i in range(count):
            # From here on it is the host that takes time.
            batch[i].started = read_tsc()
            charged = batch[i].length
            batch[i].status = <uint16_t> command_parse(batch[i])
            throttle_charge(thread, batch[i], charged, now)
        begun = 0
        while begun < count:
            if batch[begun].status:
                begun += go_on(thread, batch, begun, count)
            else:
                batch[begun].ns.backend.ops.submit(thread, batch[begun])
                begun += 1
        work += count
    if thread.done_count:
        complete_done(thread)
    return work


cdef uint32_t look_after(iothread_t *thread) noexcept nogil:
    """What a turn does besides plain queues and requests."""
    cdef uint32_t i
    cdef uint32_t work = 0
    for i in range(thread.arbiter_count):
        work += arbitrate(thread, thread.arbiters[i])
    send_held_back(thread)
    if thread.throttled_count:
        work += begin_throttled(thread)
    return work
