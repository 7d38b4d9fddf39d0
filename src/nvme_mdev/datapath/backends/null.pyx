"""A namespace without a medium: writes vanish, reads leave the guest's memory alone."""

from libc.stdint cimport int32_t

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport OP_WRITE_UNCORRECTABLE, backend_ops_t, iothread_t, request_t
from nvme_mdev.datapath.status cimport SC_SUCCESS

from nvme_mdev.datapath.backends.base import check_block_size


cdef void null_submit(iothread_t *thread, request_t *request) noexcept nogil:
    request.status = SC_SUCCESS
    request_done(thread, request)


cdef void null_complete(iothread_t *thread, request_t *request, int32_t result) noexcept nogil:
    """Never called: it uses no io_uring."""


cdef void null_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    """Nothing is ever under way."""


cdef backend_ops_t null_ops
null_ops.submit = null_submit
null_ops.complete = null_complete
null_ops.cancel = null_cancel


cdef class NullBackend(Backend):
    """Completes everything at once; for measuring the path itself."""

    def __init__(self, size, block_size=512):
        self.size = check_block_size(size, block_size)
        self.block_size = block_size
        self.name = f"null:{size}"
        self.identity = ""
        self.can_write_zeroes = self.can_deallocate = True
        self.backend.ops = &null_ops
        self.backend.size = self.size
        # It does everything by itself: nothing.
        self.backend.natives = 0xffffffff & ~(1 << OP_WRITE_UNCORRECTABLE)
