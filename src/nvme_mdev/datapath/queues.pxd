"""Queue primitives of the controller's side: fetch, complete, publish, interrupt.

Each does one thing. Guest memory is only touched through page pointers that were checked when the
queue was bound; an index is always below the queue's size.

The process can be killed between any two stores to shared memory, and the next one has to make sense
of what it finds (`recovery.pxd`). Stores of one thread are seen in their order by whoever looks after its
death, so nothing but the compiler has to be kept from changing it: hence the release stores.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport (
    copy64, exchange32, fence_full, fetch_add64, load_acquire32, load_relaxed32,
    prefetch_write, read_tsc, store_relaxed32, store_release32, store_release64,
)
from nvme_mdev.datapath.chain cimport chain_next
from nvme_mdev.datapath.layout cimport (
    CQ_UNDECIDED, ERROR_ENTRIES, INTERRUPT_MASKS, INTERRUPT_PENDING, SLOT_BUSY, SLOT_FREE,
    controller_state_t, error_entry_t, nvme_cqe_t, nvme_sqe_t, slot_t,
)
from nvme_mdev.datapath.lines cimport prefetch_lines
from nvme_mdev.datapath.runtime cimport (
    INTERRUPTS_RELAYED, controller_t, cq_t, interrupts_t, iothread_t, request_t, sq_t,
)
from nvme_mdev.datapath.signalling cimport signal_client

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef enum:
    SQE_SIZE = 64
    CQE_SIZE = 16
    CQES_PER_PAGE = 256


cdef inline nvme_sqe_t *sq_entry(sq_t *sq, uint32_t index) noexcept nogil:
    """Address of an SQE: 64 to a guest page."""
    return <nvme_sqe_t *> (sq.pages[index >> 6] + (index & 63) * 64)


cdef inline void sq_prefetch(sq_t *sq, uint32_t count) noexcept nogil:
    """Ask for a batch's SQEs (a page of them at most): each is a line that the guest's core has.

    Not for what is behind the tail, which the guest may be writing."""
    cdef uint32_t first = min(count, 64 - (sq.head & 63), sq.size - sq.head)
    prefetch_lines(<uint8_t *> sq_entry(sq, sq.head), first)
    if count > first:
        # In the next page, or at the queue's start.
        prefetch_lines(
            <uint8_t *> sq_entry(sq, sq.head + first if sq.head + first < sq.size else 0), count - first)


cdef inline uint32_t sq_waiting(sq_t *sq, uint32_t tail) noexcept nogil:
    """Entries between the head and a (valid) tail."""
    return tail - sq.head if tail >= sq.head else tail + sq.size - sq.head


cdef inline request_t *sq_fetch(sq_t *sq) noexcept nogil:
    """Copy the SQE at the head into a free slot, advance the head; the slot's request.

    The caller knows that there is an entry and a free slot. The slot is busy before the head is
    published, so that a new process never loses a command. Its completion has no place yet: what
    the slot's last command has left there must not pass for it.
    """
    cdef uint32_t head = sq.head
    cdef request_t *request
    cdef slot_t *slot
    request = sq.free_requests
    sq.free_requests = chain_next(request)
    sq.free_count -= 1
    slot = request.slot
    copy64(&slot.sqe, sq_entry(sq, head))
    slot.sq_index = head
    slot.sequence = sq.fetched
    slot.cq_phase = CQ_UNDECIDED
    store_release32(&slot.state, SLOT_BUSY)
    sq.fetched += 1
    sq.head = 0 if head + 1 == sq.size else head + 1
    return request


cdef inline void sq_release(sq_t *sq, request_t *request) noexcept nogil:
    """Give the command's slot back: it is complete."""
    store_release32(&request.slot.state, SLOT_FREE)
    request.done = <uint64_t> sq.free_requests
    sq.free_requests = request
    sq.free_count += 1


cdef inline void request_done(iothread_t *thread, request_t *request) noexcept nogil:
    """A request is over, `request.status` is set: its completion is posted this turn."""
    thread.done[thread.done_count] = request
    thread.done_count += 1


cdef inline void publish_head(sq_t *sq) noexcept nogil:
    """Record the head in shared memory, for the next process; the slots are busy already."""
    store_release64(<uint64_t *> &sq.state.head, sq.head | <uint64_t> sq.fetched << 32)


cdef inline void sq_unfetch(sq_t *sq, request_t *request) noexcept nogil:
    """Put the command that was fetched last back. The head goes first, or it could be lost."""
    sq.fetched -= 1
    sq.head = sq.size - 1 if sq.head == 0 else sq.head - 1
    publish_head(sq)
    sq_release(sq, request)


cdef inline uint32_t quiet_index(uint32_t index, uint32_t size) noexcept nogil:
    """An EventIdx that asks for no ring: a quarter of the queue behind `index`.

    The guest rings when it moves across EventIdx. It cannot come from behind before it has gone
    almost all the way round; and it must not be right behind `index`, for a guest reads EventIdx
    after it has published a move that we may have seen already.
    """
    cdef uint32_t behind = size >> 2 if size >= 4 else 1
    return index - behind if index >= behind else index + size - behind


cdef inline void sq_suppress_event(sq_t *sq) noexcept nogil:
    """While we poll, keep EventIdx where no new tail comes: the guest leaves the register alone.

    It need not follow every command: the guest reads the same cache line at each ring, so it is
    moved once an eighth of the queue. In between a guest whose queue is more than half full can
    pass it and rings for nothing, which is harmless.
    """
    cdef uint32_t ahead
    if sq.event_idx == NULL:
        return
    ahead = sq.head - sq.event_idx_head if sq.head >= sq.event_idx_head else (
        sq.head + sq.size - sq.event_idx_head)
    if ahead >= sq.size >> 3:
        sq.event_idx_head = sq.head
        store_relaxed32(sq.event_idx, quiet_index(sq.head, sq.size))


cdef inline bint pin_in_use(interrupts_t *irq) noexcept nogil:
    """The client listens to the pin, and to no vector of MSI-X or MSI."""
    return irq.vectors == 0 and irq.intx_fd >= 0


cdef inline nvme_cqe_t *cq_entry(cq_t *cq, uint32_t index) noexcept nogil:
    """Address of a CQE: 256 to a guest page."""
    return <nvme_cqe_t *> (cq.pages[index >> 8] + (index & 255) * 16)


cdef inline uint32_t cq_used(cq_t *cq) noexcept nogil:
    """Entries that the guest has not consumed, by the head that was last read."""
    return cq.tail - cq.head if cq.tail >= cq.head else cq.tail + cq.size - cq.head


cdef inline uint32_t cq_room(cq_t *cq) noexcept nogil:
    """Entries that can still be promised. One stays empty, or full would look like empty."""
    return cq.size - 1 - cq_used(cq) - cq.reserved_entries


cdef inline uint32_t *behind_tail(cq_t *cq) noexcept nogil:
    """Where a driver that takes no notice of CAP.DSTRD rings the CQ head (QEMU's block/nvme.c)."""
    return &cq.controller.doorbell_page[(2 * cq.qid << cq.controller.dstrd) + 1]


cdef inline bint rung_behind_tail(cq_t *cq) noexcept nogil:
    """The register of a full CQ was never rung, and the word behind the SQ's tail was: the head is
    there as long as the queue exists."""
    if (cq.controller.dstrd == 0 or cq.event_idx != NULL or cq.head_behind_tail
            or load_relaxed32(behind_tail(cq)) == 0):
        return False
    cq.head_behind_tail = 1
    cq.head_doorbell = behind_tail(cq)
    return True


cdef inline bint cq_read_head(cq_t *cq) noexcept nogil:
    """Take the guest's head from the doorbell. False: it is invalid (a value that is not an entry
    between the old head and the tail)."""
    cdef uint32_t head = load_acquire32(cq.head_doorbell)
    cdef uint32_t freed
    if head == 0 and cq.head == 0 and cq_room(cq) == 0 and rung_behind_tail(cq):
        head = load_acquire32(cq.head_doorbell)
    if head >= cq.size:
        return False
    freed = head - cq.head if head >= cq.head else head + cq.size - cq.head
    if freed > cq_used(cq):
        return False
    cq.head = head
    if cq.event_idx != NULL and not pin_in_use(cq.controller.irq):
        store_relaxed32(cq.event_idx, quiet_index(head, cq.size))
    return True


cdef inline void slot_record(slot_t *slot, uint32_t cq_index, uint32_t cq_phase) noexcept nogil:
    """Note where the command's completion goes, before it goes there."""
    slot.cq_index = cq_index
    store_release32(&slot.cq_phase, cq_phase)


cdef inline void cq_prefetch(cq_t *cq, uint32_t count) noexcept nogil:
    """Ask for the lines that the CQEs of a batch go to, as far as they lie in one piece: the guest's
    core has them. Not for the first, which the guest looks at all the time: it would take it back."""
    cdef uint32_t in_piece = min(256 - (cq.tail & 255), cq.size - cq.tail)
    cdef nvme_cqe_t *entry = cq_entry(cq, cq.tail)
    cdef nvme_cqe_t *end = entry + min(count, in_piece)
    entry += 4
    while entry < end:
        prefetch_write(entry)
        entry += 4


cdef inline void cq_move(cq_t *cq, uint32_t tail, uint32_t phase) noexcept nogil:
    """The entries up to there are written: move the tail, here and in shared memory."""
    cq.tail = tail
    cq.phase = phase
    store_release64(<uint64_t *> &cq.state.tail, tail | <uint64_t> phase << 32)


cdef inline void cq_advance(cq_t *cq) noexcept nogil:
    """The entry at the tail is written."""
    if cq.tail + 1 == cq.size:
        cq_move(cq, 0, cq.phase ^ 1)
    else:
        cq_move(cq, cq.tail + 1, cq.phase)


cdef inline bint cq_holds(
    cq_t *cq, uint32_t qid, uint32_t index, uint32_t phase, uint32_t cid
) noexcept nogil:
    """Whether the completion of a command of that SQ was posted to a place that was recorded for it."""
    cdef nvme_cqe_t *entry
    if index >= cq.size:
        return False
    entry = cq_entry(cq, index)
    return entry.cid == cid and entry.sqid == qid and (entry.status & 1) == phase


cdef inline void cq_move_behind(cq_t *cq, uint32_t index, uint32_t phase) noexcept nogil:
    """A completion was posted there, by a process that may have been killed before it moved the tail behind
    all that it had posted. A place that is a round further, or two, is before the tail."""
    cdef uint32_t place = index + (cq.size if phase else 0)
    cdef uint32_t tail = cq.tail + (cq.size if cq.phase else 0)
    if (place + 2 * cq.size - tail) % (2 * cq.size) < cq.size:
        cq.tail = index
        cq.phase = phase
        cq_advance(cq)


cdef inline void cqe_write(
    nvme_cqe_t *entry, uint32_t dw0, uint32_t queue, uint32_t cid, uint32_t status, uint32_t phase
) noexcept nogil:
    """Write a CQE; `queue`: SQHD, and SQID above it. The half with the phase tag goes last."""
    (<uint64_t *> entry)[0] = dw0
    store_release64(
        <uint64_t *> entry + 1, queue | <uint64_t> (cid | (status << 1 | phase) << 16) << 32)


cdef inline void cq_post(
    cq_t *cq, uint32_t dw0, uint32_t sqhd, uint32_t sqid, uint32_t cid, uint32_t status
) noexcept nogil:
    """Write a CQE at the tail and advance it."""
    cqe_write(cq_entry(cq, cq.tail), dw0, sqhd | sqid << 16, cid, status, cq.phase)
    cq_advance(cq)


cdef inline void signal_fd(int fd) noexcept nogil:
    """Bump an eventfd of ours, which never blocks. Through the C library, unlike `signal_client`: this is
    seldom, and a system call in line costs whoever might make it registers."""
    eventfd_write(fd, 1)


cdef inline void wake_thread(iothread_t *thread) noexcept nogil:
    """Make a sleeping IOThread look at its queues: a doorbell came through the socket.

    The doorbell was stored before: the fence orders it with this load, as the sleeping side orders
    its `parked` with its look at the doorbell."""
    fence_full()
    if load_relaxed32(&thread.parked):
        signal_fd(thread.wake_fd)


cdef inline bint tell_relay(cq_t *cq) noexcept nogil:
    """Whether somebody else moves the completions to the guest, and is told that there are some."""
    if cq.interrupts != INTERRUPTS_RELAYED:
        return False
    signal_fd(cq.controller.relay_fd)
    return True


cdef inline bint pin_wanted(controller_t *controller) noexcept nogil:
    """The pin is in use, and the guest does not hold it back."""
    cdef interrupts_t *irq = controller.irq
    cdef uint32_t interrupt_disable = controller.state.config_space[5] & 4
    return pin_in_use(irq) and not irq.intms & 1 and not interrupt_disable


cdef inline bint raise_pin(cq_t *cq) noexcept nogil:
    """Assert the pin for a CQ that has entries which the guest has not consumed. True: it was.

    The pin is level-triggered: after an assertion it stays masked until the client says that the
    guest has seen it (VFIO_IRQ_INFO_AUTOMASKED). The client learns that from a register access; so
    a guest with shadow doorbells must ring when it moves the head, and EventIdx follows the head.
    """
    cdef uint32_t head = load_acquire32(cq.head_doorbell)
    if head == cq.tail or exchange32(&cq.controller.irq.intx_masked, 1):
        return False
    if cq.event_idx != NULL:
        store_relaxed32(cq.event_idx, head)
    return signal_client(&cq.controller.irq.intx_fd)


cdef inline bint raise_interrupt(cq_t *cq) noexcept nogil:
    """Deliver a CQ's interrupt, or note it as pending where it is masked. True: one was sent."""
    cdef interrupts_t *irq = cq.controller.irq
    if irq.vectors == 0:
        return pin_wanted(cq.controller) and raise_pin(cq)
    if irq.vector_state[cq.vector] & INTERRUPT_MASKS:
        irq.vector_state[cq.vector] |= INTERRUPT_PENDING
        return False
    return signal_client(&irq.vector_fd[cq.vector])


cdef inline bint is_timed(iothread_t *thread, uint64_t count) noexcept nogil:
    """What is done in this turn is timed, too: in one turn of 16, in the first after a sleep, and as
    long as there were few (`count`).

    Looking at the time-stamp counter three times more would be a seventh of a single command.
    """
    return (thread.turns & 15 == 15) | (count < 16)


cdef inline void count_interrupt(cq_t *cq, bint timed, uint64_t before) noexcept nogil:
    """One was sent; `before`: the time-stamp counter when that began, if it is timed."""
    cq.path_counters.interrupts += 1
    if timed:
        cq.path_counters.interrupts_timed += 1
        cq.path_counters.interrupt_cycles += read_tsc() - before


cdef inline void log_error(
    controller_state_t *state, uint32_t sqid, uint32_t cid, uint32_t status, uint32_t location,
    uint64_t lba, uint32_t nsid
) noexcept nogil:
    """Add an entry to the Error Information log. The count goes last: it makes the entry valid."""
    cdef uint64_t count = fetch_add64(&state.error_count, 1) + 1
    cdef error_entry_t *entry = &state.error_log[(count - 1) % ERROR_ENTRIES]
    entry.error_count = 0
    entry.sqid = <uint16_t> sqid
    entry.cid = <uint16_t> cid
    entry.status = <uint16_t> (status << 1)
    entry.parameter_error_location = <uint16_t> location
    entry.lba = lba
    entry.nsid = nsid
    entry.vendor = 0
    store_release64(&entry.error_count, count)
