"""The polling thread, for the modules that hand it work."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, iothread_t, sq_t


cdef class IOThread:
    cdef iothread_t *thread
    cdef readonly str name
    #: A descriptor that the thread's io_uring holds, too, -1: none.
    cdef public int lifeline
    cdef object worker
    cdef readonly object cpu
    cdef object started
    #: What `ring_set` is.
    cdef object rings
    cdef object failure
    #: The calling thread takes its turns (`probe.pyx`), and what it is called for happens there.
    cdef bint by_hand
    #: Run a function on the thread (paused or not) and wait for it; its result.
    cdef int call(self, int (*function)(iothread_t *, void *) noexcept nogil, void *argument) except? -9999
    cdef int add_queue(self, sq_t *sq) except -1
    cdef void remove_queue(self, sq_t *sq) noexcept
    #: Have something asked each turn while requests are in flight, or no longer; the thread stands
    #: still for the change.
    cdef int add_poller(
        self, uint32_t (*poll)(iothread_t *, void *) noexcept nogil, void *context
    ) except -1
    cdef int remove_poller(self, void *context) except -1
    cdef void close_wake(self) noexcept
    cdef int add_controller(self, controller_t *controller) except -1
    cdef void remove_controller(self, controller_t *controller) noexcept


#: Take turns in the calling thread, while the IOThread does not run; how much there was to do.
cdef uint32_t take_turns(iothread_t *thread, uint32_t count) noexcept nogil
