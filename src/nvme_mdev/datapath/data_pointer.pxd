"""A command's data pointer, PRPs or an SGL, to segments (NVMe Base 2.x, section 4.1.1)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport seldom
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.runtime cimport (
    CHUNK_SHIFT, NO_BUFFER, backend_t, controller_t, region_t, request_t, sq_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_PRP1, LOCATION_PRP2, SC_MASK, SC_PRP_OFFSET_INVALID,
)

cdef enum:
    #: PSDT, bits 7:6 of the flags: 01b, an SGL.
    FLAGS_SGL = 1 << 6


cdef inline void find_buffer(request_t *request, const region_t *region) noexcept nogil:
    """The registered buffer that holds the request's only segment, in that region, if one can."""
    cdef uint64_t first = <uint64_t> (<uint8_t *> request.iov[0].iov_base - region.mapping)
    request.buffer = NO_BUFFER
    if region.buffer_base != NO_BUFFER and (first >> CHUNK_SHIFT) == (
            (first + request.length - 1) >> CHUNK_SHIFT):
        request.buffer = region.buffer_base + <uint32_t> (first >> CHUNK_SHIFT)


cdef inline uint32_t prp_at_fault(nvme_sqe_t *sqe, uint32_t status) noexcept nogil:
    """PRP1, unless its offset is as it should be and there is one that is not."""
    return LOCATION_PRP1 if (
        status & SC_MASK != SC_PRP_OFFSET_INVALID or sqe.prp1 & 3) else LOCATION_PRP2


#: What CC.MPS says; MDTS (`max_transfer`) is known.
cdef void set_page_size(controller_t *controller, uint32_t size) noexcept
#: Copy `size` bytes that the command points to, once; the NVMe status. Uses the slot's segments.
cdef uint32_t copy_in(request_t *request, uint8_t *buffer, uint32_t size) noexcept nogil


#: The command's data to segments; the NVMe status.
cdef uint32_t map_data(request_t *request, bint to_guest) noexcept nogil


cdef inline bint map_usual(request_t *request, const backend_t *backend, bint to_guest) noexcept nogil:
    """`map_data` of a page, or less, in one piece, in the region that the last one was in: the usual case.

    False: it is not that, or there is something wrong.
    """
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef region_t *region = &controller.memory.regions[sq.region_hint]
    cdef uint64_t prp1 = sqe.prp1
    cdef uint64_t length = request.length
    cdef uint64_t offset = prp1 - region.iova
    cdef uint64_t reach = region.writable_size if to_guest else region.readable_size
    if seldom((sqe.flags & FLAGS_SGL) | (prp1 & 3)
              or (prp1 & (controller.piece_size - 1)) + length > controller.piece_size
              or offset >= reach or length > reach - offset):
        return False
    request.inline_iov[0].iov_base = region.address + offset
    request.inline_iov[0].iov_len = length
    request.iov = request.inline_iov
    request.iov_count = 1
    if backend.uses_buffers:
        find_buffer(request, region)
    return True
