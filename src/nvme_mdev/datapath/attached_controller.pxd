"""A controller that IOThreads serve, for the parts of the control plane's handle on it."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.memory cimport GuestMemory
from nvme_mdev.datapath.runtime cimport controller_t, sq_t
from nvme_mdev.datapath.state cimport ControllerState


cdef class AttachedController:
    """Every method runs on the control plane's thread."""

    cdef controller_t *controller
    cdef ControllerState state
    #: The guest's, or that of a relay.
    cdef GuestMemory memory
    cdef tuple iothreads
    cdef int notify_fd
    #: Its IOThreads know it.
    cdef bint known
    #: Make it known to its IOThreads, which begin to look after its admin doorbell, and the end of that.
    cdef int attach(self) except -1
    cdef int detach(self) except -1
    #: What the IOThreads read can be changed until `resume`; they nest.
    cdef int pause(self) except -1
    cdef int resume(self) except -1
    #: Somebody has to look at doorbells that nobody will ring.
    cdef int wake(self) except -1
    #: The IOThread that serves an I/O SQ.
    cdef IOThread thread_of(self, uint32_t qid)
    #: Stop fetching from every I/O SQ, for a reason (HELD_*); the IOThreads stand.
    cdef void hold_all(self, uint32_t reason) noexcept
    cdef bint has_sq(self, qid)
    cdef bint has_cq(self, qid)
    #: An I/O SQ; KeyError: there is none.
    cdef sq_t *sq(self, qid) except NULL


cdef class Part:
    """What the control plane does with one of the things that a controller has."""

    cdef AttachedController attached
    cdef controller_t *controller
