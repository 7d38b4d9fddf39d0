"""A controller's namespaces, as the data path needs them.

The functions are for while the IOThreads stand still; the class lets them.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from nvme_mdev.datapath.attached_controller cimport AttachedController, Part
from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.completing cimport post_all
from nvme_mdev.datapath.deferred cimport preempt_next
from nvme_mdev.datapath.layout cimport HOST_QUEUES, QUEUES, SLOT_BUSY, io_counters_t
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.memory cimport GuestMemory
from nvme_mdev.datapath.namespace_places cimport find_namespace, give_place, has_place, take_place
from nvme_mdev.datapath.opcodes cimport WRITE_OPCODES, is_one_of
from nvme_mdev.datapath.range_locks cimport request_touches
from nvme_mdev.datapath.runtime cimport (
    HIGH_NAMESPACES, NAMESPACES, NS_GROUPS_SHIFT, NS_STATE, OP_DEALLOCATE, REQUEST_THROTTLED, bad_table_t,
    controller_t, iothread_t, namespace_t, request_t, sq_t, throttled_t,
)
from nvme_mdev.datapath.status cimport SC_ABORT_PREEMPT, SC_DNR, SC_INVALID_FIELD
from nvme_mdev.datapath.throttle cimport throttle_give_up
from nvme_mdev.datapath.uncorrectable cimport bad_attach, bad_clear, bad_detach, bad_forget

from nvme_mdev.datapath.statistics import InFlight, IoCounters, Throttled


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
    """Fill in or (backend None) clear a namespace, which has a place (`has_place`)."""
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
    """Commands that wait for its limits, and that ever had to."""
    cdef throttled_t total
    cdef uint32_t i
    memset(&total, 0, sizeof(total))
    for i in range(HOST_QUEUES):
        total.waiting += ns.throttled[i].waiting
        total.total += ns.throttled[i].total
    return total


cdef io_counters_t namespace_moved(namespace_t *ns) noexcept:
    """What was moved since it was attached, by all IOThreads together."""
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
    """Whether a command is in flight that touches byte `start` or later (0: any), and that writes, if
    only those count."""
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


cdef void set_state(namespace_t *ns, uint32_t state) noexcept:
    """Whether it is gone, or the status that new commands get."""
    ns.restricted = (ns.restricted & ~<uint32_t> NS_STATE) | state


cdef class NamespaceTable(Part):
    """A controller's namespaces (see namespace_table.pyi)."""

    #: NSID to backend.
    cdef dict backends

    def __init__(self, AttachedController attached):
        self.backends = {}
        self.controller.places_end = 1

    def set(self, nsid, Backend backend):
        if not 1 <= nsid <= self.controller.max_nsid:
            raise ValueError(f"NSID {nsid} is not in 1 to {self.controller.max_nsid}")
        if backend is None and nsid not in self.backends:
            return
        if not has_place(self.controller, nsid):
            raise ValueError(f"namespace {nsid}: there are {HIGH_NAMESPACES} above {NAMESPACES} already")
        if backend is not None:
            backend.use_memory(self.attached.memory)
            try:
                self._attach(backend)
            except BaseException:
                backend.leave_memory(self.attached.memory)
                raise
        self.attached.pause()
        fill_namespace(self.controller, nsid, backend)
        self.attached.resume()
        old = self.backends.pop(nsid, None)
        if old is not None:
            self._detach(old, len(self.attached.iothreads))
            old.leave_memory(self.attached.memory)
        if backend is not None:
            self.backends[nsid] = backend

    cdef int _attach(self, Backend backend) except -1:
        """Every IOThread gets ready for the backend, or none does."""
        cdef int count = 0
        try:
            for iothread in self.attached.iothreads:
                backend.attach(iothread)
                count += 1
        except BaseException:
            self._detach(backend, count)
            raise
        return 0

    cdef int _detach(self, Backend backend, int count) except -1:
        for iothread in self.attached.iothreads[:count]:
            backend.detach(iothread)
        return 0

    cdef namespace_t *_namespace(self, nsid) except NULL:
        if nsid not in self.backends:
            raise KeyError(nsid)
        return find_namespace(self.controller, nsid)

    def clear_uncorrectable(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        self.attached.pause()
        bad_clear(ns.backend, 0, <uint64_t> -1)
        self.attached.resume()

    def forget_uncorrectable(self, nsid):
        bad_forget(self.controller, nsid)

    def retire(self, nsid, retired=True):
        cdef namespace_t *ns = self._namespace(nsid)
        self.attached.pause()
        set_state(ns, bool(retired))
        self.attached.resume()

    def bar(self, nsid, status):
        cdef namespace_t *ns = self._namespace(nsid)
        self.attached.pause()
        set_state(ns, status)
        self.attached.resume()

    def refuse_groups(self, nsid, groups):
        cdef namespace_t *ns = self._namespace(nsid)
        self.attached.pause()
        ns.restricted = (ns.restricted & NS_STATE) | <uint32_t> groups << NS_GROUPS_SHIFT
        self.attached.resume()

    def format(self, nsid, block_size):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self.attached.pause()
        try:
            backend.format(block_size)
            ns.block_shift = backend.block_size.bit_length() - 1
            ns.blocks = backend.size >> ns.block_shift
        finally:
            self.attached.resume()

    def protect(self, nsid, read_only):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self.attached.pause()
        backend.set_read_only(read_only)
        ns.read_only = bool(read_only)
        self.attached.resume()

    def lock(self, nsid, locked):
        cdef namespace_t *ns = self._namespace(nsid)
        self.attached.pause()
        ns.read_only = self.backends[nsid].read_only or bool(locked)
        self.attached.resume()

    def resize(self, nsid, size):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self.attached.pause()
        try:
            backend.set_size(size)
            ns.blocks = backend.size >> ns.block_shift
        finally:
            self.attached.resume()

    def in_use(self, nsid, start=0, *, writing=False):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef uint64_t first = start
        cdef bint found
        self.attached.pause()
        found = namespace_used_from(self.controller, ns, first, bool(writing))
        self.attached.resume()
        return found

    def preempt(self, nsid):
        cdef sq_t *sq
        cdef request_t *request
        cdef uint32_t qid
        cdef namespace_t *ns
        preempted = []
        if nsid not in self.backends:
            return preempted
        ns = self._namespace(nsid)
        self.attached.pause()
        # What waits for the namespace's limits ends at once.
        end_throttled(self.controller, NULL, ns, SC_ABORT_PREEMPT | SC_DNR)
        for qid in range(1, QUEUES):
            sq = &self.controller.sqs[qid]
            if sq.size == 0 or sq.inflight == 0:
                continue
            request = preempt_next(sq, ns, 0)
            while request != NULL:
                preempted.append(InFlight(qid, request - sq.requests, request.slot.sequence))
                request = preempt_next(sq, ns, <uint32_t> (request - sq.requests) + 1)
        self.attached.resume()
        return preempted

    def counters(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef io_counters_t moved = namespace_moved(ns)
        return IoCounters(
            moved.read_commands, moved.write_commands, moved.read_units << 9, moved.write_units << 9)

    def throttled(self, nsid):
        cdef throttled_t throttled = namespace_throttled(self._namespace(nsid))
        return Throttled(throttled.waiting, throttled.total)

    def use_memory(self, GuestMemory memory):
        """Backends that map guest memory elsewhere map another one instead, or OSError."""
        moved = []
        try:
            for backend in self.backends.values():
                backend.use_memory(memory)
                moved.append(backend)
        except BaseException:
            for backend in moved:
                backend.leave_memory(memory)
            raise
        for backend in moved:
            backend.leave_memory(self.attached.memory)

    def clear(self):
        for nsid in list(self.backends):
            self.set(nsid, None)
