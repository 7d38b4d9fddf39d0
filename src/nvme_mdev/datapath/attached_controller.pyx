"""A controller that IOThreads serve: what this process keeps of it, and letting them stand still."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.layout cimport HOST_QUEUES, IO_QUEUES, QUEUES
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.memory cimport GuestMemory
from nvme_mdev.datapath.runtime cimport (
    PLACES, bad_table_t, controller_t, cq_t, interrupts_t, namespace_t, share_t, sq_t,
)
from nvme_mdev.datapath.state cimport ControllerState

import os


cdef class AttachedController:
    def __cinit__(self, *args, **kwargs):
        self.notify_fd = -1
        self.controller = <controller_t *> calloc(1, sizeof(controller_t))
        if self.controller == NULL:
            raise MemoryError
        self.controller.namespaces = <namespace_t *> calloc(PLACES, sizeof(namespace_t))
        self.controller.bad_tables = <bad_table_t *> calloc(PLACES, sizeof(bad_table_t))
        self.controller.irq = <interrupts_t *> calloc(1, sizeof(interrupts_t))
        self.controller.sqs = <sq_t *> line_calloc(QUEUES, sizeof(sq_t))
        self.controller.cqs = <cq_t *> line_calloc(QUEUES, sizeof(cq_t))
        self.controller.shares = <share_t *> line_calloc(HOST_QUEUES, sizeof(share_t))
        if (self.controller.namespaces == NULL or self.controller.bad_tables == NULL
                or self.controller.irq == NULL
                or self.controller.sqs == NULL or self.controller.cqs == NULL
                or self.controller.shares == NULL):
            raise MemoryError

    def __init__(self, ControllerState state, GuestMemory memory, iothreads, max_transfer, max_nsid):
        cdef IOThread iothread
        self.state = state
        self.memory = memory
        self.iothreads = (iothreads,) if isinstance(iothreads, IOThread) else tuple(iothreads)
        if not 1 <= len(self.iothreads) <= HOST_QUEUES or len(set(self.iothreads)) < len(self.iothreads):
            raise ValueError(f"a controller has 1 to {HOST_QUEUES} IOThreads, each of them once")
        for iothread in self.iothreads:
            self.controller.threads[self.controller.thread_count] = iothread.thread
            self.controller.thread_count += 1
        self.notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.controller.notify_fd = self.notify_fd
        self.controller.state = state.state
        self.controller.memory = &memory.table
        self.controller.doorbell_page = state.doorbell_page
        self.controller.doorbells_mapped = 1
        self.controller.max_transfer = max_transfer
        self.controller.max_nsid = max_nsid

    def __dealloc__(self):
        if self.controller == NULL:
            return
        free(self.controller.namespaces)
        free(self.controller.bad_tables)
        if self.controller.irq != NULL:
            free(self.controller.irq.aggregations)
        free(self.controller.irq)
        free(self.controller.sqs)
        free(self.controller.cqs)
        free(self.controller.shares)
        free(self.controller)

    cdef int attach(self) except -1:
        cdef IOThread iothread = self.iothreads[0]
        iothread.pause()
        try:
            iothread.add_controller(self.controller)
        finally:
            iothread.resume()
        self.known = True
        return 0

    cdef int detach(self) except -1:
        self.pause()
        (<IOThread> self.iothreads[0]).remove_controller(self.controller)
        self.resume()
        self.known = False
        return 0

    cdef int pause(self) except -1:
        cdef IOThread iothread
        for iothread in self.iothreads:
            iothread.pause()
        return 0

    cdef int resume(self) except -1:
        cdef IOThread iothread
        for iothread in self.iothreads:
            iothread.resume()
        return 0

    cdef int wake(self) except -1:
        cdef IOThread iothread
        for iothread in self.iothreads:
            iothread.wake()
        return 0

    cdef IOThread thread_of(self, uint32_t qid):
        return self.iothreads[self.controller.sqs[qid].host_queue]

    cdef void hold_all(self, uint32_t reason) noexcept:
        cdef uint32_t qid
        for qid in range(1, QUEUES):
            if self.controller.sqs[qid].size:
                self.controller.sqs[qid].held |= reason

    cdef bint has_sq(self, qid):
        return 0 <= qid <= IO_QUEUES and self.controller.sqs[<uint32_t> qid].size != 0

    cdef bint has_cq(self, qid):
        return 0 <= qid <= IO_QUEUES and self.controller.cqs[<uint32_t> qid].size != 0

    cdef sq_t *sq(self, qid) except NULL:
        if qid == 0 or not self.has_sq(qid):
            raise KeyError(qid)
        return &self.controller.sqs[<uint32_t> qid]


cdef class Part:
    def __cinit__(self, AttachedController attached, *args):
        self.attached = attached
        self.controller = attached.controller
