"""A controller's queues where someone stands between them and the guest: a relay."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.atomics cimport load_acquire32, store_release32
from nvme_mdev.datapath.attached_controller cimport AttachedController
from nvme_mdev.datapath.binding cimport bind_all
from nvme_mdev.datapath.layout cimport QUEUES
from nvme_mdev.datapath.memory cimport GuestMemory
from nvme_mdev.datapath.queue_setup cimport doorbell_register, interrupts_of
from nvme_mdev.datapath.queues cimport signal_fd, wake_thread
from nvme_mdev.datapath.runtime cimport cq_t, sq_t


cdef class RelayedQueues(Part):
    """The queues as a relay has them (see relayed_queues.pyi)."""

    def __init__(self, AttachedController attached, namespaces):
        self.namespaces = namespaces
        self.controller.relay_fd = -1

    def begin(self, GuestMemory memory, doorbells, fd):
        self.use(memory, doorbells, fd)

    def end(self, GuestMemory memory):
        self.use(memory, None, -1)

    cdef int use(self, GuestMemory memory, doorbells, int fd) except -1:
        cdef uint32_t[::1] page
        cdef uint32_t qid
        self.namespaces.use_memory(memory)
        self.attached.pause()
        self.attached.memory = memory
        self.controller.memory = &memory.table
        self.controller.relayed = doorbells is not None
        self.controller.relay_fd = fd
        self.controller.doorbell_page = self.attached.state.doorbell_page
        if doorbells is not None:
            page = doorbells
            self.controller.doorbell_page = &page[0]
        self.doorbells = doorbells
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                self.controller.cqs[qid].interrupts = interrupts_of(
                    self.controller, &self.controller.state.cq[qid])
        bind_all(self.controller)
        if self.controller.sqs[0].size:
            self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        self.attached.resume()
        self.attached.wake()
        return 0

    cdef int tell(self, uint32_t qid, bint completion, bint created) except -1:
        if created and self.controller.relayed:
            store_release32(self.guest_register(qid, completion), 0)
        if self.on_queue is not None:
            self.on_queue(qid, bool(completion), bool(created))
        return 0

    cdef uint32_t *guest_register(self, uint32_t qid, bint completion) noexcept:
        return &self.attached.state.doorbell_page[(2 * qid + completion) << self.controller.dstrd]

    def guest_doorbell(self, qid, *, completion=False):
        return load_acquire32(self.guest_register(qid, completion))

    def doorbell(self, qid, *, completion=False):
        return load_acquire32(doorbell_register(self.controller, qid, completion))

    def ring(self, qid, value, *, completion=False):
        cdef sq_t *sq = &self.controller.sqs[<uint32_t> qid]
        cdef cq_t *cq = &self.controller.cqs[<uint32_t> qid]
        store_release32(doorbell_register(self.controller, qid, completion), value)
        if qid == 0:
            signal_fd(self.attached.notify_fd)
        else:
            wake_thread(cq.thread if completion else sq.thread)
