"""A mapping of a file that somebody else may shrink, or take away, under us.

What a page fault there must not do is in `nvme_mdev.datapath.sigbus`. The mapping ends with the last
memoryview of it, not before.
"""

import os

from libc.errno cimport EINVAL, EMFILE, errno
from libc.stdint cimport uint8_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.types cimport off_t

from cpython.buffer cimport PyBuffer_FillInfo

from nvme_mdev.datapath.sigbus cimport sigbus_contained, sigbus_guard, sigbus_release

#: The largest file offset.
MOST = (1 << 63) - 1


cdef class SharedMapping:
    """Bytes of a file, readable and writable (see shared_mapping.pyi)."""

    cdef uint8_t *address
    cdef Py_ssize_t size

    def __init__(self, fd, size, offset):
        if not 0 < size <= MOST or not 0 <= offset <= MOST - size:
            raise OSError(EINVAL, os.strerror(EINVAL))
        cdef void *address = mmap(
            NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, <off_t> offset)
        if address == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        if sigbus_guard(<uint8_t *> address, size) != 0:
            munmap(address, size)
            raise OSError(EMFILE, "too many mappings in this process")
        self.address = <uint8_t *> address
        self.size = size

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 0, flags)

    @property
    def lost(self):
        return bool(sigbus_contained(self.address))

    def __dealloc__(self):
        if self.address != NULL:
            sigbus_release(self.address)
            munmap(self.address, self.size)
