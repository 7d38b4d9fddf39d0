"""The least that a controller can do: it looks at the doorbell, at the SQE, and completes it.

What a workload measures against it is the machine's own limit: a doorbell and a 64-byte entry one
way between two processors, a 16-byte entry back, and the host's own work.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nvme_mdev.datapath.atomics cimport (
    cpu_relax, load_acquire32, load_relaxed32, store_relaxed32, store_release32,
)
from nvme_mdev.host.queues cimport PHASE_BIT, QueuePair, cqe_t, queue_t, sqe_t


cdef class EchoController:
    cdef QueuePair _queue
    cdef uint32_t _stop

    def __init__(self, QueuePair queue not None):
        if queue.queue.tail_doorbell.register == NULL:
            raise ValueError("the queue pair needs doorbells in memory")
        self._queue = queue
        self._stop = 0

    def run(self):
        cdef queue_t *queue = &self._queue.queue
        with nogil:
            serve(queue, &self._stop)

    def stop(self):
        store_relaxed32(&self._stop, 1)


cdef void serve(queue_t *queue, const uint32_t *stop) noexcept nogil:
    cdef const uint32_t *doorbell = queue.tail_doorbell.register
    cdef uint32_t head = 0, tail = 0, seen = 0, phase = PHASE_BIT
    cdef cqe_t *cqe
    cdef uint16_t cid
    memset(queue.cq, 0, queue.cq_entries * sizeof(cqe_t))
    while load_relaxed32(stop) == 0:
        # Acquire: the entries are read after the tail that covers them.
        seen = load_acquire32(doorbell)
        if seen == head:
            cpu_relax()
            continue
        while head != seen:
            cid = queue.sq[head].cid
            head = head + 1 if head + 1 < queue.sq_entries else 0
            cqe = &queue.cq[tail]
            cqe.dw2 = head
            # Release: the dword with the phase tag goes last.
            store_release32(&cqe.dw3, cid | phase)
            tail += 1
            if tail == queue.cq_entries:
                tail = 0
                phase ^= PHASE_BIT
