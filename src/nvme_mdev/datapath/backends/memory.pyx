"""A namespace in the daemon's memory: the only backend that copies data."""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport (
    MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)

from nvme_mdev.datapath.backends.base cimport Backend, off_ring_complete, at_once_cancel
from nvme_mdev.datapath.backends.copying cimport exceeds_caches, read_out, write_in
from nvme_mdev.datapath.checks cimport equal_bytes, fault_at
from nvme_mdev.datapath.completing cimport complete_done
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport (
    OP_COMPARE, OP_DEALLOCATE, OP_READ, OP_VERIFY, OP_WRITE, OP_WRITE_ZEROES, PAGE_SIZE,
    backend_ops_t, iothread_t, request_t,
)
from nvme_mdev.datapath.status cimport SC_COMPARE_FAILURE, SC_DNR, SC_SUCCESS

import os

from nvme_mdev.datapath.backends.base import check_block_size
from nvme_mdev.datapath.backends.raw import RawMedium

cdef extern from "<sys/mman.h>" nogil:
    int MADV_REMOVE
    int MADV_HUGEPAGE
    int madvise(void *address, size_t length, int advice)

cdef enum:
    #: In reserved huge pages, which must not be given back: others could take them meanwhile.
    MEMORY_HUGE = 1
    #: Larger than the caches: what is written will be out of them before it is read.
    MEMORY_PAST_CACHES = 2
    #: Completions are posted after so many copies, for a guest that polls to go on meanwhile.
    MEMORY_POST = 8


cdef void zero(uint8_t *address, uint64_t length, bint give_back) noexcept nogil:
    """Zero a range; whole pages go back to the system, which hands out zero pages again."""
    cdef uint64_t head = (PAGE_SIZE - (<uint64_t> address & (PAGE_SIZE - 1))) & (PAGE_SIZE - 1)
    cdef uint64_t pages
    if head > length:
        head = length
    memset(address, 0, head)
    address += head
    length -= head
    pages = length & ~<uint64_t> (PAGE_SIZE - 1)
    if pages and not (give_back and madvise(address, pages, MADV_REMOVE) == 0):
        memset(address, 0, pages)
    memset(address + pages, 0, length - pages)


cdef uint32_t compare(uint8_t *address, request_t *request) noexcept nogil:
    """Compare the guest's data with ours; the NVMe status."""
    cdef uint64_t done = 0
    cdef uint64_t equal
    cdef uint32_t i
    for i in range(request.iov_count):
        equal = equal_bytes(address + done, <uint8_t *> request.iov[i].iov_base, request.iov[i].iov_len)
        done += equal
        if equal < request.iov[i].iov_len:
            fault_at(request, (request.offset + done) >> request.ns.block_shift)
            return SC_COMPARE_FAILURE | SC_DNR
    return SC_SUCCESS


cdef void deallocate(uint8_t *base, request_t *request, bint give_back) noexcept nogil:
    """Zero the ranges that the segments stand for (offset in the backend, length).

    But for huge pages, which are not given back: nothing would be gained, and the same gigabytes can be
    named 256 times in a command. A drive need not do what it is only advised to.
    """
    cdef uint32_t i
    if not give_back:
        return
    for i in range(request.iov_count):
        zero(base + <uint64_t> request.iov[i].iov_base, request.iov[i].iov_len, give_back)


cdef void memory_submit(iothread_t *thread, request_t *request) noexcept nogil:
    cdef uint8_t *base = <uint8_t *> request.ns.backend.context
    cdef uint8_t *address = base + request.offset
    cdef uint32_t flags = request.ns.backend.flags
    request.status = SC_SUCCESS
    if request.operation == OP_READ:
        read_out(address, request)
    elif request.operation == OP_WRITE:
        write_in(address, request, flags & MEMORY_PAST_CACHES)
    elif request.operation == OP_WRITE_ZEROES:
        zero(address, request.length, not flags & MEMORY_HUGE)
    elif request.operation == OP_DEALLOCATE:
        deallocate(base, request, not flags & MEMORY_HUGE)
    elif request.operation == OP_COMPARE:
        request.status = compare(address, request)
    request_done(thread, request)
    if thread.done_count >= MEMORY_POST and not request.sq.cq.interrupts:
        complete_done(thread)


cdef backend_ops_t memory_ops
memory_ops.submit = memory_submit
memory_ops.complete = off_ring_complete
memory_ops.cancel = at_once_cancel


cdef class MemoryBackend(Backend):
    """Anonymous memory in a file (see memory.pyi).

    The file is a whole number of pages; its position tells the size, also to the next process.
    """

    cdef readonly int fd
    cdef readonly bint huge_pages
    cdef uint64_t mapped
    cdef uint64_t page_size

    def __init__(self, size, block_size=512, fd=None, huge_pages=False):
        self.name = f"memory:{size}"
        # A backend before may have been given another size since.
        self.size = check_block_size(
            size if fd is None else os.lseek(fd, 0, os.SEEK_CUR), block_size)
        self.block_size = block_size
        self.identity = ""
        self.can_write_zeroes = self.can_deallocate = self.deallocate_zeroes = True
        self.huge_pages = huge_pages
        self.fd = fd if fd is not None else os.memfd_create(
            "nvme-mdev-memory", os.MFD_CLOEXEC | (os.MFD_HUGETLB if huge_pages else 0))
        try:
            self.page_size = os.fstat(self.fd).st_blksize
            self.backend.context = self._map(self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self.backend.ops = &memory_ops
        # Verify has nothing to find out.
        self.backend.natives = 1 << OP_COMPARE | 1 << OP_VERIFY
        self._mapped(self.size)

    cdef uint64_t _whole_pages(self, uint64_t size):
        return (size + self.page_size - 1) // self.page_size * self.page_size

    cdef void *_map(self, uint64_t size) except NULL:
        """Make the file large enough, and a mapping of it."""
        cdef uint64_t length = self._whole_pages(size)
        cdef void *address
        if <uint64_t> os.fstat(self.fd).st_size < length:
            os.ftruncate(self.fd, length)
        # Without a reservation a huge page that is not to be had would be SIGBUS at its first use.
        address = mmap(NULL, length, PROT_READ | PROT_WRITE,
                       MAP_SHARED if self.huge_pages else MAP_SHARED | MAP_NORESERVE, self.fd, 0)
        if address == MAP_FAILED:
            raise OSError(errno, os.strerror(errno), self.name)
        if not self.huge_pages:
            # Where the system gives them to shared memory (shmem_enabled: advise).
            madvise(address, length, MADV_HUGEPAGE)
        return address

    cdef int _mapped(self, uint64_t size) except -1:
        """So many bytes are served from the mapping at `backend.context`."""
        self.mapped = self._whole_pages(size)
        self.size = self.backend.size = size
        self.backend.data = <uint8_t *> self.backend.context
        self.backend.flags = (MEMORY_HUGE if self.huge_pages else 0) | (
            MEMORY_PAST_CACHES if exceeds_caches(size) else 0)
        os.lseek(self.fd, size, os.SEEK_SET)
        return 0

    cdef int set_size(self, uint64_t size) except -1:
        # The thread copies within one turn, so nothing uses the mapping while it stands.
        cdef void *address
        size -= size % self.block_size
        address = self._map(size)
        munmap(self.backend.context, self.mapped)
        self.backend.context = address
        # What lies beyond the end is gone, the rest of the last page, too.
        if size < self.size:
            zero(<uint8_t *> address + size, self._whole_pages(size) - size, False)
        os.ftruncate(self.fd, self._whole_pages(size))
        self._mapped(size)
        return 0

    def raw(self):
        return RawMedium(self.fd)

    def close(self):
        if self.backend.context != NULL:
            munmap(self.backend.context, self.mapped)
            self.backend.context = NULL
            os.close(self.fd)

    def __dealloc__(self):
        if self.backend.context != NULL:
            munmap(self.backend.context, self.mapped)
