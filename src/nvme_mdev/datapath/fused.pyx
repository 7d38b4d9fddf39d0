"""Commands of a fused pair: Compare and Write (NVMe Base 2.x, section 3.4.2)."""

from libc.stdint cimport uint8_t, uint32_t

from nvme_mdev.datapath.checks cimport refuse
from nvme_mdev.datapath.commands cimport parse_by_opcode
from nvme_mdev.datapath.compound cimport COMPOUND_FIRST, COMPOUND_SECOND, compound_drop, compound_of
from nvme_mdev.datapath.data_pointer cimport FLAGS_SGL
from nvme_mdev.datapath.runtime cimport compound_t, request_t
from nvme_mdev.datapath.status cimport (
    COMPOUND, LIMITED, LOCATION_FLAGS, LOCATION_PSDT, SC_INTERNAL_ERROR, SC_INVALID_FIELD, SC_SUCCESS,
)

cdef enum:
    #: FUSE, bits 1:0 of the flags (Base 2.x, section 4.1.1).
    FUSE = 3
    FUSE_FIRST = 1


cdef uint32_t parse_fused(request_t *request, uint32_t kind) noexcept nogil:
    """One of a fused pair (Base 2.x, section 3.4.2). What is wrong with it is told when both are known."""
    cdef uint32_t status = parse_by_opcode(request)
    cdef compound_t *compound
    if (status == SC_SUCCESS or status == COMPOUND or status == LIMITED) and request.ns != NULL and (
            request.ns.backend.threads > 1):
        # Nothing keeps another IOThread's commands from coming between the two (FUSES says so).
        compound_drop(request)
        return refuse(request, SC_INVALID_FIELD, LOCATION_FLAGS)
    compound = compound_of(request)
    if compound == NULL:
        return SC_INTERNAL_ERROR
    compound.kind = kind
    compound.parsed = 0 if status == COMPOUND or status == LIMITED else status
    if kind == COMPOUND_FIRST:
        compound.data = request.iov
        compound.data_count = request.iov_count
    return COMPOUND


cdef uint32_t parse_flags(request_t *request) noexcept nogil:
    """Flags that are not only SGL: a fused operation, or an error."""
    cdef uint8_t flags = request.slot.sqe.flags
    if flags & ~(FUSE | FLAGS_SGL):
        return refuse(request, SC_INVALID_FIELD, LOCATION_PSDT if flags >> 7 else LOCATION_FLAGS)
    if flags & FUSE == FUSE:
        return refuse(request, SC_INVALID_FIELD, LOCATION_FLAGS)
    return parse_fused(request, COMPOUND_FIRST if flags & FUSE == FUSE_FIRST else COMPOUND_SECOND)
