"""A queue pair's rings from the host's side (NVMe Base 2.x, section 3.3; PCIe Transport 1.1, section 3).

The same verbs as libvfn's, one thing each: *post* writes an entry and does not ring, *ring* tells the
controller of a new tail or head, *peek* looks for a completion, *advance head* takes it and does not
ring. The host driver drives its queues with them, and direct mode those that it has set aside.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport (
    copy64, fence_full, load_acquire32, load_relaxed32, store_release32,
)

#: Submission queue entry of an NVM command (NVMe Base 2.x, section 4.1.1).
cdef struct sqe_t:
    uint8_t opcode
    uint8_t flags
    uint16_t cid
    uint32_t nsid
    uint64_t cdw2
    uint64_t mptr
    uint64_t prp1
    uint64_t prp2
    #: Command dwords 10 and 11 of Read, Write, Compare, Write Zeroes: the first logical block.
    uint64_t slba
    #: NLB (0's based) in bits 15:0.
    uint32_t cdw12
    uint32_t cdw13
    uint32_t cdw14
    uint32_t cdw15

#: Completion queue entry (NVMe Base 2.x, section 4.2.1).
cdef struct cqe_t:
    uint32_t dw0
    uint32_t dw1
    #: SQHD in bits 15:0, SQID in 31:16.
    uint32_t dw2
    #: CID in bits 15:0, phase tag in bit 16, status field in 31:17.
    uint32_t dw3

cdef enum:
    PHASE_BIT = 1 << 16
    STATUS_SHIFT = 17

#: One doorbell and the ways to ring it.
cdef struct doorbell_t:
    #: The register in mapped memory; NULL: it is written through the socket.
    uint32_t *register
    #: Doorbell Buffer Config (NVMe Base 2.x, section 5.2.5); NULL without.
    uint32_t *shadow
    uint32_t *event_idx
    #: What the controller was told last.
    uint32_t value

cdef struct queue_t:
    sqe_t *sq
    cqe_t *cq
    uint32_t sq_entries
    uint32_t cq_entries
    #: Next entry to write.
    uint32_t tail
    #: Next entry to look at, and the phase tag that says it is new (`PHASE_BIT` or 0).
    uint32_t head
    uint32_t phase
    doorbell_t tail_doorbell
    doorbell_t head_doorbell


cdef inline void post(queue_t *queue, const sqe_t *sqe) noexcept nogil:
    copy64(&queue.sq[queue.tail], sqe)
    queue.tail += 1
    if queue.tail == queue.sq_entries:
        queue.tail = 0


cdef inline bint peek(const queue_t *queue, uint32_t *dw3) noexcept nogil:
    """Whether there is a new completion, and its dword 3."""
    # Acquire: the rest of the entry, and the data, are read after the phase tag.
    dw3[0] = load_acquire32(&queue.cq[queue.head].dw3)
    return (dw3[0] & PHASE_BIT) == queue.phase


cdef inline void advance_head(queue_t *queue) noexcept nogil:
    queue.head += 1
    if queue.head == queue.cq_entries:
        queue.head = 0
        queue.phase ^= PHASE_BIT


cdef inline bint passes_event(uint32_t event_idx, uint32_t value, uint32_t old) noexcept nogil:
    """Whether going from `old` to `value` passes EventIdx, modulo 2^16 (as Linux compares it)."""
    return <uint16_t>(value - event_idx - 1) < <uint16_t>(value - old)


cdef inline bint ring(doorbell_t *doorbell, uint32_t value) noexcept nogil:
    """Tell the controller of a new tail or head. True: the register must be written by socket."""
    cdef uint32_t old = doorbell.value
    doorbell.value = value
    if doorbell.shadow != NULL:
        # Release: the entries before the tail that covers them.
        store_release32(doorbell.shadow, value)
        # The shadow store before the EventIdx load, or controller and host can miss each other.
        fence_full()
        if not passes_event(load_relaxed32(doorbell.event_idx), value, old):
            return False
    if doorbell.register == NULL:
        return True
    store_release32(doorbell.register, value)
    return False
