"""Making and unmaking queues: their part of the shared state, and what this process keeps of them."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.runtime cimport controller_t, cq_t, iothread_t


#: A new queue at an IOVA, `size` entries; MemoryError.
cdef int open_cq(
    controller_t *controller, uint32_t qid, uint64_t iova, uint32_t size, uint32_t vector, bint interrupts
) except -1
cdef int open_sq(
    controller_t *controller, iothread_t *thread, uint32_t qid, uint32_t cqid, uint64_t iova, uint32_t size,
    uint32_t priority
) except -1
#: Make what this process needs for a queue that the state describes; MemoryError.
cdef int take_cq(controller_t *controller, uint32_t qid, uint32_t size) except -1
cdef int take_sq(controller_t *controller, iothread_t *thread, uint32_t qid, uint32_t size) except -1
#: Free it, and forget it in the state.
cdef void close_sq(controller_t *controller, uint32_t qid) noexcept
cdef void close_cq(controller_t *controller, uint32_t qid) noexcept
#: Forget queues that a process before us has left and nobody has adopted.
cdef void forget_queues(controller_t *controller) noexcept
#: Carry a queue pair's doorbells over to the shadow page.
cdef void move_doorbells(controller_t *controller, uint32_t qid) noexcept
#: With the pin, every move of the head shall be a register access: EventIdx is the head.
cdef void follow_head(cq_t *cq) noexcept
