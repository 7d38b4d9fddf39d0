"""The polling thread, for the modules that hand it work."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, iothread_t, request_t, sq_t


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
    #: Run a function on the thread (paused or not) and wait for it; its result.
    cdef int call(self, int (*function)(iothread_t *, void *) noexcept nogil, void *argument) except? -9999
    cdef int add_queue(self, sq_t *sq) except -1
    cdef void remove_queue(self, sq_t *sq) noexcept
    #: Have something asked each turn while requests are in flight; changed while the thread stands.
    cdef int add_poller(
        self, uint32_t (*poll)(iothread_t *, void *) noexcept nogil, void *context
    ) except -1
    cdef void remove_poller(self, void *context) noexcept
    cdef void close_wake(self) noexcept
    cdef int add_controller(self, controller_t *controller) except -1
    cdef void remove_controller(self, controller_t *controller) noexcept


#: Take turns in the calling thread, while the IOThread does not run; how much there was to do.
cdef uint32_t take_turns(iothread_t *thread, uint32_t count) noexcept nogil
#: Post the completions of `thread.done`, nothing else; the thread may stand.
cdef void post_all(iothread_t *thread) noexcept nogil
#: Post the completions of `thread.done`, then raise the interrupts that they need.
cdef void complete_done(iothread_t *thread) noexcept nogil
#: Post the completion of a command that the control plane has executed, while the thread stands.
cdef void complete_deferred(iothread_t *thread, request_t *request) noexcept nogil
#: Hand parsed commands of one SQ, in the order of fetching, to their backends.
cdef void submit_batch(iothread_t *thread, request_t **batch, uint32_t count) noexcept nogil
