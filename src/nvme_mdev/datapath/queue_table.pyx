"""A controller's queues: the control plane's handle on the data path (see queue_table.pyi).

Every method runs on the control plane's thread. What an IOThread reads is changed only between
`_pause()` and `_resume()`. The admin queue pair is this thread's own; the I/O queue pairs are the
IOThread's while it runs. What is done meanwhile is in files of its own: `queue_setup`, `binding`,
`recovery`, `admin_pair`, `namespace_table`, `interrupts`.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport read as read_fd

from nvme_mdev.datapath.aborts cimport abort_in_flight, abort_waiting
from nvme_mdev.datapath.admin_pair cimport admin_complete, admin_fetch, admin_room
from nvme_mdev.datapath.atomics cimport exchange32, load_acquire32, read_tsc, store_release32
from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.binding cimport bind_all, memory_in_use
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.interrupts cimport (
    assert_pin, interrupts_init, mask_vector, set_pin, set_vector,
)
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.layout cimport (
    IO_QUEUES, QUEUES, SLOT_BUSY, cq_state_t, path_counters_t, slot_t, sq_state_t,
)
from nvme_mdev.datapath.memory cimport GuestMemory, memory_translate
from nvme_mdev.datapath.namespace_table cimport fill_namespace, namespace_used_from
from nvme_mdev.datapath.queue_setup cimport (
    close_cq, close_sq, follow_head, forget_queues, move_doorbells, open_cq, open_sq,
)
from nvme_mdev.datapath.queues cimport SQE_SIZE, log_error, raise_interrupt, signal_fd
from nvme_mdev.datapath.recovery cimport adopt_cq, adopt_sq, execute_again
from nvme_mdev.datapath.runtime cimport (
    BATCH, HELD_ASKED, HELD_MEMORY, HELD_PAUSED, NAMESPACES, PAGE_SIZE, REQUEST_EXPIRED, controller_t,
    cq_t, interrupts_t, namespace_t, request_t, sq_t,
)
from nvme_mdev.datapath.state cimport ControllerState
from nvme_mdev.datapath.uring cimport uring_buffers_t, uring_drop_buffers

import os

from nvme_mdev.datapath.memory import release_buffers
from nvme_mdev.datapath.statistics import (
    InFlight, IoCounters, PathCounter, PathStatistics, QueueError, SubmissionQueue,
)

DOORBELL_OK = 0
DOORBELL_INVALID_REGISTER = 1
DOORBELL_INVALID_VALUE = 2


cdef class QueueTable:
    """Queues, namespaces, interrupts and guest memory of one controller."""

    cdef readonly ControllerState state
    cdef readonly GuestMemory memory
    cdef readonly IOThread iothread
    cdef readonly int notify_fd
    cdef controller_t *controller
    cdef dict backends
    cdef bint attached

    # -- making and unmaking --------------------------------------------------------------------

    def __cinit__(self, ControllerState state, GuestMemory memory, IOThread iothread, *, max_transfer=1 << 20):
        self.notify_fd = -1
        self.controller = <controller_t *> calloc(1, sizeof(controller_t))
        if self.controller == NULL:
            raise MemoryError
        self.controller.namespaces = <namespace_t *> calloc(NAMESPACES + 1, sizeof(namespace_t))
        self.controller.irq = <interrupts_t *> calloc(1, sizeof(interrupts_t))
        self.controller.sqs = <sq_t *> calloc(QUEUES, sizeof(sq_t))
        self.controller.cqs = <cq_t *> calloc(QUEUES, sizeof(cq_t))
        if (self.controller.namespaces == NULL or self.controller.irq == NULL
                or self.controller.sqs == NULL or self.controller.cqs == NULL):
            raise MemoryError
        interrupts_init(self.controller.irq)

    def __init__(self, ControllerState state, GuestMemory memory, IOThread iothread, *, max_transfer=1 << 20):
        self.state = state
        self.memory = memory
        self.iothread = iothread
        self.backends = {}
        self.notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.controller.state = state.state
        self.controller.memory = &memory.table
        self.controller.doorbell_page = state.doorbell_page
        self.controller.max_transfer = max_transfer
        self.controller.page_size = PAGE_SIZE
        self.controller.burst = BATCH
        self.controller.notify_fd = self.notify_fd
        self.controller.doorbells_mapped = 1
        self._pause()
        try:
            iothread.add_controller(self.controller)
        finally:
            self._resume()
        self.attached = True

    def close(self):
        if not self.attached:
            return
        for nsid in list(self.backends):
            self.set_namespace(nsid, None)
        self.disable()
        self._pause()
        self.iothread.remove_controller(self.controller)
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
        free(self.controller.irq)
        free(self.controller.sqs)
        free(self.controller.cqs)
        free(self.controller)

    @property
    def doorbells_mapped(self):
        return bool(self.controller.doorbells_mapped)

    @doorbells_mapped.setter
    def doorbells_mapped(self, value):
        self._pause()
        self.controller.doorbells_mapped = bool(value)
        self._resume()

    cdef int _pause(self) except -1:
        """What the IOThread reads can be changed until `_resume`; they nest."""
        self.iothread.pause()
        return 0

    cdef int _resume(self) except -1:
        self.iothread.resume()
        return 0

    cdef int _wake(self) except -1:
        """Somebody has to look at doorbells that nobody will ring."""
        self.iothread.wake()
        return 0

    # -- life cycle -------------------------------------------------------------------------------

    def enable(self, *, admin_sq, admin_sq_size, admin_cq, admin_cq_size, page_size, dstrd=0):
        self.controller.dstrd = dstrd
        self.state.doorbells[:] = bytes(len(self.state.doorbells))
        self.controller.page_size = page_size
        self.controller.stopped = 0
        self.controller.errors = 0
        memset(self.controller.sq_error, 0, sizeof(self.controller.sq_error))
        memset(self.controller.cq_error, 0, sizeof(self.controller.cq_error))
        open_cq(self.controller, 0, admin_cq, admin_cq_size, 0, True)
        open_sq(self.controller, NULL, 0, 0, admin_sq, admin_sq_size, 0)
        self._pause()
        self.controller.admin_seen = 0
        self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        self._resume()
        # A thread that parked because it had nothing to poll now has the admin doorbell.
        self._wake()

    def stop(self):
        self._pause()
        self.controller.stopped = 1
        self._hold_all(HELD_ASKED)
        self._resume()

    def disable(self):
        cdef uint32_t qid
        self._pause()
        self.controller.admin_doorbell = NULL
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
        return count

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
            for i in range(sq.slot_count):
                request = &sq.requests[i]
                if (request.slot.state == SLOT_BUSY and not request.flags & REQUEST_EXPIRED
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
        self.iothread.remove_queue(&self.controller.sqs[qid])
        close_sq(self.controller, qid)

    # -- after a process before us ------------------------------------------------------------------

    def adopt(self, *, page_size, dstrd=0):
        cdef uint32_t qid
        self.controller.dstrd = dstrd
        self.controller.page_size = page_size
        self._pause()
        try:
            # No SQ without its CQ, which is checked again: the memory is ours, but it is not worth a crash.
            for qid in range(QUEUES):
                if self.state.state.cq[qid].size:
                    adopt_cq(self.controller, qid)
            for qid in range(QUEUES):
                if self.state.state.sq[qid].size:
                    adopt_sq(self.controller, self.iothread.thread, qid)
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
                    self.iothread.call(execute_again, &self.controller.sqs[qid])
                    self.iothread.add_queue(&self.controller.sqs[qid])
            for qid in range(QUEUES):
                if self.controller.cqs[qid].size and self.controller.cqs[qid].interrupts:
                    raise_interrupt(&self.controller.cqs[qid])
        finally:
            self._resume()
        self._wake()

    # -- I/O queues ---------------------------------------------------------------------------------

    def create_cq(self, qid, iova, size, vector, *, interrupts):
        open_cq(self.controller, qid, iova, size, vector, interrupts)

    def delete_cq(self, qid):
        if not self.has_cq(qid) or qid == 0:
            raise KeyError(qid)
        self._pause()
        close_cq(self.controller, qid)
        self._resume()

    def create_sq(self, qid, cqid, iova, size, *, priority=0):
        if not self.has_cq(cqid) or self.has_sq(qid):
            raise KeyError(qid)
        open_sq(self.controller, self.iothread.thread, qid, cqid, iova, size, priority)
        self._pause()
        try:
            self.iothread.add_queue(&self.controller.sqs[qid])
        finally:
            self._resume()
        self._wake()

    def delete_sq(self, qid):
        cdef sq_t *sq = self._sq(qid)
        if sq.inflight:
            raise RuntimeError(f"SQ {qid} has commands in flight")
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

    def set_arbitration_burst(self, commands):
        self._pause()
        self.controller.burst = min(commands, BATCH) if commands else BATCH
        self._resume()

    # -- doorbells ----------------------------------------------------------------------------------

    def set_doorbell_buffers(self, shadow_iova, event_idx_iova):
        cdef uint64_t length
        cdef uint32_t hint = 0
        cdef uint32_t qid
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

    def ring_doorbell(self, index, value):
        cdef uint32_t stride = 1 << self.controller.dstrd
        cdef uint32_t qid, size
        if index % stride or index * 4 >= len(self.state.doorbells):
            return DOORBELL_INVALID_REGISTER
        qid = index // stride // 2
        completion = index // stride % 2
        if not (self.has_cq(qid) if completion else self.has_sq(qid)):
            return DOORBELL_INVALID_REGISTER
        size = self.controller.cqs[qid].size if completion else self.controller.sqs[qid].size
        if value >= size:
            return DOORBELL_INVALID_VALUE
        store_release32(&self.state.doorbell_page[index], value)
        if completion:
            follow_head(&self.controller.cqs[qid])
        if qid == 0:
            signal_fd(self.notify_fd)
        else:
            self._wake()
        return DOORBELL_OK

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
        if sq.size == 0 or not 0 <= slot < sq.slot_count or sq.slots[<uint32_t> slot].state != SLOT_BUSY:
            raise KeyError(slot)
        if not admin_room(self.controller):
            return False
        if status and log_error:
            self._log_error(&sq.slots[<uint32_t> slot], status, error_location)
        admin_complete(self.controller, slot, result, status)
        self._interrupt(&self.controller.cqs[0])
        return True

    cdef void _log_error(self, slot_t *entry, uint32_t status, uint32_t location) noexcept:
        log_error(self.controller.state, 0, entry.sqe.cid, status, location, 0, entry.sqe.nsid)

    cdef void _interrupt(self, cq_t *cq) noexcept:
        """As `interrupt_for` of the IOThread, which shares no counter with this thread meanwhile."""
        cdef path_counters_t *counters = &self.state.state.path_counters
        cdef uint64_t before = read_tsc()
        cdef uint64_t cycles
        if cq.interrupts and raise_interrupt(cq):
            cycles = read_tsc() - before
            self._pause()
            counters.interrupts += 1
            counters.interrupt_cycles += cycles
            self._resume()

    def abort_command(self, qid, cid):
        cdef sq_t *sq = self._sq(qid)
        cdef request_t *request
        self._pause()
        try:
            if abort_waiting(sq, cid):
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
        return (slot < sq.slot_count and load_acquire32(&sq.slots[slot].state) == SLOT_BUSY
                and sq.slots[slot].sequence == command.sequence)

    def log_queue_error(self, qid):
        log_error(self.controller.state, qid, 0xffff, 0, 0xffff, 0, 0)

    def log_controller_error(self, status):
        log_error(self.controller.state, 0xffff, 0xffff, status, 0xffff, 0, 0)

    def pending_admin(self):
        cdef sq_t *sq = &self.controller.sqs[0]
        cdef uint32_t i
        # In the order of fetching: how far behind the last one that was.
        busy = [
            (<int32_t> (sq.slots[i].sequence - sq.fetched), i)
            for i in range(sq.slot_count) if sq.slots[i].state == SLOT_BUSY
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

    # -- guest memory -----------------------------------------------------------------------------------

    def map(self, iova, size, fd, offset, *, readable, writable):
        self._pause()
        try:
            self.memory.map(iova, size, fd, offset, readable=readable, writable=writable)
            bind_all(self.controller)
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
            bind_all(self.controller)
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
        """Unregister memory that is gone from the thread's io_uring."""
        cdef uring_buffers_t argument
        dropped = list(self.memory.dropped_buffers)
        self.memory.dropped_buffers.clear()
        for first, count in dropped:
            if self.iothread.thread.uring != NULL:
                argument.first = first
                argument.count = count
                self.iothread.call(uring_drop_buffers, &argument)
            release_buffers(first, count)

    # -- namespaces -----------------------------------------------------------------------------------

    def set_namespace(self, nsid, Backend backend):
        cdef namespace_t *ns
        if not 1 <= nsid <= NAMESPACES:
            raise ValueError(f"NSID {nsid} is not in 1 to {NAMESPACES}")
        ns = &self.controller.namespaces[<uint32_t> nsid]
        if backend is not None:
            backend.use_memory(self.memory)
            try:
                backend.attach(self.iothread)
            except BaseException:
                backend.leave_memory(self.memory)
                raise
        self._pause()
        fill_namespace(ns, nsid, backend)
        self._resume()
        old = self.backends.pop(nsid, None)
        if old is not None:
            (<Backend> old).detach(self.iothread)
            old.leave_memory(self.memory)
        if backend is not None:
            self.backends[nsid] = backend

    cdef namespace_t *_namespace(self, nsid) except NULL:
        if nsid not in self.backends:
            raise KeyError(nsid)
        return &self.controller.namespaces[<uint32_t> nsid]

    def retire_namespace(self, nsid, retired=True):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        ns.retired = bool(retired)
        self._resume()

    def bar_namespace(self, nsid, status):
        cdef namespace_t *ns = self._namespace(nsid)
        self._pause()
        ns.retired = status
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

    def namespace_in_use(self, nsid, start=0):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef uint64_t first = start
        cdef bint found
        self._pause()
        found = namespace_used_from(self.controller, ns, first)
        self._resume()
        return found

    def namespace_counters(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        return IoCounters(
            ns.read_commands, ns.write_commands, ns.read_units << 9, ns.write_units << 9)

    def submission_queues(self):
        return [
            SubmissionQueue(qid, self.controller.sqs[<uint32_t> qid].cq.qid,
                            self.controller.sqs[<uint32_t> qid].size,
                            load_acquire32(&self.controller.sqs[<uint32_t> qid].inflight),
                            self.controller.sqs[<uint32_t> qid].held != 0)
            for qid in range(1, QUEUES) if self.controller.sqs[<uint32_t> qid].size
        ]

    # -- interrupts -----------------------------------------------------------------------------------

    def set_msix(self, vector, fd):
        if not 0 <= vector < QUEUES:
            raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")
        self._pause()
        old = set_vector(self.controller.irq, vector, -1 if fd is None else fd)
        self._resume()
        if old >= 0:
            os.close(old)

    def mask_msix(self, vector, masked):
        if not 0 <= vector < QUEUES:
            raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")
        self._pause()
        mask_vector(self.controller.irq, vector, bool(masked))
        self._resume()

    def set_intx(self, fd):
        self._pause()
        old = set_pin(self.controller, -1 if fd is None else fd)
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
        self.controller.irq.intms = mask
        assert_pin(self.controller)
        self._resume()

    def trigger(self, vector):
        if vector == -1:
            if self.controller.irq.intx_fd >= 0:
                signal_fd(self.controller.irq.intx_fd)
        elif not 0 <= vector < QUEUES:
            raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")
        elif self.controller.irq.msix_fd[<uint32_t> vector] >= 0:
            signal_fd(self.controller.irq.msix_fd[<uint32_t> vector])

    def clear_interrupts(self):
        for vector in range(QUEUES):
            if self.controller.irq.msix_fd[<uint32_t> vector] >= 0:
                self.set_msix(vector, None)
        self.set_intx(None)
        self._pause()
        memset(self.controller.irq.msix_masked, 0, sizeof(self.controller.irq.msix_masked))
        memset(self.controller.irq.msix_pending, 0, sizeof(self.controller.irq.msix_pending))
        self._resume()

    # -- numbers ----------------------------------------------------------------------------------------

    def statistics(self):
        cdef path_counters_t *counters = &self.state.state.path_counters
        ns = 1e9 / ticks_hz()

        def counter(count, cycles):
            return PathCounter(count, cycles, cycles * ns / count if count else 0.0)

        return PathStatistics(
            counter(counters.translated, counters.translated_cycles),
            counter(counters.completed, counters.completed_cycles),
            counter(counters.interrupts, counters.interrupt_cycles),
        )
