"""A command's data pointer, PRPs or an SGL, to segments (NVMe Base 2.x, section 4.1.1)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from nvme_mdev.datapath.checks cimport refuse
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.memory cimport memory_translate
from nvme_mdev.datapath.prp cimport prp_walk
from nvme_mdev.datapath.runtime cimport NO_BUFFER, controller_t, region_t, request_t, sq_t
from nvme_mdev.datapath.sgl cimport sgl_walk
from nvme_mdev.datapath.status cimport (
    LOCATION_CDW12, LOCATION_PRP1, LOCATION_PSDT, SC_INVALID_FIELD, SC_SUCCESS,
)


cdef void set_page_size(controller_t *controller, uint32_t size) noexcept:
    controller.page_size = controller.piece_size = size
    while controller.piece_size > controller.max_transfer:
        controller.piece_size >>= 1


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


cdef inline void find_buffer_of(request_t *request) noexcept nogil:
    """The registered buffer of its only segment, in the region that was found last."""
    if request.ns.backend.uses_buffers:
        find_buffer(request, &request.sq.controller.memory.regions[request.sq.region_hint])


cdef bint map_two(request_t *request, bint to_guest) noexcept nogil:
    """PRP1 and PRP2 that each are in one piece; False: it takes a walk to tell."""
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint64_t mask = controller.page_size - 1
    cdef uint64_t first = controller.page_size - (sqe.prp1 & mask)
    cdef uint64_t second = request.length - first
    cdef iovec *iov = request.inline_iov
    # Nothing is left for PRP2 (it wraps), or more than its page.
    if (sqe.prp1 & 3) | (sqe.prp2 & mask) or second - 1 > mask:
        return False
    iov[0].iov_len = first
    iov[1].iov_len = second
    iov[0].iov_base = memory_translate(controller.memory, sqe.prp1, &first, to_guest, &sq.region_hint)
    iov[1].iov_base = memory_translate(controller.memory, sqe.prp2, &second, to_guest, &sq.region_hint)
    if (iov[0].iov_base == NULL or iov[1].iov_base == NULL
            or first != iov[0].iov_len or second != iov[1].iov_len):
        return False
    request.iov = iov
    request.buffer = NO_BUFFER
    request.iov_count = 2
    if <uint8_t *> iov[0].iov_base + first == <uint8_t *> iov[1].iov_base:
        iov[0].iov_len += second
        request.iov_count = 1
        find_buffer_of(request)
    return True


cdef bint map_page(request_t *request, bint to_guest) noexcept nogil:
    """One page in one piece, wherever it is; False: it takes more to tell."""
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef uint64_t prp1 = request.slot.sqe.prp1
    cdef uint64_t part = request.length
    if prp1 & 3 or (prp1 & (controller.page_size - 1)) + part > controller.page_size:
        return False
    request.inline_iov[0].iov_base = memory_translate(
        controller.memory, prp1, &part, to_guest, &sq.region_hint)
    if request.inline_iov[0].iov_base == NULL or part != request.length:
        return False
    request.inline_iov[0].iov_len = part
    request.iov = request.inline_iov
    request.iov_count = 1
    find_buffer_of(request)
    return True


cdef uint32_t map_prps(request_t *request, bint to_guest) noexcept nogil:
    cdef sq_t *sq = request.sq
    cdef uint32_t status
    if request.length <= 2 * sq.controller.page_size and (
            map_page(request, to_guest) or map_two(request, to_guest)):
        return SC_SUCCESS
    request.iov = &sq.iov[(request.slot - sq.slots) * sq.iov_stride]
    status = prp_walk(
        sq.controller.memory, request.slot.sqe.prp1, request.slot.sqe.prp2, request.length,
        sq.controller.page_size, to_guest, request.iov, sq.iov_stride, &request.iov_count,
        &sq.region_hint,
    )
    request.buffer = NO_BUFFER
    if status:
        request.error_location = prp_at_fault(&request.slot.sqe, status)
    elif request.iov_count == 1:
        find_buffer_of(request)
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
        find_buffer_of(request)
    return status


cdef uint32_t map_data(request_t *request, bint to_guest) noexcept nogil:
    if request.length > request.sq.controller.max_transfer:
        return refuse(request, SC_INVALID_FIELD, LOCATION_CDW12)
    if request.slot.sqe.flags & FLAGS_SGL:
        return map_sgl(request, to_guest)
    return map_prps(request, to_guest)


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
