"""Interrupt coalescing (NVMe over PCIe Transport 1.x, features 08h and 09h).

A vector's interrupt goes out when as many completions as the threshold says have gathered, or when
the aggregation time of the first of them is over. With several IOThreads each gathers its own. An
error is not held back, nor is anything of the admin queue.
"""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.layout cimport QUEUES
from nvme_mdev.datapath.queues cimport raise_interrupt
from nvme_mdev.datapath.runtime cimport aggregation_t, controller_t, cq_t, iothread_t


cdef inline void aggregation_end(iothread_t *thread, aggregation_t *aggregation) noexcept nogil:
    """Nothing is held back any more."""
    cdef aggregation_t **link = &thread.aggregations
    while link[0] != aggregation:
        link = &link[0].next
    link[0] = aggregation.next
    aggregation.cq = NULL
    aggregation.entries = 0
    thread.inflight -= 1
    thread.chores -= 1


cdef inline bint hold_back(iothread_t *thread, cq_t *cq) noexcept nogil:
    """Count what was posted since the last interrupt; False: that makes one due."""
    cdef aggregation_t *aggregation = cq.aggregation
    aggregation.entries += cq.dirty
    if aggregation.entries >= cq.controller.irq.aggregation_threshold:
        aggregation.entries = 0
        if aggregation.cq != NULL:
            aggregation_end(thread, aggregation)
        return False
    if aggregation.cq == NULL:
        aggregation.cq = cq
        aggregation.deadline = read_tsc() + cq.controller.irq.aggregation_time
        aggregation.next = thread.aggregations
        thread.aggregations = aggregation
        # Until then the thread turns, and does not sleep.
        thread.inflight += 1
        thread.chores += 1
    return True


cdef inline cq_t *raise_held_back(iothread_t *thread, aggregation_t *aggregation) noexcept nogil:
    """Send what is held back; the queue that it was for, NULL: no interrupt was sent.

    All of a controller's queues share the pin, which is only asserted for a queue with entries."""
    cdef cq_t *cq = aggregation.cq
    cdef cq_t *other
    cdef uint32_t qid
    aggregation_end(thread, aggregation)
    if cq.controller.irq.vectors:
        return cq if raise_interrupt(cq) else NULL
    for qid in range(1, QUEUES):
        other = &cq.controller.cqs[qid]
        if other.size and other.interrupts and other.thread == thread and raise_interrupt(other):
            return other
    return NULL


#: Coalesce, or no longer, as the features in shared memory say; the IOThreads stand.
cdef int coalescing_configure(controller_t *controller) except -1
#: The CQ goes away: what is held back for it, and others with its vector, goes out now.
cdef void coalescing_forget(cq_t *cq) noexcept
