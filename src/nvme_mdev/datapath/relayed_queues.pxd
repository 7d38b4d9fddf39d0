"""A controller's queues where someone stands between them and the guest: a relay."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.attached_controller cimport Part
from nvme_mdev.datapath.memory cimport GuestMemory


cdef class RelayedQueues(Part):
    #: Called with (qid, completion, created) when a queue came or is about to go.
    cdef public object on_queue
    #: Called with a qid or None: what the relay has not moved yet.
    cdef public object work
    #: `NamespaceTable`, whose backends map the memory elsewhere.
    cdef object namespaces
    #: Keeps the doorbells of the relay in memory.
    cdef object doorbells
    cdef int use(self, GuestMemory memory, doorbells, int fd) except -1
    #: A queue came, or is about to go.
    cdef int tell(self, uint32_t qid, bint completion, bint created) except -1
    #: The doorbell that the guest writes.
    cdef uint32_t *guest_register(self, uint32_t qid, bint completion) noexcept
