"""Read and Write (NVM Command Set 1.x, section 3): the way that all but a few commands go, straight through."""

from libc.stdint cimport uint8_t, uint32_t

from nvme_mdev.datapath.atomics cimport seldom
from nvme_mdev.datapath.attention cimport look_closer, map_and_look
from nvme_mdev.datapath.checks cimport (
    CDW12_DTYPE, CDW12_FUA, check_range, refuse, wants_durability,
)
from nvme_mdev.datapath.compound cimport COMPOUND_PLAIN
from nvme_mdev.datapath.data_pointer cimport map_usual
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.lines cimport LINE_SIZE, prefetch_lines
from nvme_mdev.datapath.opcodes cimport NVME_READ, NVME_WRITE
from nvme_mdev.datapath.other_commands cimport parse_others
from nvme_mdev.datapath.runtime cimport OP_READ, OP_WRITE, REQUEST_FUA, backend_t, request_t
from nvme_mdev.datapath.status cimport (
    LOCATION_DTYPE, LOCATION_NSID, SC_INVALID_FIELD, SC_NAMESPACE_WRITE_PROTECTED, SC_SUCCESS,
)

cdef enum:
    #: Of a read from memory: the processor sees by itself how it goes on.
    PREFETCHED_LINES = 16


cdef inline uint32_t parse_read(request_t *request) noexcept nogil:
    """Read (3.2.4)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef backend_t *backend = request.ns.backend
    cdef uint32_t status = check_range(request)
    if seldom(status):
        return status
    request.operation = OP_READ
    if backend.data != NULL:
        # The rest of the batch is parsed while the first lines, and the way to their page, arrive.
        prefetch_lines(
            backend.data + request.offset,
            min(<uint32_t> (request.length // LINE_SIZE), <uint32_t> PREFETCHED_LINES))
    if seldom(not map_usual(request, backend, True)):
        return map_and_look(request, True)
    if seldom(backend.attention | (sqe.cdw12 & CDW12_FUA)):
        return look_closer(request, COMPOUND_PLAIN)
    return SC_SUCCESS


cdef inline uint32_t parse_write(request_t *request) noexcept nogil:
    """Write (3.2.6)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef backend_t *backend = request.ns.backend
    cdef uint32_t status
    if seldom(request.ns.read_only):
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    # There are no directives (OACS).
    if seldom(sqe.cdw12 & CDW12_DTYPE):
        return refuse(request, SC_INVALID_FIELD, LOCATION_DTYPE)
    status = check_range(request)
    if seldom(status):
        return status
    request.operation = OP_WRITE
    if wants_durability(request):
        request.flags |= REQUEST_FUA
    if seldom(not map_usual(request, backend, False)):
        return map_and_look(request, False)
    if seldom(backend.attention):
        return look_closer(request, COMPOUND_PLAIN)
    return SC_SUCCESS


cdef inline uint32_t parse_allowed(request_t *request) noexcept nogil:
    """The namespace is there, and the command one that it takes."""
    cdef uint8_t opcode = request.slot.sqe.opcode
    if opcode == NVME_READ:
        return parse_read(request)
    if opcode == NVME_WRITE:
        return parse_write(request)
    return parse_others(request)
