"""An IOThread's io_uring: one ring for all its files and devices, and one for those it polls."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

from nvme_mdev.datapath.runtime cimport BUFFERS, iothread_t

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t rw_flags
        uint32_t cmd_op
        uint64_t addr3
        uint64_t user_data
    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
    cdef struct io_uring:
        unsigned features
    void io_uring_prep_read(io_uring_sqe *, int, void *, unsigned, uint64_t)
    void io_uring_prep_write(io_uring_sqe *, int, const void *, unsigned, uint64_t)
    void io_uring_prep_readv2(io_uring_sqe *, int, const iovec *, unsigned, uint64_t, int)
    void io_uring_prep_writev2(io_uring_sqe *, int, const iovec *, unsigned, uint64_t, int)
    void io_uring_prep_read_fixed(io_uring_sqe *, int, void *, unsigned, uint64_t, int)
    void io_uring_prep_write_fixed(io_uring_sqe *, int, const void *, unsigned, uint64_t, int)
    void io_uring_prep_fsync(io_uring_sqe *, int, unsigned)
    void io_uring_prep_fallocate(io_uring_sqe *, int, int, uint64_t, uint64_t)
    void io_uring_prep_cancel64(io_uring_sqe *, uint64_t, int)
    enum:
        IOSQE_FIXED_FILE
        IORING_FSYNC_DATASYNC
        IORING_OP_URING_CMD

cdef enum:
    #: Files (two a namespace) that one ring can have registered.
    URING_FILES = 2048
    BUFFER_NONE = 0
    BUFFER_REGISTERED = 1
    #: The kernel refused: not tried again.
    BUFFER_REFUSED = 2

cdef struct uring_t:
    io_uring ring
    #: SQEs written and not yet shown to the kernel.
    uint32_t prepared
    #: When more than these are prepared, they are submitted before the next is written: a batch goes out as
    #: 1, 2, 4 and so on. Nothing that one call brings reaches the device before the kernel has seen all of it.
    uint32_t piece
    #: For I/O within the system call: how often the thread had slept for something by then, and how
    #: often of its own accord (`iothread_t.rests`).
    int64_t sleeps
    uint32_t rests
    #: 1: the device is polled for completions (IOPOLL), for which `inflight` operations are out.
    uint32_t polls
    uint32_t inflight
    #: By registered-buffer number.
    uint8_t buffers[BUFFERS]


cdef inline uring_t *uring_of(iothread_t *thread) noexcept nogil:
    return <uring_t *> thread.uring


cdef inline uring_t *polled_of(iothread_t *thread) noexcept nogil:
    return <uring_t *> thread.polled


#: Make the thread's ring; 0 or -errno. Runs on the thread: it becomes the ring's only submitter.
cdef int uring_create(iothread_t *thread, void *unused) noexcept nogil
#: The same, of the ring for direct I/O on devices that can be polled.
cdef int uring_create_polled(iothread_t *thread, void *unused) noexcept nogil
cdef void uring_destroy(iothread_t *thread) noexcept nogil
#: Put a file descriptor (argument: uring_file_slot_t) into the ring's table, -1 takes it out.
cdef struct uring_file_slot_t:
    uint32_t slot
    int fd
    #: Into that of the other ring.
    bint polled
cdef int uring_register_file(iothread_t *thread, void *file_slot) noexcept nogil
#: Unregister guest memory (argument: uring_buffers_t).
cdef struct uring_buffers_t:
    uint32_t first
    uint32_t count
cdef int uring_drop_buffers(iothread_t *thread, void *buffers) noexcept nogil
#: True: the memory is (now) registered under this number.
cdef bint uring_use_buffer(uring_t *uring, uint32_t buffer) noexcept nogil
#: An SQE to fill in, or NULL: the kernel takes no more at the moment.
cdef io_uring_sqe *uring_sqe(uring_t *uring) noexcept nogil
#: Show the kernel what was prepared.
cdef void uring_submit(uring_t *uring) noexcept nogil
#: The same, and have it look for completions on a device that is polled.
cdef void uring_submit_and_poll(uring_t *uring) noexcept nogil
#: Hand finished operations to their backends; how many.
cdef uint32_t uring_poll(iothread_t *thread) noexcept nogil
#: A poller: show the kernel what was prepared for polled devices, and have it look for completions.
cdef uint32_t uring_poll_devices(iothread_t *thread, void *unused) noexcept nogil
#: Sleep until an operation is finished, for so many nanoseconds at most. False: the kernel cannot.
cdef bint uring_wait(uring_t *uring, uint64_t ns) noexcept nogil
