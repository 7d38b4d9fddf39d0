"""The admin queue pair, which the control plane serves itself.

The IOThread only watches its doorbell. The primitives are those of the I/O queues (`queues.pxd`).
"""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.atomics cimport load_acquire32, store_relaxed32, store_release32
from nvme_mdev.datapath.layout cimport slot_t
from nvme_mdev.datapath.queues cimport (
    cq_post, cq_read_head, cq_room, publish_head, slot_record, sq_fetch, sq_release,
)
from nvme_mdev.datapath.runtime cimport HELD_ERROR, controller_t, cq_t, request_t, sq_t
from nvme_mdev.datapath.slots cimport more_slots


cdef request_t *admin_fetch(controller_t *controller) noexcept:
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
    cdef sq_t *sq = &controller.sqs[0]
    cdef slot_t *entry = &sq.slots[slot]
    slot_record(entry, controller.cqs[0].tail, controller.cqs[0].phase)
    cq_post(&controller.cqs[0], result, sq.head, 0, entry.sqe.cid, status)
    sq_release(sq, &sq.requests[slot])
