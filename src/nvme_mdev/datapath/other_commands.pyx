"""NVM commands besides Read and Write, but for those that name ranges in memory (`range_commands.pyx`).

Sections are those of the NVM Command Set Specification 1.x.
"""

from libc.stdint cimport uint8_t, uint32_t

from nvme_mdev.datapath.attention cimport look_closer
from nvme_mdev.datapath.checks cimport (
    CDW12_DEAC, check_range, is_native, refuse, wants_durability,
)
from nvme_mdev.datapath.compound cimport (
    COMPOUND_COMPARE, COMPOUND_PLAIN, COMPOUND_UNCORRECTABLE, COMPOUND_VERIFY,
)
from nvme_mdev.datapath.data_pointer cimport map_data
from nvme_mdev.datapath.deferred cimport parse_reservation
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.opcodes cimport (
    NVME_COMPARE, NVME_COPY, NVME_DATASET_MANAGEMENT, NVME_FLUSH, NVME_VERIFY, NVME_WRITE_ZEROES,
    RESERVATION_OPCODES,
)
from nvme_mdev.datapath.range_commands cimport parse_copy, parse_dataset_management
from nvme_mdev.datapath.runtime cimport (
    OP_COMPARE, OP_FLUSH, OP_VERIFY, OP_WRITE_UNCORRECTABLE, OP_WRITE_ZEROES, REQUEST_DEALLOCATE,
    REQUEST_FUA, request_t,
)
from nvme_mdev.datapath.status cimport LOCATION_NSID, SC_NAMESPACE_WRITE_PROTECTED, SC_SUCCESS


cdef uint32_t look_whether_native(request_t *request, uint32_t kind) noexcept nogil:
    """The end of parsing what a backend does, or is made of other operations (`kind`)."""
    return look_closer(
        request, COMPOUND_PLAIN if is_native(request.ns.backend, request.operation) else kind)


cdef uint32_t check_written_range(request_t *request) noexcept nogil:
    """As `check_range`, of what is written without data."""
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    return check_range(request)


cdef uint32_t parse_compare(request_t *request) noexcept nogil:
    """Compare (3.2.1)."""
    cdef uint32_t status = check_range(request)
    if status:
        return status
    request.operation = OP_COMPARE
    status = map_data(request, False)
    if status:
        return status
    return look_whether_native(request, COMPOUND_COMPARE)


cdef uint32_t parse_verify(request_t *request) noexcept nogil:
    """Verify (3.2.5): read, and tell whether it went well."""
    cdef uint32_t status = check_range(request)
    if status:
        return status
    request.operation = OP_VERIFY
    return look_whether_native(request, COMPOUND_VERIFY)


cdef uint32_t parse_write_zeroes(request_t *request) noexcept nogil:
    """Write Zeroes (3.2.8)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status = check_written_range(request)
    if status:
        return status
    request.operation = OP_WRITE_ZEROES
    if wants_durability(request):
        request.flags |= REQUEST_FUA
    if sqe.cdw12 & CDW12_DEAC:
        request.flags |= REQUEST_DEALLOCATE
    return look_closer(request, COMPOUND_PLAIN)


cdef uint32_t parse_write_uncorrectable(request_t *request) noexcept nogil:
    """Write Uncorrectable (3.2.7): the marks are the drive's below, or ours (`uncorrectable.pyx`)."""
    cdef uint32_t status = check_written_range(request)
    if status:
        return status
    request.operation = OP_WRITE_UNCORRECTABLE
    return look_whether_native(request, COMPOUND_UNCORRECTABLE)


cdef uint32_t parse_others(request_t *request) noexcept nogil:
    cdef uint8_t opcode = request.slot.sqe.opcode
    if opcode == NVME_FLUSH:
        request.operation = OP_FLUSH
        return SC_SUCCESS
    if opcode == NVME_COMPARE:
        return parse_compare(request)
    if opcode == NVME_WRITE_ZEROES:
        return parse_write_zeroes(request)
    if opcode == NVME_DATASET_MANAGEMENT:
        return parse_dataset_management(request)
    if opcode == NVME_COPY:
        return parse_copy(request)
    if opcode == NVME_VERIFY:
        return parse_verify(request)
    if RESERVATION_OPCODES >> opcode & 1:
        return parse_reservation(request)
    return parse_write_uncorrectable(request)
