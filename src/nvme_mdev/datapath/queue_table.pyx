"""A controller's queues: the control plane's handle on the data path (see queue_table.pyi).

Every method runs on the control plane's thread. What an IOThread reads is changed only between
`_pause()` and `_resume()`. The admin queue pair is this thread's own; the I/O queue pairs are the
IOThread's while it runs. What is done meanwhile is in files of its own: `queue_setup`, `binding`,
`recovery`, `admin_pair`, `namespace_table`, `interrupts`.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport read as read_fd

from nvme_mdev.datapath.aborts cimport abort_in_flight, abort_throttled, abort_waiting
from nvme_mdev.datapath.admin_pair cimport admin_complete, admin_fetch, admin_room
from nvme_mdev.datapath.atomics cimport exchange32, load_acquire32, read_tsc, store_release32
from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.binding cimport bind_all, bind_changed, memory_in_use
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.coalescing cimport coalescing_configure
from nvme_mdev.datapath.interrupts cimport (
    assert_pin, interrupts_init, mask_vector, pin_level, set_intms, set_pin, set_vector,
)
from nvme_mdev.datapath.data_pointer cimport set_page_size
from nvme_mdev.datapath.deferred cimport (
    answer_deferred, find_deferred, preempt_next, settle_deferred, take_deferred,
)
from nvme_mdev.datapath.completing cimport complete_deferred, post_all
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.layout cimport (
    HOST_QUEUES, INTERRUPT_CLIENT_MASK, INTERRUPT_FUNCTION_MASK, INTERRUPT_PENDING,
    INTERRUPT_TABLE_MASK, IO_QUEUES, QUEUES, SLOT_BUSY, STAGE_DECIDED, STAGE_STATUS_SHIFT, cq_state_t,
    io_counters_t, path_counters_t, slot_t, sq_state_t,
)
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.memory cimport GuestMemory, memory_translate
from nvme_mdev.datapath.namespace_places cimport find_namespace, has_place
from nvme_mdev.datapath.namespace_table cimport (
    end_throttled, fill_namespace, namespace_moved, namespace_throttled, namespace_used_from,
)
from nvme_mdev.datapath.queue_setup cimport (
    close_cq, close_sq, doorbell_register, follow_head, forget_queues, interrupts_of,
    move_doorbells, open_cq, open_sq, queue_place_t,
)
from nvme_mdev.datapath.queues cimport (
    SQE_SIZE, behind_tail, count_interrupt, log_error, raise_interrupt, signal_fd, tell_relay, wake_thread,
)
from nvme_mdev.datapath.recovery cimport adopt_cq, adopt_sq, execute_again, reserve_compared
from nvme_mdev.datapath.runtime cimport (
    BATCH, DEFERRED_DATA, HELD_ASKED, HELD_MEMORY, HELD_PAUSED, HIGH_NAMESPACES, NAMESPACES,
    NS_GROUPS_SHIFT, NS_STATE, PAGE_SIZE, PLACES, REQUEST_EXPIRED, REQUEST_THROTTLED, bad_table_t,
    controller_t, cq_t, interrupts_t, namespace_t, request_t, share_t, sq_t, throttled_t,
)
from nvme_mdev.datapath.signalling cimport NO_FD, signal_client
from nvme_mdev.datapath.state cimport ControllerState
from nvme_mdev.datapath.status cimport SC_ABORT_PREEMPT, SC_ABORT_SQ_DELETED, SC_DNR, SC_MORE
from nvme_mdev.datapath.uncorrectable cimport bad_clear, bad_forget
from nvme_mdev.datapath.uring cimport uring_buffers_t, uring_drop_buffers

import os

from nvme_mdev.datapath.memory import release_buffers
from nvme_mdev.datapath.statistics import (
    DeferredCommand, InFlight, IoCounters, QueueError, SubmissionQueue, Throttled, path_statistics,
    sum_statistics,
)

cdef enum:
    #: QPRIO of Create I/O Submission Queue.
    PRIORITY_HIGH = 1
    PRIORITY_MEDIUM = 2
    PRIORITY_LOW = 3


def _check_vector(vector):
    if not 0 <= vector < QUEUES:
        raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")


DOORBELL_OK = 0
DOORBELL_INVALID_REGISTER = 1
DOORBELL_INVALID_VALUE = 2


cdef void _set_state(namespace_t *ns, uint32_t state) noexcept:
    ns.restricted = (ns.restricted & ~<uint32_t> NS_STATE) | state


cdef queue_place_t place(iova, size, contiguous) except *:
    cdef queue_place_t where
    where.iova = iova
    where.size = size
    where.noncontiguous = not contiguous
    return where


cdef class QueueTable:
    """Queues, namespaces, interrupts and guest memory of one controller."""

    cdef readonly ControllerState state
    cdef readonly GuestMemory memory
    cdef readonly tuple iothreads
    cdef readonly int notify_fd
    cdef controller_t *controller
    #: Called with (qid, completion, created) when a queue came or is about to go.
    cdef public object on_queue
    #: Called with a qid or None: what a relay has not moved yet.
    cdef public object relayed_work
    #: Keeps the doorbells of a relay in memory.
    cdef object relay_doorbells
    cdef dict backends
    cdef bint attached

    # -- making and unmaking --------------------------------------------------------------------

    def __cinit__(self, ControllerState state, GuestMemory memory, iothreads, *, max_transfer=1 << 20,
                  max_nsid=NAMESPACES):
        self.notify_fd = -1
        self.controller = <controller_t *> calloc(1, sizeof(controller_t))
        if self.controller == NULL:
            raise MemoryError
        self.controller.namespaces = <namespace_t *> calloc(PLACES, sizeof(namespace_t))
        self.controller.bad_tables = <bad_table_t *> calloc(PLACES, sizeof(bad_table_t))
        self.controller.irq = <interrupts_t *> calloc(1, sizeof(interrupts_t))
        self.controller.sqs = <sq_t *> line_calloc(QUEUES, sizeof(sq_t))
        self.controller.cqs = <cq_t *> line_calloc(QUEUES, sizeof(cq_t))
        self.controller.shares = <share_t *> line_calloc(HOST_QUEUES, sizeof(share_t))
        if (self.controller.namespaces == NULL or self.controller.bad_tables == NULL
                or self.controller.irq == NULL
                or self.controller.sqs == NULL or self.controller.cqs == NULL
                or self.controller.shares == NULL):
            raise MemoryError

    def __init__(self, ControllerState state, GuestMemory memory, iothreads, *, max_transfer=1 << 20,
                 max_nsid=NAMESPACES):
        self.state = state
        self.memory = memory
        self.iothreads = (iothreads,) if isinstance(iothreads, IOThread) else tuple(iothreads)
        self.backends = {}
        self.notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.controller.state = state.state
        interrupts_init(self.controller)
        self.controller.memory = &memory.table
        self.controller.relay_fd = -1
        self.controller.doorbell_page = state.doorbell_page
        self.controller.max_transfer = max_transfer
        self.controller.max_nsid = max_nsid
        self.controller.places_end = 1
        set_page_size(self.controller, PAGE_SIZE)
        self.controller.burst = BATCH
        for priority in range(PRIORITY_HIGH, PRIORITY_LOW + 1):
            self.controller.weights[<uint32_t> priority] = 1
        self.controller.notify_fd = self.notify_fd
        self.controller.doorbells_mapped = 1
        self._use_threads()
        self.attached = True

    def close(self):
        if not self.attached:
            return
        for nsid in list(self.backends):
            self.set_namespace(nsid, None)
        self.disable()
        self._pause()
        (<IOThread> self.iothreads[0]).remove_controller(self.controller)
        self._resume()
        self.attached = False
        self.memory.clear()
        self._drop_buffers()
        self.clear_interrupts()
        os.close(self.notify_fd)
        self.notify_fd = -1

    def __dealloc__(self):
        if self.controller == NULL:
            return
        free(self.controller.namespaces)
        free(self.controller.bad_tables)
        if self.controller.irq != NULL:
            free(self.controller.irq.aggregations)
        free(self.controller.irq)
        free(self.controller.sqs)
        free(self.controller.cqs)
        free(self.controller.shares)
        free(self.controller)

    @property
    def doorbells_mapped(self):
        return bool(self.controller.doorbells_mapped)

    @doorbells_mapped.setter
    def doorbells_mapped(self, value):
        self._pause()
        self.controller.doorbells_mapped = bool(value)
        self._resume()

    cdef int _use_threads(self) except -1:
        """The first IOThread looks after the admin doorbell, too."""
        cdef IOThread iothread
        if not 1 <= len(self.iothreads) <= HOST_QUEUES or len(set(self.iothreads)) < len(self.iothreads):
            raise ValueError(f"a controller has 1 to {HOST_QUEUES} IOThreads, each of them once")
        for iothread in self.iothreads:
            self.controller.threads[self.controller.thread_count] = iothread.thread
            self.controller.thread_count += 1
        iothread = self.iothreads[0]
        iothread.pause()
        try:
            iothread.add_controller(self.controller)
        finally:
            iothread.resume()
        return 0

    cdef IOThread _thread_of(self, uint32_t qid):
        """The IOThread that serves an I/O SQ."""
        return self.iothreads[self.controller.sqs[qid].host_queue]

    cdef int _pause(self) except -1:
        """What the IOThreads read can be changed until `_resume`; they nest."""
        cdef IOThread iothread
        for iothread in self.iothreads:
            iothread.pause()
        return 0

    cdef int _resume(self) except -1:
        cdef IOThread iothread
        for iothread in self.iothreads:
            iothread.resume()
        return 0

    cdef int _wake(self) except -1:
        """Somebody has to look at doorbells that nobody will ring."""
        cdef IOThread iothread
        for iothread in self.iothreads:
            iothread.wake()
        return 0

    # -- life cycle -------------------------------------------------------------------------------

    def enable(self, *, admin_sq, admin_sq_size, admin_cq, admin_cq_size, page_size, dstrd=0, weighted=False):
        self.controller.dstrd = dstrd
        self.controller.weighted = weighted
        self.state.doorbells[:] = bytes(len(self.state.doorbells))
        memset(self.controller.doorbell_page, 0, PAGE_SIZE)
        set_page_size(self.controller, page_size)
        self.controller.stopped = 0
        self.controller.errors = 0
        memset(self.controller.sq_error, 0, sizeof(self.controller.sq_error))
        memset(self.controller.cq_error, 0, sizeof(self.controller.cq_error))
        open_cq(self.controller, 0, place(admin_cq, admin_cq_size, True), 0, True)
        open_sq(self.controller, 0, 0, place(admin_sq, admin_sq_size, True), 0)
        self._pause()
        self.controller.admin_seen = 0
        self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        self._resume()
        # A thread that parked because it had nothing to poll now has the admin doorbell.
        self._wake()
        self._tell(0, True, True)
        self._tell(0, False, True)

    def stop(self):
        self._pause()
        self.controller.stopped = 1
        self._hold_all(HELD_ASKED)
        end_throttled(self.controller, NULL, NULL, SC_ABORT_SQ_DELETED)
        self._resume()

    def disable(self):
        cdef uint32_t qid
        for qid in range(QUEUES):
            if self.controller.sqs[qid].size:
                self._tell(qid, False, False)
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                self._tell(qid, True, False)
        self._pause()
        self.controller.admin_doorbell = NULL
        self.controller.stopped = 1
        end_throttled(self.controller, NULL, NULL, SC_ABORT_SQ_DELETED)
        for qid in range(QUEUES):
            if self.controller.sqs[qid].size:
                self._close_sq(qid)
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                close_cq(self.controller, qid)
        self._resume()
        forget_queues(self.controller)
        self.state.shadow_doorbell_iova = self.state.event_idx_iova = 0

    cdef void _hold_all(self, uint32_t reason) noexcept:
        cdef uint32_t qid
        for qid in range(1, QUEUES):
            if self.controller.sqs[qid].size:
                self.controller.sqs[qid].held |= reason

    def hold(self, qid=None):
        self._pause()
        if qid is None:
            self._hold_all(HELD_ASKED)
        else:
            self._sq(qid).held |= HELD_ASKED
        self._resume()

    def end_throttled(self, qid=None):
        self._pause()
        end_throttled(self.controller, NULL if qid is None else self._sq(qid), NULL, SC_ABORT_SQ_DELETED)
        self._resume()

    def release(self, qid=None):
        cdef uint32_t i
        self._pause()
        for i in range(1, QUEUES):
            if self.controller.sqs[i].size and (qid is None or qid == i):
                self.controller.sqs[i].held &= ~HELD_ASKED
        self._resume()
        self._wake()

    @property
    def paused(self):
        return bool(self.controller.paused)

    @paused.setter
    def paused(self, value):
        cdef uint32_t i
        self._pause()
        self.controller.paused = bool(value)
        for i in range(1, QUEUES):
            if self.controller.sqs[i].size:
                if value:
                    self.controller.sqs[i].held |= HELD_PAUSED
                else:
                    self.controller.sqs[i].held &= ~HELD_PAUSED
        self._resume()
        self._wake()

    def inflight(self, qid=None):
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(1, QUEUES):
            if qid is None or qid == i:
                count += load_acquire32(&self.controller.sqs[i].inflight)
                count -= load_acquire32(&self.controller.sqs[i].throttled)
        return count if self.relayed_work is None else count + self.relayed_work(qid)

    @property
    def throttled(self):
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(1, QUEUES):
            count += load_acquire32(&self.controller.sqs[i].throttled)
        return count

    @property
    def io_timeout_ms(self):
        return self.controller.io_timeout_ms

    @io_timeout_ms.setter
    def io_timeout_ms(self, value):
        # One word: an IOThread sees the one or the other.
        self.controller.io_timeout_ms = value

    def cancel_expired(self, timeout_ms):
        cdef uint64_t limit = timeout_ms * ticks_hz() // 1000
        cdef uint64_t now
        cdef uint32_t qid, i
        cdef sq_t *sq
        cdef request_t *request
        expired = []
        self._pause()
        now = read_tsc()
        for qid in range(1, QUEUES):
            sq = &self.controller.sqs[qid]
            if sq.size == 0 or sq.inflight == 0:
                continue
            for i in range(sq.slots_ready):
                request = &sq.requests[i]
                if (request.slot.state == SLOT_BUSY
                        and not request.flags & (REQUEST_EXPIRED | REQUEST_THROTTLED)
                        and now > request.started and now - request.started > limit):
                    request.flags |= REQUEST_EXPIRED
                    request.ns.backend.ops.cancel(sq.thread, request)
                    expired.append((qid, request.slot.sqe.cid))
        self._resume()
        return expired

    # -- which there are -----------------------------------------------------------------------------------

    cdef sq_t *_sq(self, qid) except NULL:
        if not 1 <= qid <= IO_QUEUES or self.controller.sqs[<uint32_t> qid].size == 0:
            raise KeyError(qid)
        return &self.controller.sqs[<uint32_t> qid]

    cdef void _close_sq(self, uint32_t qid) noexcept:
        if qid:
            self._thread_of(qid).remove_queue(&self.controller.sqs[qid])
        close_sq(self.controller, qid)

    # -- after a process before us ------------------------------------------------------------------

    def adopt(self, *, page_size, dstrd=0, weighted=False):
        cdef uint32_t qid
        self.controller.weighted = weighted
        self.controller.dstrd = dstrd
        set_page_size(self.controller, page_size)
        self._pause()
        try:
            # No SQ without its CQ, which is checked again: the memory is ours, but it is not worth a crash.
            for qid in range(QUEUES):
                if self.state.state.cq[qid].size:
                    adopt_cq(self.controller, qid)
            for qid in range(QUEUES):
                if self.state.state.sq[qid].size:
                    adopt_sq(self.controller, qid)
            self.controller.admin_seen = self.controller.sqs[0].head
            if self.controller.sqs[0].size:
                self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        finally:
            self._resume()
        self._wake()

    def execute_again(self):
        cdef uint32_t qid
        self._pause()
        try:
            for qid in range(1, QUEUES):
                if self.controller.sqs[qid].size:
                    self._thread_of(qid).call(reserve_compared, &self.controller.sqs[qid])
            for qid in range(1, QUEUES):
                if self.controller.sqs[qid].size:
                    self._thread_of(qid).call(execute_again, &self.controller.sqs[qid])
                    self._thread_of(qid).add_queue(&self.controller.sqs[qid])
            for qid in range(QUEUES):
                if self.controller.cqs[qid].size and self.state.state.cq[qid].interrupts:
                    raise_interrupt(&self.controller.cqs[qid])
        finally:
            self._resume()
        self._wake()

    # -- I/O queues ---------------------------------------------------------------------------------

    def create_cq(self, qid, iova, size, vector, *, interrupts, contiguous=True):
        open_cq(self.controller, qid, place(iova, size, contiguous), vector, interrupts)
        self._tell(qid, True, True)

    def delete_cq(self, qid):
        if not self.has_cq(qid) or qid == 0:
            raise KeyError(qid)
        self._tell(qid, True, False)
        self._pause()
        close_cq(self.controller, qid)
        self._resume()

    def create_sq(self, qid, cqid, iova, size, *, priority=0, contiguous=True):
        if not self.has_cq(cqid) or self.has_sq(qid):
            raise KeyError(qid)
        open_sq(self.controller, qid, cqid, place(iova, size, contiguous), priority)
        self._pause()
        try:
            self._thread_of(qid).add_queue(&self.controller.sqs[qid])
        finally:
            self._resume()
        self._wake()
        self._tell(qid, False, True)

    def delete_sq(self, qid):
        cdef sq_t *sq = self._sq(qid)
        if sq.inflight:
            raise RuntimeError(f"SQ {qid} has commands in flight")
        self._tell(qid, False, False)
        self._pause()
        self._close_sq(qid)
        self._resume()

    def has_sq(self, qid):
        return 0 <= qid <= IO_QUEUES and self.controller.sqs[<uint32_t> qid].size != 0

    def has_cq(self, qid):
        return 0 <= qid <= IO_QUEUES and self.controller.cqs[<uint32_t> qid].size != 0

    def sq_place(self, qid):
        cdef sq_state_t *sq = &self.state.state.sq[<uint32_t> qid]
        return (sq.iova, sq.size) if self.has_sq(qid) else None

    def cq_place(self, qid):
        cdef cq_state_t *cq = &self.state.state.cq[<uint32_t> qid]
        return (cq.iova, cq.size) if self.has_cq(qid) else None

    def sqs_of_cq(self, cqid):
        return [
            qid for qid in range(QUEUES)
            if self.controller.sqs[<uint32_t> qid].size
            and self.controller.sqs[<uint32_t> qid].cq.qid == cqid
        ]

    def set_arbitration(self, burst, high=1, medium=1, low=1):
        cdef uint32_t qid
        self._pause()
        self.controller.burst = min(burst, BATCH) if burst else BATCH
        self.controller.weights[PRIORITY_HIGH] = high
        self.controller.weights[PRIORITY_MEDIUM] = medium
        self.controller.weights[PRIORITY_LOW] = low
        for qid in range(1, QUEUES):
            self.controller.sqs[qid].burst = self.controller.burst
        self._resume()

    # -- doorbells ----------------------------------------------------------------------------------

    def set_doorbell_buffers(self, shadow_iova, event_idx_iova):
        cdef uint64_t length
        cdef uint32_t hint = 0
        cdef uint32_t qid
        if self.controller.relayed:
            return False
        for iova in (shadow_iova, event_idx_iova):
            length = PAGE_SIZE
            if memory_translate(self.controller.memory, iova, &length, True, &hint) == NULL:
                return False
        self._pause()
        self.state.shadow_doorbell_iova = shadow_iova
        self.state.event_idx_iova = event_idx_iova
        for qid in range(1, QUEUES):
            move_doorbells(self.controller, qid)
        self._resume()
        return True

    def ring_doorbell(self, qid, value, *, completion=False):
        cdef cq_t *cq
        cdef sq_t *sq
        if not (self.has_cq(qid) if completion else self.has_sq(qid)):
            return DOORBELL_INVALID_REGISTER
        sq = &self.controller.sqs[<uint32_t> qid]
        cq = &self.controller.cqs[<uint32_t> qid]
        if value >= (cq.size if completion else sq.size):
            return DOORBELL_INVALID_VALUE
        if self.controller.relayed:
            store_release32(self._guest_register(qid, completion), value)
            signal_fd(self.controller.relay_fd)
            return DOORBELL_OK
        store_release32(doorbell_register(self.controller, qid, completion), value)
        if completion:
            follow_head(cq)
        if qid == 0:
            signal_fd(self.notify_fd)
        else:
            wake_thread(cq.thread if completion else sq.thread)
        return DOORBELL_OK

    def ring_behind_tail(self, qid, value):
        if self.controller.dstrd and self.has_cq(qid):
            store_release32(behind_tail(&self.controller.cqs[<uint32_t> qid]), value)
            if qid == 0:
                signal_fd(self.notify_fd)
            else:
                wake_thread(self.controller.cqs[<uint32_t> qid].thread)

    # -- admin commands -------------------------------------------------------------------------------

    def clear_notify(self):
        cdef uint64_t ignored
        read_fd(self.notify_fd, &ignored, 8)

    def fetch_admin(self):
        cdef request_t *request = admin_fetch(self.controller)
        if request == NULL:
            return None
        return (request - request.sq.requests), (<const char *> &request.slot.sqe)[:SQE_SIZE]

    def complete_admin(self, slot, result, status, *, error_location=0xffff, log_error=True):
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

    cdef void _log_error(self, slot_t *entry, uint32_t status, uint32_t location) noexcept:
        log_error(self.controller.state, 0, entry.sqe.cid, status, location, 0, entry.sqe.nsid)

    cdef void _interrupt(self, cq_t *cq) noexcept:
        """As `interrupt_for` of an IOThread."""
        cdef uint64_t before = read_tsc()
        if tell_relay(cq):
            return
        if cq.interrupts and raise_interrupt(cq):
            count_interrupt(cq, True, before)

    def abort_command(self, qid, cid):
        cdef sq_t *sq = self._sq(qid)
        cdef request_t *request
        self._pause()
        try:
            if abort_waiting(sq, cid):
                return True
            if abort_throttled(sq, cid):
                post_all(sq.thread)
                return True
            request = abort_in_flight(sq, cid)
            if request == NULL:
                return False
            return InFlight(qid, request - sq.requests, request.slot.sequence)
        finally:
            self._resume()

    def is_in_flight(self, command):
        cdef sq_t *sq = self._sq(command.qid)
        cdef uint32_t slot = command.slot
        return (slot < sq.slots_ready and load_acquire32(&sq.slots[slot].state) == SLOT_BUSY
                and sq.slots[slot].sequence == command.sequence)

    def log_controller_error(self, status):
        log_error(self.controller.state, 0xffff, 0xffff, status, 0xffff, 0, 0)

    def pending_admin(self):
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

    def take_errors(self):
        cdef uint32_t qid
        errors = []
        if not exchange32(&self.controller.errors, 0):
            return errors
        for qid in range(QUEUES):
            if exchange32(&self.controller.sq_error[qid], 0):
                errors.append(QueueError(qid, True, load_acquire32(self.controller.sqs[qid].tail_doorbell)
                                         if self.controller.sqs[qid].size else 0))
            if exchange32(&self.controller.cq_error[qid], 0):
                errors.append(QueueError(qid, False, load_acquire32(self.controller.cqs[qid].head_doorbell)
                                         if self.controller.cqs[qid].size else 0))
        return errors

    # -- someone between the queues and the guest ---------------------------------------------------

    def relay(self, GuestMemory memory, doorbells, fd):
        self._use_relay(memory, doorbells, fd)

    def end_relay(self, GuestMemory memory):
        self._use_relay(memory, None, -1)

    cdef int _use_relay(self, GuestMemory memory, doorbells, int fd) except -1:
        cdef uint32_t[::1] page
        cdef uint32_t qid
        self._move_mappers(memory)
        self._pause()
        self.memory = memory
        self.controller.memory = &memory.table
        self.controller.relayed = doorbells is not None
        self.controller.relay_fd = fd
        self.controller.doorbell_page = self.state.doorbell_page
        if doorbells is not None:
            page = doorbells
            self.controller.doorbell_page = &page[0]
        self.relay_doorbells = doorbells
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                self.controller.cqs[qid].interrupts = interrupts_of(
                    self.controller, &self.state.state.cq[qid])
        bind_all(self.controller)
        if self.controller.sqs[0].size:
            self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        self._resume()
        self._wake()
        return 0

    def _move_mappers(self, GuestMemory memory):
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
            backend.leave_memory(self.memory)

    cdef uint32_t *_guest_register(self, uint32_t qid, bint completion) noexcept:
        return &self.state.doorbell_page[(2 * qid + completion) << self.controller.dstrd]

    cdef int _tell(self, uint32_t qid, bint completion, bint created) except -1:
        if created and self.controller.relayed:
            store_release32(self._guest_register(qid, completion), 0)
        if self.on_queue is not None:
            self.on_queue(qid, bool(completion), bool(created))
        return 0

    def guest_doorbell(self, qid, *, completion=False):
        return load_acquire32(self._guest_register(qid, completion))

    def relayed_doorbell(self, qid, *, completion=False):
        return load_acquire32(doorbell_register(self.controller, qid, completion))

    def relay_doorbell(self, qid, value, *, completion=False):
        cdef sq_t *sq = &self.controller.sqs[<uint32_t> qid]
        cdef cq_t *cq = &self.controller.cqs[<uint32_t> qid]
        store_release32(doorbell_register(self.controller, qid, completion), value)
        if qid == 0:
            signal_fd(self.notify_fd)
        else:
            wake_thread(cq.thread if completion else sq.thread)

    def cq_tail(self, qid):
        return load_acquire32(&self.state.state.cq[<uint32_t> qid].tail)

    def is_contiguous(self, qid, *, completion=False):
        if completion:
            return not self.state.state.cq[<uint32_t> qid].noncontiguous
        return not self.state.state.sq[<uint32_t> qid].noncontiguous

    def cq_of_sq(self, qid):
        return self.state.state.sq[<uint32_t> qid].cqid

    def raise_interrupt(self, cqid):
        cdef cq_t *cq = &self.controller.cqs[<uint32_t> cqid]
        if cq.size and self.state.state.cq[<uint32_t> cqid].interrupts and raise_interrupt(cq):
            # On the control plane's line: an IOThread counts on its own.
            self.state.state.path_counters[HOST_QUEUES].interrupts += 1

    def log_transfer_error(self, qid, cid, status, nsid):
        log_error(self.controller.state, qid, cid, status, 0xffff, 0, nsid)

    # -- I/O commands of the control plane ----------------------------------------------------------------

    def take_deferred(self):
        cdef request_t *request
        cdef uint32_t qid
        taken = []
        if not exchange32(&self.controller.deferred, 0):
            return taken
        self._pause()
        for qid in range(1, QUEUES):
            if self.controller.sqs[qid].size and self.controller.sqs[qid].inflight:
                request = take_deferred(&self.controller.sqs[qid])
                while request != NULL:
                    taken.append(DeferredCommand(
                        qid, request - request.sq.requests, request.slot.sequence,
                        (<const char *> &request.slot.sqe)[:SQE_SIZE],
                        (<const char *> request.compound.brought)[:DEFERRED_DATA]))
                    request = take_deferred(&self.controller.sqs[qid])
        self._resume()
        return taken

    cdef request_t *_deferred(self, command) except NULL:
        cdef request_t *request = NULL
        if self.has_sq(command.qid):
            request = find_deferred(
                &self.controller.sqs[<uint32_t> command.qid], command.slot, command.sequence)
        if request == NULL:
            raise KeyError(command)
        return request

    def decided_deferred(self, command):
        cdef request_t *request = self._deferred(command)
        cdef uint32_t stage = request.slot.stage
        return stage >> STAGE_STATUS_SHIFT if stage & STAGE_DECIDED else None

    def decide_deferred(self, command, number):
        cdef request_t *request = self._deferred(command)
        store_release32(&request.slot.stage,
                        STAGE_DECIDED | <uint32_t> (number & 0xffff) << STAGE_STATUS_SHIFT)

    def settle_deferred(self, command, status, location=0xffff):
        cdef request_t *request = self._deferred(command)
        request.error_location = location
        settle_deferred(request, status)

    def complete_deferred(self, command, data=b""):
        cdef request_t *request = self._deferred(command)
        cdef const uint8_t[:] view = data or b"\0"
        cdef uint32_t size = len(data)
        self._pause()
        answer_deferred(request, &view[0], size)
        complete_deferred(request.sq.thread, request)
        self._resume()

    def preempt(self, nsid):
        cdef sq_t *sq
        cdef request_t *request
        cdef uint32_t qid
        cdef namespace_t *ns
        preempted = []
        if nsid not in self.backends:
            return preempted
        ns = self._namespace(nsid)
        self._pause()
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
        self._resume()
        return preempted

    # -- guest memory -----------------------------------------------------------------------------------

    def map(self, iova, size, fd, offset, *, readable, writable):
        self._pause()
        try:
            self.memory.map(iova, size, fd, offset, readable=readable, writable=writable)
            bind_changed(self.controller, iova, size)
        finally:
            self._resume()
        self._after_rebind()

    def _after_rebind(self):
        """Queues may have come back to life: someone has to look at their doorbells."""
        self._wake()
        if self.controller.sqs[0].size:
            signal_fd(self.notify_fd)

    def try_unmap(self, iova, size):
        self._pause()
        try:
            if self._in_use(iova, size):
                return None
            removed = self.memory.unmap(iova, size)
            bind_changed(self.controller, iova, size)
        finally:
            self._resume()
        self._drop_buffers()
        self._after_rebind()
        return removed

    def try_unmap_all(self):
        self._pause()
        try:
            if self._in_use(0, 0):
                return None
            removed = self.memory.clear()
            bind_all(self.controller)
        finally:
            self._resume()
        self._drop_buffers()
        return removed

    def give_up_unmap(self):
        self._pause()
        bind_all(self.controller)
        self._resume()
        self._after_rebind()

    cdef bint _in_use(self, uint64_t iova, uint64_t size) noexcept:
        """Commands in flight use the range (size 0: all of memory). Then every queue is held, until
        the binding that follows the unmapping decides anew."""
        if not memory_in_use(self.controller, iova, size):
            return False
        self._hold_all(HELD_MEMORY)
        return True

    def _drop_buffers(self):
        """Unregister memory that is gone from the threads' io_urings."""
        cdef uring_buffers_t argument
        cdef IOThread iothread
        dropped = list(self.memory.dropped_buffers)
        self.memory.dropped_buffers.clear()
        for first, count in dropped:
            argument.first = first
            argument.count = count
            for iothread in self.iothreads:
                if iothread.thread.uring != NULL:
                    iothread.call(uring_drop_buffers, &argument)
            release_buffers(first, count)

    # -- namespaces -----------------------------------------------------------------------------------

    def set_namespace(self, nsid, Backend backend):
        if not 1 <= nsid <= self.controller.max_nsid:
            raise ValueError(f"NSID {nsid} is not in 1 to {self.controller.max_nsid}")
        if backend is None and nsid not in self.backends:
            return
        if not has_place(self.controller, nsid):
            raise ValueError(f"namespace {nsid}: there are {HIGH_NAMESPACES} above {NAMESPACES} already")
        if backend is not None:
            backend.use_memory(self.memory)
            try:
                self._attach(backend)
            except BaseException:
                backend.leave_memory(self.memory)
                raise
        self._pause()
        fill_namespace(self.controller, nsid, backend)
        self._resume()
        old = self.backends.pop(nsid, None)
        if old is not None:
            self._detach(old, len(self.iothreads))
            old.leave_memory(self.memory)
        if backend is not None:
            self.backends[nsid] = backend

    cdef int _attach(self, Backend backend) except -1:
        """Every IOThread gets ready for the backend, or none does."""
        cdef int count = 0
        try:
            for iothread in self.iothreads:
                backend.attach(iothread)
                count += 1
        except BaseException:
            self._detach(backend, count)
            raise
        return 0

    cdef int _detach(self, Backend backend, int count) except -1:
        for iothread in self.iothreads[:count]:
            backend.detach(iothread)
        return 0

    cdef namespace_t *_namespace(self, nsid) except NULL:
        if nsid not in self.backends:
            raise KeyError(nsid)
        return find_namespace(self.controller, nsid)

    def clear_uncorrectable(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        bad_clear(ns.backend, 0, <uint64_t> -1)
        self._resume()

    def forget_uncorrectable(self, nsid):
        bad_forget(self.controller, nsid)

    def retire_namespace(self, nsid, retired=True):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        _set_state(ns, bool(retired))
        self._resume()

    def bar_namespace(self, nsid, status):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        _set_state(ns, status)
        self._resume()

    def refuse_groups(self, nsid, groups):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        ns.restricted = (ns.restricted & NS_STATE) | <uint32_t> groups << NS_GROUPS_SHIFT
        self._resume()

    def format_namespace(self, nsid, block_size):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self._pause()
        try:
            backend.format(block_size)
            ns.block_shift = backend.block_size.bit_length() - 1
            ns.blocks = backend.size >> ns.block_shift
        finally:
            self._resume()

    def protect_namespace(self, nsid, read_only):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self._pause()
        backend.set_read_only(read_only)
        ns.read_only = bool(read_only)
        self._resume()

    def lock_namespace(self, nsid, locked):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        ns.read_only = self.backends[nsid].read_only or bool(locked)
        self._resume()

    def resize_namespace(self, nsid, size):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self._pause()
        try:
            backend.set_size(size)
            ns.blocks = backend.size >> ns.block_shift
        finally:
            self._resume()

    def namespace_in_use(self, nsid, start=0, *, writing=False):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef uint64_t first = start
        cdef bint found
        self._pause()
        found = namespace_used_from(self.controller, ns, first, bool(writing))
        self._resume()
        return found

    def namespace_counters(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef io_counters_t moved = namespace_moved(ns)
        return IoCounters(
            moved.read_commands, moved.write_commands, moved.read_units << 9, moved.write_units << 9)

    def namespace_throttled(self, nsid):
        cdef throttled_t throttled = namespace_throttled(self._namespace(nsid))
        return Throttled(throttled.waiting, throttled.total)

    def submission_queues(self):
        return [
            SubmissionQueue(qid, self.controller.sqs[<uint32_t> qid].cq.qid,
                            self.controller.sqs[<uint32_t> qid].size,
                            load_acquire32(&self.controller.sqs[<uint32_t> qid].inflight),
                            self.controller.sqs[<uint32_t> qid].held != 0)
            for qid in range(1, QUEUES) if self.controller.sqs[<uint32_t> qid].size
        ]

    # -- interrupts -----------------------------------------------------------------------------------

    def set_vector(self, vector, fd, *, msi=False):
        _check_vector(vector)
        self._pause()
        self.controller.irq.msi = msi
        old = set_vector(self.controller, vector, NO_FD if fd is None else fd)
        set_intms(self.controller, self.controller.irq.intms)
        self._resume()
        if old >= 0:
            os.close(old)

    def mask_vector(self, vector, masked, *, by_table=False):
        _check_vector(vector)
        self._pause()
        mask_vector(self.controller, vector,
                    INTERRUPT_TABLE_MASK if by_table else INTERRUPT_CLIENT_MASK, masked)
        self._resume()

    def mask_function(self, masked):
        cdef uint32_t vector
        self._pause()
        for vector in range(QUEUES):
            mask_vector(self.controller, vector, INTERRUPT_FUNCTION_MASK, masked)
        self._resume()

    def pending_vectors(self):
        return [
            vector for vector in range(QUEUES)
            if self.controller.irq.vector_state[<uint32_t> vector] & INTERRUPT_PENDING
        ]

    def set_intx(self, fd):
        self._pause()
        old = set_pin(self.controller, NO_FD if fd is None else fd)
        self._resume()
        if old >= 0:
            os.close(old)

    def mask_intx(self, masked):
        self._pause()
        self.controller.irq.intx_masked = bool(masked)
        assert_pin(self.controller)
        self._resume()

    def set_intms(self, mask):
        self._pause()
        set_intms(self.controller, mask)
        self._resume()

    @property
    def pin_level(self):
        return bool(pin_level(self.controller))

    def configure_coalescing(self):
        self._pause()
        try:
            coalescing_configure(self.controller)
        finally:
            self._resume()

    def trigger(self, vector):
        if vector == -1:
            signal_client(&self.controller.irq.intx_fd)
            return
        _check_vector(vector)
        signal_client(&self.controller.irq.vector_fd[<uint32_t> vector])

    def clear_interrupts(self):
        for vector in range(QUEUES):
            if self.controller.irq.vector_fd[<uint32_t> vector] != NO_FD:
                self.set_vector(vector, None)
        self.set_intx(None)
        self.forget_masks()

    def forget_masks(self):
        self._pause()
        memset(self.state.state.interrupts, 0, sizeof(self.state.state.interrupts))
        set_intms(self.controller, self.controller.irq.intms)
        self._resume()

    # -- numbers ----------------------------------------------------------------------------------------

    def statistics(self):
        return sum_statistics([self._path(i) for i in range(HOST_QUEUES + 1)])

    def thread_statistics(self):
        return [self._path(i) for i in range(self.controller.thread_count)]

    def _path(self, host_queue):
        cdef path_counters_t *counters = &self.state.state.path_counters[<uint32_t> host_queue]
        return path_statistics(
            (counters.translated, counters.translated_timed, counters.translated_cycles),
            (counters.completed, counters.completed_timed, counters.completed_cycles),
            (counters.interrupts, counters.interrupts_timed, counters.interrupt_cycles), ticks_hz())
