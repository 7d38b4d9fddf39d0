"""Commands that are more than one operation of a backend, or that have to wait.

Compare, Verify and Copy are made of reads and writes through a bounce buffer where a backend cannot do
them itself; Flush of all namespaces is a flush of each. A fused Compare and Write has its range of the
backend for itself meanwhile (`range_locks.pyx`).

The frame is the same for all: `next_operation` prepares an operation, `operation_over` looks at its
result, until there is no other. A command that cannot begin waits: for a range on one list of the
thread, which is looked through whenever a range or a command that was waited for is over; for a bounce
buffer on its controller's, and these take turns whenever a buffer is given back, so that a guest who
keeps all of them busy has no other wait for more than one command of his. Nothing here is polled.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.uio cimport iovec

from nvme_mdev.datapath.atomics cimport store_release32
from nvme_mdev.datapath.checks cimport CDW12_NLB, equal_bytes, fault_at, takes_flush
from nvme_mdev.datapath.layout cimport (
    STAGE_COMPARED, STAGE_NONE, STAGE_OVER, STAGE_STATUS_SHIFT, nvme_sqe_t,
)
from nvme_mdev.datapath.opcodes cimport NVME_COMPARE, NVME_WRITE
from nvme_mdev.datapath.queues cimport request_done, signal_fd
from nvme_mdev.datapath.range_locks cimport conflicts, give_range, have_range, request_touches
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_BAD, ATTENTION_LOCKED, DONE_CAPACITY, NO_BUFFER, OP_COPY,
    OP_DEALLOCATE, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES, REQUEST_DEALLOCATE,
    REQUEST_EXPIRED, REQUEST_FUA, REQUEST_LBA, REQUEST_PREEMPTED, RETRY_BOUNCES, RETRY_RANGES,
    backend_t, compound_t, compounds_t, controller_t, iothread_t, namespace_t, request_t, share_t,
    sq_t,
)
from nvme_mdev.datapath.status cimport (
    COMPOUND, LIMITED, LOCATION_CDW10, LOCATION_FLAGS, SC_ABORT_FAILED_FUSED,
    SC_ABORT_MISSING_FUSED, SC_ABORT_REQUESTED, SC_COMPARE_FAILURE, SC_DNR, SC_INTERNAL_ERROR,
    SC_INVALID_FIELD, SC_NAMESPACE_NOT_READY, SC_SUCCESS,
)
from nvme_mdev.datapath.uncorrectable cimport bad_add, bad_clear

cdef enum:
    #: A thread's bounce buffers: 2 MiB of address space, memory only once they are used.
    BOUNCES = 16
    BOUNCE_SIZE = 128 << 10
    #: Commands of a controller that may wait on a thread; they may be looked through often. More are
    #: told to retry.
    WAITING_MOST = 1024
    #: Entries of `thread.done` that are kept free of commands that waited.
    DONE_SPARE = 16

    #: `try_start`: it has begun; its range is not free, or not locked yet; there is no bounce buffer.
    STARTED = 0
    NO_RANGE = 1
    NO_BOUNCE = 2


# -- making and forgetting --------------------------------------------------------------------------


cdef compounds_t *compounds_create() noexcept:
    cdef compounds_t *compounds = <compounds_t *> calloc(1, sizeof(compounds_t))
    if compounds != NULL:
        compounds.free_bounces = (1 << BOUNCES) - 1
    return compounds


cdef void compounds_destroy(compounds_t *compounds) noexcept:
    if compounds != NULL and compounds.bounces != NULL:
        munmap(compounds.bounces, BOUNCES * BOUNCE_SIZE)
    free(compounds)


# -- bounce buffers -----------------------------------------------------------------------------------


cdef inline bint needs_bounce(compound_t *compound) noexcept nogil:
    return compound.bounce == NULL and (
        compound.bounced or compound.kind == COMPOUND_VERIFY or compound.kind == COMPOUND_COPY)


cdef bint take_bounce(compounds_t *compounds, compound_t *compound) noexcept nogil:
    """False: there is none at the moment."""
    cdef void *address
    cdef uint32_t i
    if compounds.bounces == NULL:
        address = mmap(NULL, BOUNCES * BOUNCE_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if address == MAP_FAILED:
            return False
        compounds.bounces = <uint8_t *> address
    for i in range(BOUNCES):
        if compounds.free_bounces >> i & 1:
            compounds.free_bounces &= ~(<uint32_t> 1 << i)
            compound.bounce = compounds.bounces + i * BOUNCE_SIZE
            return True
    return False


cdef void give_bounce(iothread_t *thread, compound_t *compound) noexcept nogil:
    cdef compounds_t *compounds = thread.compounds
    if compound.bounce != NULL:
        compounds.free_bounces |= <uint32_t> 1 << (
            <uint32_t> (compound.bounce - compounds.bounces) // BOUNCE_SIZE)
        compound.bounce = NULL
        thread.retry |= RETRY_BOUNCES


# -- one operation after the other --------------------------------------------------------------------


cdef inline void prepare(
    compound_t *compound, uint32_t operated, uint32_t operation, uint64_t offset, uint64_t length
) noexcept nogil:
    cdef request_t *request = compound.request
    compound.operated = operated
    request.operation = <uint16_t> operation
    request.offset = offset
    request.length = length


cdef inline void prepare_chunk(
    compound_t *compound, uint32_t operated, uint32_t operation, uint64_t offset
) noexcept nogil:
    """A read into the bounce buffer, or a write from it, of `chunk` bytes."""
    compound.step.iov_base = compound.bounce
    compound.step.iov_len = compound.chunk
    compound.request.iov = &compound.step
    compound.request.iov_count = 1
    compound.request.buffer = NO_BUFFER
    prepare(compound, operated, operation, offset, compound.chunk)


cdef bint next_copy(compound_t *compound) noexcept nogil:
    """Read the next piece of the source ranges, or write what was read."""
    cdef iovec *source
    if compound.operated == CHUNK_READ:
        prepare_chunk(compound, CHUNK_WRITTEN, OP_WRITE, compound.offset + compound.done)
        return True
    if compound.index == compound.data_count:
        return False
    source = &compound.data[compound.index]
    compound.chunk = <uint32_t> min(<uint64_t> BOUNCE_SIZE, source.iov_len - compound.index_done)
    prepare_chunk(compound, CHUNK_READ, OP_READ, <uint64_t> source.iov_base + compound.index_done)
    return True


cdef bint next_flush(compound_t *compound) noexcept nogil:
    """The next namespace that there is."""
    cdef request_t *request = compound.request
    cdef namespace_t *ns
    while compound.index < request.sq.controller.places_end:
        ns = &request.sq.controller.namespaces[compound.index]
        if ns.backend != NULL and takes_flush(ns):
            request.ns = ns
            prepare(compound, OPERATED, OP_FLUSH, 0, 0)
            return True
        compound.index += 1
    return False


cdef bint next_plain(compound_t *compound) noexcept nogil:
    """The operation that it is."""
    if compound.operated == OPERATED:
        return False
    prepare(compound, OPERATED, compound.operation, compound.offset, compound.length)
    return True


cdef bint next_compared(compound_t *compound) noexcept nogil:
    """Compare, or read to compare or to verify."""
    if not compound.bounced and compound.kind != COMPOUND_VERIFY:
        return next_plain(compound)
    if compound.done == compound.length:
        return False
    compound.chunk = <uint32_t> min(<uint64_t> BOUNCE_SIZE, compound.length - compound.done)
    prepare_chunk(compound, CHUNK_READ, OP_READ, compound.offset + compound.done)
    return True


cdef bint next_of_kind(compound_t *compound) noexcept nogil:
    if compound.kind == COMPOUND_PLAIN:
        return next_plain(compound)
    if compound.kind == COMPOUND_COPY:
        return next_copy(compound)
    if compound.kind == COMPOUND_FLUSH_ALL:
        return next_flush(compound)
    if compound.kind == COMPOUND_UNCORRECTABLE:
        return False
    return next_compared(compound)


cdef request_t *next_operation(compound_t *compound) noexcept nogil:
    """Prepare another operation; the request to submit, NULL: there is none left."""
    cdef request_t *request = compound.request
    cdef request_t *second
    if request.status:
        return NULL
    if request.flags & REQUEST_EXPIRED:
        request.status = SC_ABORT_REQUESTED
        return NULL
    if compound.flush_first:
        prepare(compound, FLUSHED, OP_FLUSH, 0, 0)
        return request
    if request.slot.stage == STAGE_NONE and next_of_kind(compound):
        return request
    if compound.kind != COMPOUND_FIRST:
        return NULL
    # From here on it must not be compared again: what is written now makes it fail.
    store_release32(&request.slot.stage, STAGE_COMPARED)
    second = compound.partner
    second.compound.started = 1
    if second.compound.operated == OPERATED:
        return NULL
    prepare(second.compound, OPERATED, OP_WRITE, second.compound.offset, second.compound.length)
    return second


cdef bint compare_chunk(compound_t *compound) noexcept nogil:
    """Compare the bounce buffer with the guest's data at the same place. False: they differ."""
    cdef iovec *segment
    cdef uint64_t part, equal
    cdef uint64_t compared = 0
    while compared < compound.chunk:
        segment = &compound.data[compound.index]
        part = min(segment.iov_len - compound.index_done, compound.chunk - compared)
        equal = equal_bytes(compound.bounce + compared,
                            <uint8_t *> segment.iov_base + compound.index_done, part)
        compared += equal
        if equal < part:
            fault_at(compound.request, (compound.offset + compound.done + compared)
                     >> compound.request.ns.block_shift)
            return False
        compound.index_done += part
        if compound.index_done == segment.iov_len:
            compound.index += 1
            compound.index_done = 0
    return True


cdef void repair(request_t *request) noexcept nogil:
    """Blocks that were written are readable."""
    cdef backend_t *backend = request.ns.backend
    cdef uint32_t shift = request.ns.block_shift
    cdef uint32_t i
    if request.operation == OP_WRITE or request.operation == OP_WRITE_ZEROES or (
            request.operation == OP_COPY):
        bad_clear(backend, request.offset >> shift, request.length >> shift)
    elif request.operation == OP_DEALLOCATE:
        for i in range(request.iov_count):
            bad_clear(backend, <uint64_t> request.iov[i].iov_base >> shift,
                      request.iov[i].iov_len >> shift)


cdef void chunk_over(compound_t *compound) noexcept nogil:
    """A chunk was read or written."""
    cdef request_t *request = compound.request
    if compound.kind != COMPOUND_COPY:
        if compound.bounced and not compare_chunk(compound):
            request.status = SC_COMPARE_FAILURE | SC_DNR
        compound.done += compound.chunk
    elif compound.operated == CHUNK_WRITTEN:
        compound.done += compound.chunk
        compound.index_done += compound.chunk
        if compound.index_done == compound.data[compound.index].iov_len:
            compound.index += 1
            compound.index_done = 0


cdef void operation_over(compound_t *compound, request_t *request) noexcept nogil:
    """Take the result of an operation: of the command's own request, or of a pair's second."""
    if request.status:
        if request == compound.request and not request.flags & REQUEST_LBA and (
                request.operation != OP_FLUSH):
            fault_at(request, (request.offset + request.done) >> request.ns.block_shift)
        return
    if request.ns.backend.attention & ATTENTION_BAD:
        repair(request)
    if request != compound.request:
        return
    if compound.operated == FLUSHED:
        compound.flush_first = 0
    elif compound.operated == CHUNK_READ or compound.operated == CHUNK_WRITTEN:
        chunk_over(compound)
    elif compound.kind == COMPOUND_FLUSH_ALL:
        compound.index += 1


cdef bint done_at_once(iothread_t *thread, request_t *request) noexcept nogil:
    """Submit an operation. False: it takes time, and comes to `compound_over`."""
    cdef request_t *alone[2]
    cdef request_t **others = thread.done
    cdef uint32_t count = thread.done_count
    cdef bint done
    request.flags &= (
        REQUEST_FUA | REQUEST_DEALLOCATE | REQUEST_EXPIRED | REQUEST_LBA | REQUEST_PREEMPTED)
    request.done = 0
    request.result = 0
    # Those that are done already may be on their way through `complete_done`.
    thread.done = alone
    thread.done_count = 0
    request.ns.backend.ops.submit(thread, request)
    done = thread.done_count != 0
    thread.done = others
    thread.done_count = count
    return done


cdef bint advance(iothread_t *thread, compound_t *compound) noexcept nogil:
    """Operations until one takes time (False) or none is left (True)."""
    cdef request_t *request = next_operation(compound)
    while request != NULL:
        if not done_at_once(thread, request):
            return False
        operation_over(compound, request)
        if request.status:
            break
        request = next_operation(compound)
    return True


# -- beginning ----------------------------------------------------------------------------------------


cdef void finish_uncorrectable(compound_t *compound) noexcept nogil:
    cdef request_t *request = compound.request
    cdef uint32_t shift = request.ns.block_shift
    if not bad_add(request.sq.controller, request.ns, compound.offset >> shift,
                   compound.length >> shift):
        request.status = SC_INTERNAL_ERROR | SC_DNR


cdef void settle(request_t *request, uint32_t status) noexcept nogil:
    """A command of a pair has its status, also for a process after this one."""
    request.status = <uint16_t> status
    request.compound.over = 1
    store_release32(&request.slot.stage, STAGE_OVER | status << STAGE_STATUS_SHIFT)


cdef void finish_pair(iothread_t *thread, compound_t *compound, uint32_t first, uint32_t second) noexcept nogil:
    """Both are over: neither is executed again when this process dies between their completions."""
    cdef request_t *partner = compound.partner
    settle(partner, second)
    settle(compound.request, first)
    give_range(thread, compound.request)
    give_bounce(thread, compound)
    request_done(thread, compound.request)
    request_done(thread, partner)


cdef void finish(iothread_t *thread, compound_t *compound) noexcept nogil:
    """No operation is left: the completion can be posted (`request_done` has it)."""
    cdef request_t *request = compound.request
    if compound.kind == COMPOUND_FIRST:
        if request.status:
            finish_pair(thread, compound, request.status, SC_ABORT_FAILED_FUSED)
        elif compound.partner.status:
            finish_pair(thread, compound, SC_ABORT_FAILED_FUSED, compound.partner.status)
        else:
            finish_pair(thread, compound, SC_SUCCESS, SC_SUCCESS)
        return
    if compound.kind == COMPOUND_UNCORRECTABLE and not request.status:
        finish_uncorrectable(compound)
    if compound.kind == COMPOUND_COPY:
        # The lowest source range that was not copied; 0 as well where nothing was written (NVM
        # Command Set 1.x, section 3.2.2.1).
        request.result = compound.index if request.status else 0
    # What it counts as.
    request.operation = <uint16_t> compound.operation
    request.offset = compound.offset
    request.length = compound.length
    compound.over = 1
    give_bounce(thread, compound)
    request_done(thread, request)


cdef uint32_t try_start(iothread_t *thread, compound_t *compound) noexcept nogil:
    """Begin the command, or say what it has to wait for."""
    cdef request_t *request = compound.request
    if compound.kind != COMPOUND_FLUSH_ALL and request.ns.backend.attention & ATTENTION_LOCKED and (
            conflicts(thread.compounds, request)):
        return NO_RANGE
    if needs_bounce(compound) and not take_bounce(thread.compounds, compound):
        return NO_BOUNCE
    if compound.kind == COMPOUND_FIRST and not have_range(thread, compound):
        return NO_RANGE
    compound.started = 1
    request.status = SC_SUCCESS
    if advance(thread, compound):
        finish(thread, compound)
    return STARTED


# -- waiting ------------------------------------------------------------------------------------------


cdef inline share_t *share_of(compound_t *compound) noexcept nogil:
    cdef sq_t *sq = compound.request.sq
    return &sq.controller.shares[sq.host_queue]


cdef void take_turns(compounds_t *compounds, share_t *share) noexcept nogil:
    """Its turn comes after all others'."""
    share.next = NULL
    if compounds.first_in_turn == NULL:
        compounds.first_in_turn = share
    else:
        compounds.last_in_turn.next = share
    compounds.last_in_turn = share


cdef void wait_for(iothread_t *thread, compound_t *compound, uint32_t reason) noexcept nogil:
    cdef compounds_t *compounds = thread.compounds
    cdef share_t *share = share_of(compound)
    cdef compound_t **first = &compounds.first
    cdef compound_t **last = &compounds.last
    if reason == NO_BOUNCE:
        first = &share.first
        last = &share.last
        if share.first == NULL:
            take_turns(compounds, share)
    compound.next = NULL
    if first[0] == NULL:
        first[0] = compound
    else:
        last[0].next = compound
    last[0] = compound
    share.waiting += 1


cdef void start_or_wait(iothread_t *thread, compound_t *compound) noexcept nogil:
    """Where too many wait it goes back to the guest, which may try again."""
    cdef uint32_t reason = try_start(thread, compound)
    if reason == STARTED:
        return
    if share_of(compound).waiting < WAITING_MOST:
        wait_for(thread, compound, reason)
    elif compound.kind == COMPOUND_FIRST:
        finish_pair(thread, compound, SC_NAMESPACE_NOT_READY, SC_ABORT_FAILED_FUSED)
    else:
        compound.request.status = SC_NAMESPACE_NOT_READY
        finish(thread, compound)


cdef void retry_ranges(iothread_t *thread) noexcept nogil:
    """Everything that waits for a range."""
    cdef compound_t *compound = thread.compounds.first
    cdef compound_t *after
    cdef uint32_t reason
    thread.compounds.first = thread.compounds.last = NULL
    while compound != NULL:
        after = compound.next
        share_of(compound).waiting -= 1
        reason = NO_RANGE
        if thread.done_count > DONE_CAPACITY - DONE_SPARE:
            thread.retry |= RETRY_RANGES
        else:
            reason = try_start(thread, compound)
        if reason != STARTED:
            wait_for(thread, compound, reason)
        compound = after


cdef void retry_bounces(iothread_t *thread) noexcept nogil:
    """One of each controller in turn, as long as there are bounce buffers."""
    cdef compounds_t *compounds = thread.compounds
    cdef share_t *share = compounds.first_in_turn
    cdef compound_t *compound
    cdef compound_t *after
    cdef uint32_t reason
    while share != NULL:
        if thread.done_count > DONE_CAPACITY - DONE_SPARE:
            thread.retry |= RETRY_BOUNCES
            return
        compound = share.first
        after = compound.next
        reason = try_start(thread, compound)
        if reason == NO_BOUNCE:
            return
        compounds.first_in_turn = share.next
        share.first = after
        share.waiting -= 1
        if after != NULL:
            take_turns(compounds, share)
        if reason == NO_RANGE:
            wait_for(thread, compound, NO_RANGE)
        share = compounds.first_in_turn


cdef void compound_retry(iothread_t *thread) noexcept nogil:
    cdef uint32_t given_back = thread.retry
    thread.retry = 0
    if given_back & RETRY_RANGES:
        retry_ranges(thread)
    if given_back & RETRY_BOUNCES:
        retry_bounces(thread)


# -- fused pairs ----------------------------------------------------------------------------------------


cdef bint same_range(nvme_sqe_t *first, nvme_sqe_t *second) noexcept nogil:
    return (first.nsid == second.nsid and first.cdw10 == second.cdw10 and first.cdw11 == second.cdw11
            and (first.cdw12 ^ second.cdw12) & CDW12_NLB == 0)


cdef void refuse_pair(iothread_t *thread, compound_t *compound, uint32_t location) noexcept nogil:
    compound.request.error_location = compound.partner.error_location = location
    finish_pair(thread, compound, SC_INVALID_FIELD | SC_DNR, SC_INVALID_FIELD | SC_DNR)


cdef void hold_back(request_t **batch, uint32_t begin, uint32_t count, compound_t *pair) noexcept nogil:
    """Commands of the same batch that come later were parsed before the range was locked."""
    cdef uint32_t i
    cdef request_t *later
    for i in range(begin, count):
        later = batch[i]
        if (later.status == SC_SUCCESS or later.status == LIMITED) and (
                later.ns.backend == pair.request.ns.backend) and (
                request_touches(later, pair.offset, pair.offset + pair.length)):
            later.status = COMPOUND if compound_of(later) != NULL else SC_INTERNAL_ERROR


cdef uint32_t start_pair(
    iothread_t *thread, compound_t *compound, request_t **batch, uint32_t index, uint32_t count
) noexcept nogil:
    """The first command of a pair; the second has to be the next of its SQ. How many it was."""
    cdef request_t *request = compound.request
    cdef request_t *second = batch[index + 1] if index + 1 < count else NULL
    if second == NULL or second.compound == NULL or second.compound.kind != COMPOUND_SECOND:
        request.error_location = LOCATION_FLAGS
        settle(request, SC_ABORT_MISSING_FUSED | SC_DNR)
        give_range(thread, request)
        request_done(thread, request)
        return 1
    compound.partner = second
    second.compound.partner = request
    if request.slot.sqe.opcode != NVME_COMPARE or second.slot.sqe.opcode != NVME_WRITE:
        refuse_pair(thread, compound, LOCATION_FLAGS)
    elif not same_range(&request.slot.sqe, &second.slot.sqe):
        refuse_pair(thread, compound, LOCATION_CDW10)
    elif compound.parsed:
        finish_pair(thread, compound, compound.parsed, SC_ABORT_FAILED_FUSED)
    elif second.compound.parsed:
        finish_pair(thread, compound, SC_ABORT_FAILED_FUSED, second.compound.parsed)
    else:
        second.status = SC_SUCCESS
        hold_back(batch, index + 2, count, compound)
        start_or_wait(thread, compound)
    return 2


cdef void start_second(iothread_t *thread, compound_t *compound) noexcept nogil:
    """The second command of a pair without a first."""
    compound.request.error_location = LOCATION_FLAGS
    settle(compound.request, SC_ABORT_MISSING_FUSED | SC_DNR)
    request_done(thread, compound.request)


cdef void hand_over(compound_t *compound) noexcept nogil:
    """The command is the control plane's from here on, which posts its completion, too."""
    cdef controller_t *controller = compound.request.sq.controller
    compound.started = 1
    store_release32(&controller.deferred, 1)
    signal_fd(controller.notify_fd)


cdef uint32_t compound_start(
    iothread_t *thread, request_t **batch, uint32_t index, uint32_t count
) noexcept nogil:
    cdef request_t *request = batch[index]
    cdef compound_t *compound = request.compound
    if request.slot.stage & STAGE_OVER:
        # A process before us has executed it, and its partner's completion may be posted.
        settle(request, request.slot.stage >> STAGE_STATUS_SHIFT)
        request_done(thread, request)
    elif compound.kind == COMPOUND_FIRST:
        return start_pair(thread, compound, batch, index, count)
    elif compound.kind == COMPOUND_SECOND:
        start_second(thread, compound)
    elif compound.kind == COMPOUND_DEFERRED:
        hand_over(compound)
    else:
        start_or_wait(thread, compound)
    return 1


# -- ending -----------------------------------------------------------------------------------------------


cdef bint compound_over(iothread_t *thread, request_t *request) noexcept nogil:
    cdef compound_t *compound = request.compound
    if compound.over:
        return True
    if compound.kind == COMPOUND_SECOND:
        compound = compound.partner.compound
    operation_over(compound, request)
    if request.status or advance(thread, compound):
        finish(thread, compound)
    return False


cdef void compound_posted(iothread_t *thread, request_t *request) noexcept nogil:
    if request.compound.awaited:
        thread.retry |= RETRY_RANGES
    store_release32(&request.slot.stage, STAGE_NONE)
    compound_drop(request)
