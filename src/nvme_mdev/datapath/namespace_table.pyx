"""A controller's namespaces, as the data path needs them. The IOThreads stand still meanwhile."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.completing cimport post_all
from nvme_mdev.datapath.layout cimport HOST_QUEUES, QUEUES, SLOT_BUSY, io_counters_t
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.namespace_places cimport give_place, take_place
from nvme_mdev.datapath.opcodes cimport WRITE_OPCODES, is_one_of
from nvme_mdev.datapath.range_locks cimport request_touches
from nvme_mdev.datapath.runtime cimport (
    OP_DEALLOCATE, REQUEST_THROTTLED, bad_table_t, controller_t, iothread_t, namespace_t, sq_t, throttled_t,
)
from nvme_mdev.datapath.status cimport SC_DNR, SC_INVALID_FIELD
from nvme_mdev.datapath.throttle cimport throttle_give_up
from nvme_mdev.datapath.uncorrectable cimport bad_attach, bad_detach


cdef void end_throttled(
    controller_t *controller, sq_t *sq, namespace_t *ns, uint32_t status
) noexcept:
    cdef iothread_t *thread
    cdef uint32_t i
    for i in range(controller.thread_count):
        thread = controller.threads[i]
        while throttle_give_up(thread, controller, sq, ns, status):
            post_all(thread)


cdef int fill_namespace(controller_t *controller, uint32_t nsid, Backend backend) except -1:
    cdef uint32_t place = take_place(controller, nsid)
    cdef namespace_t *ns = &controller.namespaces[place]
    cdef bad_table_t *bad = &controller.bad_tables[place]
    if ns.backend != NULL:
        bad_detach(ns.backend, bad)
        end_throttled(controller, NULL, ns, SC_INVALID_FIELD | SC_DNR)
    free(ns.moved)
    free(ns.throttled)
    memset(ns, 0, sizeof(namespace_t))
    if backend is not None:
        ns.moved = <io_counters_t *> line_calloc(HOST_QUEUES, sizeof(io_counters_t))
        ns.throttled = <throttled_t *> calloc(HOST_QUEUES, sizeof(throttled_t))
        if ns.moved == NULL or ns.throttled == NULL:
            give_place(controller, nsid)
            raise MemoryError
        ns.backend = &backend.backend
        ns.backend.emulates = backend.emulates
        ns.backend.sgls = backend.sgls
        ns.backend.natives |= <uint32_t> backend.can_deallocate << OP_DEALLOCATE
        ns.blocks = backend.size // backend.block_size
        ns.block_shift = backend.block_size.bit_length() - 1
        ns.nsid = nsid
        ns.read_only = backend.read_only
        bad.ranges = controller.state.bad_ranges
        bad.nsid = nsid
        bad_attach(ns.backend, bad)
    else:
        give_place(controller, nsid)
    return 0


cdef throttled_t namespace_throttled(namespace_t *ns) noexcept:
    cdef throttled_t total
    cdef uint32_t i
    memset(&total, 0, sizeof(total))
    for i in range(HOST_QUEUES):
        total.waiting += ns.throttled[i].waiting
        total.total += ns.throttled[i].total
    return total


cdef io_counters_t namespace_moved(namespace_t *ns) noexcept:
    cdef io_counters_t total
    cdef uint32_t i
    memset(&total, 0, sizeof(total))
    for i in range(HOST_QUEUES):
        total.read_commands += ns.moved[i].read_commands
        total.write_commands += ns.moved[i].write_commands
        total.read_units += ns.moved[i].read_units
        total.write_units += ns.moved[i].write_units
    return total


cdef bint namespace_used_from(
    controller_t *controller, namespace_t *ns, uint64_t start, bint writing
) noexcept:
    cdef sq_t *sq
    cdef uint32_t qid, i
    for qid in range(1, QUEUES):
        sq = &controller.sqs[qid]
        if sq.size == 0 or sq.inflight == 0:
            continue
        for i in range(sq.slots_ready):
            if (sq.slots[i].state == SLOT_BUSY and sq.requests[i].ns == ns
                    and not sq.requests[i].flags & REQUEST_THROTTLED
                    and (not writing or is_one_of(sq.slots[i].sqe.opcode, WRITE_OPCODES))
                    and (start == 0 or request_touches(&sq.requests[i], start, <uint64_t> -1))):
                return True
    return False
