"""A controller's queues: the control plane's handle on the data path (see queue_table.pyi).

Every method runs on the control plane's thread. What an IOThread reads is changed only between
`iothread.pause()` and `iothread.resume()`. The admin queue pair is this thread's own; the I/O queue
pairs are the IOThread's while it runs.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.uio cimport iovec
from posix.unistd cimport close, read as read_fd

from nvme_mdev.datapath.atomics cimport (
    exchange32, load_acquire32, read_tsc, store_relaxed32, store_release32,
)
from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.compound cimport guest_segments, request_touches
from nvme_mdev.datapath.iothread cimport IOThread, execute_again, reserve_compared
from nvme_mdev.datapath.layout cimport (
    CQ_UNDECIDED, IO_QUEUES, QUEUES, SLOT_BUSY, SLOT_FREE, SLOTS, STAGE_NONE, cq_state_t, nvme_cqe_t,
    nvme_sqe_t, path_counters_t, slot_t, sq_state_t,
)
from nvme_mdev.datapath.memory cimport GuestMemory, memory_translate
from nvme_mdev.datapath.queues cimport (
    cq_advance, cq_post, cq_read_head, cq_room, log_error, pin_in_use, publish_head, quiet_index,
    raise_interrupt, signal_fd, slot_record, sq_fetch, sq_release,
)
from nvme_mdev.datapath.runtime cimport (
    BATCH, HELD_ASKED, HELD_ERROR, HELD_MEMORY, HELD_PAUSED, NAMESPACES, PAGE_SHIFT, PAGE_SIZE, REQUEST_EXPIRED, bad_table_t, controller_t, cq_t,
    interrupts_t, iothread_t, namespace_t, region_t, request_t, sq_t,
)
from nvme_mdev.datapath.state cimport ControllerState
from nvme_mdev.datapath.uncorrectable cimport bad_attach, bad_clear, bad_detach
from nvme_mdev.datapath.uring cimport uring_buffers_t, uring_drop_buffers

import os

from nvme_mdev.datapath.memory import release_buffers
from nvme_mdev.datapath.statistics import (
    IoCounters, PathCounter, PathStatistics, QueueError, SubmissionQueue,
)

DOORBELL_OK = 0
DOORBELL_INVALID_REGISTER = 1
DOORBELL_INVALID_VALUE = 2

cdef enum:
    SQE_SIZE = 64
    CQE_SIZE = 16
    #: Segments of a command at least: 256 ranges of Dataset Management; an SGL of small pieces.
    SEGMENTS_LEAST = 1024


cdef inline uint32_t page_count(uint64_t entries, uint64_t entry_size) noexcept:
    return <uint32_t> ((entries * entry_size + PAGE_SIZE - 1) >> PAGE_SHIFT)


cdef inline bint lies_in(region_t *region, void *address) noexcept:
    return <uint64_t> address - <uint64_t> region.address < region.size


cdef void forget_sq(sq_state_t *state) noexcept:
    """The queue does not exist any more, and then nothing of it does."""
    store_release32(&state.size, 0)
    memset(state, 0, sizeof(sq_state_t))


cdef void forget_cq(cq_state_t *state) noexcept:
    store_release32(&state.size, 0)
    memset(state, 0, sizeof(cq_state_t))


cdef bint was_posted(sq_t *sq, slot_t *slot) noexcept:
    """Whether the completion at the slot's recorded place is that of its command."""
    cdef nvme_cqe_t *entry
    if slot.cq_phase == CQ_UNDECIDED or slot.cq_index >= sq.cq.size:
        return False
    entry = <nvme_cqe_t *> (sq.cq.pages[slot.cq_index >> 8] + (slot.cq_index & 255) * 16)
    return (entry.cid == slot.sqe.cid and entry.sqid == sq.qid
            and (entry.status & 1) == slot.cq_phase)


cdef bint moves_through(request_t *request, region_t *region) noexcept:
    """Whether a request in flight reads or writes the region."""
    cdef uint32_t i, count
    cdef iovec *segments = guest_segments(request, &count)
    for i in range(count):
        # Segments of neighbouring mappings merge: one may begin before the region and end after it.
        if (<uint64_t> segments[i].iov_base < <uint64_t> region.address + region.size
                and <uint64_t> region.address
                < <uint64_t> segments[i].iov_base + segments[i].iov_len):
            return True
    return False


cdef class QueueTable:
    """Queues, namespaces, interrupts and guest memory of one controller."""

    cdef readonly ControllerState state
    cdef readonly GuestMemory memory
    cdef readonly IOThread iothread
    cdef readonly int notify_fd
    cdef controller_t *controller
    cdef dict backends
    cdef bint attached
    cdef unsigned int dstrd

    # -- making and unmaking --------------------------------------------------------------------

    def __cinit__(self, ControllerState state, GuestMemory memory, IOThread iothread, *, max_transfer=1 << 20):
        self.notify_fd = -1
        self.controller = <controller_t *> calloc(1, sizeof(controller_t))
        if self.controller == NULL:
            raise MemoryError
        self.controller.namespaces = <namespace_t *> calloc(NAMESPACES + 1, sizeof(namespace_t))
        self.controller.bad_tables = <bad_table_t *> calloc(NAMESPACES + 1, sizeof(bad_table_t))
        self.controller.irq = <interrupts_t *> calloc(1, sizeof(interrupts_t))
        self.controller.sqs = <sq_t *> calloc(QUEUES, sizeof(sq_t))
        self.controller.cqs = <cq_t *> calloc(QUEUES, sizeof(cq_t))
        if (self.controller.namespaces == NULL or self.controller.bad_tables == NULL
                or self.controller.irq == NULL
                or self.controller.sqs == NULL or self.controller.cqs == NULL):
            raise MemoryError
        memset(self.controller.irq.msix_fd, 0xff, sizeof(self.controller.irq.msix_fd))
        self.controller.irq.intx_fd = -1

    def __init__(self, ControllerState state, GuestMemory memory, IOThread iothread, *, max_transfer=1 << 20):
        self.state = state
        self.memory = memory
        self.iothread = iothread
        self.backends = {}
        self.notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.controller.state = state.state
        self.controller.memory = &memory.table
        self.controller.max_transfer = max_transfer
        self.controller.page_size = PAGE_SIZE
        self.controller.burst = BATCH
        self.controller.notify_fd = self.notify_fd
        self.controller.doorbells_mapped = 1
        iothread.pause()
        try:
            iothread.add_controller(self.controller)
        finally:
            iothread.resume()
        self.attached = True

    def close(self):
        if not self.attached:
            return
        for nsid in list(self.backends):
            self.set_namespace(nsid, None)
        self.disable()
        self.iothread.pause()
        self.iothread.remove_controller(self.controller)
        self.iothread.resume()
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
        free(self.controller.irq)
        free(self.controller.sqs)
        free(self.controller.cqs)
        free(self.controller)

    @property
    def doorbells_mapped(self):
        return bool(self.controller.doorbells_mapped)

    @doorbells_mapped.setter
    def doorbells_mapped(self, value):
        self.iothread.pause()
        self.controller.doorbells_mapped = bool(value)
        self.iothread.resume()

    # -- life cycle -------------------------------------------------------------------------------

    def enable(self, *, admin_sq, admin_sq_size, admin_cq, admin_cq_size, page_size, dstrd=0):
        self.dstrd = dstrd
        self.state.doorbells[:] = bytes(len(self.state.doorbells))
        self.controller.page_size = page_size
        self.controller.stopped = 0
        self.controller.errors = 0
        memset(self.controller.sq_error, 0, sizeof(self.controller.sq_error))
        memset(self.controller.cq_error, 0, sizeof(self.controller.cq_error))
        self._open_cq(0, admin_cq, admin_cq_size, 0, True)
        self._open_sq(0, 0, admin_sq, admin_sq_size, 0)
        self.iothread.pause()
        self.controller.admin_seen = 0
        self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        self.iothread.resume()
        # A thread that parked because it had nothing to poll now has the admin doorbell.
        self.iothread.wake()

    def stop(self):
        self.iothread.pause()
        self.controller.stopped = 1
        self._hold_all(HELD_ASKED)
        self.iothread.resume()

    def disable(self):
        cdef uint32_t qid
        self.iothread.pause()
        self.controller.admin_doorbell = NULL
        for qid in range(QUEUES):
            if self.controller.sqs[qid].size:
                self._close_sq(qid)
        for qid in range(QUEUES):
            if self.controller.cqs[qid].size:
                self._close_cq(qid)
        self.iothread.resume()
        # Those, too, that a process before us has left and nobody has adopted.
        for qid in range(QUEUES):
            forget_sq(&self.state.state.sq[qid])
            forget_cq(&self.state.state.cq[qid])
        self.state.shadow_doorbell_iova = self.state.event_idx_iova = 0

    cdef void _hold_all(self, uint32_t reason) noexcept:
        cdef uint32_t qid
        for qid in range(1, QUEUES):
            if self.controller.sqs[qid].size:
                self.controller.sqs[qid].held |= reason

    def hold(self, qid=None):
        self.iothread.pause()
        if qid is None:
            self._hold_all(HELD_ASKED)
        else:
            self._sq(qid).held |= HELD_ASKED
        self.iothread.resume()

    def release(self, qid=None):
        cdef uint32_t i
        self.iothread.pause()
        for i in range(1, QUEUES):
            if self.controller.sqs[i].size and (qid is None or qid == i):
                self.controller.sqs[i].held &= ~HELD_ASKED
        self.iothread.resume()
        self.iothread.wake()

    @property
    def paused(self):
        return bool(self.controller.paused)

    @paused.setter
    def paused(self, value):
        cdef uint32_t i
        self.iothread.pause()
        self.controller.paused = bool(value)
        for i in range(1, QUEUES):
            if self.controller.sqs[i].size:
                if value:
                    self.controller.sqs[i].held |= HELD_PAUSED
                else:
                    self.controller.sqs[i].held &= ~HELD_PAUSED
        self.iothread.resume()
        self.iothread.wake()

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
        self.iothread.pause()
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
        self.iothread.resume()
        return expired

    # -- queues -----------------------------------------------------------------------------------

    cdef sq_t *_sq(self, qid) except NULL:
        if not 1 <= qid <= IO_QUEUES or self.controller.sqs[<uint32_t> qid].size == 0:
            raise KeyError(qid)
        return &self.controller.sqs[<uint32_t> qid]

    cdef bint _bind_pages(self, uint8_t **pages, uint32_t count, uint64_t iova, bint write) noexcept:
        """Look up each page of a queue; False: one is not mapped."""
        cdef uint32_t hint = 0
        cdef uint32_t i
        cdef uint64_t length
        cdef bint complete = True
        for i in range(count):
            length = PAGE_SIZE
            pages[i] = memory_translate(
                self.controller.memory, iova + (<uint64_t> i << PAGE_SHIFT), &length, write, &hint)
            if pages[i] == NULL:
                complete = False
        return complete

    cdef uint32_t *_doorbell(self, uint32_t qid, bint completion, uint64_t shadow_iova) noexcept:
        """The doorbell's place in the register page, or (I/O queues) in a shadow page; NULL: gone."""
        cdef uint32_t offset = (2 * qid + completion) * (4 << self.dstrd)
        cdef uint64_t length = 4
        cdef uint32_t hint = 0
        if shadow_iova == 0 or qid == 0:
            return &self.state.doorbell_page[offset >> 2]
        return <uint32_t *> memory_translate(
            self.controller.memory, shadow_iova + offset, &length, True, &hint)

    cdef void _bind_doorbells(self, uint32_t qid) noexcept:
        """Point the queue pair at its doorbells; a queue whose shadow page is gone is held."""
        cdef sq_t *sq = &self.controller.sqs[qid]
        cdef cq_t *cq = &self.controller.cqs[qid]
        cdef uint64_t shadow = self.state.state.shadow_doorbell_iova
        cdef uint64_t events = self.state.state.event_idx_iova
        if sq.size:
            sq.tail_doorbell = self._doorbell(qid, False, shadow)
            sq.event_idx = self._doorbell(qid, False, events) if events and qid else NULL
        if cq.size:
            cq.head_doorbell = self._doorbell(qid, True, shadow)
            cq.event_idx = self._doorbell(qid, True, events) if events and qid else NULL

    cdef void _bind_sq(self, uint32_t qid) noexcept:
        cdef sq_t *sq = &self.controller.sqs[qid]
        cdef bint complete = self._bind_pages(
            sq.pages, page_count(sq.size, SQE_SIZE), sq.state.iova, False)
        sq.region_hint = 0
        self._bind_doorbells(qid)
        if sq.tail_doorbell == NULL:
            # Something to look at while the shadow page is away; the queue is held.
            sq.tail_doorbell = &self.state.doorbell_page[0]
            complete = False
        sq.held = sq.held & ~HELD_MEMORY if complete else sq.held | HELD_MEMORY

    cdef void _bind_cq(self, uint32_t qid) noexcept:
        cdef cq_t *cq = &self.controller.cqs[qid]
        cdef bint complete = self._bind_pages(
            cq.pages, page_count(cq.size, CQE_SIZE), cq.state.iova, True)
        self._bind_doorbells(qid)
        if cq.head_doorbell == NULL:
            cq.head_doorbell = &self.state.doorbell_page[0]
            complete = False
        cq.held = cq.held & ~HELD_MEMORY if complete else cq.held | HELD_MEMORY

    cdef void _rebind(self) noexcept:
        """Guest memory changed: look up everything that queues point to again."""
        cdef uint32_t qid
        for qid in range(QUEUES):
            if self.controller.sqs[qid].size:
                self._bind_sq(qid)
            if self.controller.cqs[qid].size:
                self._bind_cq(qid)

    cdef int _open_cq(self, uint32_t qid, uint64_t iova, uint32_t size, uint32_t vector, bint interrupts) except -1:
        cdef cq_t *cq = &self.controller.cqs[qid]
        cdef cq_state_t *state = &self.state.state.cq[qid]
        state.iova = iova
        state.vector = <uint16_t> vector
        state.interrupts = interrupts
        state.tail = 0
        state.phase = 1
        self._take_cq(qid, size)
        self._reset_doorbell(<uint32_t *> cq.head_doorbell, cq.event_idx, qid, True, size)
        self._follow_head(cq)
        # Last: with a size the queue exists for the next process.
        store_release32(&state.size, size)
        return 0

    cdef int _take_cq(self, uint32_t qid, uint32_t size) except -1:
        """Make what this process needs for the CQ that the state describes."""
        cdef cq_t *cq = &self.controller.cqs[qid]
        cdef cq_state_t *state = &self.state.state.cq[qid]
        memset(cq, 0, sizeof(cq_t))
        cq.pages = <uint8_t **> calloc(page_count(size, CQE_SIZE), sizeof(uint8_t *))
        if cq.pages == NULL:
            raise MemoryError
        cq.size = size
        cq.tail = state.tail
        cq.phase = state.phase
        cq.interrupts = state.interrupts
        cq.vector = state.vector
        cq.qid = qid
        cq.controller = self.controller
        cq.state = state
        self._bind_cq(qid)
        return 0

    cdef void _reset_doorbell(self, uint32_t *doorbell, uint32_t *event_idx, uint32_t qid, bint completion, uint32_t size) noexcept:
        """A new queue's doorbells are 0, wherever they are, and no ring is asked for."""
        self.state.doorbell_page[((2 * qid + completion) * (4 << self.dstrd)) >> 2] = 0
        store_relaxed32(doorbell, 0)
        if event_idx != NULL:
            store_relaxed32(event_idx, quiet_index(0, size))

    cdef int _open_sq(self, uint32_t qid, uint32_t cqid, uint64_t iova, uint32_t size, uint32_t priority) except -1:
        cdef sq_t *sq = &self.controller.sqs[qid]
        cdef sq_state_t *state = &self.state.state.sq[qid]
        cdef uint32_t i
        state.iova = iova
        state.cqid = <uint16_t> cqid
        state.priority = <uint16_t> priority
        state.head = state.fetched = 0
        for i in range(min(size, <uint32_t> SLOTS)):
            self.state.state.slots[qid][i].state = SLOT_FREE
            self.state.state.slots[qid][i].stage = STAGE_NONE
        self._take_sq(qid, size)
        self._reset_doorbell(<uint32_t *> sq.tail_doorbell, sq.event_idx, qid, False, size)
        # Last: with a size the queue exists for the next process.
        store_release32(&state.size, size)
        return 0

    cdef int _take_sq(self, uint32_t qid, uint32_t size) except -1:
        """Make what this process needs for the SQ that the state describes."""
        cdef sq_t *sq = &self.controller.sqs[qid]
        memset(sq, 0, sizeof(sq_t))
        sq.slot_count = min(size, <uint32_t> SLOTS)
        sq.iov_stride = max(
            <uint32_t> SEGMENTS_LEAST, <uint32_t> (self.controller.max_transfer >> PAGE_SHIFT) + 2)
        sq.pages = <uint8_t **> calloc(page_count(size, SQE_SIZE), sizeof(uint8_t *))
        sq.free_slots = <uint16_t *> malloc(sq.slot_count * sizeof(uint16_t))
        sq.requests = <request_t *> self._lazy(sq.slot_count * sizeof(request_t))
        sq.iov = <iovec *> self._lazy(sq.slot_count * <uint64_t> sq.iov_stride * sizeof(iovec))
        if sq.pages == NULL or sq.free_slots == NULL or sq.requests == NULL or sq.iov == NULL:
            self._free_sq(sq)
            raise MemoryError
        sq.size = size
        sq.qid = qid
        sq.state = &self.state.state.sq[qid]
        sq.cq = &self.controller.cqs[sq.state.cqid]
        sq.controller = self.controller
        sq.thread = self.iothread.thread
        sq.head = sq.state.head
        sq.fetched = sq.state.fetched
        sq.held = HELD_PAUSED if qid and self.controller.paused else 0
        self._fill_slots(sq)
        self._bind_sq(qid)
        return 0

    cdef void *_lazy(self, uint64_t size) noexcept:
        """Zeroed memory that costs nothing until it is touched; NULL: there is none."""
        cdef void *address = mmap(NULL, size, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        return NULL if address == MAP_FAILED else address

    cdef void _fill_slots(self, sq_t *sq) noexcept:
        """Each request knows its slot and queue; the first free slot is on top of the stack."""
        cdef uint32_t i
        sq.slots = self.state.state.slots[sq.qid]
        for i in range(sq.slot_count - 1, -1, -1):
            sq.requests[i].slot = &sq.slots[i]
            sq.requests[i].sq = sq
            if sq.slots[i].state == SLOT_FREE:
                sq.free_slots[sq.free_count] = <uint16_t> i
                sq.free_count += 1

    cdef void _free_sq(self, sq_t *sq) noexcept:
        free(sq.pages)
        free(sq.free_slots)
        if sq.requests != NULL:
            munmap(sq.requests, sq.slot_count * sizeof(request_t))
        if sq.iov != NULL:
            munmap(sq.iov, sq.slot_count * <uint64_t> sq.iov_stride * sizeof(iovec))
        memset(sq, 0, sizeof(sq_t))

    cdef void _close_sq(self, uint32_t qid) noexcept:
        cdef sq_t *sq = &self.controller.sqs[qid]
        self.iothread.remove_queue(sq)
        forget_sq(sq.state)
        self._free_sq(sq)

    cdef void _close_cq(self, uint32_t qid) noexcept:
        cdef cq_t *cq = &self.controller.cqs[qid]
        forget_cq(cq.state)
        free(cq.pages)
        memset(cq, 0, sizeof(cq_t))

    # -- after a process before us ------------------------------------------------------------------

    def adopt(self, *, page_size, dstrd=0):
        cdef uint32_t qid
        self.dstrd = dstrd
        self.controller.page_size = page_size
        self.iothread.pause()
        try:
            # No SQ without its CQ, which is checked again: the memory is ours, but it is not worth a crash.
            for qid in range(QUEUES):
                if self.state.state.cq[qid].size:
                    self._adopt_cq(qid)
            for qid in range(QUEUES):
                if self.state.state.sq[qid].size:
                    self._adopt_sq(qid)
            self.controller.admin_seen = self.controller.sqs[0].head
            if self.controller.sqs[0].size:
                self.controller.admin_doorbell = self.controller.sqs[0].tail_doorbell
        finally:
            self.iothread.resume()
        self.iothread.wake()

    def execute_again(self):
        cdef uint32_t qid
        self.iothread.pause()
        try:
            for qid in range(1, QUEUES):
                if self.controller.sqs[qid].size:
                    self.iothread.call(reserve_compared, &self.controller.sqs[qid])
            for qid in range(1, QUEUES):
                if self.controller.sqs[qid].size:
                    self.iothread.call(execute_again, &self.controller.sqs[qid])
                    self.iothread.add_queue(&self.controller.sqs[qid])
            for qid in range(QUEUES):
                if self.controller.cqs[qid].size and self.controller.cqs[qid].interrupts:
                    raise_interrupt(&self.controller.cqs[qid])
        finally:
            self.iothread.resume()
        self.iothread.wake()

    cdef int _adopt_cq(self, uint32_t qid) except -1:
        cdef cq_t *cq = &self.controller.cqs[qid]
        cdef uint32_t head
        self._take_cq(qid, self.state.state.cq[qid].size)
        if cq.held:
            raise ValueError(f"CQ {qid} is not in guest memory")
        head = load_acquire32(cq.head_doorbell)
        # An invalid value is found again, and told, when room is needed.
        cq.head = head if head < cq.size else cq.tail
        return 0

    cdef int _adopt_sq(self, uint32_t qid) except -1:
        cdef sq_t *sq = &self.controller.sqs[qid]
        cdef uint32_t i
        cdef uint32_t ahead = 0
        self._take_sq(qid, self.state.state.sq[qid].size)
        if sq.held or sq.cq.size == 0:
            raise ValueError(f"SQ {qid} is not in guest memory, or has no CQ")
        for i in range(sq.slot_count):
            if sq.slots[i].state == SLOT_BUSY:
                # Fetched, and killed before the head was published.
                if <int32_t> (sq.slots[i].sequence - sq.fetched) >= <int32_t> ahead:
                    ahead = sq.slots[i].sequence - sq.fetched + 1
                self._settle(sq, i)
        sq.fetched += ahead
        sq.head = (sq.head + ahead) % sq.size
        publish_head(sq)
        if sq.event_idx != NULL:
            sq.event_idx_head = sq.head
            store_relaxed32(sq.event_idx, quiet_index(sq.head, sq.size))
        return 0

    cdef void _settle(self, sq_t *sq, uint32_t index) noexcept:
        """Release the slot if its command's completion was posted."""
        cdef cq_t *cq = sq.cq
        cdef slot_t *slot = &sq.slots[index]
        if not was_posted(sq, slot):
            slot.cq_phase = CQ_UNDECIDED
            return
        if slot.cq_index == cq.tail and slot.cq_phase == cq.phase:
            cq_advance(cq)
        slot.stage = STAGE_NONE
        sq_release(sq, &sq.requests[index])

    def create_cq(self, qid, iova, size, vector, *, interrupts):
        self._open_cq(qid, iova, size, vector, interrupts)

    def delete_cq(self, qid):
        if not self.has_cq(qid) or qid == 0:
            raise KeyError(qid)
        self.iothread.pause()
        self._close_cq(qid)
        self.iothread.resume()

    def create_sq(self, qid, cqid, iova, size, *, priority=0):
        if not self.has_cq(cqid) or self.has_sq(qid):
            raise KeyError(qid)
        self._open_sq(qid, cqid, iova, size, priority)
        self.iothread.pause()
        try:
            self.iothread.add_queue(&self.controller.sqs[qid])
        finally:
            self.iothread.resume()
        self.iothread.wake()

    def delete_sq(self, qid):
        cdef sq_t *sq = self._sq(qid)
        if sq.inflight:
            raise RuntimeError(f"SQ {qid} has commands in flight")
        self.iothread.pause()
        self._close_sq(qid)
        self.iothread.resume()

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
        self.iothread.pause()
        self.controller.burst = min(commands, BATCH) if commands else BATCH
        self.iothread.resume()

    # -- doorbells ----------------------------------------------------------------------------------

    def set_doorbell_buffers(self, shadow_iova, event_idx_iova):
        cdef uint64_t length
        cdef uint32_t hint = 0
        cdef uint32_t qid
        for iova in (shadow_iova, event_idx_iova):
            length = PAGE_SIZE
            if memory_translate(self.controller.memory, iova, &length, True, &hint) == NULL:
                return False
        self.iothread.pause()
        self.state.shadow_doorbell_iova = shadow_iova
        self.state.event_idx_iova = event_idx_iova
        for qid in range(1, QUEUES):
            self._move_doorbells(qid)
        self.iothread.resume()
        return True

    cdef void _move_doorbells(self, uint32_t qid) noexcept:
        """Carry a queue pair's doorbells over to the shadow page."""
        cdef sq_t *sq = &self.controller.sqs[qid]
        cdef cq_t *cq = &self.controller.cqs[qid]
        cdef uint32_t tail = load_acquire32(sq.tail_doorbell) if sq.size else 0
        cdef uint32_t head = load_acquire32(cq.head_doorbell) if cq.size else 0
        self._bind_doorbells(qid)
        if sq.size:
            store_relaxed32(<uint32_t *> sq.tail_doorbell, tail)
            store_relaxed32(sq.event_idx, quiet_index(sq.head, sq.size))
            sq.event_idx_head = sq.head
        if cq.size:
            store_relaxed32(<uint32_t *> cq.head_doorbell, head)
            store_relaxed32(cq.event_idx, quiet_index(head, cq.size))
            self._follow_head(cq)

    def ring_doorbell(self, index, value):
        cdef uint32_t stride = 1 << self.dstrd
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
            self._follow_head(&self.controller.cqs[qid])
        if qid == 0:
            signal_fd(self.notify_fd)
        else:
            self.iothread.wake()
        return DOORBELL_OK

    cdef void _follow_head(self, cq_t *cq) noexcept:
        """With the pin, every move of the head shall be a register access: EventIdx is the head."""
        if cq.event_idx != NULL and pin_in_use(self.controller.irq):
            store_relaxed32(cq.event_idx, load_acquire32(cq.head_doorbell))

    # -- admin commands -------------------------------------------------------------------------------

    def clear_notify(self):
        cdef uint64_t ignored
        read_fd(self.notify_fd, &ignored, 8)

    def fetch_admin(self):
        cdef sq_t *sq = &self.controller.sqs[0]
        cdef request_t *request
        cdef uint32_t tail
        if sq.size == 0 or sq.held or self.controller.stopped or sq.free_count == 0:
            return None
        tail = load_acquire32(sq.tail_doorbell)
        if tail == sq.head:
            return None
        if tail >= sq.size:
            sq.held |= HELD_ERROR
            store_relaxed32(&self.controller.sq_error[0], 1)
            store_release32(&self.controller.errors, 1)
            return None
        request = sq_fetch(sq)
        publish_head(sq)
        return (request - sq.requests), (<const char *> &request.slot.sqe)[:SQE_SIZE]

    def complete_admin(self, slot, result, status, *, error_location=0xffff, log_error=True):
        cdef sq_t *sq = &self.controller.sqs[0]
        cdef cq_t *cq = &self.controller.cqs[0]
        cdef slot_t *entry
        if sq.size == 0 or not 0 <= slot < sq.slot_count or sq.slots[<uint32_t> slot].state != SLOT_BUSY:
            raise KeyError(slot)
        if not self._admin_room(cq):
            return False
        entry = &sq.slots[<uint32_t> slot]
        if status and log_error:
            self._log_error(entry, status, error_location)
        slot_record(entry, cq)
        cq_post(cq, result, sq.head, 0, entry.sqe.cid, status)
        sq_release(sq, &sq.requests[<uint32_t> slot])
        self._interrupt(cq)
        return True

    cdef bint _admin_room(self, cq_t *cq) noexcept:
        if cq.held:
            return False
        if cq_room(cq):
            return True
        if not cq_read_head(cq):
            cq.held |= HELD_ERROR
            store_relaxed32(&self.controller.cq_error[0], 1)
            store_release32(&self.controller.errors, 1)
            return False
        return cq_room(cq) > 0

    cdef void _log_error(self, slot_t *entry, uint32_t status, uint32_t location) noexcept:
        log_error(self.controller.state, 0, entry.sqe.cid, status, location, 0, entry.sqe.nsid)

    cdef void _interrupt(self, cq_t *cq) noexcept:
        """As `interrupt_for` of the IOThread, which shares no counter with this thread meanwhile."""
        cdef path_counters_t *counters = &self.state.state.path_counters
        cdef uint64_t before = read_tsc()
        cdef uint64_t cycles
        if cq.interrupts and raise_interrupt(cq):
            cycles = read_tsc() - before
            self.iothread.pause()
            counters.interrupts += 1
            counters.interrupt_cycles += cycles
            self.iothread.resume()

    def log_queue_error(self, qid):
        log_error(self.controller.state, qid, 0xffff, 0, 0xffff, 0, 0)

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
        self.iothread.pause()
        try:
            self.memory.map(iova, size, fd, offset, readable=readable, writable=writable)
            self._rebind()
        finally:
            self.iothread.resume()
        self._after_rebind()

    def _after_rebind(self):
        """Queues may have come back to life: someone has to look at their doorbells."""
        self.iothread.wake()
        if self.controller.sqs[0].size:
            signal_fd(self.notify_fd)

    def try_unmap(self, iova, size):
        self.iothread.pause()
        try:
            if self._in_use(iova, size):
                return None
            removed = self.memory.unmap(iova, size)
            self._rebind()
        finally:
            self.iothread.resume()
        self._drop_buffers()
        self._after_rebind()
        return removed

    def try_unmap_all(self):
        self.iothread.pause()
        try:
            if self._in_use(0, 0):
                return None
            removed = self.memory.clear()
            self._rebind()
        finally:
            self.iothread.resume()
        self._drop_buffers()
        return removed

    def give_up_unmap(self):
        self.iothread.pause()
        self._rebind()
        self.iothread.resume()
        self._after_rebind()

    cdef bint _in_use(self, uint64_t iova, uint64_t size) noexcept:
        """Commands in flight use the range (size 0: all of memory). Then every queue is held, until
        the binding that follows the unmapping decides anew."""
        cdef region_t *region
        cdef uint32_t i, qid
        for i in range(self.controller.memory.count):
            region = &self.controller.memory.regions[i]
            if region.address != NULL and (size == 0 or region.iova - iova < size):
                if self._region_in_use(region):
                    for qid in range(1, QUEUES):
                        if self.controller.sqs[qid].size:
                            self.controller.sqs[qid].held |= HELD_MEMORY
                    return True
        return False

    cdef bint _region_in_use(self, region_t *region) noexcept:
        cdef sq_t *sq
        cdef uint32_t qid, i
        for qid in range(1, QUEUES):
            sq = &self.controller.sqs[qid]
            if sq.size == 0 or sq.inflight == 0:
                continue
            for i in range(page_count(sq.cq.size, CQE_SIZE)):
                if lies_in(region, sq.cq.pages[i]):
                    return True
            for i in range(sq.slot_count):
                if sq.slots[i].state == SLOT_BUSY and moves_through(&sq.requests[i], region):
                    return True
        return False

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
            backend.attach(self.iothread)
        self.iothread.pause()
        if ns.backend != NULL:
            bad_detach(ns.backend, &self.controller.bad_tables[<uint32_t> nsid])
        memset(ns, 0, sizeof(namespace_t))
        if backend is not None:
            ns.backend = &backend.backend
            ns.blocks = backend.size // backend.block_size
            ns.block_shift = backend.block_size.bit_length() - 1
            ns.nsid = nsid
            ns.read_only = backend.read_only
            self.controller.bad_tables[<uint32_t> nsid].ranges = self.state.state.bad_ranges
            self.controller.bad_tables[<uint32_t> nsid].nsid = nsid
            bad_attach(ns.backend, &self.controller.bad_tables[<uint32_t> nsid])
        self.iothread.resume()
        old = self.backends.pop(nsid, None)
        if old is not None:
            (<Backend> old).detach(self.iothread)
        if backend is not None:
            self.backends[nsid] = backend

    cdef namespace_t *_namespace(self, nsid) except NULL:
        if nsid not in self.backends:
            raise KeyError(nsid)
        return &self.controller.namespaces[<uint32_t> nsid]

    def clear_uncorrectable(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        self.iothread.pause()
        bad_clear(ns.backend, 0, <uint64_t> -1)
        self.iothread.resume()

    def retire_namespace(self, nsid):
        cdef namespace_t *ns = self._namespace(nsid)
        self.iothread.pause()
        ns.retired = 1
        self.iothread.resume()

    def resize_namespace(self, nsid, size):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef Backend backend = self.backends[nsid]
        self.iothread.pause()
        try:
            backend.set_size(size)
            ns.blocks = backend.size >> ns.block_shift
        finally:
            self.iothread.resume()

    def namespace_in_use(self, nsid, start=0):
        cdef namespace_t *ns = self._namespace(nsid)
        cdef uint64_t first = start
        cdef bint found
        self.iothread.pause()
        found = self._used_from(ns, first)
        self.iothread.resume()
        return found

    cdef bint _used_from(self, namespace_t *ns, uint64_t start) noexcept:
        cdef sq_t *sq
        cdef uint32_t qid, i
        for qid in range(1, QUEUES):
            sq = &self.controller.sqs[qid]
            if sq.size == 0 or sq.inflight == 0:
                continue
            for i in range(sq.slot_count):
                if (sq.slots[i].state == SLOT_BUSY and sq.requests[i].ns == ns
                        and (start == 0 or request_touches(&sq.requests[i], start, <uint64_t> -1))):
                    return True
        return False

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
        cdef interrupts_t *irq = self.controller.irq
        cdef uint32_t v
        if not 0 <= vector < QUEUES:
            raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")
        v = vector
        self.iothread.pause()
        old = irq.msix_fd[v]
        irq.msix_fd[v] = -1 if fd is None else fd
        irq.msix_vectors += (fd is not None) - (old >= 0)
        if fd is not None and irq.msix_pending[v] and not irq.msix_masked[v]:
            irq.msix_pending[v] = 0
            signal_fd(irq.msix_fd[v])
        self.iothread.resume()
        if old >= 0:
            os.close(old)

    def mask_msix(self, vector, masked):
        cdef interrupts_t *irq = self.controller.irq
        cdef uint32_t v
        if not 0 <= vector < QUEUES:
            raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")
        v = vector
        self.iothread.pause()
        irq.msix_masked[v] = bool(masked)
        if not masked and irq.msix_pending[v]:
            irq.msix_pending[v] = 0
            if irq.msix_fd[v] >= 0:
                signal_fd(irq.msix_fd[v])
        self.iothread.resume()

    def set_intx(self, fd):
        self.iothread.pause()
        old = self.controller.irq.intx_fd
        self.controller.irq.intx_fd = -1 if fd is None else fd
        self.controller.irq.intx_masked = 0
        self._assert_pin()
        self.iothread.resume()
        if old >= 0:
            os.close(old)

    def mask_intx(self, masked):
        self.iothread.pause()
        self.controller.irq.intx_masked = bool(masked)
        self._assert_pin()
        self.iothread.resume()

    def set_intms(self, mask):
        self.iothread.pause()
        self.controller.irq.intms = mask
        self._assert_pin()
        self.iothread.resume()

    cdef void _assert_pin(self) noexcept:
        """The pin is a level: assert it while a CQ with interrupts has entries not consumed."""
        cdef uint32_t qid
        cdef cq_t *cq
        if self.controller.irq.msix_vectors or self.controller.irq.intx_masked:
            return
        for qid in range(QUEUES):
            cq = &self.controller.cqs[qid]
            if cq.size and cq.interrupts and raise_interrupt(cq):
                return

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
        self.iothread.pause()
        memset(self.controller.irq.msix_masked, 0, sizeof(self.controller.irq.msix_masked))
        memset(self.controller.irq.msix_pending, 0, sizeof(self.controller.irq.msix_pending))
        self.iothread.resume()

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
