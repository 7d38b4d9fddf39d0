"""Commands whose data is a list of block ranges: Dataset Management and Copy.

A list is copied out of guest memory once, checked, and put into the slot's segment array. A segment
there is not memory: its base is an offset in the backend, its length the range's, in bytes.

Sections are those of the NVM Command Set Specification 1.x.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from nvme_mdev.datapath.checks cimport (
    CDW12_DTYPE, check_lbas, fault_at, is_native, refuse, unreadable, wants_durability,
)
from nvme_mdev.datapath.compound cimport COMPOUND_COPY, COMPOUND_PLAIN, compound_of
from nvme_mdev.datapath.data_pointer cimport copy_in
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_BAD, OP_COPY, OP_DEALLOCATE, REQUEST_FUA, compound_t, controller_t,
    namespace_t, request_t, sq_t,
)
from nvme_mdev.datapath.status cimport (
    COMPOUND, LOCATION_CDW12, LOCATION_DESFMT, LOCATION_DTYPE, LOCATION_NONE,
    LOCATION_NSID, LOCATION_OPCODE, SC_COMMAND_SIZE_LIMIT, SC_INTERNAL_ERROR, SC_INVALID_FIELD,
    SC_INVALID_OPCODE, SC_LBA_OUT_OF_RANGE, SC_NAMESPACE_WRITE_PROTECTED, SC_SUCCESS,
)
from nvme_mdev.datapath.uncorrectable cimport bad_find

MAX_COPY_RANGE = COPY_RANGE_MOST
MAX_COPY = COPY_MOST
MAX_COPY_RANGES = COPY_RANGES_MOST

cdef enum:
    #: CDW10 of Dataset Management: number of ranges, 0's based. CDW11: attribute deallocate.
    CDW10_NR = 0xff
    CDW11_AD = 1 << 2
    #: Bytes of a range of Dataset Management; at most 256 of them.
    DSM_RANGE_SIZE = 16
    DSM_RANGES_MOST = 256

    #: CDW12 of Copy: number of ranges, 0's based; descriptor format.
    COPY_NR = 0xff
    COPY_DESFMT_SHIFT = 8
    #: Bytes of a source range, descriptor format 0h.
    COPY_RANGE_SIZE = 32


cdef inline iovec *slot_segments(request_t *request) noexcept nogil:
    cdef sq_t *sq = request.sq
    return &sq.iov[(request.slot - sq.slots) * sq.iov_stride]


cdef inline bint outside(namespace_t *ns, uint64_t slba, uint64_t blocks) noexcept nogil:
    """Without wrapping; no block at the very end is none outside."""
    return slba > ns.blocks or blocks > ns.blocks - slba


# -- Dataset Management -------------------------------------------------------------------------------


cdef uint32_t take_ranges(request_t *request, uint8_t *ranges, uint32_t count) noexcept nogil:
    """The ranges to the slot's segments, those without a block left out; the NVMe status."""
    cdef namespace_t *ns = request.ns
    cdef iovec *iov = slot_segments(request)
    cdef uint32_t i, blocks
    cdef uint64_t slba
    request.iov = iov
    request.iov_count = 0
    for i in range(count):
        memcpy(&blocks, ranges + i * DSM_RANGE_SIZE + 4, 4)
        memcpy(&slba, ranges + i * DSM_RANGE_SIZE + 8, 8)
        if outside(ns, slba, blocks):
            fault_at(request, max(slba, ns.blocks))
            return refuse(request, SC_LBA_OUT_OF_RANGE, LOCATION_NONE)
        if blocks:
            iov[request.iov_count].iov_base = <void *> (slba << ns.block_shift)
            iov[request.iov_count].iov_len = <uint64_t> blocks << ns.block_shift
            request.iov_count += 1
    return SC_SUCCESS


cdef bint some_deallocate(controller_t *controller) noexcept nogil:
    """ONCS speaks for all namespaces: with one that can, the others take it for a hint."""
    cdef uint32_t place
    for place in range(1, controller.places_end):
        if (controller.namespaces[place].backend != NULL
                and is_native(controller.namespaces[place].backend, OP_DEALLOCATE)):
            return True
    return False


cdef uint32_t parse_dataset_management(request_t *request) noexcept nogil:
    """Dataset Management (3.2.3): deallocate is done, the other attributes are hints."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef bint can = is_native(request.ns.backend, OP_DEALLOCATE)
    cdef uint8_t ranges[DSM_RANGES_MOST * DSM_RANGE_SIZE]
    cdef uint32_t count = (sqe.cdw10 & CDW10_NR) + 1
    cdef uint32_t status
    if not can and not some_deallocate(request.sq.controller):
        return refuse(request, SC_INVALID_OPCODE, LOCATION_OPCODE)
    # The hints change no data, and are taken (Base 2.x, section 8.1.16.2).
    if request.ns.read_only and sqe.cdw11 & CDW11_AD:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    status = copy_in(request, ranges, count * DSM_RANGE_SIZE)
    if status == SC_SUCCESS:
        status = take_ranges(request, ranges, count)
    if status:
        return status
    request.operation = OP_DEALLOCATE
    if not sqe.cdw11 & CDW11_AD or not can:
        request.iov_count = 0
    elif request.ns.backend.attention:
        return COMPOUND if compound_of(request) != NULL else SC_INTERNAL_ERROR
    return SC_SUCCESS


# -- Copy ---------------------------------------------------------------------------------------------


cdef uint32_t check_copy(request_t *request) noexcept nogil:
    """What can be checked without the list (3.2.2); the NVMe status."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    if not is_native(request.ns.backend, OP_COPY) and not request.ns.backend.emulates:
        return refuse(request, SC_INVALID_OPCODE, LOCATION_OPCODE)
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    # Only descriptor format 0h: there is no protection information (CDFS).
    if sqe.cdw12 >> COPY_DESFMT_SHIFT & 0xf:
        return refuse(request, SC_INVALID_FIELD, LOCATION_DESFMT)
    if sqe.cdw12 & CDW12_DTYPE:
        return refuse(request, SC_INVALID_FIELD, LOCATION_DTYPE)
    if (sqe.cdw12 & COPY_NR) >= COPY_RANGES_MOST:
        return refuse(request, SC_COMMAND_SIZE_LIMIT, LOCATION_CDW12)
    return SC_SUCCESS


cdef uint32_t check_source(request_t *request, uint64_t slba, uint64_t blocks) noexcept nogil:
    cdef namespace_t *ns = request.ns
    cdef uint64_t lba
    if blocks << ns.block_shift > COPY_RANGE_MOST:
        return refuse(request, SC_COMMAND_SIZE_LIMIT, LOCATION_NONE)
    if outside(ns, slba, blocks):
        fault_at(request, max(slba, ns.blocks))
        return refuse(request, SC_LBA_OUT_OF_RANGE, LOCATION_NONE)
    if ns.backend.attention & ATTENTION_BAD and bad_find(ns.backend, slba, blocks, &lba):
        return unreadable(request, lba)
    return SC_SUCCESS


cdef uint32_t take_sources(request_t *request, uint8_t *ranges, uint32_t count, uint64_t *blocks) noexcept nogil:
    """The source ranges to the slot's segments, and their blocks together; the NVMe status.

    Dword 0 of the completion stays 0, whichever range is at fault: nothing was written (3.2.2.1).
    """
    cdef namespace_t *ns = request.ns
    cdef iovec *iov = slot_segments(request)
    cdef uint16_t nlb
    cdef uint64_t slba
    cdef uint32_t i, status
    blocks[0] = 0
    for i in range(count):
        memcpy(&slba, ranges + i * COPY_RANGE_SIZE + 8, 8)
        memcpy(&nlb, ranges + i * COPY_RANGE_SIZE + 16, 2)
        status = check_source(request, slba, <uint64_t> nlb + 1)
        if status:
            return status
        iov[i].iov_base = <void *> (slba << ns.block_shift)
        iov[i].iov_len = (<uint64_t> nlb + 1) << ns.block_shift
        blocks[0] += <uint64_t> nlb + 1
    return SC_SUCCESS


cdef uint32_t make_copy(request_t *request, uint32_t count) noexcept nogil:
    """Everything is checked: natively, or by reads and writes."""
    cdef bint native = is_native(request.ns.backend, OP_COPY)
    cdef compound_t *compound
    request.operation = OP_COPY
    request.iov = slot_segments(request)
    request.iov_count = count
    if wants_durability(request):
        request.flags |= REQUEST_FUA
    if native and not request.ns.backend.attention:
        return SC_SUCCESS
    compound = compound_of(request)
    if compound == NULL:
        return SC_INTERNAL_ERROR
    compound.kind = COMPOUND_PLAIN if native else COMPOUND_COPY
    compound.data = request.iov
    compound.data_count = count
    return COMPOUND


cdef uint32_t parse_copy(request_t *request) noexcept nogil:
    """Copy (3.2.2). Where source and destination overlap, no outcome is promised to anybody."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint8_t ranges[COPY_RANGES_MOST * COPY_RANGE_SIZE]
    cdef uint32_t count = (sqe.cdw12 & COPY_NR) + 1
    cdef uint64_t blocks
    cdef uint32_t status = check_copy(request)
    if status == SC_SUCCESS:
        status = copy_in(request, ranges, count * COPY_RANGE_SIZE)
    if status == SC_SUCCESS:
        status = take_sources(request, ranges, count, &blocks)
    if status == SC_SUCCESS and blocks << request.ns.block_shift > COPY_MOST:
        status = refuse(request, SC_COMMAND_SIZE_LIMIT, LOCATION_NONE)
    if status == SC_SUCCESS:
        status = check_lbas(request, <uint64_t> sqe.cdw11 << 32 | sqe.cdw10, blocks)
    return status if status else make_copy(request, count)
