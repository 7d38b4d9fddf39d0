"""A command's data pointer, PRPs or an SGL, to segments (NVMe Base 2.x, section 4.1.1)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nvme_mdev.datapath.checks cimport refuse
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.memory cimport memory_translate
from nvme_mdev.datapath.runtime cimport (
    CHUNK_SHIFT, NO_BUFFER, controller_t, region_t, request_t, sq_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_CDW12, LOCATION_PRP1, LOCATION_PRP2, SC_INVALID_FIELD, SC_MASK, SC_PRP_OFFSET_INVALID,
    SC_SUCCESS,
)

cdef enum:
    #: PSDT, bits 7:6 of the flags: 01b, an SGL.
    FLAGS_SGL = 1 << 6


cdef inline void find_buffer(request_t *request) noexcept nogil:
    """The registered buffer that holds the request's only segment, if one can."""
    cdef sq_t *sq = request.sq
    cdef region_t *region
    cdef uint64_t first
    if not request.ns.backend.uses_buffers:
        return
    region = &sq.controller.memory.regions[sq.region_hint]
    first = <uint64_t> (<uint8_t *> request.iov[0].iov_base - region.mapping)
    request.buffer = NO_BUFFER
    if region.buffer_base != NO_BUFFER and (first >> CHUNK_SHIFT) == (
            (first + request.length - 1) >> CHUNK_SHIFT):
        request.buffer = region.buffer_base + <uint32_t> (first >> CHUNK_SHIFT)


cdef inline uint32_t prp_at_fault(nvme_sqe_t *sqe, uint32_t status) noexcept nogil:
    """PRP1, unless its offset is as it should be and there is one that is not."""
    return LOCATION_PRP1 if (
        status & SC_MASK != SC_PRP_OFFSET_INVALID or sqe.prp1 & 3) else LOCATION_PRP2


#: `map_data` of an SGL.
cdef uint32_t map_sgl(request_t *request, bint to_guest) noexcept nogil
#: Copy `size` bytes that the command points to, once; the NVMe status. Uses the slot's segments.
cdef uint32_t copy_in(request_t *request, uint8_t *buffer, uint32_t size) noexcept nogil


#: `map_data` of PRPs that are not one page in one piece.
cdef uint32_t map_prps(request_t *request, bint to_guest) noexcept nogil


cdef inline uint32_t map_data(request_t *request, bint to_guest) noexcept nogil:
    """The command's data to segments. One page in one piece is the usual case."""
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint64_t part = request.length
    cdef uint8_t *address
    if request.length > controller.max_transfer:
        return refuse(request, SC_INVALID_FIELD, LOCATION_CDW12)
    if sqe.flags & FLAGS_SGL:
        return map_sgl(request, to_guest)
    if (sqe.prp1 & (controller.page_size - 1)) + part <= controller.page_size and not sqe.prp1 & 3:
        address = memory_translate(controller.memory, sqe.prp1, &part, to_guest, &sq.region_hint)
        if address != NULL and part == request.length:
            request.inline_iov[0].iov_base = address
            request.inline_iov[0].iov_len = part
            request.iov = request.inline_iov
            request.iov_count = 1
            find_buffer(request)
            return SC_SUCCESS
    return map_prps(request, to_guest)
