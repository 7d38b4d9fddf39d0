"""What an open file or device is, and one more io_uring operation on it: for `uring.pyx`, and for
`encrypted.pyx`, whose data goes the same way after a detour."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.backends.inline_io cimport inline_t
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.runtime cimport REQUEST_FUA, iothread_t, request_t
from nvme_mdev.datapath.status cimport SC_NAMESPACE_NOT_READY
from nvme_mdev.datapath.uring cimport (
    IOSQE_FIXED_FILE, io_uring_sqe, polled_of, uring_of, uring_sqe, uring_t,
)

cdef extern from "<sys/uio.h>":
    int RWF_DSYNC

cdef enum:
    NO_SLOT = 0xffffffff

#: A file or device, open.
cdef struct medium_t:
    #: Numbers in the rings' file tables; `direct` is NO_SLOT where there is no O_DIRECT.
    uint32_t direct
    uint32_t buffered
    #: Alignments of direct I/O, as masks: of memory; of offsets and lengths.
    uint64_t memory_mask
    uint64_t offset_mask
    #: Byte of the file or device that is the namespace's first.
    uint64_t start
    #: Discard goes by io_uring command (a block device on a kernel that has it).
    uint32_t discard_command
    uint32_t read_only
    #: Direct I/O that need not be durable when it ends is on the ring that polls the device.
    uint32_t polled
    inline_t at_once
    #: Places for IOThreads, of a namespace whose data is encrypted (`encrypted.pyx`).
    void *lanes


cdef inline bint goes_direct(medium_t *medium, request_t *request) noexcept nogil:
    """Each block of the namespace can be written directly."""
    return medium.direct != NO_SLOT and not (
        medium.offset_mask >> request.ns.block_shift or medium.start & medium.offset_mask)


cdef inline uint64_t position(request_t *request) noexcept nogil:
    """Where in the file or device the request's next byte is."""
    return (<medium_t *> request.ns.backend.context).start + request.offset + request.done


cdef inline io_uring_sqe *sqe_on(iothread_t *thread, uring_t *uring, request_t *request) noexcept nogil:
    """An SQE for one more operation of the request; without one the request fails (to be retried)."""
    cdef io_uring_sqe *sqe = uring_sqe(uring)
    if sqe == NULL:
        request.status = SC_NAMESPACE_NOT_READY
        return NULL
    uring.inflight += uring.polls
    request.pending += 1
    thread.inflight += 1
    return sqe


cdef inline uring_t *ring_for(iothread_t *thread, request_t *request, uint32_t slot) noexcept nogil:
    """The ring of a Read or Write."""
    cdef medium_t *medium = <medium_t *> request.ns.backend.context
    if medium.polled and slot == medium.direct and not request.flags & REQUEST_FUA:
        return polled_of(thread)
    return uring_of(thread)


cdef inline void send(io_uring_sqe *sqe, request_t *request) noexcept nogil:
    """The prep functions cleared the SQE: what they do not set comes after them."""
    sqe.flags |= IOSQE_FIXED_FILE
    sqe.user_data = <uint64_t> request


cdef void prepare_flush(iothread_t *thread, request_t *request, medium_t *medium) noexcept nogil
#: Direct I/O said EINVAL: this medium wants more than it told. All goes the other way from now on.
cdef void give_up_direct(medium_t *medium, request_t *request) noexcept nogil
#: The NVMe status for an errno. Without Do Not Retry where another try may go better.
cdef uint32_t nvme_status(request_t *request, int error) noexcept nogil
#: `backend_ops_t.cancel` of everything that is an operation of io_uring.
cdef void uring_backend_cancel(iothread_t *thread, request_t *request) noexcept nogil


cdef class UringBackend(Backend):
    cdef medium_t *medium
    #: Medium of `medium.py`.
    cdef object opened
    cdef readonly bint inline_io
    cdef readonly bint polled
    cdef int _map(self) except -1
    cdef int _attach_polled(self, IOThread iothread) except -1
    cdef int _register(self, IOThread iothread, uint32_t slot, int fd, bint polled=*) except -1
