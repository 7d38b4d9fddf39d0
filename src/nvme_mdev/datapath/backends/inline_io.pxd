"""I/O that is done within the system call: for media that answer at once (zram, brd, pmem, tmpfs).

None of them answers a non-blocking attempt (RWF_NOWAIT is EOPNOTSUPP there), so io_uring hands each
I/O to a worker thread, whose wake-up takes many times what the I/O does. A plain `preadv2` on the
IOThread has no wake-up. It may block, and then everything else that the thread serves waits with it:
hence only for media that were measured at open (`medium.py`), only for short I/O, and with a look at
what the kernel did whenever one took long. A file that is memory is mapped besides (`file_mapping.pyx`):
then it takes no system call. An I/O for which the thread was put to sleep sends the
medium back to io_uring, for a time that grows. Time alone does not tell: a busy machine takes the
processor away from the fastest I/O; but that is an involuntary switch.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.types cimport off_t
from posix.uio cimport iovec

from nvme_mdev.datapath.atomics cimport read_tsc, seldom
from nvme_mdev.datapath.backends.file_mapping cimport file_mapping_t, mapped_io
from nvme_mdev.datapath.runtime cimport OP_WRITE, REQUEST_FUA, iothread_t, request_t
from nvme_mdev.datapath.uring cimport uring_of

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec *iov, int count, off_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int count, off_t offset, int flags)
    int RWF_DSYNC

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, off_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset)

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rusage:
        long ru_nvcsw
    int getrusage(int who, rusage *usage)
    int RUSAGE_THREAD

cdef enum:
    #: Bytes of the longest. Of longer ones io_uring's workers do several at a time, where there are
    #: processors for them.
    INLINE_MOST = 16 << 10
    INLINE_MOST_ALONE = 1 << 20
    #: Completions are posted after so many, so that the guest goes on while the rest is done.
    INLINE_POST = 8
    #: Nanoseconds that none takes which does not sleep.
    INLINE_SLOW_NS = 20000
    #: Nanoseconds for which a medium is left to io_uring after it slept, at first and at most.
    INLINE_PAUSE_NS = 10000000
    INLINE_PAUSE_MOST_NS = 10000000000
    #: So many times its last pause without sleep make up for it.
    INLINE_FORGIVEN = 16

#: How a medium is used inline. Times are in ticks of the time-stamp counter.
cdef struct inline_t:
    #: Descriptor of I/O that suits O_DIRECT, and of other I/O; -1: that goes through io_uring.
    int direct
    int buffered
    #: Bytes of the longest.
    uint64_t most
    file_mapping_t mapping
    #: What is taken for slow; all bits set: the user wants it so, nothing is.
    uint64_t slow
    #: Not before.
    uint64_t resume
    #: The last pause, and the bounds of the next.
    uint64_t pause
    uint64_t pause_first
    uint64_t pause_most
    #: How many pauses there were.
    uint32_t pauses


cdef inline int64_t sleeps_of_thread() noexcept nogil:
    """How often the calling thread gave up its processor to wait for something."""
    cdef rusage usage
    getrusage(RUSAGE_THREAD, &usage)
    return usage.ru_nvcsw


cdef inline void inline_was_slow(iothread_t *thread, inline_t *inline_, uint64_t now) noexcept nogil:
    """Stop for a while if the thread has slept for it."""
    cdef int64_t sleeps = sleeps_of_thread()
    if sleeps == uring_of(thread).sleeps:
        return
    # Sleeps meanwhile are io_uring's: they are counted from when the pause is over.
    uring_of(thread).rests = thread.rests - 1
    if now - inline_.resume > inline_.pause * INLINE_FORGIVEN:
        inline_.pause = inline_.pause_first
    else:
        inline_.pause = min(inline_.pause * 2, inline_.pause_most)
    inline_.resume = now + inline_.pause
    inline_.pauses += 1


cdef inline ssize_t transfer(int fd, request_t *request, off_t offset) noexcept nogil:
    """Bytes that one system call moved, or -1."""
    if request.iov_count == 1 and not request.flags & REQUEST_FUA:
        if request.operation == OP_WRITE:
            return pwrite(fd, request.iov.iov_base, request.iov.iov_len, offset)
        return pread(fd, request.iov.iov_base, request.iov.iov_len, offset)
    if request.operation == OP_WRITE:
        return pwritev2(fd, request.iov, <int> request.iov_count, offset,
                        RWF_DSYNC if request.flags & REQUEST_FUA else 0)
    return preadv2(fd, request.iov, <int> request.iov_count, offset, 0)


cdef inline bint through_mapping(request_t *request, inline_t *inline_) noexcept nogil:
    """True: it is done. What has to be durable when it ends is the kernel's."""
    return inline_.mapping.base != NULL and not request.flags & REQUEST_FUA and mapped_io(
        &inline_.mapping, request)


cdef inline bint by_system_call(
    request_t *request, inline_t *inline_, int fd, off_t offset
) noexcept nogil:
    """True: it is done, with the descriptor for it, if there is one."""
    return (fd >= 0 and request.length <= inline_.most
            and transfer(fd, request, offset) == <ssize_t> request.length)


cdef inline bint inline_pauses(iothread_t *thread, inline_t *inline_, uint64_t now) noexcept nogil:
    """The medium is io_uring's for a while."""
    # Not where it is further off than it ever was: the counter began anew while the host slept.
    if inline_.resume - now - 1 < inline_.pause:
        return True
    if thread.rests != uring_of(thread).rests:
        # It slept of its own accord meanwhile.
        uring_of(thread).rests = thread.rests
        uring_of(thread).sleeps = sleeps_of_thread()
    return False


cdef inline void inline_took(iothread_t *thread, inline_t *inline_, uint64_t before) noexcept nogil:
    """An I/O that was begun then is over."""
    cdef uint64_t now = read_tsc()
    if seldom(now - before > inline_.slow):
        inline_was_slow(thread, inline_, now)
