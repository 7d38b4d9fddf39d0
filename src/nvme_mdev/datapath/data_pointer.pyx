"""A command's data pointer, PRPs or an SGL, to segments (NVMe Base 2.x, section 4.1.1)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from nvme_mdev.datapath.checks cimport refuse
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.prp cimport prp_walk
from nvme_mdev.datapath.runtime cimport NO_BUFFER, controller_t, region_t, request_t, sq_t
from nvme_mdev.datapath.sgl cimport sgl_walk
from nvme_mdev.datapath.status cimport (
    LOCATION_PRP1, LOCATION_PSDT, SC_INVALID_FIELD, SC_SUCCESS,
)


cdef uint32_t walk_sgl(
    request_t *request, uint64_t length, bint to_guest, iovec *iov, uint32_t *count
) noexcept nogil:
    cdef sq_t *sq = request.sq
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status
    if not request.ns.backend.sgls:
        return refuse(request, SC_INVALID_FIELD, LOCATION_PSDT)
    status = sgl_walk(sq.controller.memory, sqe.prp1, sqe.prp2, length, to_guest,
                      iov, sq.iov_stride, count, &sq.region_hint)
    if status:
        request.error_location = LOCATION_PRP1
    return status


cdef uint32_t walk(
    request_t *request, uint64_t length, iovec *iov, uint32_t *count
) noexcept nogil:
    """PRPs or SGL of what the guest sends, into the slot's segments; the NVMe status."""
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status
    if sqe.flags & FLAGS_SGL:
        return walk_sgl(request, length, False, iov, count)
    status = prp_walk(controller.memory, sqe.prp1, sqe.prp2, length, controller.page_size,
                      False, iov, sq.iov_stride, count, &sq.region_hint)
    if status:
        request.error_location = prp_at_fault(sqe, status)
    return status


cdef inline bint holds(region_t *region, iovec *segment) noexcept nogil:
    return <uint64_t> segment.iov_base - <uint64_t> region.address < region.size


cdef uint32_t map_sgl(request_t *request, bint to_guest) noexcept nogil:
    cdef sq_t *sq = request.sq
    cdef uint32_t status
    request.iov = &sq.iov[(request.slot - sq.slots) * sq.iov_stride]
    status = walk_sgl(request, request.length, to_guest, request.iov, &request.iov_count)
    request.buffer = NO_BUFFER
    # What a bit bucket swallows is in no region.
    if status == SC_SUCCESS and request.iov_count == 1 and holds(
            &sq.controller.memory.regions[sq.region_hint], request.iov):
        find_buffer(request)
    return status


cdef uint32_t copy_in(request_t *request, uint8_t *buffer, uint32_t size) noexcept nogil:
    cdef sq_t *sq = request.sq
    cdef iovec *iov = &sq.iov[(request.slot - sq.slots) * sq.iov_stride]
    cdef uint32_t copied = 0
    cdef uint32_t count, i
    cdef uint32_t status = walk(request, size, iov, &count)
    if status:
        return status
    for i in range(count):
        memcpy(buffer + copied, iov[i].iov_base, iov[i].iov_len)
        copied += <uint32_t> iov[i].iov_len
    return SC_SUCCESS
