"""Making and unmaking queues: their part of the shared state, and what this process keeps of them."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.layout cimport cq_state_t
from nvme_mdev.datapath.runtime cimport controller_t, cq_t


#: Where a queue is to be: of its entries, or (noncontiguous) of the PRP list that names its pages.
cdef struct queue_place_t:
    uint64_t iova
    #: Entries.
    uint32_t size
    uint32_t noncontiguous

#: A new queue; MemoryError.
cdef int open_cq(
    controller_t *controller, uint32_t qid, queue_place_t place, uint32_t vector, bint interrupts
) except -1
cdef int open_sq(
    controller_t *controller, uint32_t qid, uint32_t cqid, queue_place_t place, uint32_t priority
) except -1
#: Make what this process needs for a queue that the state describes; MemoryError.
cdef int take_cq(controller_t *controller, uint32_t qid, uint32_t size) except -1
cdef int take_sq(controller_t *controller, uint32_t qid, uint32_t size) except -1
#: Free it, and forget it in the state.
cdef void close_sq(controller_t *controller, uint32_t qid) noexcept
cdef void close_cq(controller_t *controller, uint32_t qid) noexcept
#: How a CQ's completions are told to the guest (INTERRUPTS_*), but for coalescing.
cdef uint32_t interrupts_of(controller_t *controller, cq_state_t *state) noexcept
#: Forget queues that a process before us has left and nobody has adopted.
cdef void forget_queues(controller_t *controller) noexcept
#: The doorbell's register.
cdef uint32_t *doorbell_register(controller_t *controller, uint32_t qid, bint completion) noexcept
#: Carry a queue pair's doorbells over to the shadow page.
cdef void move_doorbells(controller_t *controller, uint32_t qid) noexcept
#: With the pin, every move of the head shall be a register access: EventIdx is the head.
cdef void follow_head(cq_t *cq) noexcept
