"""From a copied SQE to a request for a backend: where parsing begins."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.atomics cimport seldom
from nvme_mdev.datapath.commands cimport parse_by_opcode
from nvme_mdev.datapath.data_pointer cimport FLAGS_SGL
from nvme_mdev.datapath.fused cimport parse_flags
from nvme_mdev.datapath.runtime cimport request_t
from nvme_mdev.datapath.status cimport LOCATION_NONE


cdef inline uint32_t command_parse(request_t *request) noexcept nogil:
    """Validate the command in `request.slot`, fill in the request; the NVMe status.

    0 when it is ready for its backend; COMPOUND when it is ready for `compound_start`; LIMITED when limits
    have a say; else what to complete it with (`request.error_location` says where).
    """
    request.flags = 0
    request.done = 0
    request.pending = 0
    request.result = 0
    request.iov_count = 0
    request.error_location = LOCATION_NONE
    if seldom(request.slot.sqe.flags & ~<uint32_t> FLAGS_SGL):
        return parse_flags(request)
    return parse_by_opcode(request)
