"""NVM commands: from a copied SQE to a request for a backend.

Everything here reads the copy in the slot, never guest memory again, but for the two things that a
command points to: its PRP list and the ranges of Dataset Management, each copied once.

Sections are those of the NVM Command Set Specification 1.x.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.memory cimport memory_translate
from nvme_mdev.datapath.prp cimport prp_walk
from nvme_mdev.datapath.runtime cimport (
    CHUNK_SHIFT, NAMESPACES, NO_BUFFER, OP_COMPARE, OP_DEALLOCATE, OP_FLUSH, OP_READ, OP_WRITE,
    OP_WRITE_ZEROES, REQUEST_DEALLOCATE, REQUEST_FUA, controller_t, namespace_t, region_t,
    request_t, sq_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_CDW10, LOCATION_CDW12, LOCATION_FLAGS, LOCATION_NONE, LOCATION_NSID, LOCATION_OPCODE,
    LOCATION_PRP1, SC_DNR, SC_INVALID_FIELD, SC_INVALID_NAMESPACE, SC_INVALID_OPCODE,
    SC_LBA_OUT_OF_RANGE, SC_NAMESPACE_WRITE_PROTECTED, SC_SUCCESS,
)

cdef enum:
    NVME_FLUSH = 0x00
    NVME_WRITE = 0x01
    NVME_READ = 0x02
    NVME_COMPARE = 0x05
    NVME_WRITE_ZEROES = 0x08
    NVME_DATASET_MANAGEMENT = 0x09

    #: Bit n: opcode n is implemented; the highest of them.
    OPCODES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 8 | 1 << 9
    OPCODE_LAST = 9

    #: CDW12 of Read, Write, Compare, Write Zeroes.
    CDW12_NLB = 0xffff
    CDW12_DEAC = 1 << 25
    CDW12_FUA = 1 << 30
    #: Feature 06h and its bit (Base 2.x, section 5.1.25.1.4).
    FID_VOLATILE_WRITE_CACHE = 0x06
    WCE = 1
    #: CDW11 of Dataset Management: attribute deallocate.
    CDW11_AD = 1 << 2
    #: Bytes of a range of Dataset Management; at most 256 of them.
    DSM_RANGE_SIZE = 16


cdef inline uint32_t refuse(request_t *request, uint32_t status, uint32_t location) noexcept nogil:
    request.error_location = location
    return status | SC_DNR


cdef uint32_t refuse_namespace(request_t *request) noexcept nogil:
    """Inactive, a valid NSID without a namespace (Base 2.x, section 3.2.1.4); or it is not to be
    used at the moment, and it is worth trying again."""
    if request.ns.backend != NULL and request.ns.retired > 1:
        request.error_location = LOCATION_NONE
        return request.ns.retired
    return refuse(request, SC_INVALID_FIELD, LOCATION_NSID)


cdef inline uint32_t check_lbas(request_t *request, uint64_t slba, uint64_t blocks) noexcept nogil:
    """LBA range inside the namespace, without wrapping; sets offset and length (bytes)."""
    cdef namespace_t *ns = request.ns
    if slba >= ns.blocks or blocks > ns.blocks - slba:
        return refuse(request, SC_LBA_OUT_OF_RANGE, LOCATION_CDW10)
    request.offset = slba << ns.block_shift
    request.length = blocks << ns.block_shift
    return SC_SUCCESS


cdef inline void find_buffer(request_t *request) noexcept nogil:
    """The registered buffer that holds the request's only segment, if one can."""
    cdef sq_t *sq = request.sq
    cdef region_t *region = &sq.controller.memory.regions[sq.region_hint]
    cdef uint64_t first = <uint64_t> (<uint8_t *> request.iov[0].iov_base - region.mapping)
    request.buffer = NO_BUFFER
    if region.buffer_base != NO_BUFFER and (first >> CHUNK_SHIFT) == (
            (first + request.length - 1) >> CHUNK_SHIFT):
        request.buffer = region.buffer_base + <uint32_t> (first >> CHUNK_SHIFT)


cdef inline uint32_t map_data(request_t *request, bint to_guest) noexcept nogil:
    """The command's PRPs to segments. One page in one piece, the usual case, needs no walk."""
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint64_t part = request.length
    cdef uint32_t status
    cdef uint8_t *address
    if request.length > controller.max_transfer:
        return refuse(request, SC_INVALID_FIELD, LOCATION_CDW12)
    if (sqe.prp1 & (controller.page_size - 1)) + part <= controller.page_size and not sqe.prp1 & 3:
        address = memory_translate(controller.memory, sqe.prp1, &part, to_guest, &sq.region_hint)
        if address != NULL and part == request.length:
            request.inline_iov[0].iov_base = address
            request.inline_iov[0].iov_len = part
            request.iov = request.inline_iov
            request.iov_count = 1
            find_buffer(request)
            return SC_SUCCESS
    # Two segments are all that two pages can become, unless mappings end inside a page.
    request.iov = &sq.iov[(request.slot - sq.slots) * sq.iov_stride]
    status = prp_walk(
        controller.memory, sqe.prp1, sqe.prp2, request.length, controller.page_size, to_guest,
        request.iov, sq.iov_stride, &request.iov_count, &sq.region_hint,
    )
    request.buffer = NO_BUFFER
    if status:
        request.error_location = LOCATION_PRP1
    elif request.iov_count == 1:
        find_buffer(request)
    return status


cdef inline bint wants_durability(request_t *request) noexcept nogil:
    """Force Unit Access, or the volatile write cache is off (feature 06h, WCE)."""
    return (request.slot.sqe.cdw12 & CDW12_FUA or not (
        request.sq.controller.state.features[FID_VOLATILE_WRITE_CACHE] & WCE))


cdef uint32_t parse_read_write(request_t *request) noexcept nogil:
    """Read (3.2.4), Write (3.2.6), Compare (3.2.1)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint64_t slba = <uint64_t> sqe.cdw11 << 32 | sqe.cdw10
    cdef uint32_t status
    if sqe.opcode == NVME_WRITE and request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    status = check_lbas(request, slba, <uint64_t> (sqe.cdw12 & CDW12_NLB) + 1)
    if status:
        return status
    if sqe.opcode == NVME_READ:
        request.operation = OP_READ
        return map_data(request, True)
    request.operation = OP_WRITE if sqe.opcode == NVME_WRITE else OP_COMPARE
    if wants_durability(request):
        request.flags |= REQUEST_FUA
    return map_data(request, False)


cdef uint32_t parse_write_zeroes(request_t *request) noexcept nogil:
    """Write Zeroes (3.2.8)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint64_t slba = <uint64_t> sqe.cdw11 << 32 | sqe.cdw10
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    request.operation = OP_WRITE_ZEROES
    if wants_durability(request):
        request.flags |= REQUEST_FUA
    if sqe.cdw12 & CDW12_DEAC:
        request.flags |= REQUEST_DEALLOCATE
    return check_lbas(request, slba, <uint64_t> (sqe.cdw12 & CDW12_NLB) + 1)


cdef uint32_t copy_ranges(request_t *request, uint32_t count) noexcept nogil:
    """Copy the range definitions of Dataset Management to the slot's segment array, checked.

    A segment there is not memory: its base is an offset in the backend, its length the range's.
    """
    cdef sq_t *sq = request.sq
    cdef controller_t *controller = sq.controller
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef namespace_t *ns = request.ns
    cdef uint8_t ranges[256 * DSM_RANGE_SIZE]
    cdef iovec parts[4]
    cdef iovec *iov = &sq.iov[(request.slot - sq.slots) * sq.iov_stride]
    cdef uint32_t part_count, status, i
    cdef uint32_t copied = 0
    cdef uint32_t blocks
    cdef uint64_t slba
    status = prp_walk(controller.memory, sqe.prp1, sqe.prp2, count * DSM_RANGE_SIZE,
                      controller.page_size, False, parts, 4, &part_count, &sq.region_hint)
    if status:
        request.error_location = LOCATION_PRP1
        return status
    for i in range(part_count):
        memcpy(&ranges[copied], parts[i].iov_base, parts[i].iov_len)
        copied += <uint32_t> parts[i].iov_len
    request.iov = iov
    request.iov_count = 0
    for i in range(count):
        memcpy(&blocks, &ranges[i * DSM_RANGE_SIZE + 4], 4)
        memcpy(&slba, &ranges[i * DSM_RANGE_SIZE + 8], 8)
        if slba > ns.blocks or blocks > ns.blocks - slba:
            return refuse(request, SC_LBA_OUT_OF_RANGE, LOCATION_NONE)
        if blocks:
            iov[request.iov_count].iov_base = <void *> (slba << ns.block_shift)
            iov[request.iov_count].iov_len = <uint64_t> blocks << ns.block_shift
            request.iov_count += 1
    return SC_SUCCESS


cdef uint32_t parse_dataset_management(request_t *request) noexcept nogil:
    """Dataset Management (3.2.3): deallocate is done, the other attributes are hints."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    request.operation = OP_DEALLOCATE
    status = copy_ranges(request, (sqe.cdw10 & 0xff) + 1)
    if not sqe.cdw11 & CDW11_AD:
        request.iov_count = 0
    return status


cdef inline uint32_t parse_by_opcode(request_t *request) noexcept nogil:
    """The opcode is one of OPCODES."""
    cdef uint8_t opcode = request.slot.sqe.opcode
    if opcode == NVME_READ or opcode == NVME_WRITE or opcode == NVME_COMPARE:
        return parse_read_write(request)
    if opcode == NVME_FLUSH:
        request.operation = OP_FLUSH
        return SC_SUCCESS
    if opcode == NVME_WRITE_ZEROES:
        return parse_write_zeroes(request)
    return parse_dataset_management(request)


cdef unsigned int command_parse(request_t *request) noexcept nogil:
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t nsid = sqe.nsid
    request.flags = 0
    request.done = 0
    request.pending = 0
    request.result = 0
    request.iov_count = 0
    request.error_location = LOCATION_NONE
    # Fused operations and SGLs are not offered (FUSES, SGLS are 0): their bits must be 0.
    if sqe.flags:
        return refuse(request, SC_INVALID_FIELD, LOCATION_FLAGS)
    if sqe.opcode > OPCODE_LAST or not OPCODES >> sqe.opcode & 1:
        return refuse(request, SC_INVALID_OPCODE, LOCATION_OPCODE)
    if nsid == 0 or nsid > NAMESPACES:
        return refuse(request, SC_INVALID_NAMESPACE, LOCATION_NSID)
    request.ns = &request.sq.controller.namespaces[nsid]
    if request.ns.backend == NULL or request.ns.retired:
        return refuse_namespace(request)
    return parse_by_opcode(request)
