"""A workload: what the loop knows, and the objects that it must not lose."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nvme_mdev.host.queues cimport QueuePair
from nvme_mdev.host.workload_loop cimport job_t


cdef class Workload:
    cdef job_t job
    cdef readonly QueuePair queue
    cdef uint8_t[::1] _data
    cdef object _error
    cdef uint64_t _runtime_ticks

    cdef uint32_t _lazy(self)
    cdef int _allocate(self, uint32_t nsid, prps, uint64_t data_stride) except -1
    cdef int _run(self, bint scan) except -1
    cdef int _prepare(self, bint scan) except -1
    cdef int _finish(self) except -1
