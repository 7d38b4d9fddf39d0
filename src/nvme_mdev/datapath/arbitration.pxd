"""Weighted round robin with urgent priority class (NVMe Base 2.x, section 3.4.4.2).

An arbiter has the queues that one IOThread serves for one controller, by priority class. It decides
whose turn it is and how much it may take; the thread serves. With plain round robin there is none.

A round: the urgent class is served first, and while it has commands nothing else is. Then the high,
medium and low class, each as many commands as its weight, its queues in turn, of each at most
the arbitration burst at a time.
"""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.atomics cimport load_acquire32
from nvme_mdev.datapath.runtime cimport BATCH, arbiter_t, iothread_t, sq_t

cdef enum:
    CLASS_URGENT = 0
    CLASS_LOW = 3


cdef inline uint32_t class_credit(arbiter_t *arbiter, uint32_t priority) noexcept nogil:
    """Commands that a class may have in a round. The urgent one has no weight: a batch of each queue,
    then the thread looks at its other work."""
    if priority == CLASS_URGENT:
        return arbiter.count[priority] * BATCH
    return arbiter.controller.weights[priority]


cdef inline sq_t *class_next(arbiter_t *arbiter, uint32_t priority, uint32_t credit) noexcept nogil:
    """The class's next queue that has commands and can be served, NULL: none; its burst is set."""
    cdef uint32_t i
    cdef sq_t *sq
    for i in range(arbiter.count[priority]):
        sq = arbiter.queues[arbiter.first[priority] + arbiter.turn[priority]]
        arbiter.turn[priority] += 1
        if arbiter.turn[priority] == arbiter.count[priority]:
            arbiter.turn[priority] = 0
        if load_acquire32(sq.tail_doorbell) != sq.head and not sq.held:
            sq.burst = min(sq.controller.burst, credit)
            return sq
    return NULL


#: Have a queue served by its controller's arbiter on this thread, or no longer. The thread stands.
cdef int arbiter_add(iothread_t *thread, sq_t *sq) except -1
cdef bint arbiter_remove(iothread_t *thread, sq_t *sq) noexcept
