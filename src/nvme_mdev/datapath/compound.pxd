"""Commands that are more than one operation of a backend, or that have to wait."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from posix.uio cimport iovec

from nvme_mdev.datapath.runtime cimport (
    OP_DEALLOCATE, compound_t, compounds_t, iothread_t, request_t,
)

cdef enum:
    #: One operation of the backend, which has to wait for a locked range, is waited for, wants a
    #: flush first, or makes unreadable blocks readable.
    COMPOUND_PLAIN
    #: Compare, Verify and Copy by reads and writes, a bounce buffer at a time.
    COMPOUND_COMPARE
    COMPOUND_VERIFY
    COMPOUND_COPY
    #: Flush with NSID FFFFFFFFh: one namespace after the other.
    COMPOUND_FLUSH_ALL
    #: Write Uncorrectable: no operation at all.
    COMPOUND_UNCORRECTABLE
    #: Executed by the control plane (`deferred.pyx`).
    COMPOUND_DEFERRED
    #: Fused: Compare (first) and Write (second).
    COMPOUND_FIRST
    COMPOUND_SECOND

cdef enum:
    #: `compound_t.operated`: what the last operation was.
    NOTHING = 0
    FLUSHED = 1
    CHUNK_READ = 2
    CHUNK_WRITTEN = 3
    OPERATED = 4

#: Start entry `index` of a batch (parsed as COMPOUND), of which those before have been started; how
#: many entries that was: two for a fused pair.
cdef uint32_t compound_start(
    iothread_t *thread, request_t **batch, uint32_t index, uint32_t count) noexcept nogil
#: An operation of the request is over. True: so is the command, its completion can be posted.
cdef bint compound_over(iothread_t *thread, request_t *request) noexcept nogil
#: The completion was posted, the slot is not free yet.
cdef void compound_posted(iothread_t *thread, request_t *request) noexcept nogil
#: Start what waited and need not any more.
cdef void compound_retry(iothread_t *thread) noexcept nogil
#: The state of a thread's compound commands; NULL: no memory.
cdef compounds_t *compounds_create() noexcept
cdef void compounds_destroy(compounds_t *compounds) noexcept


cdef inline compound_t *compound_of(request_t *request) noexcept nogil:
    """The request's compound, made if there is none; NULL: no memory. Kind and range are as for PLAIN."""
    cdef compound_t *compound = request.compound
    if compound == NULL:
        compound = <compound_t *> calloc(1, sizeof(compound_t))
        if compound == NULL:
            return NULL
        compound.request = request
        request.compound = compound
        compound.operation = request.operation
        compound.offset = request.offset
        compound.length = request.length
    return compound


cdef inline void compound_drop(request_t *request) noexcept nogil:
    """Forget it; the request is a plain one."""
    free(request.compound)
    request.compound = NULL


cdef inline iovec *guest_segments(request_t *request, uint32_t *count) noexcept nogil:
    """The segments of guest memory that a request in flight reads or writes."""
    cdef compound_t *compound = request.compound
    if compound != NULL and (compound.kind == COMPOUND_COMPARE or compound.kind == COMPOUND_FIRST):
        count[0] = compound.data_count
        return compound.data
    count[0] = 0 if request.operation == OP_DEALLOCATE else request.iov_count
    return request.iov
