"""Making and unmaking queues: their part of the shared state, and what this process keeps of them.

A queue exists in the shared state when its size is not 0, which is stored last when it is created
and first when it is deleted: so a process that is killed in between leaves none or all of it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.uio cimport iovec

from nvme_mdev.datapath.atomics cimport load_acquire32, store_relaxed32, store_release32
from nvme_mdev.datapath.binding cimport bind_cq, bind_doorbells, bind_sq, page_count
from nvme_mdev.datapath.coalescing cimport coalescing_configure, coalescing_forget
from nvme_mdev.datapath.layout cimport (
    HOST_QUEUES, QUEUES, SLOTS, cq_state_t, sq_state_t,
)
from nvme_mdev.datapath.queues cimport CQE_SIZE, SQE_SIZE, behind_tail, pin_in_use, quiet_index
from nvme_mdev.datapath.runtime cimport (
    HELD_PAUSED, INTERRUPTS_AT_ONCE, INTERRUPTS_NONE, INTERRUPTS_RELAYED, PAGE_SHIFT, controller_t,
    cq_t, request_t, sq_t,
)
from nvme_mdev.datapath.slots cimport give_back_slots, take_slots

cdef enum:
    #: 256 ranges of a Dataset Management command, and what a cut first and last page may add.
    SEGMENTS_LEAST = 1024


cdef void *lazy_memory(uint64_t size) noexcept:
    """Zeroed memory that costs nothing until it is touched; NULL: there is none."""
    cdef void *address = mmap(NULL, size, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if address == MAP_FAILED else address


cdef void reset_doorbell(
    controller_t *controller, uint32_t *doorbell, uint32_t *event_idx, uint32_t qid, bint completion,
    uint32_t size
) noexcept:
    """A new queue's doorbells are 0, wherever they are, and no ring is asked for."""
    doorbell_register(controller, qid, completion)[0] = 0
    if completion and controller.dstrd:
        behind_tail(&controller.cqs[qid])[0] = 0
    store_relaxed32(doorbell, 0)
    if event_idx != NULL:
        store_relaxed32(event_idx, quiet_index(0, size))


# -- completion queues --------------------------------------------------------------------------


cdef int open_cq(
    controller_t *controller, uint32_t qid, queue_place_t place, uint32_t vector, bint interrupts
) except -1:
    cdef cq_t *cq = &controller.cqs[qid]
    cdef cq_state_t *state = &controller.state.cq[qid]
    state.iova = place.iova
    state.noncontiguous = place.noncontiguous
    state.vector = <uint16_t> vector
    state.interrupts = interrupts
    state.tail = 0
    state.phase = 1
    take_cq(controller, qid, place.size)
    reset_doorbell(controller, <uint32_t *> cq.head_doorbell, cq.event_idx, qid, True, place.size)
    follow_head(cq)
    # Last: with a size the queue exists for the next process.
    store_release32(&state.size, place.size)
    return 0


cdef int take_cq(controller_t *controller, uint32_t qid, uint32_t size) except -1:
    cdef cq_t *cq = &controller.cqs[qid]
    cdef cq_state_t *state = &controller.state.cq[qid]
    memset(cq, 0, sizeof(cq_t))
    cq.pages = <uint8_t **> calloc(page_count(size, CQE_SIZE), sizeof(uint8_t *))
    if cq.pages == NULL:
        raise MemoryError
    cq.size = size
    cq.tail = state.tail
    cq.phase = state.phase
    cq.interrupts = interrupts_of(controller, state)
    cq.vector = state.vector
    cq.qid = qid
    cq.controller = controller
    cq.state = state
    # Queues of neighbouring vCPUs are served side by side. The admin queue is the control plane's.
    cq.host_queue = (qid - 1) % controller.thread_count if qid else HOST_QUEUES
    cq.thread = controller.threads[cq.host_queue] if qid else NULL
    cq.path_counters = &controller.state.path_counters[cq.host_queue]
    bind_cq(controller, qid)
    if qid:
        coalescing_configure(controller)
    return 0


cdef uint32_t interrupts_of(controller_t *controller, cq_state_t *state) noexcept:
    if controller.relayed:
        return INTERRUPTS_RELAYED
    return INTERRUPTS_AT_ONCE if state.interrupts else INTERRUPTS_NONE


cdef void forget_cq(cq_state_t *state) noexcept:
    """The queue does not exist any more, and then nothing of it does."""
    store_release32(&state.size, 0)
    memset(state, 0, sizeof(cq_state_t))


cdef void close_cq(controller_t *controller, uint32_t qid) noexcept:
    cdef cq_t *cq = &controller.cqs[qid]
    coalescing_forget(cq)
    forget_cq(cq.state)
    free(cq.pages)
    memset(cq, 0, sizeof(cq_t))


# -- submission queues --------------------------------------------------------------------------


cdef int open_sq(
    controller_t *controller, uint32_t qid, uint32_t cqid, queue_place_t place, uint32_t priority
) except -1:
    cdef sq_t *sq = &controller.sqs[qid]
    cdef sq_state_t *state = &controller.state.sq[qid]
    state.iova = place.iova
    state.noncontiguous = <uint16_t> place.noncontiguous
    state.cqid = <uint16_t> cqid
    state.priority = <uint16_t> priority
    state.head = state.fetched = 0
    state.slots = 0
    take_sq(controller, qid, place.size)
    reset_doorbell(controller, <uint32_t *> sq.tail_doorbell, sq.event_idx, qid, False, place.size)
    # Last: with a size the queue exists for the next process.
    store_release32(&state.size, place.size)
    return 0


cdef int take_sq(controller_t *controller, uint32_t qid, uint32_t size) except -1:
    cdef sq_t *sq = &controller.sqs[qid]
    memset(sq, 0, sizeof(sq_t))
    sq.slot_count = min(size, <uint32_t> SLOTS)
    sq.iov_stride = max(
        <uint32_t> SEGMENTS_LEAST, <uint32_t> (controller.max_transfer >> PAGE_SHIFT) + 2)
    sq.pages = <uint8_t **> calloc(page_count(size, SQE_SIZE), sizeof(uint8_t *))
    sq.requests = <request_t *> lazy_memory(sq.slot_count * sizeof(request_t))
    sq.iov = <iovec *> lazy_memory(sq.slot_count * <uint64_t> sq.iov_stride * sizeof(iovec))
    if sq.pages == NULL or sq.requests == NULL or sq.iov == NULL:
        free_sq(sq)
        raise MemoryError
    sq.size = size
    sq.qid = qid
    sq.state = &controller.state.sq[qid]
    sq.cq = &controller.cqs[sq.state.cqid]
    sq.controller = controller
    # One thread posts to a CQ, so its SQs are that thread's.
    sq.host_queue = sq.cq.host_queue
    sq.thread = sq.cq.thread
    sq.path_counters = sq.cq.path_counters
    if qid:
        sq.io_counters = &controller.state.io_counters[sq.host_queue]
    sq.burst = controller.burst
    sq.priority = sq.state.priority & 3
    sq.head = sq.state.head
    sq.fetched = sq.state.fetched
    sq.held = HELD_PAUSED if qid and controller.paused else 0
    take_slots(sq)
    bind_sq(controller, qid)
    return 0


cdef void free_sq(sq_t *sq) noexcept:
    free(sq.pages)
    if sq.requests != NULL:
        munmap(sq.requests, sq.slot_count * sizeof(request_t))
    if sq.iov != NULL:
        munmap(sq.iov, sq.slot_count * <uint64_t> sq.iov_stride * sizeof(iovec))
    memset(sq, 0, sizeof(sq_t))


cdef void forget_sq(sq_state_t *state) noexcept:
    store_release32(&state.size, 0)
    memset(state, 0, sizeof(sq_state_t))


cdef void close_sq(controller_t *controller, uint32_t qid) noexcept:
    cdef sq_t *sq = &controller.sqs[qid]
    forget_sq(sq.state)
    give_back_slots(sq)
    free_sq(sq)


cdef void forget_queues(controller_t *controller) noexcept:
    cdef uint32_t qid
    for qid in range(QUEUES):
        forget_sq(&controller.state.sq[qid])
        forget_cq(&controller.state.cq[qid])


# -- doorbells ----------------------------------------------------------------------------------


cdef uint32_t *doorbell_register(controller_t *controller, uint32_t qid, bint completion) noexcept:
    return &controller.doorbell_page[(2 * qid + completion) << controller.dstrd]


cdef void move_doorbells(controller_t *controller, uint32_t qid) noexcept:
    cdef sq_t *sq = &controller.sqs[qid]
    cdef cq_t *cq = &controller.cqs[qid]
    cdef uint32_t tail = load_acquire32(sq.tail_doorbell) if sq.size else 0
    cdef uint32_t head = load_acquire32(cq.head_doorbell) if cq.size else 0
    bind_doorbells(controller, qid)
    if sq.size:
        store_relaxed32(<uint32_t *> sq.tail_doorbell, tail)
        store_relaxed32(sq.event_idx, quiet_index(sq.head, sq.size))
        sq.event_idx_head = sq.head
    if cq.size:
        store_relaxed32(<uint32_t *> cq.head_doorbell, head)
        store_relaxed32(cq.event_idx, quiet_index(head, cq.size))
        follow_head(cq)


cdef void follow_head(cq_t *cq) noexcept:
    if cq.event_idx != NULL and pin_in_use(cq.controller.irq):
        store_relaxed32(cq.event_idx, load_acquire32(cq.head_doorbell))
