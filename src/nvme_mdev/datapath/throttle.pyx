"""Limits of a namespace: commands and bytes a second, of all, what reads, what writes.

A command that its namespace's token buckets do not allow yet has been fetched and is in its slot, and
uses nothing else: what parsing found (addresses in guest memory, a bounce buffer) is given up, and it
is parsed anew when its time has come. So memory can be unmapped, a namespace removed and a controller
paused without waiting for it, and commands for other namespaces that come behind it in its queue are
fetched and executed, as long as the queue has slots.

Those that wait are in a queue for each namespace, controller and IOThread, what reads apart from what
writes. Queues that share a bucket get its tokens in turn. What is only looked at once a turn, and
only while anything waits, costs the others nothing.

Read, Compare and Verify read; Write, Write Zeroes, Write Uncorrectable and Dataset Management write,
of which the last two move no bytes; Copy and a fused pair do both. Flush has no limits: it moves
nothing, and what waits for it would wait for other commands' tokens. Nor have reservation commands.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from nvme_mdev.datapath.chain cimport chain_next
from nvme_mdev.datapath.compound cimport COMPOUND_FIRST, COMPOUND_SECOND, compound_drop
from nvme_mdev.datapath.layout cimport STAGE_NONE
from nvme_mdev.datapath.queues cimport request_done, sq_release
from nvme_mdev.datapath.runtime cimport (
    DONE_CAPACITY, HELD_ERROR, HELD_MEMORY, LIMIT_READ, LIMIT_TOTAL, LIMIT_WRITE, LIMITS, NS_STATE,
    OP_COMPARE, OP_COPY, OP_DEALLOCATE, OP_DEFERRED, OP_FLUSH, OP_READ, OP_VERIFY,
    OP_WRITE_UNCORRECTABLE, REQUEST_PAIRED, REQUEST_THROTTLED, controller_t, iothread_t, namespace_t, request_t, sq_t, throttle_t,
    throttled_t,
)
from nvme_mdev.datapath.token_bucket cimport bucket_due, bucket_take

cdef enum:
    #: Queues of commands that wait.
    READS = 0
    WRITES = 1
    #: Entries of `thread.done` that a step of `throttle_give_up` leaves.
    SPARE = 2

#: What a command needs.
cdef struct cost_t:
    uint64_t commands[LIMITS]
    uint64_t bytes[LIMITS]


# -- what it costs ----------------------------------------------------------------------------------


cdef inline void add(cost_t *cost, uint32_t kind, uint64_t bytes) noexcept nogil:
    cost.commands[kind] += 1
    cost.bytes[kind] += bytes
    cost.commands[<uint32_t> LIMIT_TOTAL] += 1
    cost.bytes[<uint32_t> LIMIT_TOTAL] += bytes


cdef void add_command(cost_t *cost, request_t *request) noexcept nogil:
    cdef uint32_t operation = request.operation
    if operation == OP_FLUSH:
        return
    if operation == OP_DEALLOCATE or operation == OP_WRITE_UNCORRECTABLE:
        add(cost, LIMIT_WRITE, 0)
        return
    if operation == OP_READ or operation == OP_COMPARE or operation == OP_VERIFY or operation == OP_COPY:
        add(cost, LIMIT_READ, request.length)
    if operation != OP_READ and operation != OP_COMPARE and operation != OP_VERIFY:
        add(cost, LIMIT_WRITE, request.length)


cdef cost_t cost_of(request_t *request, request_t *second) noexcept nogil:
    """Of a command, and of the second of its pair (NULL: there is none)."""
    cdef cost_t cost
    cdef uint32_t kind
    for kind in range(LIMITS):
        cost.commands[kind] = cost.bytes[kind] = 0
    add_command(&cost, request)
    if second != NULL:
        add_command(&cost, second)
    return cost


cdef inline uint64_t later(uint64_t one, uint64_t other) noexcept nogil:
    return one if <int64_t> (one - other) > 0 else other


cdef bint take_tokens(throttle_t *throttle, cost_t *cost, uint64_t now, uint64_t *due) noexcept nogil:
    """Take what a command costs, from all buckets or from none; False: at `due` it may be there."""
    cdef uint32_t kind
    due[0] = now
    for kind in range(LIMITS):
        if throttle.commands[kind].token_time and cost.commands[kind]:
            due[0] = later(due[0], bucket_due(&throttle.commands[kind], cost.commands[kind], now))
        if throttle.bytes[kind].token_time and cost.bytes[kind]:
            due[0] = later(due[0], bucket_due(&throttle.bytes[kind], cost.bytes[kind], now))
    if due[0] != now:
        return False
    for kind in range(LIMITS):
        if throttle.commands[kind].token_time and cost.commands[kind]:
            bucket_take(&throttle.commands[kind], cost.commands[kind], now)
        if throttle.bytes[kind].token_time and cost.bytes[kind]:
            bucket_take(&throttle.bytes[kind], cost.bytes[kind], now)
    return True


# -- the ring, and the queues -------------------------------------------------------------------------


cdef void enter(iothread_t *thread, throttled_t *throttled) noexcept nogil:
    """Into the thread's ring, behind all others."""
    cdef throttled_t *first = thread.throttled
    if first == NULL:
        throttled.next = throttled.previous = throttled
        thread.throttled = throttled
    else:
        throttled.next = first
        throttled.previous = first.previous
        first.previous.next = throttled
        first.previous = throttled
    thread.throttled_count += 1
    thread.chores += 1
    # It is work that each turn has to look at (`iothread_t.inflight`).
    thread.inflight += 1


cdef void leave(iothread_t *thread, throttled_t *throttled) noexcept nogil:
    if throttled.next == throttled:
        thread.throttled = NULL
    else:
        throttled.previous.next = throttled.next
        throttled.next.previous = throttled.previous
        if thread.throttled == throttled:
            thread.throttled = throttled.next
    throttled.next = throttled.previous = NULL
    thread.throttled_count -= 1
    thread.chores -= 1
    thread.inflight -= 1


cdef void put(throttled_t *throttled, uint32_t queue, request_t *request) noexcept nogil:
    compound_drop(request)
    request.flags |= REQUEST_THROTTLED
    request.done = 0
    if throttled.first[queue] == NULL:
        throttled.first[queue] = request
    else:
        throttled.last[queue].done = <uint64_t> request
    throttled.last[queue] = request
    throttled.waiting += 1
    throttled.total += 1
    request.sq.throttled += 1


cdef void take(throttled_t *throttled, uint32_t queue, request_t *before, request_t *request) noexcept nogil:
    """Take a command out of a queue; `before`: the one before it, NULL: it is the first."""
    cdef request_t *after = chain_next(request)
    if before == NULL:
        throttled.first[queue] = after
    else:
        before.done = <uint64_t> after
    if after == NULL:
        throttled.last[queue] = before
    request.done = 0
    request.flags &= ~<uint32_t> REQUEST_THROTTLED
    throttled.waiting -= 1
    request.sq.throttled -= 1


cdef inline uint32_t queue_of(request_t *request, request_t *second) noexcept nogil:
    """A pair, and Copy, wait with what writes."""
    return READS if second == NULL and (
        request.operation == OP_READ or request.operation == OP_COMPARE
        or request.operation == OP_VERIFY) else WRITES


# -- having to wait -------------------------------------------------------------------------------------


cdef bint has_no_limits(request_t *request) noexcept nogil:
    """It moves nothing, is in error, or its tokens were taken by a process that was killed."""
    return (request.operation == OP_FLUSH or request.operation == OP_DEFERRED
            or request.slot.stage != STAGE_NONE
            or request.compound != NULL and (
                request.compound.parsed != 0 or request.compound.kind == COMPOUND_SECOND))


cdef request_t *second_of(request_t **batch, uint32_t index, uint32_t count) noexcept nogil:
    """The other command of a fused pair; NULL: there is none."""
    cdef request_t *second
    if index + 1 == count or batch[index].compound == NULL or batch[index].compound.kind != COMPOUND_FIRST:
        return NULL
    second = batch[index + 1]
    if second.compound == NULL or second.compound.kind != COMPOUND_SECOND:
        return NULL
    return second


cdef uint32_t throttle_hold(
    iothread_t *thread, request_t **batch, uint32_t index, uint32_t count
) noexcept nogil:
    cdef request_t *request = batch[index]
    cdef request_t *second = second_of(batch, index, count)
    cdef throttled_t *throttled = &request.ns.throttled[request.sq.host_queue]
    cdef uint32_t queue
    cdef uint64_t now
    cdef cost_t cost
    if has_no_limits(request):
        return 0
    if second != NULL and (second.ns != request.ns or second.compound.parsed != 0):
        # It fails, and nobody who looks for the second would find it in this namespace's queue.
        return 0
    queue = queue_of(request, second)
    cost = cost_of(request, second)
    now = limit_time(thread)
    if throttled.first[queue] == NULL and take_tokens(
            request.ns.backend.throttle, &cost, now, &throttled.due[queue]):
        return 0
    if throttled.waiting == 0:
        throttled.ns = request.ns
        enter(thread, throttled)
    put(throttled, queue, request)
    if second == NULL:
        return 1
    request.flags |= REQUEST_PAIRED
    put(throttled, queue, second)
    return 2


# -- having waited --------------------------------------------------------------------------------------


cdef inline bint is_held(sq_t *sq) noexcept nogil:
    """Nothing of it may begin at the moment: it is paused, or without its memory. A wrong doorbell
    does not stop what was fetched before."""
    return sq.held & ~<uint32_t> HELD_ERROR or sq.cq.held & ~<uint32_t> HELD_ERROR


cdef bint may_begin(throttled_t *throttled, uint32_t queue, request_t *second, uint64_t now) noexcept nogil:
    """Whether the first of a queue has what it needs, or no namespace any more."""
    cdef request_t *request = throttled.first[queue]
    cdef cost_t cost
    if is_held(request.sq):
        return False
    if request.ns.restricted & NS_STATE:
        return True
    if <int64_t> (now - throttled.due[queue]) < 0:
        return False
    cost = cost_of(request, second)
    return take_tokens(request.ns.backend.throttle, &cost, now, &throttled.due[queue])


cdef uint32_t next_of(throttled_t *throttled, uint64_t now, request_t **batch) noexcept nogil:
    """The next of a namespace's commands, what reads and what writes in turn; how many."""
    cdef uint32_t i, queue
    cdef request_t *request
    cdef request_t *second
    for i in range(2):
        queue = (throttled.turn + i) & 1
        request = throttled.first[queue]
        if request == NULL:
            continue
        second = chain_next(request) if request.flags & REQUEST_PAIRED else NULL
        if not may_begin(throttled, queue, second, now):
            continue
        throttled.turn = queue ^ 1
        take(throttled, queue, NULL, request)
        batch[0] = request
        if second == NULL:
            return 1
        take(throttled, queue, NULL, second)
        batch[1] = second
        return 2
    return 0


cdef uint32_t throttle_next(iothread_t *thread, uint64_t now, request_t **batch) noexcept nogil:
    cdef throttled_t *throttled = thread.throttled
    cdef uint32_t i, count
    for i in range(thread.throttled_count):
        count = next_of(throttled, now, batch)
        if count:
            # The next token is somebody else's.
            thread.throttled = throttled.next
            if throttled.waiting == 0:
                leave(thread, throttled)
            return count
        throttled = throttled.next
    return 0


cdef void throttle_look_again(iothread_t *thread) noexcept nogil:
    cdef throttled_t *throttled = thread.throttled
    cdef uint64_t now = limit_time(thread)
    cdef uint32_t i
    for i in range(thread.throttled_count):
        throttled.due[READS] = throttled.due[WRITES] = now
        throttled = throttled.next


cdef void throttle_charge(iothread_t *thread, request_t *request, uint64_t charged, uint64_t now) noexcept nogil:
    cdef throttle_t *throttle = request.ns.backend.throttle
    cdef uint64_t more
    cdef uint32_t kind
    if throttle == NULL or request.operation != OP_COPY or request.length <= charged:
        return
    more = request.length - charged
    for kind in range(LIMITS):
        if throttle.bytes[kind].token_time:
            bucket_take(&throttle.bytes[kind], 2 * more if kind == LIMIT_TOTAL else more, now)


# -- giving up ------------------------------------------------------------------------------------------


cdef bint throttle_forget(iothread_t *thread, request_t *request, request_t **partner) noexcept nogil:
    cdef throttled_t *throttled = &request.ns.throttled[request.sq.host_queue]
    cdef request_t *before
    cdef request_t *one
    cdef request_t *first = request
    cdef uint32_t queue
    partner[0] = NULL
    for queue in range(2):
        before = NULL
        one = throttled.first[queue]
        while one != NULL:
            if one == request:
                break
            if one.flags & REQUEST_PAIRED and chain_next(one) == request:
                first = one
                partner[0] = one
                break
            before = one
            one = chain_next(one)
        if one != NULL:
            break
    else:
        return False
    if first.flags & REQUEST_PAIRED:
        one = chain_next(first)
        if first == request:
            partner[0] = one
        take(throttled, queue, before, first)
        take(throttled, queue, before, one)
    else:
        take(throttled, queue, before, first)
    if throttled.waiting == 0:
        leave(thread, throttled)
    return True


cdef bint is_meant(
    request_t *request, controller_t *controller, sq_t *sq, namespace_t *ns
) noexcept nogil:
    return (request.sq.controller == controller and (sq == NULL or request.sq == sq)
            and (ns == NULL or request.ns == ns))


cdef bint give_up_in(
    iothread_t *thread, throttled_t *throttled, uint32_t queue, controller_t *controller, sq_t *sq,
    namespace_t *ns, uint32_t status
) noexcept nogil:
    """As `throttle_give_up`, of one queue. False: `thread.done` is full."""
    cdef request_t *before = NULL
    cdef request_t *request = throttled.first[queue]
    cdef request_t *second
    cdef request_t *after
    while request != NULL:
        second = chain_next(request) if request.flags & REQUEST_PAIRED else NULL
        after = chain_next(request if second == NULL else second)
        if not is_meant(request, controller, sq, ns):
            before = request if second == NULL else second
        elif thread.done_count > DONE_CAPACITY - SPARE:
            return False
        else:
            take(throttled, queue, before, request)
            throttle_end(thread, request, status)
            if second != NULL:
                take(throttled, queue, before, second)
                throttle_end(thread, second, status)
        request = after
    return True


cdef bint throttle_give_up(
    iothread_t *thread, controller_t *controller, sq_t *sq, namespace_t *ns, uint32_t status
) noexcept nogil:
    cdef throttled_t *throttled = thread.throttled
    cdef throttled_t *after
    cdef bint room = True
    cdef uint32_t i, queue
    for i in range(thread.throttled_count):
        after = throttled.next
        for queue in range(2):
            room = room and give_up_in(thread, throttled, queue, controller, sq, ns, status)
        if throttled.waiting == 0:
            leave(thread, throttled)
        throttled = after
    return thread.done_count != 0


cdef void throttle_end(iothread_t *thread, request_t *request, uint32_t status) noexcept nogil:
    cdef sq_t *sq = request.sq
    if sq.cq.held & HELD_MEMORY:
        # Its completion has no place to go: the guest has taken the queue's memory away.
        sq.cq.reserved_entries -= 1
        sq.inflight -= 1
        sq_release(sq, request)
        return
    request.status = <uint16_t> status
    request_done(thread, request)
