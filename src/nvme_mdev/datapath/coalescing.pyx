"""Which completion queues hold interrupts back (see coalescing.pxd)."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.layout cimport HOST_QUEUES, QUEUES
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.runtime cimport (
    INTERRUPTS_AT_ONCE, INTERRUPTS_COALESCED, INTERRUPTS_NONE, INTERRUPTS_RELAYED, aggregation_t,
    controller_t, cq_t, interrupts_t,
)

cdef enum:
    FID_INTERRUPT_COALESCING = 0x08
    #: Aggregation Time is in units of 100 microseconds.
    TIMES_PER_SECOND = 10000
    #: Interrupt Vector Configuration: coalescing disable.
    COALESCING_DISABLE = 1 << 16


cdef int coalescing_configure(controller_t *controller) except -1:
    cdef interrupts_t *irq = controller.irq
    cdef uint32_t feature = controller.state.features[FID_INTERRUPT_COALESCING]
    cdef uint32_t threshold = feature & 0xff
    cdef uint32_t time = feature >> 8 & 0xff
    cdef bint wanted = threshold and time
    cdef uint32_t qid
    if wanted:
        if irq.aggregations == NULL:
            irq.aggregations = <aggregation_t *> line_calloc(
                HOST_QUEUES * QUEUES, sizeof(aggregation_t))
            if irq.aggregations == NULL:
                raise MemoryError
        # 0's based.
        irq.aggregation_threshold = threshold + 1
        irq.aggregation_time = <uint64_t> time * ticks_hz() // TIMES_PER_SECOND
    for qid in range(1, QUEUES):
        if controller.cqs[qid].size:
            choose(&controller.cqs[qid], wanted)
    return 0


cdef void choose(cq_t *cq, bint wanted) noexcept:
    """Whether the CQ's interrupts are held back. What is held back already goes out when it is due."""
    cdef controller_t *controller = cq.controller
    if cq.interrupts == INTERRUPTS_NONE or cq.interrupts == INTERRUPTS_RELAYED:
        return
    if not wanted or controller.state.vector_config[cq.vector] & COALESCING_DISABLE:
        cq.interrupts = INTERRUPTS_AT_ONCE
        return
    cq.aggregation = &controller.irq.aggregations[cq.host_queue * QUEUES + cq.vector]
    cq.interrupts = INTERRUPTS_COALESCED


cdef void coalescing_forget(cq_t *cq) noexcept:
    if cq.aggregation != NULL and cq.aggregation.cq == cq:
        raise_held_back(cq.thread, cq.aggregation)
