"""What every backend has in common."""

from libc.stdint cimport int32_t, uint64_t

from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.runtime cimport backend_t, iothread_t, request_t, throttle_t


#: `backend_ops_t.complete` of what puts no request on the IOThread's io_uring: never called.
cdef void off_ring_complete(iothread_t *thread, request_t *request, int32_t result) noexcept nogil
#: `backend_ops_t.cancel` of what finishes in `submit`: nothing is ever under way.
cdef void at_once_cancel(iothread_t *thread, request_t *request) noexcept nogil


cdef class Backend:
    cdef backend_t backend
    cdef throttle_t throttle
    cdef readonly dict limits
    cdef readonly str name
    cdef readonly str identity
    cdef readonly uint64_t size
    cdef readonly unsigned int block_size
    cdef readonly bint read_only
    cdef readonly bint volatile_cache
    cdef readonly bint can_compare
    cdef readonly bint emulates
    cdef readonly unsigned int sgls
    cdef readonly bint can_write_zeroes
    cdef readonly bint can_deallocate
    cdef readonly bint can_verify
    cdef readonly bint can_write_uncorrectable
    cdef readonly bint can_copy
    cdef readonly bint deallocate_zeroes
    cdef readonly bint encrypted
    cdef readonly unsigned int optimal_io_boundary
    cdef readonly unsigned int preferred_write_granularity
    cdef readonly unsigned int preferred_deallocate_granularity
    #: CopyLimits and Atomicity of `drive.py`, or None; CommandLimits.
    cdef readonly object copy_limits
    cdef readonly object atomicity
    cdef readonly object command_limits
    #: Where reservations are kept through a loss of power (str), None: nowhere.
    cdef public object ptpl_file
    #: IOThread to how many controllers it serves there; how many IOThreads is in `backend.threads`.
    cdef dict served_on
    #: One controller more, or less, has it served by an IOThread.
    cdef int attach(self, IOThread iothread) except -1
    cdef int detach(self, IOThread iothread) except -1
    #: What to do on an IOThread for the first of them, and after the last.
    cdef int begin_on(self, IOThread iothread) except -1
    cdef int end_on(self, IOThread iothread) except -1
    #: Serve so many bytes from now on, in whole blocks; every IOThread that serves it is paused.
    cdef int set_size(self, uint64_t size) except -1
    #: Writes are refused from now on, or no longer.
    cdef int set_read_only(self, bint read_only) except -1

