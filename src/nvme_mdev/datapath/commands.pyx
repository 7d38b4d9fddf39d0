"""NVM commands: from a copied SQE to a request for a backend. Here, the namespace, Read and Write.

Everything here reads the copy in the slot, never guest memory again, but for what a command points
to: its PRP list or SGL and the ranges of Dataset Management and Copy, each copied once.

There is no protection information, so PRINFO, STC and the tags are ignored, as they are to be (NVM
Command Set 1.x, section 5.2). Limited Retry changes nothing: nothing here is tried more than once.

Sections are those of the NVM Command Set Specification 1.x.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport prefetch_read, seldom
from nvme_mdev.datapath.attention cimport look_closer, make_compound, map_and_look
from nvme_mdev.datapath.checks cimport (
    CDW12_DTYPE, CDW12_FUA, check_range, refuse, takes_flush, wants_durability,
)
from nvme_mdev.datapath.compound cimport COMPOUND_FLUSH_ALL, COMPOUND_PLAIN
from nvme_mdev.datapath.data_pointer cimport map_usual
from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.namespace_places cimport find_namespace
from nvme_mdev.datapath.opcodes cimport (
    NSID_ALL, NVME_FLUSH, NVME_READ, NVME_WRITE, OPCODES, RANGE_OPCODES, READ_GROUP, WRITE_GROUP, is_one_of,
)
from nvme_mdev.datapath.other_commands cimport parse_others
from nvme_mdev.datapath.runtime cimport (
    GROUP_READ, GROUP_WRITE, NAMESPACES, NS_GROUPS_SHIFT, NS_STATE, OP_FLUSH, OP_READ, OP_WRITE,
    REQUEST_FUA, REQUEST_LBA, backend_t, controller_t, namespace_t, request_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_DTYPE, LOCATION_NONE, LOCATION_NSID, LOCATION_OPCODE, SC_INVALID_FIELD, SC_INVALID_NAMESPACE,
    SC_INVALID_OPCODE, SC_NAMESPACE_WRITE_PROTECTED, SC_RESERVATION_CONFLICT, SC_SUCCESS,
)

cdef inline uint32_t parse_read(request_t *request) noexcept nogil:
    """Read (3.2.4)."""
    cdef nvme_sqe_t *sqe = &request.slot.sqe
    cdef backend_t *backend = request.ns.backend
    cdef uint32_t status = check_range(request)
    if seldom(status):
        return status
    request.operation = OP_READ
    if backend.data != NULL:
        # The rest of the batch is parsed while the first line, and the way to its page, arrive.
        prefetch_read(backend.data + request.offset)
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


cdef uint32_t refuse_namespace(request_t *request) noexcept nogil:
    """Inactive, a valid NSID without a namespace (Base 2.x, section 3.2.1.4), or invalid, above NN; or
    it is not to be used at the moment, and it is worth trying again."""
    cdef uint32_t state = request.ns.restricted & NS_STATE
    if request.ns.backend != NULL and state > 1:
        request.error_location = LOCATION_NONE
        return state
    if request.slot.sqe.nsid > request.sq.controller.max_nsid:
        return refuse(request, SC_INVALID_NAMESPACE, LOCATION_NSID)
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
    """A namespace that is inactive, not for every command, or not in its own place."""
    cdef uint8_t opcode = request.slot.sqe.opcode
    if request.ns.backend == NULL or (
            request.ns.restricted & NS_STATE and not (opcode == NVME_FLUSH and takes_flush(request.ns))):
        return refuse_namespace(request)
    if conflicts(request.ns, opcode):
        return refuse(request, SC_RESERVATION_CONFLICT, LOCATION_NONE)
    return parse_allowed(request)


cdef uint32_t parse_all(request_t *request) noexcept nogil:
    """A command for all namespaces: Flush (Base 2.x, section 7.1), or an error."""
    cdef controller_t *controller = request.sq.controller
    cdef uint32_t place
    if request.slot.sqe.opcode != NVME_FLUSH:
        # A command that does not take all namespaces at once (Base 2.x, section 4.1.1, NSID).
        return refuse(request, SC_INVALID_FIELD, LOCATION_NSID)
    for place in range(1, controller.places_end):
        if conflicts(&controller.namespaces[place], NVME_FLUSH):
            return refuse(request, SC_RESERVATION_CONFLICT, LOCATION_NONE)
    request.operation = OP_FLUSH
    return make_compound(request, COMPOUND_FLUSH_ALL)


cdef uint32_t parse_elsewhere(request_t *request) noexcept nogil:
    """An NSID that is not a place in the controller's table: of a namespace that is to be looked for
    (`namespace_places.pyx`), of all of them, or of none."""
    cdef uint32_t nsid = request.slot.sqe.nsid
    request.ns = NULL
    if nsid == NSID_ALL:
        return parse_all(request)
    if nsid == 0 or nsid > request.sq.controller.max_nsid:
        return refuse(request, SC_INVALID_NAMESPACE, LOCATION_NSID)
    request.ns = find_namespace(request.sq.controller, nsid)
    if request.ns == NULL:
        return refuse(request, SC_INVALID_FIELD, LOCATION_NSID)
    return parse_restricted(request)


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
