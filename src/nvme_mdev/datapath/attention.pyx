"""Commands that take more than to hand one page to their backend: these look closer."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.checks cimport CDW12_FUA, refuse, unreadable
from nvme_mdev.datapath.compound cimport COMPOUND_COMPARE, COMPOUND_PLAIN, compound_of
from nvme_mdev.datapath.data_pointer cimport map_data
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_BAD, ATTENTION_LIMITED, ATTENTION_LOCKED, OP_COMPARE, OP_READ, OP_VERIFY, backend_t,
    compound_t, request_t,
)
from nvme_mdev.datapath.status cimport (
    COMPOUND, LIMITED, LOCATION_OPCODE, SC_INTERNAL_ERROR, SC_INVALID_OPCODE, SC_SUCCESS,
)
from nvme_mdev.datapath.uncorrectable cimport bad_find


cdef uint32_t make_compound(request_t *request, uint32_t kind) noexcept nogil:
    """The command is ready, and more than one operation; the NVMe status."""
    cdef compound_t *compound = compound_of(request)
    if compound == NULL:
        return SC_INTERNAL_ERROR
    compound.kind = kind
    if kind == COMPOUND_COMPARE:
        compound.bounced = 1
        compound.data = request.iov
        compound.data_count = request.iov_count
    if (request.operation == OP_READ or request.operation == OP_COMPARE
            or request.operation == OP_VERIFY):
        compound.flush_first = request.slot.sqe.cdw12 & CDW12_FUA
    return COMPOUND


cdef uint32_t look_closer(request_t *request, uint32_t kind) noexcept nogil:
    """A command that is ready, on a backend with unreadable blocks, locked ranges or limits, or with
    Force Unit Access of what it reads, or that the backend cannot do as it is (`kind`)."""
    cdef backend_t *backend = request.ns.backend
    cdef uint32_t shift = request.ns.block_shift
    cdef uint64_t lba
    cdef bint reads = (request.operation == OP_READ or request.operation == OP_COMPARE
                       or request.operation == OP_VERIFY)
    cdef bint bad = backend.attention & ATTENTION_BAD and bad_find(
        backend, request.offset >> shift, request.length >> shift, &lba)
    if kind != COMPOUND_PLAIN and not backend.emulates:
        return refuse(request, SC_INVALID_OPCODE, LOCATION_OPCODE)
    if bad and reads:
        return unreadable(request, lba)
    if (kind != COMPOUND_PLAIN or bad or backend.attention & ATTENTION_LOCKED
            or (reads and request.slot.sqe.cdw12 & CDW12_FUA)):
        return make_compound(request, kind)
    return LIMITED if backend.attention & ATTENTION_LIMITED else SC_SUCCESS


cdef uint32_t map_and_look(request_t *request, bint to_guest) noexcept nogil:
    cdef uint32_t status = map_data(request, to_guest)
    if status == SC_SUCCESS and (
            request.ns.backend.attention or (to_guest and request.slot.sqe.cdw12 & CDW12_FUA)):
        return look_closer(request, COMPOUND_PLAIN)
    return status
