"""Commands for the controller below, rewritten from a guest's: all but the data pointer.

What both forms of direct mode have in common: NSID and LBA are those of the namespace below, the rest
is what the guest asked for and was checked (NVM Command Set 1.x, section 3).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from nvme_mdev.datapath.checks cimport CDW12_DEAC, CDW12_FUA
from nvme_mdev.datapath.host_rings cimport sqe_t
from nvme_mdev.datapath.opcodes cimport (
    NVME_COMPARE, NVME_COPY, NVME_DATASET_MANAGEMENT, NVME_FLUSH, NVME_READ, NVME_VERIFY, NVME_WRITE,
    NVME_WRITE_UNCORRECTABLE, NVME_WRITE_ZEROES,
)
from nvme_mdev.datapath.runtime cimport (
    OP_COMPARE, OP_COPY, OP_DEALLOCATE, OP_FLUSH, OP_READ, OP_VERIFY, OP_WRITE,
    OP_WRITE_UNCORRECTABLE, OP_WRITE_ZEROES, REQUEST_DEALLOCATE, REQUEST_FUA, request_t,
)
from nvme_mdev.datapath.status cimport SC_DNR, SC_INVALID_OPCODE, SC_SUCCESS

cdef enum:
    #: Limited Retry.
    CDW12_LR = 1 << 31
    CDW11_AD = 1 << 2
    DSM_RANGE_SIZE = 16
    #: Of Copy, descriptor format 0h.
    COPY_RANGE_SIZE = 32

#: A namespace below, or a range of it.
cdef struct below_t:
    #: First block.
    uint64_t start
    uint32_t nsid
    uint32_t block_shift
    #: Its character device, for passthrough.
    int fd


cdef inline uint32_t natives_of(drive):
    """The operations, besides those that all backends have, that a drive (`DriveNamespace`) does."""
    return (
        (1 << OP_COMPARE if drive.can_compare else 0) | (1 << OP_VERIFY if drive.can_verify else 0)
        | (1 << OP_COPY if drive.copy_limits is not None else 0)
        | (1 << OP_WRITE_UNCORRECTABLE if drive.can_write_uncorrectable else 0))


cdef inline bint moves_data(request_t *request) noexcept nogil:
    """The command has a data pointer to the guest's memory."""
    return request.operation in (OP_READ, OP_WRITE, OP_COMPARE)


cdef inline bint names_ranges(request_t *request) noexcept nogil:
    """Its data pointer is to a list of ranges, which `write_ranges` makes."""
    return request.operation == OP_DEALLOCATE or request.operation == OP_COPY


cdef inline uint32_t blocks_of(below_t *below, request_t *request) noexcept nogil:
    """NLB, and FUA where we want it."""
    return (<uint32_t> (request.length >> below.block_shift) - 1) | (
        CDW12_FUA if request.flags & REQUEST_FUA else 0)


cdef inline uint32_t rewrite_other(below_t *below, request_t *request, sqe_t *sqe) noexcept nogil:
    """What is neither Read nor Write."""
    if request.operation == OP_FLUSH:
        sqe.opcode = NVME_FLUSH
        return SC_SUCCESS
    if request.operation == OP_DEALLOCATE:
        sqe.opcode = NVME_DATASET_MANAGEMENT
        sqe.slba = (request.iov_count - 1) | <uint64_t> CDW11_AD << 32
        return SC_SUCCESS
    sqe.slba = below.start + (request.offset >> below.block_shift)
    if request.operation == OP_COPY:
        sqe.opcode = NVME_COPY
        sqe.cdw12 = (request.iov_count - 1) | (CDW12_FUA if request.flags & REQUEST_FUA else 0)
        return SC_SUCCESS
    sqe.cdw12 = blocks_of(below, request)
    if request.operation == OP_WRITE_ZEROES:
        sqe.opcode = NVME_WRITE_ZEROES
        if request.flags & REQUEST_DEALLOCATE:
            sqe.cdw12 |= CDW12_DEAC
        return SC_SUCCESS
    if request.operation == OP_WRITE_UNCORRECTABLE:
        # It has no flags.
        sqe.opcode = NVME_WRITE_UNCORRECTABLE
        return SC_SUCCESS
    sqe.cdw12 |= request.slot.sqe.cdw12 & (CDW12_LR | CDW12_FUA)
    if request.operation == OP_COMPARE:
        sqe.opcode = NVME_COMPARE
    elif request.operation == OP_VERIFY:
        sqe.opcode = NVME_VERIFY
    else:
        return SC_INVALID_OPCODE | SC_DNR
    return SC_SUCCESS


cdef inline uint32_t rewrite(below_t *below, request_t *request, sqe_t *sqe) noexcept nogil:
    """Everything but command identifier and data pointer; the NVMe status: 0, or why not."""
    memset(sqe, 0, sizeof(sqe_t))
    sqe.nsid = below.nsid
    if request.operation != OP_READ and request.operation != OP_WRITE:
        return rewrite_other(below, request, sqe)
    sqe.opcode = NVME_READ if request.operation == OP_READ else NVME_WRITE
    sqe.slba = below.start + (request.offset >> below.block_shift)
    sqe.cdw12 = blocks_of(below, request) | request.slot.sqe.cdw12 & (CDW12_LR | CDW12_FUA)
    return SC_SUCCESS


cdef inline uint32_t write_ranges(below_t *below, request_t *request, uint8_t *data) noexcept nogil:
    """The ranges of Dataset Management (256 at most) or Copy (128), moved to where the namespace
    begins; how many bytes they take, at most a page."""
    cdef bint copies = request.operation == OP_COPY
    cdef uint32_t size = COPY_RANGE_SIZE if copies else DSM_RANGE_SIZE
    cdef uint8_t *range_ = data
    cdef uint32_t i, blocks
    memset(data, 0, request.iov_count * size)
    for i in range(request.iov_count):
        blocks = <uint32_t> (request.iov[i].iov_len >> below.block_shift)
        (<uint64_t *> (range_ + 8))[0] = below.start + (
            <uint64_t> request.iov[i].iov_base >> below.block_shift)
        if copies:
            # NLB, 0's based.
            (<uint16_t *> (range_ + 16))[0] = <uint16_t> (blocks - 1)
        else:
            (<uint32_t *> (range_ + 4))[0] = blocks
        range_ += size
    return request.iov_count * size
