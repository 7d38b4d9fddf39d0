"""I/O commands that the control plane executes (see deferred.pxd).

An IOThread takes such a command as any other, checks it as far as its data goes, and leaves it in its
slot: `compound_start` tells the control plane, which collects it while the thread stands still, and
posts its completion in the same way. So it is in flight like any other meanwhile, for a reset, for
the removal of its namespace or of guest memory, and for the next process, which hands it over again.

The commands are those of reservations (NVMe Base 2.x, sections 7.5 to 7.8).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nvme_mdev.datapath.atomics cimport store_release32
from nvme_mdev.datapath.checks cimport refuse
from nvme_mdev.datapath.compound cimport COMPOUND_DEFERRED, compound_of
from nvme_mdev.datapath.data_pointer cimport copy_in, map_data
from nvme_mdev.datapath.layout cimport SLOT_BUSY, STAGE_OVER, STAGE_STATUS_SHIFT
from nvme_mdev.datapath.runtime cimport (
    DEFERRED_DATA, OP_DEFERRED, REQUEST_PREEMPTED, compound_t, namespace_t, request_t, sq_t,
)
from nvme_mdev.datapath.status cimport (
    COMPOUND, LOCATION_CDW10, SC_INTERNAL_ERROR, SC_INVALID_FIELD,
)

cdef enum:
    NVME_RESERVATION_REPORT = 0x0e
    NVME_RESERVATION_RELEASE = 0x15

    #: Bytes of the data of Reservation Release, and of Register and Acquire: one key or two.
    RELEASE_SIZE = 8
    KEYS_SIZE = 16


cdef uint32_t map_report(request_t *request) noexcept nogil:
    """Where Reservation Report's data goes: NUMD dwords, 0's based."""
    request.length = (<uint64_t> request.slot.sqe.cdw10 + 1) * 4
    if request.length > request.sq.controller.max_transfer:
        return refuse(request, SC_INVALID_FIELD, LOCATION_CDW10)
    return map_data(request, True)


cdef uint32_t parse_reservation(request_t *request) noexcept nogil:
    cdef uint8_t opcode = request.slot.sqe.opcode
    cdef uint8_t brought[DEFERRED_DATA]
    cdef compound_t *compound
    cdef uint32_t status
    memset(brought, 0, sizeof(brought))
    request.operation = OP_DEFERRED
    if opcode == NVME_RESERVATION_REPORT:
        status = map_report(request)
    else:
        status = copy_in(
            request, brought, RELEASE_SIZE if opcode == NVME_RESERVATION_RELEASE else KEYS_SIZE)
    if status:
        return status
    compound = compound_of(request)
    if compound == NULL:
        return SC_INTERNAL_ERROR
    compound.kind = COMPOUND_DEFERRED
    memcpy(compound.brought, brought, sizeof(brought))
    return COMPOUND


cdef inline bint is_deferred(sq_t *sq, uint32_t slot) noexcept nogil:
    cdef compound_t *compound = sq.requests[slot].compound
    return (sq.slots[slot].state == SLOT_BUSY and compound != NULL and compound.started
            and compound.kind == COMPOUND_DEFERRED)


cdef request_t *take_deferred(sq_t *sq) noexcept:
    cdef request_t *oldest = NULL
    cdef uint32_t i
    for i in range(sq.slots_ready):
        if is_deferred(sq, i) and not sq.requests[i].compound.taken and (
                oldest == NULL
                or <int32_t> (sq.slots[i].sequence - oldest.slot.sequence) < 0):
            oldest = &sq.requests[i]
    if oldest != NULL:
        oldest.compound.taken = 1
    return oldest


cdef request_t *find_deferred(sq_t *sq, uint32_t slot, uint32_t sequence) noexcept:
    if slot < sq.slots_ready and is_deferred(sq, slot) and sq.slots[slot].sequence == sequence:
        return &sq.requests[slot]
    return NULL


cdef void answer_deferred(request_t *request, const uint8_t *data, uint32_t size) noexcept:
    cdef uint32_t i
    cdef uint64_t part, rest
    cdef uint64_t copied = 0
    cdef uint8_t *segment
    for i in range(request.iov_count):
        segment = <uint8_t *> request.iov[i].iov_base
        rest = request.iov[i].iov_len
        part = min(rest, size - copied)
        memcpy(segment, data + copied, part)
        memset(segment + part, 0, rest - part)
        copied += part


cdef void settle_deferred(request_t *request, uint32_t status) noexcept:
    request.compound.over = 1
    request.status = status
    store_release32(&request.slot.stage, STAGE_OVER | status << STAGE_STATUS_SHIFT)


cdef request_t *preempt_next(sq_t *sq, namespace_t *ns, uint32_t slot) noexcept:
    cdef request_t *request
    cdef uint32_t i
    for i in range(slot, sq.slots_ready):
        request = &sq.requests[i]
        if sq.slots[i].state == SLOT_BUSY and request.ns == ns and not is_deferred(sq, i):
            request.flags |= REQUEST_PREEMPTED
            request.ns.backend.ops.cancel(sq.thread, request)
            return request
    return NULL
