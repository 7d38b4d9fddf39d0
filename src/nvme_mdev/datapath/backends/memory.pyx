"""A namespace in the daemon's memory: the only backend that copies data."""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.mman cimport (
    MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport (
    OP_COMPARE, OP_DEALLOCATE, OP_READ, OP_WRITE, OP_WRITE_ZEROES, PAGE_SIZE, backend_ops_t,
    iothread_t, request_t,
)
from nvme_mdev.datapath.status cimport SC_COMPARE_FAILURE, SC_SUCCESS

import os

from nvme_mdev.datapath.backends.base import check_block_size
from nvme_mdev.datapath.backends.raw import RawMedium

cdef extern from "<sys/mman.h>" nogil:
    int MADV_REMOVE
    int MADV_HUGEPAGE
    int MREMAP_MAYMOVE
    void *mremap(void *address, size_t old_size, size_t new_size, int flags)
    int madvise(void *address, size_t length, int advice)


cdef void zero(uint8_t *address, uint64_t length) noexcept nogil:
    """Zero a range; whole pages go back to the system, which hands out zero pages again."""
    cdef uint64_t head = (PAGE_SIZE - (<uint64_t> address & (PAGE_SIZE - 1))) & (PAGE_SIZE - 1)
    cdef uint64_t pages
    if head > length:
        head = length
    memset(address, 0, head)
    address += head
    length -= head
    pages = length & ~<uint64_t> (PAGE_SIZE - 1)
    if pages and madvise(address, pages, MADV_REMOVE) != 0:
        memset(address, 0, pages)
    memset(address + pages, 0, length - pages)


cdef uint32_t compare(uint8_t *address, request_t *request) noexcept nogil:
    """Compare the guest's data with ours; the NVMe status."""
    cdef uint32_t i
    for i in range(request.iov_count):
        if memcmp(address, request.iov[i].iov_base, request.iov[i].iov_len) != 0:
            return SC_COMPARE_FAILURE
        address += request.iov[i].iov_len
    return SC_SUCCESS


cdef void deallocate(uint8_t *base, request_t *request) noexcept nogil:
    """Zero the ranges that the segments stand for (offset in the backend, length)."""
    cdef uint32_t i
    for i in range(request.iov_count):
        zero(base + <uint64_t> request.iov[i].iov_base, request.iov[i].iov_len)


cdef void memory_submit(iothread_t *thread, request_t *request) noexcept nogil:
    cdef uint8_t *base = <uint8_t *> request.ns.backend.context
    cdef uint8_t *address = base + request.offset
    cdef uint32_t i
    request.status = SC_SUCCESS
    if request.operation == OP_READ:
        for i in range(request.iov_count):
            memcpy(request.iov[i].iov_base, address, request.iov[i].iov_len)
            address += request.iov[i].iov_len
    elif request.operation == OP_WRITE:
        for i in range(request.iov_count):
            memcpy(address, request.iov[i].iov_base, request.iov[i].iov_len)
            address += request.iov[i].iov_len
    elif request.operation == OP_WRITE_ZEROES:
        zero(address, request.length)
    elif request.operation == OP_DEALLOCATE:
        deallocate(base, request)
    elif request.operation == OP_COMPARE:
        request.status = compare(address, request)
    request_done(thread, request)


cdef void memory_complete(iothread_t *thread, request_t *request, int32_t result) noexcept nogil:
    """Never called: it uses no io_uring."""


cdef void memory_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    """Nothing is ever under way."""


cdef backend_ops_t memory_ops
memory_ops.submit = memory_submit
memory_ops.complete = memory_complete
memory_ops.cancel = memory_cancel


cdef class MemoryBackend(Backend):
    """Anonymous memory in a file (see memory.pyi)."""

    cdef readonly int fd

    def __init__(self, size, block_size=512, fd=None):
        cdef void *address
        # A backend before may have been given another size since.
        self.size = check_block_size(size if fd is None else os.fstat(fd).st_size, block_size)
        self.block_size = block_size
        self.name = f"memory:{size}"
        self.identity = ""
        self.can_write_zeroes = self.can_deallocate = self.deallocate_zeroes = True
        self.fd = os.memfd_create("nvme-mdev-memory") if fd is None else fd
        try:
            if fd is None:
                os.ftruncate(self.fd, self.size)
            address = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                           self.fd, 0)
            if address == MAP_FAILED:
                raise OSError(errno, os.strerror(errno), self.name)
        except BaseException:
            os.close(self.fd)
            raise
        madvise(address, self.size, MADV_HUGEPAGE)
        self.backend.ops = &memory_ops
        self.backend.context = address
        self.backend.size = self.size

    cdef int set_size(self, uint64_t size) except -1:
        # The thread copies within one turn, so nothing uses the mapping while it stands.
        cdef void *address
        size -= size % self.block_size
        if size > self.size:
            os.ftruncate(self.fd, size)
        address = mremap(self.backend.context, self.size, size, MREMAP_MAYMOVE)
        if address == MAP_FAILED:
            raise OSError(errno, os.strerror(errno), self.name)
        self.backend.context = address
        self.size = self.backend.size = size
        os.ftruncate(self.fd, size)
        return 0

    def raw(self):
        return RawMedium(self.fd)

    def close(self):
        if self.backend.context != NULL:
            munmap(self.backend.context, self.size)
            self.backend.context = NULL
            os.close(self.fd)

    def __dealloc__(self):
        if self.backend.context != NULL:
            munmap(self.backend.context, self.size)
