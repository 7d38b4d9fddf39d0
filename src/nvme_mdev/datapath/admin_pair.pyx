"""The admin queue pair, which the control plane serves itself.

The IOThread only watches its doorbell. The primitives are those of the I/O queues (`queues.pxd`).
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport load_acquire32, read_tsc, store_relaxed32, store_release32
from nvme_mdev.datapath.attached_controller cimport Part
from nvme_mdev.datapath.layout cimport SLOT_BUSY, slot_t
from nvme_mdev.datapath.queues cimport (
    SQE_SIZE, count_interrupt, cq_post, cq_read_head, cq_room, log_error, publish_head, raise_interrupt,
    slot_record, sq_fetch, sq_release, tell_relay,
)
from nvme_mdev.datapath.runtime cimport HELD_ERROR, controller_t, cq_t, request_t, sq_t
from nvme_mdev.datapath.slots cimport more_slots
from nvme_mdev.datapath.status cimport SC_MORE


cdef request_t *admin_fetch(controller_t *controller) noexcept:
    """Copy the next admin command into a slot; NULL: there is none."""
    cdef sq_t *sq = &controller.sqs[0]
    cdef request_t *request
    cdef uint32_t tail
    if sq.size == 0 or sq.held or controller.stopped or more_slots(sq, 1) == 0:
        return NULL
    tail = load_acquire32(sq.tail_doorbell)
    if tail == sq.head:
        return NULL
    if tail >= sq.size:
        sq.held |= HELD_ERROR
        store_relaxed32(&controller.sq_error[0], 1)
        store_release32(&controller.errors, 1)
        return NULL
    request = sq_fetch(sq)
    publish_head(sq)
    return request


cdef bint admin_room(controller_t *controller) noexcept:
    """Whether there is room for a completion."""
    cdef cq_t *cq = &controller.cqs[0]
    if cq.held:
        return False
    if cq_room(cq):
        return True
    if not cq_read_head(cq):
        cq.held |= HELD_ERROR
        store_relaxed32(&controller.cq_error[0], 1)
        store_release32(&controller.errors, 1)
        return False
    return cq_room(cq) > 0


cdef void admin_complete(controller_t *controller, uint32_t slot, uint32_t result, uint32_t status) noexcept:
    """Post the completion of the command in a slot (there is room), and give the slot back."""
    cdef sq_t *sq = &controller.sqs[0]
    cdef slot_t *entry = &sq.slots[slot]
    slot_record(entry, controller.cqs[0].tail, controller.cqs[0].phase)
    cq_post(&controller.cqs[0], result, sq.head, 0, entry.sqe.cid, status)
    sq_release(sq, &sq.requests[slot])


cdef class AdminPair(Part):
    """The admin queue pair (see admin_pair.pyi)."""

    def fetch(self):
        cdef request_t *request = admin_fetch(self.controller)
        if request == NULL:
            return None
        return (request - request.sq.requests), (<const char *> &request.slot.sqe)[:SQE_SIZE]

    def complete(self, slot, result, status, *, error_location=0xffff, log_error=True):
        cdef sq_t *sq = &self.controller.sqs[0]
        if sq.size == 0 or not 0 <= slot < sq.slots_ready or sq.slots[<uint32_t> slot].state != SLOT_BUSY:
            raise KeyError(slot)
        if not admin_room(self.controller):
            return False
        if status and log_error:
            status |= SC_MORE
            self._log_error(&sq.slots[<uint32_t> slot], status, error_location)
        admin_complete(self.controller, slot, result, status)
        self._interrupt(&self.controller.cqs[0])
        return True

    def pending(self):
        cdef sq_t *sq = &self.controller.sqs[0]
        cdef uint32_t i
        # In the order of fetching: how far behind the last one that was.
        busy = [
            (<int32_t> (sq.slots[i].sequence - sq.fetched), i)
            for i in range(sq.slots_ready) if sq.slots[i].state == SLOT_BUSY
        ]
        return [
            (i, (<const char *> &sq.slots[<uint32_t> i].sqe)[:SQE_SIZE]) for _, i in sorted(busy)
        ]

    cdef void _log_error(self, slot_t *entry, uint32_t status, uint32_t location) noexcept:
        log_error(self.controller.state, 0, entry.sqe.cid, status, location, 0, entry.sqe.nsid)

    cdef void _interrupt(self, cq_t *cq) noexcept:
        """As `interrupt_for` of an IOThread."""
        cdef uint64_t before = read_tsc()
        if tell_relay(cq):
            return
        if cq.interrupts and raise_interrupt(cq):
            count_interrupt(cq, True, before)
