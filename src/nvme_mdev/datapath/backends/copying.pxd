"""Copies between a command's segments in guest memory and bytes of ours."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nvme_mdev.datapath.runtime cimport request_t

cdef extern from "<unistd.h>" nogil:
    int _SC_LEVEL3_CACHE_SIZE
    long sysconf(int name)

cdef extern from "copy.h" nogil:
    void copy_past_caches(void *to, const void *from_, size_t size)

cdef enum:
    #: Bytes of the last cache where the system does not tell.
    CACHE_SIZE = 32 << 20


cdef inline bint exceeds_caches(uint64_t size) noexcept nogil:
    """What is written to so many bytes will be out of the caches before it is read."""
    cdef long last = sysconf(_SC_LEVEL3_CACHE_SIZE)
    return size > <uint64_t> (last if last > 0 else <long> CACHE_SIZE)


cdef inline void read_out(const uint8_t *address, request_t *request) noexcept nogil:
    cdef uint32_t i
    for i in range(request.iov_count):
        memcpy(request.iov[i].iov_base, address, request.iov[i].iov_len)
        address += request.iov[i].iov_len


cdef inline void write_in(uint8_t *address, request_t *request, bint past_caches) noexcept nogil:
    cdef uint32_t i
    for i in range(request.iov_count):
        if past_caches:
            copy_past_caches(address, request.iov[i].iov_base, request.iov[i].iov_len)
        else:
            memcpy(address, request.iov[i].iov_base, request.iov[i].iov_len)
        address += request.iov[i].iov_len
