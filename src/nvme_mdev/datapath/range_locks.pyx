"""Ranges of a backend that fused pairs have for themselves, on one IOThread.

From its comparison to the end of its write nobody else is at a pair's range (NVMe Base 2.x, section
3.4.2): it locks the range, waits for the commands in flight that touch it, and those that come later
wait for it.
"""

from libc.stdint cimport uint32_t, uint64_t
from posix.uio cimport iovec

from nvme_mdev.datapath.checks cimport CDW12_NLB
from nvme_mdev.datapath.compound cimport COMPOUND_PLAIN, OPERATED, compound_of
from nvme_mdev.datapath.layout cimport SLOT_BUSY, nvme_sqe_t
from nvme_mdev.datapath.namespace_places cimport find_namespace
from nvme_mdev.datapath.runtime cimport (
    OP_COPY, OP_DEALLOCATE, OP_DEFERRED, OP_FLUSH, RANGE_LOCKS, REQUEST_THROTTLED,
    RETRY_RANGES, compound_t, compounds_t, iothread_t, namespace_t, range_lock_t, request_t, sq_t,
)
from nvme_mdev.datapath.uncorrectable cimport lock_attention, unlock_attention


# -- what a command touches -------------------------------------------------------------------------


cdef bint ranges_touch(iovec *ranges, uint32_t count, uint64_t begin, uint64_t end) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t first
    for i in range(count):
        first = <uint64_t> ranges[i].iov_base
        if first < end and begin < first + ranges[i].iov_len:
            return True
    return False


cdef bint request_touches(request_t *request, uint64_t begin, uint64_t end) noexcept nogil:
    cdef compound_t *compound = request.compound
    if compound == NULL:
        if request.operation == OP_FLUSH:
            return False
        if request.operation == OP_DEALLOCATE:
            return ranges_touch(request.iov, request.iov_count, begin, end)
        return request.offset < end and begin < request.offset + request.length
    if compound.operation == OP_FLUSH or compound.operation == OP_DEFERRED:
        return False
    if compound.operation == OP_DEALLOCATE:
        return ranges_touch(request.iov, request.iov_count, begin, end)
    if compound.operation == OP_COPY and ranges_touch(
            compound.data, compound.data_count, begin, end):
        return True
    return compound.offset < end and begin < compound.offset + compound.length


# -- locking ------------------------------------------------------------------------------------------


cdef range_lock_t *lock_of(compounds_t *compounds, request_t *owner) noexcept nogil:
    """The lock that a pair's first command has; of NULL: a free one. NULL: there is none."""
    cdef uint32_t i
    for i in range(RANGE_LOCKS):
        if compounds.locks[i].owner == owner:
            return &compounds.locks[i]
    return NULL


cdef bint conflicts(compounds_t *compounds, request_t *request) noexcept nogil:
    cdef range_lock_t *lock
    cdef uint32_t i
    for i in range(RANGE_LOCKS):
        lock = &compounds.locks[i]
        if lock.owner != NULL and lock.owner != request and lock.backend == request.ns.backend and (
                request_touches(request, lock.offset, lock.offset + lock.length)):
            return True
    return False


cdef void take_lock(range_lock_t *lock, request_t *owner, uint64_t offset, uint64_t length) noexcept nogil:
    lock.backend = owner.ns.backend
    lock.offset = offset
    lock.length = length
    lock.owner = owner
    lock_attention(lock.backend)


cdef void give_range(iothread_t *thread, request_t *owner) noexcept nogil:
    cdef range_lock_t *lock = lock_of(thread.compounds, owner)
    if lock != NULL:
        unlock_attention(lock.backend)
        lock.owner = NULL
        thread.retry |= RETRY_RANGES


cdef bint is_waiting(request_t *request) noexcept nogil:
    return request.compound != NULL and not request.compound.started


cdef bint await_queue(iothread_t *thread, sq_t *sq, range_lock_t *lock) noexcept nogil:
    """Have the pair told when the commands of an SQ that touch its range are over. True: there are."""
    cdef request_t *other
    cdef compound_t *awaited
    cdef bint found = False
    cdef uint32_t i
    for i in range(sq.slots_ready):
        other = &sq.requests[i]
        if (sq.slots[i].state != SLOT_BUSY or other.flags & REQUEST_THROTTLED
                or other.ns == NULL or other.ns.backend != lock.backend
                or other == lock.owner or other == lock.owner.compound.partner or is_waiting(other)
                or not request_touches(other, lock.offset, lock.offset + lock.length)):
            continue
        found = True
        awaited = compound_of(other)
        if awaited == NULL:
            # Then it is looked at again whenever anything is over.
            thread.retry |= RETRY_RANGES
            continue
        awaited.started = awaited.awaited = 1
        awaited.operated = OPERATED if awaited.kind == COMPOUND_PLAIN else awaited.operated
    return found


cdef bint have_range(iothread_t *thread, compound_t *compound) noexcept nogil:
    cdef request_t *request = compound.request
    cdef range_lock_t *lock = lock_of(thread.compounds, request)
    cdef bint others = False
    cdef uint32_t i
    if lock == NULL:
        lock = lock_of(thread.compounds, NULL)
        if lock == NULL:
            return False
        take_lock(lock, request, compound.offset, compound.length)
    for i in range(thread.queue_count):
        if thread.queues[i].inflight and await_queue(thread, thread.queues[i], lock):
            others = True
    return not others


cdef void reserve_range(iothread_t *thread, request_t *request) noexcept nogil:
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef range_lock_t *lock = lock_of(thread.compounds, NULL)
    cdef namespace_t *ns
    # Checked again when it is parsed: this memory is ours, but it is not worth a crash.
    if lock == NULL:
        return
    ns = find_namespace(request.sq.controller, sqe.nsid)
    if ns != NULL and ns.backend != NULL:
        request.ns = ns
        take_lock(lock, request, (<uint64_t> sqe.cdw11 << 32 | sqe.cdw10) << ns.block_shift,
                  <uint64_t> ((sqe.cdw12 & CDW12_NLB) + 1) << ns.block_shift)
