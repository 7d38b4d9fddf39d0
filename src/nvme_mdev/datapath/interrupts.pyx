"""Eventfds, masks and pending bits of a controller's interrupts, for the control plane.

Raising one is the IOThread's business (`queues.pxd`). What is here runs while it stands still.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from nvme_mdev.datapath.atomics cimport load_acquire32
from nvme_mdev.datapath.layout cimport (
    INTERRUPT_INTMS_MASK, INTERRUPT_MASKS, INTERRUPT_PENDING, QUEUES,
)
from nvme_mdev.datapath.queues cimport raise_interrupt
from nvme_mdev.datapath.runtime cimport controller_t, cq_t, interrupts_t
from nvme_mdev.datapath.signalling cimport NO_FD, client_fd, signal_client

cdef enum:
    #: Bits of INTMS, and the most vectors of MSI.
    INTMS_VECTORS = 32


cdef void interrupts_init(controller_t *controller) noexcept:
    cdef interrupts_t *irq = controller.irq
    memset(irq.vector_fd, 0xff, sizeof(irq.vector_fd))
    irq.vector_state = controller.state.interrupts
    irq.intx_fd = NO_FD


cdef void deliver_pending(interrupts_t *irq, uint32_t vector) noexcept:
    if irq.vector_state[vector] & INTERRUPT_MASKS or irq.vector_fd[vector] < 0:
        return
    if irq.vector_state[vector] & INTERRUPT_PENDING:
        irq.vector_state[vector] = 0
        signal_client(&irq.vector_fd[vector])


cdef int set_vector(controller_t *controller, uint32_t vector, int fd) noexcept:
    cdef interrupts_t *irq = controller.irq
    cdef int old = irq.vector_fd[vector]
    irq.vector_fd[vector] = fd
    irq.vectors += <uint32_t> (fd != NO_FD) - <uint32_t> (old != NO_FD)
    deliver_pending(irq, vector)
    return client_fd(old)


cdef void mask_vector(controller_t *controller, uint32_t vector, uint32_t reason, bint masked) noexcept:
    cdef interrupts_t *irq = controller.irq
    if masked:
        irq.vector_state[vector] |= reason
    else:
        irq.vector_state[vector] &= ~reason
        deliver_pending(irq, vector)


cdef int set_pin(controller_t *controller, int fd) noexcept:
    cdef int old = controller.irq.intx_fd
    controller.irq.intx_fd = fd
    controller.irq.intx_masked = 0
    assert_pin(controller)
    return client_fd(old)


cdef void set_intms(controller_t *controller, uint32_t mask) noexcept:
    cdef uint32_t vector
    controller.irq.intms = mask
    for vector in range(INTMS_VECTORS):
        mask_vector(controller, vector, INTERRUPT_INTMS_MASK, controller.irq.msi and mask >> vector & 1)
    assert_pin(controller)


cdef void assert_pin(controller_t *controller) noexcept:
    cdef uint32_t qid
    cdef cq_t *cq
    if controller.irq.vectors or controller.irq.intx_masked:
        return
    for qid in range(QUEUES):
        cq = &controller.cqs[qid]
        if cq.size and cq.state.interrupts and raise_interrupt(cq):
            return


cdef bint pin_level(controller_t *controller) noexcept:
    cdef uint32_t qid
    cdef cq_t *cq
    if controller.irq.vectors or controller.irq.intms & 1:
        return False
    for qid in range(QUEUES):
        cq = &controller.cqs[qid]
        if cq.size and cq.state.interrupts and load_acquire32(cq.head_doorbell) != cq.tail:
            return True
    return False
