"""NVM commands: from a copied SQE to a request for a backend.

Everything here reads the copy in the slot, never guest memory again, but for what a command points
to: its PRP list or SGL and the ranges of Dataset Management and Copy, each copied once.

There is no protection information, so PRINFO, STC and the tags are ignored, as they are to be (NVM
Command Set 1.x, section 5.2). Limited Retry changes nothing: nothing here is tried more than once.

Sections are those of the NVM Command Set Specification 1.x.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport prefetch_read
from nvme_mdev.datapath.checks cimport (
    CDW12_DEAC, CDW12_DTYPE, CDW12_FUA, WRITE_OPCODES, check_range, is_native, is_one_of, refuse,
    takes_flush, unreadable, wants_durability,
)
from nvme_mdev.datapath.compound cimport (
    COMPOUND_COMPARE, COMPOUND_FIRST, COMPOUND_FLUSH_ALL, COMPOUND_PLAIN, COMPOUND_SECOND,
    COMPOUND_UNCORRECTABLE, COMPOUND_VERIFY, compound_drop, compound_of,
)
from nvme_mdev.datapath.data_pointer cimport FLAGS_SGL, map_data
from nvme_mdev.datapath.deferred cimport parse_reservation
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.range_commands cimport parse_copy, parse_dataset_management
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_BAD, ATTENTION_LIMITED, ATTENTION_LOCKED, GROUP_READ, GROUP_WRITE, NAMESPACES,
    NS_GROUPS_SHIFT, NS_STATE, OP_COMPARE, OP_FLUSH, OP_READ, OP_VERIFY, OP_WRITE,
    OP_WRITE_UNCORRECTABLE, OP_WRITE_ZEROES, REQUEST_DEALLOCATE, REQUEST_FUA, REQUEST_LBA, backend_t,
    compound_t, namespace_t, request_t,
)
from nvme_mdev.datapath.status cimport (
    COMPOUND, LIMITED, LOCATION_DTYPE, LOCATION_FLAGS, LOCATION_NONE, LOCATION_NSID, LOCATION_OPCODE,
    LOCATION_PSDT, SC_INTERNAL_ERROR, SC_INVALID_FIELD, SC_INVALID_NAMESPACE, SC_INVALID_OPCODE,
    SC_NAMESPACE_WRITE_PROTECTED, SC_RESERVATION_CONFLICT, SC_SUCCESS,
)
from nvme_mdev.datapath.uncorrectable cimport bad_find

cdef enum:
    NVME_FLUSH = 0x00
    NVME_WRITE = 0x01
    NVME_READ = 0x02
    NVME_WRITE_UNCORRECTABLE = 0x04
    NVME_COMPARE = 0x05
    NVME_WRITE_ZEROES = 0x08
    NVME_DATASET_MANAGEMENT = 0x09
    NVME_VERIFY = 0x0c
    NVME_COPY = 0x19

    #: Bit n: opcode n names a range of blocks in SLBA.
    RANGE_OPCODES = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 12 | 1 << 25
    #: Reservation Register, Report, Acquire and Release.
    RESERVATION_OPCODES = 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21
    #: Bit n: opcode n is implemented: those, Flush and Dataset Management.
    OPCODES = RANGE_OPCODES | RESERVATION_OPCODES | 1 << 0 | 1 << 9
    #: The command groups of reservations; Copy is in both.
    READ_GROUP = 1 << 2 | 1 << 5 | 1 << 12 | 1 << 25
    WRITE_GROUP = WRITE_OPCODES | 1 << 0

    NSID_ALL = 0xffffffff

    #: FUSE, bits 1:0 of the flags (Base 2.x, section 4.1.1).
    FUSE = 3
    FUSE_FIRST = 1
    FUSE_SECOND = 2


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


cdef inline uint32_t parse_read(request_t *request) noexcept nogil:
    """Read (3.2.4)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status = check_range(request)
    if status:
        return status
    request.operation = OP_READ
    if request.ns.backend.data != NULL:
        # The rest of the batch is parsed while the first line, and the way to its page, arrive.
        prefetch_read(request.ns.backend.data + request.offset)
    status = map_data(request, True)
    if status == SC_SUCCESS and (request.ns.backend.attention or sqe.cdw12 & CDW12_FUA):
        return look_closer(request, COMPOUND_PLAIN)
    return status


cdef inline uint32_t parse_write(request_t *request) noexcept nogil:
    """Write (3.2.6)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    # There are no directives (OACS).
    if sqe.cdw12 & CDW12_DTYPE:
        return refuse(request, SC_INVALID_FIELD, LOCATION_DTYPE)
    status = check_range(request)
    if status:
        return status
    request.operation = OP_WRITE
    if wants_durability(request):
        request.flags |= REQUEST_FUA
    status = map_data(request, False)
    if status == SC_SUCCESS and request.ns.backend.attention:
        return look_closer(request, COMPOUND_PLAIN)
    return status


cdef uint32_t parse_compare(request_t *request) noexcept nogil:
    """Compare (3.2.1)."""
    cdef uint32_t status = check_range(request)
    if status:
        return status
    request.operation = OP_COMPARE
    status = map_data(request, False)
    if status:
        return status
    return look_closer(request, COMPOUND_PLAIN if is_native(request.ns.backend, OP_COMPARE) else COMPOUND_COMPARE)


cdef uint32_t parse_verify(request_t *request) noexcept nogil:
    """Verify (3.2.5): read, and tell whether it went well."""
    cdef uint32_t status = check_range(request)
    if status:
        return status
    request.operation = OP_VERIFY
    return look_closer(request, COMPOUND_PLAIN if is_native(request.ns.backend, OP_VERIFY) else COMPOUND_VERIFY)


cdef uint32_t parse_write_zeroes(request_t *request) noexcept nogil:
    """Write Zeroes (3.2.8)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t status
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    status = check_range(request)
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
    cdef uint32_t status
    if request.ns.read_only:
        return refuse(request, SC_NAMESPACE_WRITE_PROTECTED, LOCATION_NSID)
    status = check_range(request)
    if status:
        return status
    request.operation = OP_WRITE_UNCORRECTABLE
    return look_closer(
        request,
        COMPOUND_PLAIN if is_native(request.ns.backend, OP_WRITE_UNCORRECTABLE) else COMPOUND_UNCORRECTABLE)


cdef uint32_t parse_others(request_t *request) noexcept nogil:
    """The opcode is one of OPCODES, and neither Read nor Write."""
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


cdef uint32_t refuse_namespace(request_t *request) noexcept nogil:
    """Inactive, a valid NSID without a namespace (Base 2.x, section 3.2.1.4); or it is not to be
    used at the moment, and it is worth trying again."""
    cdef uint32_t state = request.ns.restricted & NS_STATE
    if request.ns.backend != NULL and state > 1:
        request.error_location = LOCATION_NONE
        return state
    return refuse(request, SC_INVALID_FIELD, LOCATION_NSID)


cdef inline bint conflicts(namespace_t *ns, uint32_t opcode) noexcept nogil:
    """Whether a reservation refuses the command (Base 2.x, section 8.1.22)."""
    cdef uint32_t refused = ns.restricted >> NS_GROUPS_SHIFT
    return ((refused & GROUP_READ and READ_GROUP >> opcode & 1)
            or (refused & GROUP_WRITE and WRITE_GROUP >> opcode & 1))


cdef inline uint32_t parse_allowed(request_t *request) noexcept nogil:
    """The namespace is there, and the command one that it takes."""
    cdef uint8_t opcode = request.slot.sqe.opcode
    if opcode == NVME_READ:
        return parse_read(request)
    if opcode == NVME_WRITE:
        return parse_write(request)
    return parse_others(request)


cdef uint32_t parse_restricted(request_t *request) noexcept nogil:
    """A namespace that is inactive, or not for every command."""
    cdef uint8_t opcode = request.slot.sqe.opcode
    if request.ns.backend == NULL or (
            request.ns.restricted & NS_STATE and not (opcode == NVME_FLUSH and takes_flush(request.ns))):
        return refuse_namespace(request)
    if conflicts(request.ns, opcode):
        return refuse(request, SC_RESERVATION_CONFLICT, LOCATION_NONE)
    return parse_allowed(request)


cdef uint32_t no_namespace(request_t *request) noexcept nogil:
    """An NSID that no namespace can have: Flush of all of them (Base 2.x, section 7.1), or an error."""
    cdef uint32_t nsid
    request.ns = NULL
    if request.slot.sqe.nsid != NSID_ALL:
        return refuse(request, SC_INVALID_NAMESPACE, LOCATION_NSID)
    if request.slot.sqe.opcode != NVME_FLUSH:
        # A command that does not take all namespaces at once (Base 2.x, section 4.1.1, NSID).
        return refuse(request, SC_INVALID_FIELD, LOCATION_NSID)
    for nsid in range(1, NAMESPACES + 1):
        if conflicts(&request.sq.controller.namespaces[nsid], NVME_FLUSH):
            return refuse(request, SC_RESERVATION_CONFLICT, LOCATION_NONE)
    request.operation = OP_FLUSH
    return make_compound(request, COMPOUND_FLUSH_ALL)


cdef inline uint32_t parse_by_opcode(request_t *request) noexcept nogil:
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef uint32_t nsid = sqe.nsid
    if not is_one_of(sqe.opcode, OPCODES):
        return refuse(request, SC_INVALID_OPCODE, LOCATION_OPCODE)
    if nsid == 0 or nsid > NAMESPACES:
        return no_namespace(request)
    request.ns = &request.sq.controller.namespaces[nsid]
    if request.ns.backend == NULL or request.ns.restricted:
        return parse_restricted(request)
    return parse_allowed(request)


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


cdef unsigned int command_parse(request_t *request) noexcept nogil:
    request.flags = 0
    request.done = 0
    request.pending = 0
    request.result = 0
    request.iov_count = 0
    request.error_location = LOCATION_NONE
    if request.slot.sqe.flags & ~<uint32_t> FLAGS_SGL:
        return parse_flags(request)
    return parse_by_opcode(request)


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
