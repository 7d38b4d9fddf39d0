"""A controller's queues: the control plane's handle on the data path (see queue_table.pyi).

Every method runs on the control plane's thread. What an IOThread reads is changed only between
`attached.pause()` and `attached.resume()`. The admin queue pair is this thread's own; the I/O queue
pairs are the IOThread's while it runs. What is done meanwhile is in `queue_setup`, `binding` and
`recovery`; what a controller has besides queues are parts of their own.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport read as read_fd

from nvme_mdev.datapath.aborts cimport abort_in_flight, abort_throttled, abort_waiting
from nvme_mdev.datapath.atomics cimport exchange32, load_acquire32, read_tsc, store_release32
from nvme_mdev.datapath.attached_controller cimport AttachedController
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.completing cimport post_all
from nvme_mdev.datapath.data_pointer cimport set_page_size
from nvme_mdev.datapath.layout cimport (
    HOST_QUEUES, QUEUES, SLOT_BUSY, cq_state_t, path_counters_t, sq_state_t,
)
from nvme_mdev.datapath.memory cimport GuestMemory, memory_translate
from nvme_mdev.datapath.namespace_table cimport end_throttled
from nvme_mdev.datapath.queue_setup cimport (
    close_cq, close_sq, doorbell_register, follow_head, forget_queues, move_doorbells, open_cq, open_sq,
    queue_place_t,
)
from nvme_mdev.datapath.queues cimport behind_tail, log_error, raise_interrupt, signal_fd, wake_thread
from nvme_mdev.datapath.recovery cimport adopt_cq, adopt_sq, execute_again, reserve_compared
from nvme_mdev.datapath.relayed_queues cimport RelayedQueues
from nvme_mdev.datapath.runtime cimport (
    BATCH, HELD_ASKED, HELD_PAUSED, NAMESPACES, PAGE_SIZE, REQUEST_EXPIRED, REQUEST_THROTTLED,
    controller_t, cq_t, request_t, sq_t,
)
from nvme_mdev.datapath.state cimport ControllerState
from nvme_mdev.datapath.status cimport SC_ABORT_SQ_DELETED

import os

from nvme_mdev.datapath.admin_pair import AdminPair
from nvme_mdev.datapath.deferred_commands import DeferredCommands
from nvme_mdev.datapath.dma_windows import DmaWindows
from nvme_mdev.datapath.interrupts import Interrupts
from nvme_mdev.datapath.namespace_table import NamespaceTable
from nvme_mdev.datapath.statistics import (
    InFlight, QueueError, SubmissionQueue, path_statistics, sum_statistics,
)

cdef enum:
    #: QPRIO of Create I/O Submission Queue.
    PRIORITY_HIGH = 1
    PRIORITY_MEDIUM = 2
    PRIORITY_LOW = 3


DOORBELL_OK = 0
DOORBELL_INVALID_REGISTER = 1
DOORBELL_INVALID_VALUE = 2


cdef queue_place_t place(iova, size, contiguous) except *:
    cdef queue_place_t where
    where.iova = iova
    where.size = size
    where.noncontiguous = not contiguous
    return where


cdef class QueueTable:
    """The queues of a controller, and its other parts (see queue_table.pyi)."""

    cdef AttachedController attached
    cdef controller_t *controller
    cdef readonly object namespaces
    cdef readonly object interrupts
    cdef readonly object dma
    cdef readonly object admin
    cdef readonly object deferred
    cdef readonly RelayedQueues relayed

    # -- making and unmaking ------------------------------------------------------------------------

    def __init__(self, ControllerState state, GuestMemory memory, iothreads, *, max_transfer=1 << 20,
                 max_nsid=NAMESPACES):
        self.attached = AttachedController(state, memory, iothreads, max_transfer, max_nsid)
        self.controller = self.attached.controller
        self.namespaces = NamespaceTable(self.attached)
        self.interrupts = Interrupts(self.attached)
        self.dma = DmaWindows(self.attached)
        self.admin = AdminPair(self.attached)
        self.deferred = DeferredCommands(self.attached)
        self.relayed = RelayedQueues(self.attached, self.namespaces)
        set_page_size(self.controller, PAGE_SIZE)
        self.controller.burst = BATCH
        for priority in range(PRIORITY_HIGH, PRIORITY_LOW + 1):
            self.controller.weights[<uint32_t> priority] = 1
        self.attached.attach()

    def close(self):
        if not self.attached.known:
            return
        self.namespaces.clear()
        self.disable()
        self.attached.detach()
        self.dma.clear()
        self.interrupts.clear()
        os.close(self.attached.notify_fd)
        self.attached.notify_fd = -1

    @property
    def state(self):
        return self.attached.state

    @property
    def memory(self):
        return self.attached.memory

    @property
    def iothreads(self):
        return self.attached.iothreads

    @property
    def notify_fd(self):
        return self.attached.notify_fd

    @property
    def doorbells_mapped(self):
        return bool(self.controller.doorbells_mapped)

    @doorbells_mapped.setter
    def doorbells_mapped(self, value):
        self.attached.pause()
        self.controller.doorbells_mapped = bool(value)
        self.attached.resume()

    # -- life cycle --------------------------------------------------------------------------------

    def enable(self, *, admin_sq, admin_sq_size, admin_cq, admin_cq_size, page_size, dstrd=0, weighted=False):
        self.controller.dstrd = dstrd
        self.controller.weighted = weighted
        self.attached.state.doorbells[:] = bytes(len(self.attached.state.doorbells))
        memset(self.controller.doorbell_page, 0, PAGE_SIZE)
        set_page_size(self.controller, page_size)
        self.controller.stopped = 0
        self.controller.errors = 0
        memset(self.controller.sq_error, 0, sizeof(self.controller.sq_error))
        memset(self.controller.cq_error, 0, sizeof(self.controller.cq_error))
        open_cq(self.controller, 0, place(admin_cq, admin_cq_size, True), 0, True)
        open_sq(self.controller, 0, 0, place(admin_sq, admin_sq_size, True), 0)
        self.attached.pause()
        self.controller.admin_seen = 0
        self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        self.attached.resume()
        # A thread that parked because it had nothing to poll now has the admin doorbell.
        self.attached.wake()
        self.relayed.tell(0, True, True)
        self.relayed.tell(0, False, True)

    def stop(self):
        self.attached.pause()
        self.controller.stopped = 1
        self.attached.hold_all(HELD_ASKED)
        end_throttled(self.controller, NULL, NULL, SC_ABORT_SQ_DELETED)
        self.attached.resume()

    def disable(self):
        cdef uint32_t qid
        for qid in range(QUEUES):
            if self.controller.sqs[qid].size:
                self.relayed.tell(qid, False, False)
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                self.relayed.tell(qid, True, False)
        self.attached.pause()
        self.controller.admin_doorbell = NULL
        self.controller.stopped = 1
        end_throttled(self.controller, NULL, NULL, SC_ABORT_SQ_DELETED)
        for qid in range(QUEUES):
            if self.controller.sqs[qid].size:
                self._close_sq(qid)
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                close_cq(self.controller, qid)
        self.attached.resume()
        forget_queues(self.controller)
        self.attached.state.shadow_doorbell_iova = self.attached.state.event_idx_iova = 0

    def hold(self, qid=None):
        cdef sq_t *sq = NULL if qid is None else self.attached.sq(qid)
        self.attached.pause()
        if sq == NULL:
            self.attached.hold_all(HELD_ASKED)
        else:
            sq.held |= HELD_ASKED
        self.attached.resume()

    def release(self, qid=None):
        cdef uint32_t i
        self.attached.pause()
        for i in range(1, QUEUES):
            if self.controller.sqs[i].size and (qid is None or qid == i):
                self.controller.sqs[i].held &= ~HELD_ASKED
        self.attached.resume()
        self.attached.wake()

    @property
    def paused(self):
        return bool(self.controller.paused)

    @paused.setter
    def paused(self, value):
        cdef uint32_t i
        self.attached.pause()
        self.controller.paused = bool(value)
        for i in range(1, QUEUES):
            if self.controller.sqs[i].size:
                if value:
                    self.controller.sqs[i].held |= HELD_PAUSED
                else:
                    self.controller.sqs[i].held &= ~HELD_PAUSED
        self.attached.resume()
        self.attached.wake()

    # -- after a process before us -----------------------------------------------------------------

    def adopt(self, *, page_size, dstrd=0, weighted=False):
        cdef uint32_t qid
        self.controller.weighted = weighted
        self.controller.dstrd = dstrd
        set_page_size(self.controller, page_size)
        self.attached.pause()
        try:
            # No SQ without its CQ, which is checked again: the memory is ours, but it is not worth a crash.
            for qid in range(QUEUES):
                if self.controller.state.cq[qid].size:
                    adopt_cq(self.controller, qid)
            for qid in range(QUEUES):
                if self.controller.state.sq[qid].size:
                    adopt_sq(self.controller, qid)
            self.controller.admin_seen = self.controller.sqs[0].head
            if self.controller.sqs[0].size:
                self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        finally:
            self.attached.resume()
        self.attached.wake()

    def execute_again(self):
        cdef uint32_t qid
        self.attached.pause()
        try:
            for qid in range(1, QUEUES):
                if self.controller.sqs[qid].size:
                    self.attached.thread_of(qid).call(reserve_compared, &self.controller.sqs[qid])
            for qid in range(1, QUEUES):
                if self.controller.sqs[qid].size:
                    self.attached.thread_of(qid).call(execute_again, &self.controller.sqs[qid])
                    self.attached.thread_of(qid).add_queue(&self.controller.sqs[qid])
            for qid in range(QUEUES):
                if self.controller.cqs[qid].size and self.controller.state.cq[qid].interrupts:
                    raise_interrupt(&self.controller.cqs[qid])
        finally:
            self.attached.resume()
        self.attached.wake()

    # -- I/O queues --------------------------------------------------------------------------------

    def create_cq(self, qid, iova, size, vector, *, interrupts, contiguous=True):
        open_cq(self.controller, qid, place(iova, size, contiguous), vector, interrupts)
        self.relayed.tell(qid, True, True)

    def delete_cq(self, qid):
        if not self.has_cq(qid) or qid == 0:
            raise KeyError(qid)
        self.relayed.tell(qid, True, False)
        self.attached.pause()
        close_cq(self.controller, qid)
        self.attached.resume()

    def create_sq(self, qid, cqid, iova, size, *, priority=0, contiguous=True):
        if not self.has_cq(cqid) or self.has_sq(qid):
            raise KeyError(qid)
        open_sq(self.controller, qid, cqid, place(iova, size, contiguous), priority)
        self.attached.pause()
        try:
            self.attached.thread_of(qid).add_queue(&self.controller.sqs[qid])
        finally:
            self.attached.resume()
        self.attached.wake()
        self.relayed.tell(qid, False, True)

    def delete_sq(self, qid):
        cdef sq_t *sq = self.attached.sq(qid)
        if sq.inflight:
            raise RuntimeError(f"SQ {qid} has commands in flight")
        self.relayed.tell(qid, False, False)
        self.attached.pause()
        self._close_sq(qid)
        self.attached.resume()

    cdef void _close_sq(self, uint32_t qid) noexcept:
        if qid:
            self.attached.thread_of(qid).remove_queue(&self.controller.sqs[qid])
        close_sq(self.controller, qid)

    def set_arbitration(self, burst, high=1, medium=1, low=1):
        cdef uint32_t qid
        self.attached.pause()
        self.controller.burst = min(burst, BATCH) if burst else BATCH
        self.controller.weights[PRIORITY_HIGH] = high
        self.controller.weights[PRIORITY_MEDIUM] = medium
        self.controller.weights[PRIORITY_LOW] = low
        for qid in range(1, QUEUES):
            self.controller.sqs[qid].burst = self.controller.burst
        self.attached.resume()

    # -- which there are ---------------------------------------------------------------------------

    def has_sq(self, qid):
        return self.attached.has_sq(qid)

    def has_cq(self, qid):
        return self.attached.has_cq(qid)

    def sq_place(self, qid):
        cdef sq_state_t *sq = &self.controller.state.sq[<uint32_t> qid]
        return (sq.iova, sq.size) if self.has_sq(qid) else None

    def cq_place(self, qid):
        cdef cq_state_t *cq = &self.controller.state.cq[<uint32_t> qid]
        return (cq.iova, cq.size) if self.has_cq(qid) else None

    def is_contiguous(self, qid, *, completion=False):
        if completion:
            return not self.controller.state.cq[<uint32_t> qid].noncontiguous
        return not self.controller.state.sq[<uint32_t> qid].noncontiguous

    def sqs_of_cq(self, cqid):
        return [
            qid for qid in range(QUEUES)
            if self.controller.sqs[<uint32_t> qid].size
            and self.controller.sqs[<uint32_t> qid].cq.qid == cqid
        ]

    def cq_of_sq(self, qid):
        return self.controller.state.sq[<uint32_t> qid].cqid

    def cq_tail(self, qid):
        return load_acquire32(&self.controller.state.cq[<uint32_t> qid].tail)

    def submission_queues(self):
        return [
            SubmissionQueue(qid, self.controller.sqs[<uint32_t> qid].cq.qid,
                            self.controller.sqs[<uint32_t> qid].size,
                            load_acquire32(&self.controller.sqs[<uint32_t> qid].inflight),
                            self.controller.sqs[<uint32_t> qid].held != 0)
            for qid in range(1, QUEUES) if self.controller.sqs[<uint32_t> qid].size
        ]

    # -- commands ----------------------------------------------------------------------------------

    def inflight(self, qid=None):
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(1, QUEUES):
            if qid is None or qid == i:
                count += load_acquire32(&self.controller.sqs[i].inflight)
                count -= load_acquire32(&self.controller.sqs[i].throttled)
        return count if self.relayed.work is None else count + self.relayed.work(qid)

    @property
    def throttled(self):
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(1, QUEUES):
            count += load_acquire32(&self.controller.sqs[i].throttled)
        return count

    def end_throttled(self, qid=None):
        cdef sq_t *sq = NULL if qid is None else self.attached.sq(qid)
        self.attached.pause()
        end_throttled(self.controller, sq, NULL, SC_ABORT_SQ_DELETED)
        self.attached.resume()

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
        self.attached.pause()
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
        self.attached.resume()
        return expired

    def abort_command(self, qid, cid):
        cdef sq_t *sq = self.attached.sq(qid)
        cdef request_t *request
        self.attached.pause()
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
            self.attached.resume()

    def is_in_flight(self, command):
        cdef sq_t *sq = self.attached.sq(command.qid)
        cdef uint32_t slot = command.slot
        return (slot < sq.slots_ready and load_acquire32(&sq.slots[slot].state) == SLOT_BUSY
                and sq.slots[slot].sequence == command.sequence)

    # -- doorbells ---------------------------------------------------------------------------------

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
        self.attached.pause()
        self.attached.state.shadow_doorbell_iova = shadow_iova
        self.attached.state.event_idx_iova = event_idx_iova
        for qid in range(1, QUEUES):
            move_doorbells(self.controller, qid)
        self.attached.resume()
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
            store_release32(self.relayed.guest_register(qid, completion), value)
            signal_fd(self.controller.relay_fd)
            return DOORBELL_OK
        store_release32(doorbell_register(self.controller, qid, completion), value)
        if completion:
            follow_head(cq)
        if qid == 0:
            signal_fd(self.attached.notify_fd)
        else:
            wake_thread(cq.thread if completion else sq.thread)
        return DOORBELL_OK

    def ring_behind_tail(self, qid, value):
        if self.controller.dstrd and self.has_cq(qid):
            store_release32(behind_tail(&self.controller.cqs[<uint32_t> qid]), value)
            if qid == 0:
                signal_fd(self.attached.notify_fd)
            else:
                wake_thread(self.controller.cqs[<uint32_t> qid].thread)

    # -- errors ------------------------------------------------------------------------------------

    def clear_notify(self):
        cdef uint64_t ignored
        read_fd(self.attached.notify_fd, &ignored, 8)

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

    def log_controller_error(self, status):
        log_error(self.controller.state, 0xffff, 0xffff, status, 0xffff, 0, 0)

    def log_transfer_error(self, qid, cid, status, nsid):
        log_error(self.controller.state, qid, cid, status, 0xffff, 0, nsid)

    # -- numbers -----------------------------------------------------------------------------------

    def statistics(self):
        return sum_statistics([self._path(i) for i in range(HOST_QUEUES + 1)])

    def thread_statistics(self):
        return [self._path(i) for i in range(self.controller.thread_count)]

    def _path(self, host_queue):
        cdef path_counters_t *counters = &self.controller.state.path_counters[<uint32_t> host_queue]
        return path_statistics(
            (counters.translated, counters.translated_timed, counters.translated_cycles),
            (counters.completed, counters.completed_timed, counters.completed_cycles),
            (counters.interrupts, counters.interrupts_timed, counters.interrupt_cycles), ticks_hz())
