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
    cdef object failure
    #: Run a function on the thread (paused or not) and wait for it; its result.
    cdef int call(self, int (*function)(iothread_t *, void *) noexcept nogil, void *argument) except? -9999
    cdef int add_queue(self, sq_t *sq) except -1
    cdef void remove_queue(self, sq_t *sq) noexcept
    cdef int add_controller(self, controller_t *controller) except -1
    cdef void remove_controller(self, controller_t *controller) noexcept


#: Take turns in the calling thread, while the IOThread does not run; how much there was to do.
cdef uint32_t take_turns(iothread_t *thread, uint32_t count) noexcept nogil
#: Execute the busy slots of an SQ (argument: sq_t) that a process before us has left.
cdef int execute_again(iothread_t *thread, void *queue) noexcept nogil
#: Before that, of every SQ: fused pairs in the middle have their ranges for themselves.
cdef int reserve_compared(iothread_t *thread, void *queue) noexcept nogil
#: Post the completions of `thread.done`, then raise the interrupts that they need.
cdef void complete_done(iothread_t *thread) noexcept nogil
