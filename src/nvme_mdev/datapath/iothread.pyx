"""The polling thread that moves commands between guests' queues and backends.

One turn: look at each queue's doorbell; fetch, parse and submit what is new, in batches; reap what
io_uring finished; post completions; raise interrupts. No lock, no allocation, and no system call but
the backend's and the interrupt's.

The control plane changes what the thread reads only while it stands still. It asks with `request`,
the thread answers with `state`, at the top of its turn. A sleeping thread already stands: each side
stores its word, then (full fence) loads the other's, so one of them always sees the other.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset
from posix.unistd cimport close, read as read_fd, usleep

from nvme_mdev.datapath.aborts cimport skip_aborted
from nvme_mdev.datapath.arbitration cimport (
    CLASS_LOW, CLASS_URGENT, arbiter_add, arbiter_remove, class_credit, class_next,
)
from nvme_mdev.datapath.atomics cimport (
    cpu_relax, fence_full, load_acquire32, load_relaxed32, read_tsc, store_relaxed32,
    store_release32,
)
from nvme_mdev.datapath.clock cimport now_ns
from nvme_mdev.datapath.give_way cimport give_way
from nvme_mdev.datapath.coalescing cimport hold_back, raise_held_back
from nvme_mdev.datapath.commands cimport command_lba, command_parse
from nvme_mdev.datapath.compound cimport (
    COMPOUND_FIRST, compound_drop, compound_over, compound_posted, compound_retry, compound_start,
    compounds_create, compounds_destroy,
)
from nvme_mdev.datapath.layout cimport io_counters_t, path_counters_t
from nvme_mdev.datapath.queues cimport (
    cq_post, cq_prefetch, cq_read_head, cq_room, cq_used, log_error, publish_head, raise_interrupt,
    request_done, signal_fd, slot_record, sq_fetch, sq_prefetch, sq_release, sq_suppress_event,
    sq_unfetch, sq_waiting, tell_relay, wake_thread,
)
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_LIMITED, BATCH, DONE_CAPACITY, ENTRIES_URGENT, HELD_ERROR, INTERRUPTS_AT_ONCE,
    INTERRUPTS_NONE, OP_COMPARE, OP_COPY, OP_READ, OP_VERIFY, OP_WRITE, REQUEST_PREEMPTED, RUNNING,
    STANDING, aggregation_t, arbiter_t, controller_t, cq_t, iothread_t, poller_t, request_t, sq_t,
)
from nvme_mdev.datapath.slots cimport more_slots
from nvme_mdev.datapath.status cimport (
    COMPOUND, LIMITED, LOCATION_NONE, SC_ABORT_PREEMPT, SC_ABORT_REQUESTED, SC_DNR, SC_MASK, SC_MORE,
    SC_SUCCESS,
    SC_UNRECOVERED_READ, SC_WRITE_FAULT,
)
from nvme_mdev.datapath.throttle cimport limit_time, throttle_hold, throttle_next
from nvme_mdev.datapath.time_slice cimport shorten_slices
from nvme_mdev.datapath.uring cimport uring_destroy, uring_of, uring_poll, uring_submit

import contextlib
import os
import select
import threading

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *mask)
    short POLLIN

cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        uint32_t events
    int epoll_wait(int set, epoll_event *events, int count, int timeout_ms)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()
    int pthread_kill(pthread_t thread, int number)

cdef extern from "<signal.h>" nogil:
    cdef struct sigaction_t "sigaction":
        void (*sa_handler)(int) noexcept nogil
    int sigaction(int number, const sigaction_t *action, sigaction_t *old)
    #: One of the last real-time signals: nobody else's default. Valgrind keeps the very last.
    int KICK "(SIGRTMAX - 1)"

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_TIMERSLACK
    int prctl(int option, unsigned long argument)

cdef enum:
    #: Turns without work between two looks at the clock.
    IDLE_TURNS = 1024
    #: Turns without work between two offers of the processor, while I/O is in flight.
    YIELD_TURNS = 128
    #: Turns between two looks at the admin doorbells, whose commands take Python's time anyway.
    ADMIN_TURNS = 16
    #: Sleeps of a thread that may not park (ARCHITECTURE, decision 6).
    NAP_FIRST_NS = 20000
    NAP_LAST_NS = 1000000
    #: How long a thread polls because a socket has something, which need not be a ring.
    HEARD_NS = 1000000
    #: Sockets that one wake-up hears of; the others wake it again.
    SOCKETS_AT_ONCE = 16
    #: Spins before a waiting thread lets the other have the processor.
    PATIENCE = 2000
    PATIENCE_NAP_US = 20
    #: Naps (about 70 us each) before a thread that does not answer is kicked.
    KICK_NAPS = 2000


# -- completing ---------------------------------------------------------------------------------


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
    cdef uint64_t before
    if cq.interrupts != INTERRUPTS_AT_ONCE and (
            cq.interrupts == INTERRUPTS_NONE or tell_relay(cq) or hold_back(thread, cq)):
        cq.dirty = 0
        return
    cq.dirty = 0
    before = read_tsc()
    if raise_interrupt(cq):
        cq.path_counters.interrupts += 1
        cq.path_counters.interrupt_cycles += read_tsc() - before


cdef void send_held_back(iothread_t *thread) noexcept nogil:
    """Send the interrupts whose aggregation time is over."""
    cdef uint64_t now = read_tsc()
    cdef aggregation_t *aggregation = thread.aggregations
    cdef aggregation_t *following
    cdef cq_t *cq
    while aggregation != NULL:
        following = aggregation.next
        if <int64_t> (now - aggregation.deadline) >= 0:
            cq = raise_held_back(thread, aggregation)
            if cq != NULL:
                cq.path_counters.interrupts += 1
                cq.path_counters.interrupt_cycles += read_tsc() - now
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
    cdef uint64_t before = read_tsc()
    cdef uint32_t i = 0
    cdef uint32_t end
    cdef path_counters_t *counters = thread.done[0].sq.path_counters
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
        i = end
    thread.done_count = 0
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


# -- fetching -----------------------------------------------------------------------------------


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


cdef void submit_batch(iothread_t *thread, request_t **batch, uint32_t count) noexcept nogil:
    # For `recovery.pyx`.
    submit(thread, batch, count)


cdef uint32_t serve(iothread_t *thread, sq_t *sq, uint32_t tail) noexcept nogil:
    """Fetch, parse and submit a batch of a queue's commands; how many."""
    cdef request_t *batch[BATCH + 1]
    cdef request_t *request
    cdef uint64_t before
    cdef uint32_t i, count
    cdef path_counters_t *counters
    if tail >= sq.size:
        doorbell_error(sq, &sq.controller.sq_error[sq.qid])
        return 0
    if sq.aborted:
        tail = skip_aborted(sq, tail)
    count = batch_size(sq, tail)
    if count == 0:
        return 0
    before = read_tsc()
    if count > 1:
        sq_prefetch(sq, count)
    for i in range(count):
        request = fetch(sq, before)
        batch[i] = request
    if request.status == COMPOUND:
        count = complete_pair(sq, batch, count, tail)
    if count > 4:
        cq_prefetch(sq.cq, count)
    publish_head(sq)
    sq.inflight += count
    sq.cq.reserved_entries += count
    counters = sq.path_counters
    counters.translated += count
    counters.translated_cycles += read_tsc() - before
    submit(thread, batch, count)
    sq_suppress_event(sq)
    if thread.done_count:
        complete_done(thread)
    return count


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
    cdef uint32_t count, i, begun
    cdef uint32_t work = 0
    while work < BATCH:
        count = throttle_next(thread, now, batch)
        if not count:
            break
        for i in range(count):
            # From here on it is the host that takes time.
            batch[i].started = read_tsc()
            batch[i].status = <uint16_t> command_parse(batch[i])
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


cdef inline uint32_t poll_admin(iothread_t *thread) noexcept nogil:
    """Tell the control plane of admin doorbells that moved."""
    cdef uint32_t i, tail
    cdef uint32_t moved = 0
    cdef controller_t *controller
    for i in range(thread.controller_count):
        controller = thread.controllers[i]
        if controller.admin_doorbell != NULL:
            tail = load_acquire32(controller.admin_doorbell)
            if tail != controller.admin_seen:
                controller.admin_seen = tail
                signal_fd(controller.notify_fd)
                moved += 1
    return moved


cdef inline uint32_t reap(iothread_t *thread) noexcept nogil:
    """Submit what backends prepared this turn, take what is finished; what else is due."""
    cdef uint32_t count = 0
    cdef uint32_t i
    if thread.chores:
        count = thread.look_after(thread)
    if thread.uring != NULL:
        if uring_of(thread).prepared:
            uring_submit(uring_of(thread))
        count += uring_poll(thread)
        if thread.done_count:
            complete_done(thread)
    for i in range(thread.poller_count):
        count += thread.pollers[i].poll(thread, thread.pollers[i].context)
        if thread.done_count:
            complete_done(thread)
    return count


cdef inline uint32_t turn(iothread_t *thread) noexcept nogil:
    """Everything once; how much there was to do."""
    cdef uint32_t work = 0
    cdef uint32_t i, tail
    cdef sq_t *sq
    for i in range(thread.queue_count):
        sq = thread.queues[i]
        tail = load_acquire32(sq.tail_doorbell)
        if tail != sq.head and not sq.held:
            work += serve(thread, sq, tail)
    if thread.inflight:
        work += reap(thread)
    thread.turns += 1
    if thread.turns % ADMIN_TURNS == 0:
        work += poll_admin(thread)
    return work


cdef uint32_t take_turns(iothread_t *thread, uint32_t count) noexcept nogil:
    # For `probe.pyx`: what a command costs is counted in here.
    cdef uint32_t work = 0
    cdef uint32_t i
    for i in range(count):
        work += turn(thread)
    return work


# -- idling -------------------------------------------------------------------------------------


cdef bint prepare_to_sleep(iothread_t *thread) noexcept nogil:
    """Ask guests with shadow doorbells for a ring; False: there is work already."""
    cdef uint32_t i, tail
    cdef sq_t *sq
    for i in range(thread.queue_count + thread.weighted_count):
        sq = thread.queues[i]
        if sq.event_idx != NULL:
            store_relaxed32(sq.event_idx, sq.head)
            # Out of place: the next batch moves it behind the head again.
            sq.event_idx_head = sq.head + (sq.size >> 1)
            if sq.event_idx_head >= sq.size:
                sq.event_idx_head -= sq.size
    # The event index goes out before the doorbell is looked at for the last time.
    fence_full()
    if load_acquire32(&thread.call_pending) or load_acquire32(&thread.stopping):
        return False
    for i in range(thread.queue_count + thread.weighted_count):
        sq = thread.queues[i]
        tail = load_acquire32(sq.tail_doorbell)
        if tail != sq.head and not sq.held and (tail >= sq.size or batch_size(sq, tail)):
            return False
    return poll_admin(thread) == 0


cdef inline bint polls(iothread_t *thread) noexcept nogil:
    """There is a doorbell to look at: of an I/O queue, or of the admin queue of a guest that starts."""
    cdef uint32_t i
    if thread.queue_count + thread.weighted_count:
        return True
    for i in range(thread.controller_count):
        if thread.controllers[i].admin_doorbell != NULL:
            return True
    return False


cdef bint may_park(iothread_t *thread) noexcept nogil:
    """Every ring would come through the socket, or be seen: nothing waits for room in a CQ, or for
    time, and no client has the doorbell page mapped."""
    cdef uint32_t i
    if thread.throttled_count:
        return False
    for i in range(thread.queue_count + thread.weighted_count):
        if (load_relaxed32(thread.queues[i].tail_doorbell) != thread.queues[i].head
                and not thread.queues[i].held):
            return False
        if thread.queues[i].controller.doorbells_mapped:
            return False
    for i in range(thread.controller_count):
        if (thread.controllers[i].admin_doorbell != NULL
                and thread.controllers[i].doorbells_mapped):
            return False
    return True


cdef bint rung_in_memory(iothread_t *thread) noexcept nogil:
    """A guest stores what it rings in a shadow doorbell: any message that follows is enough to know."""
    cdef uint32_t i
    for i in range(thread.queue_count + thread.weighted_count):
        if thread.queues[i].event_idx != NULL:
            return True
    return False


cdef bint wait_for_wake(iothread_t *thread, const timespec *timeout) noexcept nogil:
    """Until the control plane calls (NULL: for ever); False: it did not."""
    cdef pollfd woken
    woken.fd = thread.wake_fd
    woken.events = POLLIN
    return ppoll(&woken, 1, timeout, NULL) > 0


cdef bint wait_for_message(iothread_t *thread) noexcept nogil:
    """Until a client sends anything, or the control plane calls; False: a signal came."""
    cdef epoll_event heard[SOCKETS_AT_ONCE]
    return epoll_wait(thread.ring_set, heard, SOCKETS_AT_ONCE, -1) > 0


cdef void sleep_on(iothread_t *thread, uint64_t ns) noexcept nogil:
    """Sleep until woken, or for so long (0: until woken). The thread stands meanwhile."""
    cdef timespec timeout
    cdef uint64_t ignored, patience
    cdef bint woken
    timeout.tv_sec = 0
    timeout.tv_nsec = <int64_t> ns
    thread.rests += 1
    store_release32(&thread.state, STANDING)
    if ns:
        woken = wait_for_wake(thread, &timeout)
    elif rung_in_memory(thread):
        woken = wait_for_message(thread)
    else:
        woken = wait_for_wake(thread, NULL)
    if woken and read_fd(thread.wake_fd, &ignored, 8) == 8:
        # Who wakes it up may have more: it polls again for a while.
        thread.idle_since_ns = 0
    elif woken:
        # The message need not be a ring, so the while is a short one.
        patience = min(thread.poll_timeout_ns, <uint64_t> HEARD_NS)
        thread.idle_since_ns = now_ns() - (thread.poll_timeout_ns - patience)
    store_relaxed32(&thread.state, RUNNING)
    fence_full()


cdef inline bint io_in_flight(iothread_t *thread) noexcept nogil:
    """Something is under way that ends by itself: no time to sleep. Arbiters are always there, and what
    waits for limits can do so for long."""
    return thread.inflight > thread.arbiter_count + thread.throttled_count


cdef void idle(iothread_t *thread) noexcept nogil:
    """Nothing was to do this turn: spin, and after the poll timeout sleep."""
    cdef uint64_t now
    cpu_relax()
    thread.idle_turns += 1
    if thread.idle_turns % (
            YIELD_TURNS if io_in_flight(thread) or thread.dozing else IDLE_TURNS) == 0:
        give_way(thread)
    if thread.idle_turns % IDLE_TURNS and thread.poll_timeout_ns and polls(thread):
        return
    now = now_ns()
    if thread.idle_since_ns == 0:
        thread.idle_since_ns = now
        thread.nap_ns = NAP_FIRST_NS
    if io_in_flight(thread) or (
            now - thread.idle_since_ns < thread.poll_timeout_ns and polls(thread)):
        return
    # Whoever rings from now on sees `parked` or is seen by us: the fence is in the next call.
    store_relaxed32(&thread.parked, 1)
    if prepare_to_sleep(thread):
        if may_park(thread):
            sleep_on(thread, 0)
        else:
            sleep_on(thread, thread.nap_ns)
            thread.nap_ns = min(thread.nap_ns * 2, <uint64_t> NAP_LAST_NS)
        # The next sleep comes after one turn, unless that finds work.
        thread.idle_turns = IDLE_TURNS - 1
        thread.turns = ADMIN_TURNS - 1
    store_relaxed32(&thread.parked, 0)


cdef void stand(iothread_t *thread) noexcept nogil:
    """Stand still until nobody asks for it; run what the control plane wants run here."""
    cdef uint32_t spins = 0
    thread.rests += 1
    store_release32(&thread.state, STANDING)
    while load_acquire32(&thread.request) or load_acquire32(&thread.call_pending):
        if load_acquire32(&thread.call_pending):
            thread.call_result = thread.call(thread, thread.call_argument)
            store_release32(&thread.call_pending, 0)
        cpu_relax()
        spins += 1
        if spins > PATIENCE:
            usleep(PATIENCE_NAP_US)
    store_relaxed32(&thread.state, RUNNING)
    fence_full()


cdef void kicked(int number) noexcept nogil:
    """Does nothing: the signal is for the system call that it interrupts."""


cdef int install_kick() noexcept nogil:
    """A handler without SA_RESTART, so that a blocked system call returns (EINTR)."""
    cdef sigaction_t action
    memset(&action, 0, sizeof(action))
    action.sa_handler = kicked
    return sigaction(KICK, &action, NULL)


cdef void run(iothread_t *thread) noexcept nogil:
    """The thread: turns until it is told to stop."""
    thread.handle = pthread_self()
    prctl(PR_SET_TIMERSLACK, 1)
    shorten_slices()
    store_relaxed32(&thread.state, RUNNING)
    fence_full()
    while True:
        # Both can be asked for again the moment the thread runs: hence the loop.
        while load_acquire32(&thread.request) or load_acquire32(&thread.call_pending):
            stand(thread)
        if load_relaxed32(&thread.stopping):
            break
        if turn(thread):
            thread.idle_turns = 0
            thread.idle_since_ns = 0
        else:
            idle(thread)
    uring_destroy(thread)
    store_release32(&thread.state, STANDING)


# -- the control plane's side ---------------------------------------------------------------------


cdef class IOThread:
    """A native thread that runs without the GIL (see iothread.pyi)."""

    def __cinit__(self, str name, *, cpu=None, poll_timeout_ms=500):
        self.thread = <iothread_t *> calloc(1, sizeof(iothread_t))
        if self.thread == NULL:
            raise MemoryError
        self.thread.wake_fd = -1
        self.thread.done = <request_t **> calloc(DONE_CAPACITY, sizeof(request_t *))
        self.thread.compounds = compounds_create()
        if self.thread.done == NULL or self.thread.compounds == NULL:
            raise MemoryError
        self.thread.state = STANDING
        self.thread.look_after = look_after
        self.thread.rests = 1
        self.name = name

    def __init__(self, name, *, cpu=None, poll_timeout_ms=500):
        self.configure(cpu=cpu, poll_timeout_ms=poll_timeout_ms)
        self.worker = None
        self.lifeline = -1

    def __dealloc__(self):
        if self.thread == NULL:
            return
        self.close_wake()
        free(self.thread.done)
        compounds_destroy(self.thread.compounds)
        free(self.thread.queues)
        free(self.thread.arbiters)
        free(self.thread.controllers)
        free(self.thread.pollers)
        free(self.thread)

    def configure(self, *, cpu=None, poll_timeout_ms=None):
        if poll_timeout_ms is not None:
            if poll_timeout_ms < 0:
                raise ValueError("the poll timeout cannot be negative")
            self.pause()
            self.thread.poll_timeout_ns = <uint64_t> poll_timeout_ms * 1000000
            self.resume()
        if cpu is not None:
            if self.worker is not None:
                os.sched_setaffinity(self.worker.native_id, {cpu})
            self.cpu = cpu

    def unpin(self):
        if self.worker is not None:
            os.sched_setaffinity(self.worker.native_id, os.sched_getaffinity(0))
        self.cpu = None

    @property
    def poll_timeout_ms(self):
        return self.thread.poll_timeout_ns // 1000000

    @property
    def asleep(self):
        return bool(load_relaxed32(&self.thread.parked))

    @property
    def queue_count(self):
        return self.thread.queue_count + self.thread.weighted_count

    cdef void close_wake(self) noexcept:
        if self.thread.wake_fd >= 0:
            close(self.thread.wake_fd)
            self.thread.wake_fd = -1

    def start(self):
        self.thread.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.rings = select.epoll()
        self.rings.register(self.thread.wake_fd, select.EPOLLIN)
        self.thread.ring_set = self.rings.fileno()
        self.started = threading.Event()
        self.failure = None
        self.thread.stopping = 0
        self.worker = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.worker.start()
        self.started.wait()
        if self.failure is not None:
            self.worker.join()
            self.worker = None
            self.rings.close()
            self.close_wake()
            raise self.failure

    def _run(self):
        try:
            if self.cpu is not None:
                os.sched_setaffinity(0, {self.cpu})
        except OSError as error:
            self.failure = OSError(error.errno, f"CPU {self.cpu}: {error.strerror}")
        self.started.set()
        if self.failure is None:
            with nogil:
                run(self.thread)

    def stop(self):
        if self.worker is None:
            return
        store_release32(&self.thread.stopping, 1)
        self.wake()
        self.worker.join()
        self.worker = None
        self.rings.close()
        self.close_wake()

    def wake(self):
        wake_thread(self.thread)

    def listen(self, fd):
        # Edges: whoever reads the socket may take his time, and the thread does not wait for him.
        self.rings.register(fd, select.EPOLLIN | select.EPOLLET)

    def ignore(self, fd):
        if self.worker is not None:
            with contextlib.suppress(FileNotFoundError):
                self.rings.unregister(fd)

    def pause(self):
        self.thread.request += 1
        fence_full()
        if self.worker is None or self.thread.request > 1:
            return
        with nogil:
            wait_until(self.thread, &self.thread.state, STANDING)

    def resume(self):
        store_release32(&self.thread.request, self.thread.request - 1)

    cdef int call(self, int (*function)(iothread_t *, void *) noexcept nogil, void *argument) except? -9999:
        if self.worker is None:
            raise RuntimeError(f"IOThread {self.name} is not running")
        self.thread.call = function
        self.thread.call_argument = argument
        store_release32(&self.thread.call_pending, 1)
        self.wake()
        with nogil:
            wait_until(self.thread, &self.thread.call_pending, 0)
        return self.thread.call_result

    cdef int add_queue(self, sq_t *sq) except -1:
        cdef iothread_t *thread = self.thread
        cdef uint32_t total = thread.queue_count + thread.weighted_count
        cdef sq_t **queues = <sq_t **> realloc(thread.queues, (total + 1) * sizeof(sq_t *))
        if queues == NULL:
            raise MemoryError
        thread.queues = queues
        if sq.controller.weighted:
            arbiter_add(thread, sq)
            queues[total] = sq
            thread.weighted_count += 1
        else:
            # Those that arbiters serve come last.
            queues[total] = queues[thread.queue_count]
            queues[thread.queue_count] = sq
            thread.queue_count += 1
        return 0

    cdef void remove_queue(self, sq_t *sq) noexcept:
        cdef iothread_t *thread = self.thread
        cdef uint32_t total = thread.queue_count + thread.weighted_count
        cdef uint32_t i
        for i in range(total):
            if thread.queues[i] == sq:
                break
        else:
            return
        if arbiter_remove(thread, sq):
            thread.weighted_count -= 1
            thread.queues[i] = thread.queues[total - 1]
        else:
            thread.queue_count -= 1
            thread.queues[i] = thread.queues[thread.queue_count]
            thread.queues[thread.queue_count] = thread.queues[total - 1]

    cdef int add_poller(
        self, uint32_t (*poll)(iothread_t *, void *) noexcept nogil, void *context
    ) except -1:
        cdef poller_t *pollers = <poller_t *> realloc(
            self.thread.pollers, (self.thread.poller_count + 1) * sizeof(poller_t))
        if pollers == NULL:
            raise MemoryError
        pollers[self.thread.poller_count].poll = poll
        pollers[self.thread.poller_count].context = context
        self.thread.pollers = pollers
        self.thread.poller_count += 1
        return 0

    cdef void remove_poller(self, void *context) noexcept:
        cdef uint32_t i
        for i in range(self.thread.poller_count):
            if self.thread.pollers[i].context == context:
                self.thread.poller_count -= 1
                self.thread.pollers[i] = self.thread.pollers[self.thread.poller_count]
                return

    cdef int add_controller(self, controller_t *controller) except -1:
        cdef controller_t **controllers = <controller_t **> realloc(
            self.thread.controllers, (self.thread.controller_count + 1) * sizeof(controller_t *))
        if controllers == NULL:
            raise MemoryError
        controllers[self.thread.controller_count] = controller
        self.thread.controllers = controllers
        self.thread.controller_count += 1
        return 0

    cdef void remove_controller(self, controller_t *controller) noexcept:
        cdef uint32_t i
        for i in range(self.thread.controller_count):
            if self.thread.controllers[i] == controller:
                self.thread.controller_count -= 1
                self.thread.controllers[i] = self.thread.controllers[self.thread.controller_count]
                return


cdef void wait_until(iothread_t *thread, uint32_t *word, uint32_t value) noexcept nogil:
    """Spin, then with short sleeps, until the thread stores the value.

    A hostile client can make an eventfd block (it shares the file description): a thread that does
    not answer is kicked out of its system call, again and again.
    """
    cdef uint32_t spins = 0
    while load_acquire32(word) != value:
        cpu_relax()
        spins += 1
        if spins > PATIENCE:
            usleep(PATIENCE_NAP_US)
            if (spins - PATIENCE) % KICK_NAPS == 0:
                pthread_kill(thread.handle, KICK)


if install_kick() != 0:
    raise OSError("cannot install a signal handler")
