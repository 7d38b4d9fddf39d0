"""What the checks of several commands have in common."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from nvme_mdev.datapath.atomics cimport seldom
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.runtime cimport NS_STATE, REQUEST_LBA, backend_t, namespace_t, request_t
from nvme_mdev.datapath.status cimport (
    LOCATION_CDW10, LOCATION_NONE, SC_DNR, SC_LBA_OUT_OF_RANGE, SC_SANITIZE_FAILED,
    SC_SANITIZE_IN_PROGRESS, SC_SUCCESS, SC_UNRECOVERED_READ,
)

cdef enum:
    #: CDW12 of the commands that name a range of blocks (NVM Command Set 1.x, section 3.2).
    CDW12_NLB = 0xffff
    CDW12_DTYPE = 0xf << 20
    CDW12_DEAC = 1 << 25
    CDW12_FUA = 1 << 30
    #: Feature 06h and its bit (Base 2.x, section 5.1.25.1.4).
    FID_VOLATILE_WRITE_CACHE = 0x06
    WCE = 1


cdef inline uint32_t refuse(request_t *request, uint32_t status, uint32_t location) noexcept nogil:
    request.error_location = location
    return status | SC_DNR


cdef inline bint is_native(const backend_t *backend, uint32_t operation) noexcept nogil:
    """The backend's `submit` does it: it need not be made of reads and writes."""
    return backend.natives >> operation & 1


cdef inline bint takes_flush(namespace_t *ns) noexcept nogil:
    """A sanitize operation, also one that failed, excludes all but Flush (Base 2.x, section 8.1.24.4)."""
    cdef uint32_t state = ns.restricted & NS_STATE
    return state == 0 or state == SC_SANITIZE_IN_PROGRESS or state == SC_SANITIZE_FAILED


cdef inline void fault_at(request_t *request, uint64_t lba) noexcept nogil:
    """The first block at fault, where it is not that which the command begins with."""
    request.error_lba = lba
    request.flags |= REQUEST_LBA


cdef inline uint32_t unreadable(request_t *request, uint64_t lba) noexcept nogil:
    """A block that Write Uncorrectable was told of; no other try goes better."""
    fault_at(request, lba)
    return refuse(request, SC_UNRECOVERED_READ, LOCATION_NONE)


cdef inline uint32_t check_lbas(request_t *request, uint64_t slba, uint64_t blocks) noexcept nogil:
    """LBA range inside the namespace, without wrapping; sets offset and length (bytes)."""
    cdef namespace_t *ns = request.ns
    cdef uint64_t capacity = ns.blocks
    cdef uint32_t shift = ns.block_shift
    if seldom(slba >= capacity or blocks > capacity - slba):
        fault_at(request, max(slba, capacity))
        return refuse(request, SC_LBA_OUT_OF_RANGE, LOCATION_CDW10)
    request.offset = slba << shift
    request.length = blocks << shift
    return SC_SUCCESS


cdef inline uint32_t check_range(request_t *request) noexcept nogil:
    """As `check_lbas`, of SLBA and NLB."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    return check_lbas(
        request, <uint64_t> sqe.cdw11 << 32 | sqe.cdw10, <uint64_t> (sqe.cdw12 & CDW12_NLB) + 1)


cdef inline bint wants_durability(request_t *request) noexcept nogil:
    """Force Unit Access, or the volatile write cache is off (feature 06h, WCE)."""
    return (request.slot.sqe.cdw12 & CDW12_FUA or not (
        request.sq.controller.state.features[FID_VOLATILE_WRITE_CACHE] & WCE))


cdef inline uint64_t equal_bytes(const uint8_t *ours, const uint8_t *theirs, uint64_t length) noexcept nogil:
    """How many bytes are the same, from the first on. The guest may change its own meanwhile."""
    cdef uint64_t i = 0
    if memcmp(ours, theirs, length) == 0:
        return length
    while i < length and ours[i] == theirs[i]:
        i += 1
    return i
