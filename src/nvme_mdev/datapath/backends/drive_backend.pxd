"""A namespace of an NVMe controller below, whichever way commands go there."""

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.backends.below cimport below_t
from nvme_mdev.datapath.backends.per_iothread cimport kept_for, per_iothread_t
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.runtime cimport iothread_t

#: A namespace below, and each IOThread's way to it: a queue pair, or a ring.
cdef struct served_t:
    below_t below
    per_iothread_t ways


cdef inline void *way_of(served_t *served, iothread_t *thread) noexcept nogil:
    return kept_for(&served.ways, thread)


cdef class DriveBackend(Backend):
    #: What `backend.context` is.
    cdef served_t *served
    cdef unsigned int max_transfer
    #: It is what a `DriveNamespace` describes.
    cdef int describe(self, drive) except -1
    #: An IOThread's way (not NULL), and the end of its use; the thread is paused.
    cdef void *open_way(self, IOThread iothread) except NULL
    cdef int close_way(self, IOThread iothread, void *way) except -1
