"""Going on where a process was killed: queues that are in the middle of something."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, iothread_t


#: Take over a queue that the state describes. ValueError: it is not in guest memory.
cdef int adopt_cq(controller_t *controller, uint32_t qid) except -1
cdef int adopt_sq(controller_t *controller, uint32_t qid) except -1
#: Fused pairs in the middle have their ranges for themselves: of every SQ, before the next; as that.
cdef int reserve_compared(iothread_t *thread, void *queue) noexcept nogil
#: Execute the busy slots of an SQ (argument: sq_t); runs on its IOThread.
cdef int execute_again(iothread_t *thread, void *queue) noexcept nogil
