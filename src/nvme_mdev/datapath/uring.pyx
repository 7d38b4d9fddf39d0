"""An IOThread's io_uring: one ring for all its files and devices, and one for those it polls.

The ring is set up for a thread that polls: it alone submits, and completions are left until it asks
(SINGLE_ISSUER, DEFER_TASKRUN), so the kernel never interrupts it. Older kernels get what they have.

A ring that polls devices (IOPOLL) takes nothing but direct I/O on them, so it is another one.
"""

from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.uio cimport iovec

from nvme_mdev.datapath.memory cimport buffer_range
from nvme_mdev.datapath.runtime cimport BUFFERS, iothread_t, request_t

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_params:
        uint32_t flags
        uint32_t cq_entries
    int io_uring_queue_init_params(unsigned, io_uring *, io_uring_params *)
    void io_uring_queue_exit(io_uring *)
    int io_uring_register_files_sparse(io_uring *, unsigned)
    int io_uring_register_files_update(io_uring *, unsigned, const int *, unsigned)
    int io_uring_register_buffers_sparse(io_uring *, unsigned)
    int io_uring_register_buffers_update_tag(
        io_uring *, unsigned, const iovec *, const unsigned long long *, unsigned)
    io_uring_sqe *io_uring_get_sqe(io_uring *)
    int io_uring_submit(io_uring *)
    unsigned io_uring_peek_batch_cqe(io_uring *, io_uring_cqe **, unsigned)
    void io_uring_cq_advance(io_uring *, unsigned)
    int io_uring_submit_and_get_events(io_uring *)
    cdef struct timespec "__kernel_timespec":
        int64_t tv_sec
        long long tv_nsec
    int io_uring_wait_cqes(io_uring *, io_uring_cqe **, unsigned, timespec *, void *)
    enum:
        IORING_FEAT_EXT_ARG
        IORING_SETUP_CQSIZE
        IORING_SETUP_IOPOLL
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_COOP_TASKRUN
        IORING_SETUP_TASKRUN_FLAG
        IORING_SETUP_DEFER_TASKRUN

cdef enum:
    #: SQEs between two submissions; more are submitted in several calls.
    ENTRIES = 256
    #: Room for what is in flight; the kernel keeps what does not fit (IORING_FEAT_NODROP).
    CQ_ENTRIES = 4096
    REAP = 64


cdef int open_ring(io_uring *ring, uint32_t flags) noexcept nogil:
    cdef io_uring_params parameters
    memset(&parameters, 0, sizeof(parameters))
    parameters.flags = IORING_SETUP_CQSIZE | flags
    parameters.cq_entries = CQ_ENTRIES
    return io_uring_queue_init_params(ENTRIES, ring, &parameters)


cdef int create(void **place, uint32_t flags) noexcept nogil:
    cdef int status
    cdef uring_t *uring = <uring_t *> calloc(1, sizeof(uring_t))
    if uring == NULL:
        return -ENOMEM
    uring.polls = flags & IORING_SETUP_IOPOLL != 0
    status = open_ring(
        &uring.ring,
        flags | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    )
    if status == -EINVAL:  # before Linux 6.1
        status = open_ring(&uring.ring, flags | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG)
    if status == -EINVAL:  # before Linux 5.19
        status = open_ring(&uring.ring, flags)
    if status == 0:
        status = io_uring_register_files_sparse(&uring.ring, URING_FILES)
        if status:
            io_uring_queue_exit(&uring.ring)
    if status:
        free(uring)
        return status
    # Without a table of buffers (not permitted, no memory) every I/O names its addresses.
    if io_uring_register_buffers_sparse(&uring.ring, BUFFERS) != 0:
        memset(uring.buffers, BUFFER_REFUSED, BUFFERS)
    place[0] = uring
    return 0


cdef int uring_create(iothread_t *thread, void *unused) noexcept nogil:
    return create(&thread.uring, 0)


cdef int uring_create_polled(iothread_t *thread, void *unused) noexcept nogil:
    return create(&thread.polled, IORING_SETUP_IOPOLL)


cdef void destroy(void **place) noexcept nogil:
    cdef uring_t *uring = <uring_t *> place[0]
    if uring != NULL:
        io_uring_queue_exit(&uring.ring)
        free(uring)
        place[0] = NULL


cdef void uring_destroy(iothread_t *thread) noexcept nogil:
    destroy(&thread.polled)
    destroy(&thread.uring)


cdef int uring_register_file(iothread_t *thread, void *file_slot) noexcept nogil:
    cdef uring_file_slot_t *file = <uring_file_slot_t *> file_slot
    cdef uring_t *uring = polled_of(thread) if file.polled else uring_of(thread)
    cdef int status = io_uring_register_files_update(&uring.ring, file.slot, &file.fd, 1)
    return 0 if status >= 0 else status


cdef void drop_buffers(uring_t *uring, uring_buffers_t *range_) noexcept nogil:
    cdef iovec none
    cdef unsigned long long tag = 0
    cdef uint32_t i
    none.iov_base = NULL
    none.iov_len = 0
    for i in range(range_.first, range_.first + range_.count):
        if uring.buffers[i] == BUFFER_REGISTERED:
            io_uring_register_buffers_update_tag(&uring.ring, i, &none, &tag, 1)
        uring.buffers[i] = BUFFER_NONE


cdef int uring_drop_buffers(iothread_t *thread, void *buffers) noexcept nogil:
    drop_buffers(uring_of(thread), <uring_buffers_t *> buffers)
    if thread.polled != NULL:
        drop_buffers(polled_of(thread), <uring_buffers_t *> buffers)
    return 0


cdef bint uring_use_buffer(uring_t *uring, uint32_t buffer) noexcept nogil:
    cdef iovec memory
    cdef unsigned long long tag = 0
    if uring.buffers[buffer] == BUFFER_NONE:
        buffer_range(buffer, &memory)
        if io_uring_register_buffers_update_tag(&uring.ring, buffer, &memory, &tag, 1) == 1:
            uring.buffers[buffer] = BUFFER_REGISTERED
        else:
            uring.buffers[buffer] = BUFFER_REFUSED
    return uring.buffers[buffer] == BUFFER_REGISTERED


cdef inline void submit(uring_t *uring) noexcept nogil:
    # A negative answer (no memory, CQ overflow) leaves the SQEs where they are for the next turn.
    cdef int submitted = io_uring_submit(&uring.ring)
    if submitted > 0:
        uring.prepared -= <uint32_t> submitted


cdef io_uring_sqe *uring_sqe(uring_t *uring) noexcept nogil:
    cdef io_uring_sqe *sqe = NULL
    if uring.prepared <= uring.piece:
        sqe = io_uring_get_sqe(&uring.ring)
    if sqe == NULL:
        # A piece is complete, or the ring is full.
        submit(uring)
        uring.piece = 2 * uring.piece + 1
        sqe = io_uring_get_sqe(&uring.ring)
    if sqe != NULL:
        uring.prepared += 1
    return sqe


cdef void uring_submit(uring_t *uring) noexcept nogil:
    submit(uring)
    uring.piece = 0


cdef void uring_submit_and_poll(uring_t *uring) noexcept nogil:
    io_uring_submit_and_get_events(&uring.ring)
    uring.prepared = uring.piece = 0


cdef bint uring_wait(uring_t *uring, uint64_t ns) noexcept nogil:
    cdef timespec timeout
    cdef io_uring_cqe *cqe
    if not uring.ring.features & IORING_FEAT_EXT_ARG:  # before Linux 5.11
        return False
    timeout.tv_sec = 0
    timeout.tv_nsec = <int64_t> ns
    io_uring_wait_cqes(&uring.ring, &cqe, 1, &timeout, NULL)
    return True


cdef inline uint32_t take_completions(iothread_t *thread, uring_t *uring) noexcept nogil:
    cdef io_uring_cqe *cqes[REAP]
    cdef request_t *request
    cdef uint32_t i
    cdef uint32_t count = io_uring_peek_batch_cqe(&uring.ring, cqes, REAP)
    for i in range(count):
        request = <request_t *> cqes[i].user_data
        # The result of a cancellation names no request: the cancelled operation reports itself.
        if request != NULL:
            request.ns.backend.ops.complete(thread, request, cqes[i].res)
    if count:
        io_uring_cq_advance(&uring.ring, count)
    return count


cdef uint32_t uring_poll(iothread_t *thread) noexcept nogil:
    return take_completions(thread, uring_of(thread))


cdef uint32_t uring_poll_devices(iothread_t *thread, void *unused) noexcept nogil:
    cdef uring_t *uring = polled_of(thread)
    cdef uint32_t count
    if uring == NULL or uring.inflight == 0:
        return 0
    uring_submit_and_poll(uring)
    count = take_completions(thread, uring)
    uring.inflight -= count
    return count
