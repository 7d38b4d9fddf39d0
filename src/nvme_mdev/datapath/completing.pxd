"""Completions, for who has requests that are done."""

from nvme_mdev.datapath.runtime cimport iothread_t, request_t


#: Post the completions of `thread.done`, nothing else; the thread may stand.
cdef void post_all(iothread_t *thread) noexcept nogil
#: Post the completions of `thread.done` (there are some), then raise the interrupts that they need.
cdef void complete_done(iothread_t *thread) noexcept nogil
#: Post the completion of a command that the control plane has executed, while the thread stands.
cdef void complete_deferred(iothread_t *thread, request_t *request) noexcept nogil
#: Send the interrupts whose aggregation time is over.
cdef void send_held_back(iothread_t *thread) noexcept nogil
