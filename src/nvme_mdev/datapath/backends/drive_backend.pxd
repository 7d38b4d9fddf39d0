"""A namespace of an NVMe controller below, whichever way commands go there."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.backends.below cimport below_t
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.runtime cimport iothread_t

cdef enum:
    #: IOThreads that one namespace can be served by.
    PLACES = 64

#: An IOThread's way to the controller below: a queue pair, or a ring. `thread` is stored last and NULL
#: where the place is free: other threads look for theirs meanwhile.
cdef struct place_t:
    iothread_t *thread
    void *way
    #: Controllers on that IOThread that the namespace is attached to.
    uint32_t users

#: A namespace below, and the ways that lead to it.
cdef struct served_t:
    below_t below
    place_t places[PLACES]


cdef inline void *way_of(served_t *served, iothread_t *thread) noexcept nogil:
    """The thread's way: it has one."""
    cdef uint32_t i
    for i in range(PLACES):
        if served.places[i].thread == thread:
            break
    return served.places[i].way


cdef class DriveBackend(Backend):
    #: What `backend.context` is.
    cdef served_t *served
    cdef unsigned int max_transfer
    #: It is what a `DriveNamespace` describes.
    cdef int describe(self, drive) except -1
    #: An IOThread's way (not NULL), and the end of its use; the thread is paused.
    cdef void *open_way(self, IOThread iothread) except NULL
    cdef int close_way(self, IOThread iothread, void *way) except -1
    cdef place_t *place_of(self, iothread_t *thread) noexcept
