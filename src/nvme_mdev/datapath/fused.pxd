"""Commands of a fused pair."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport request_t

#: Flags that are not only SGL: parse a fused operation, or tell the error; the NVMe status.
cdef uint32_t parse_flags(request_t *request) noexcept nogil
