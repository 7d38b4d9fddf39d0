"""NVM commands: from a copied SQE to a request for a backend.

Everything here, and in the files that this leads to, reads the copy in the slot, never guest memory again,
but for what a command points to: its PRP list or SGL and the ranges of Dataset Management and Copy, each
copied once.

There is no protection information, so PRINFO, STC and the tags are ignored, as they are to be (NVM
Command Set 1.x, section 5.2). Limited Retry changes nothing: nothing here is tried more than once.
"""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport seldom
from nvme_mdev.datapath.checks cimport refuse
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.opcodes cimport OPCODES, RANGE_OPCODES, is_one_of
from nvme_mdev.datapath.read_write cimport parse_allowed
from nvme_mdev.datapath.restricted cimport parse_elsewhere, parse_restricted
from nvme_mdev.datapath.runtime cimport NAMESPACES, REQUEST_LBA, namespace_t, request_t
from nvme_mdev.datapath.status cimport LOCATION_OPCODE, SC_INVALID_OPCODE


cdef uint32_t parse_by_opcode(request_t *request) noexcept nogil:
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t nsid = sqe.nsid
    cdef namespace_t *ns
    if seldom(not is_one_of(sqe.opcode, OPCODES)):
        return refuse(request, SC_INVALID_OPCODE, LOCATION_OPCODE)
    if seldom(nsid == 0 or nsid > NAMESPACES):
        return parse_elsewhere(request)
    ns = &request.sq.controller.namespaces[nsid]
    request.ns = ns
    if seldom(ns.backend == NULL or ns.restricted):
        return parse_restricted(request)
    return parse_allowed(request)


cdef uint64_t sqe_lba(const nvme_sqe_t *sqe) noexcept nogil:
    return <uint64_t> sqe.cdw11 << 32 | sqe.cdw10 if is_one_of(sqe.opcode, RANGE_OPCODES) else 0


cdef uint64_t command_lba(request_t *request) noexcept nogil:
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    if request.flags & REQUEST_LBA:
        return request.error_lba
    if not is_one_of(sqe.opcode, RANGE_OPCODES) or not request.done:
        return sqe_lba(sqe)
    # A command that was done in part failed behind that.
    return sqe_lba(sqe) + (request.done >> request.ns.block_shift)
