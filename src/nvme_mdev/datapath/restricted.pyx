"""Commands for namespaces that are not simply there: inactive, being formatted, reserved by another host,
with an NSID that is to be looked for, or all at once.

Sections are those of the NVMe Base Specification 2.x.
"""

from libc.stdint cimport uint8_t, uint32_t

from nvme_mdev.datapath.attention cimport make_compound
from nvme_mdev.datapath.checks cimport refuse, takes_flush
from nvme_mdev.datapath.compound cimport COMPOUND_FLUSH_ALL
from nvme_mdev.datapath.namespace_places cimport find_namespace
from nvme_mdev.datapath.opcodes cimport NSID_ALL, NVME_FLUSH, READ_GROUP, WRITE_GROUP
from nvme_mdev.datapath.read_write cimport parse_allowed
from nvme_mdev.datapath.runtime cimport (
    GROUP_READ, GROUP_WRITE, NS_GROUPS_SHIFT, NS_STATE, OP_FLUSH, controller_t, namespace_t, request_t,
)
from nvme_mdev.datapath.status cimport (
    LOCATION_NONE, LOCATION_NSID, SC_INVALID_FIELD, SC_INVALID_NAMESPACE, SC_RESERVATION_CONFLICT,
)


cdef uint32_t refuse_namespace(request_t *request) noexcept nogil:
    """Inactive, a valid NSID without a namespace (section 3.2.1.4), or invalid, above NN; or
    it is not to be used at the moment, and it is worth trying again."""
    cdef uint32_t state = request.ns.restricted & NS_STATE
    if request.ns.backend != NULL and state > 1:
        request.error_location = LOCATION_NONE
        return state
    if request.slot.sqe.nsid > request.sq.controller.max_nsid:
        return refuse(request, SC_INVALID_NAMESPACE, LOCATION_NSID)
    return refuse(request, SC_INVALID_FIELD, LOCATION_NSID)


cdef inline bint conflicts(namespace_t *ns, uint32_t opcode) noexcept nogil:
    """Whether a reservation refuses the command (section 8.1.22)."""
    cdef uint32_t refused = ns.restricted >> NS_GROUPS_SHIFT
    return ((refused & GROUP_READ and READ_GROUP >> opcode & 1)
            or (refused & GROUP_WRITE and WRITE_GROUP >> opcode & 1))


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
    """A command for all namespaces: Flush (section 7.1), or an error."""
    cdef controller_t *controller = request.sq.controller
    cdef uint32_t place
    if request.slot.sqe.opcode != NVME_FLUSH:
        # A command that does not take all namespaces at once (section 4.1.1, NSID).
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
