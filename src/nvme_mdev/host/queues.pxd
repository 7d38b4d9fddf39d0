"""A queue pair of the host driver's; the rings are `nvme_mdev.datapath.host_rings`."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.host_rings cimport doorbell_t, queue_t


cdef class QueuePair:
    cdef queue_t queue
    cdef readonly int qid
    #: Signalled by the controller; -1: polled.
    cdef readonly int eventfd
    #: As the controller reported it last (SQHD).
    cdef readonly int sq_head
    cdef object _write_doorbell
    cdef list _views
    cdef bint _closed

    cdef int _set_doorbell(self, doorbell_t *doorbell, register, shadow) except -1
    cdef int _check_open(self) except -1
    cdef int _spin(self, uint64_t deadline) except -1
    cdef int _sleep(self, uint64_t deadline) except -1
    cdef list views(self)
    cdef int by_socket(self, bint completion, uint32_t value) except -1
    cdef int ring_tail_doorbell(self) except -1
    cdef int ring_head_doorbell(self) except -1
