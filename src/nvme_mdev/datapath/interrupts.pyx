"""Eventfds, masks and pending bits of a controller's interrupts, for the control plane.

Raising one is the IOThread's business (`queues.pxd`). The functions are for while it stands still; the
class lets it.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from nvme_mdev.datapath.atomics cimport load_acquire32
from nvme_mdev.datapath.attached_controller cimport AttachedController, Part
from nvme_mdev.datapath.coalescing cimport coalescing_configure
from nvme_mdev.datapath.layout cimport (
    HOST_QUEUES, INTERRUPT_CLIENT_MASK, INTERRUPT_FUNCTION_MASK, INTERRUPT_INTMS_MASK, INTERRUPT_MASKS,
    INTERRUPT_PENDING, INTERRUPT_TABLE_MASK, IO_QUEUES, QUEUES,
)
from nvme_mdev.datapath.queues cimport raise_interrupt
from nvme_mdev.datapath.runtime cimport controller_t, cq_t, interrupts_t
from nvme_mdev.datapath.signalling cimport NO_FD, client_fd, signal_client

import os

cdef enum:
    #: Bits of INTMS, and the most vectors of MSI.
    INTMS_VECTORS = 32


cdef void interrupts_init(controller_t *controller) noexcept:
    """No interrupt is listened to."""
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
    """The eventfd of a vector of MSI-X or MSI (-1: none), which gets what was pending; the old one."""
    cdef interrupts_t *irq = controller.irq
    cdef int old = irq.vector_fd[vector]
    irq.vector_fd[vector] = fd
    irq.vectors += <uint32_t> (fd != NO_FD) - <uint32_t> (old != NO_FD)
    deliver_pending(irq, vector)
    return client_fd(old)


cdef void mask_vector(controller_t *controller, uint32_t vector, uint32_t reason, bint masked) noexcept:
    """Mask for a reason (INTERRUPT_*_MASK), or take that back and deliver what was pending."""
    cdef interrupts_t *irq = controller.irq
    if masked:
        irq.vector_state[vector] |= reason
    else:
        irq.vector_state[vector] &= ~reason
        deliver_pending(irq, vector)


cdef int set_pin(controller_t *controller, int fd) noexcept:
    """The eventfd of the pin (-1: none); the old one."""
    cdef int old = controller.irq.intx_fd
    controller.irq.intx_fd = fd
    controller.irq.intx_masked = 0
    assert_pin(controller)
    return client_fd(old)


cdef void set_intms(controller_t *controller, uint32_t mask) noexcept:
    """INTMS: it holds back the pin or the vectors of MSI."""
    cdef uint32_t vector
    controller.irq.intms = mask
    for vector in range(INTMS_VECTORS):
        mask_vector(controller, vector, INTERRUPT_INTMS_MASK, controller.irq.msi and mask >> vector & 1)
    assert_pin(controller)


cdef void assert_pin(controller_t *controller) noexcept:
    """The pin is a level: assert it while a CQ with interrupts has entries not consumed."""
    cdef uint32_t qid
    cdef cq_t *cq
    if controller.irq.vectors or controller.irq.intx_masked:
        return
    for qid in range(QUEUES):
        cq = &controller.cqs[qid]
        if cq.size and cq.state.interrupts and raise_interrupt(cq):
            return


cdef bint pin_level(controller_t *controller) noexcept:
    """Whether the pin's level is asserted, whoever sees it (Status.INTx)."""
    cdef uint32_t qid
    cdef cq_t *cq
    if controller.irq.vectors or controller.irq.intms & 1:
        return False
    for qid in range(QUEUES):
        cq = &controller.cqs[qid]
        if cq.size and cq.state.interrupts and load_acquire32(cq.head_doorbell) != cq.tail:
            return True
    return False


cdef int check_vector(vector) except -1:
    if not 0 <= vector < QUEUES:
        raise ValueError(f"vector {vector} is not in 0 to {IO_QUEUES}")
    return 0


cdef class Interrupts(Part):
    """A controller's interrupts (see interrupts.pyi)."""

    def __init__(self, AttachedController attached):
        interrupts_init(self.controller)

    def set_vector(self, vector, fd, *, msi=False):
        check_vector(vector)
        self.attached.pause()
        self.controller.irq.msi = msi
        old = set_vector(self.controller, vector, NO_FD if fd is None else fd)
        set_intms(self.controller, self.controller.irq.intms)
        self.attached.resume()
        if old >= 0:
            os.close(old)

    def mask_vector(self, vector, masked, *, by_table=False):
        check_vector(vector)
        self.attached.pause()
        mask_vector(self.controller, vector,
                    INTERRUPT_TABLE_MASK if by_table else INTERRUPT_CLIENT_MASK, masked)
        self.attached.resume()

    def mask_function(self, masked):
        cdef uint32_t vector
        self.attached.pause()
        for vector in range(QUEUES):
            mask_vector(self.controller, vector, INTERRUPT_FUNCTION_MASK, masked)
        self.attached.resume()

    def pending_vectors(self):
        return [
            vector for vector in range(QUEUES)
            if self.controller.irq.vector_state[<uint32_t> vector] & INTERRUPT_PENDING
        ]

    def set_intx(self, fd):
        self.attached.pause()
        old = set_pin(self.controller, NO_FD if fd is None else fd)
        self.attached.resume()
        if old >= 0:
            os.close(old)

    def mask_intx(self, masked):
        self.attached.pause()
        self.controller.irq.intx_masked = bool(masked)
        assert_pin(self.controller)
        self.attached.resume()

    def set_intms(self, mask):
        self.attached.pause()
        set_intms(self.controller, mask)
        self.attached.resume()

    @property
    def pin_level(self):
        return bool(pin_level(self.controller))

    def configure_coalescing(self):
        self.attached.pause()
        try:
            coalescing_configure(self.controller)
        finally:
            self.attached.resume()

    def raise_for(self, cqid):
        cdef cq_t *cq = &self.controller.cqs[<uint32_t> cqid]
        if cq.size and self.controller.state.cq[<uint32_t> cqid].interrupts and raise_interrupt(cq):
            # On the control plane's line: an IOThread counts on its own.
            self.controller.state.path_counters[HOST_QUEUES].interrupts += 1

    def trigger(self, vector):
        if vector == -1:
            signal_client(&self.controller.irq.intx_fd)
            return
        check_vector(vector)
        signal_client(&self.controller.irq.vector_fd[<uint32_t> vector])

    def clear(self):
        for vector in range(QUEUES):
            if self.controller.irq.vector_fd[<uint32_t> vector] != NO_FD:
                self.set_vector(vector, None)
        self.set_intx(None)
        self.forget_masks()

    def forget_masks(self):
        self.attached.pause()
        memset(self.controller.state.interrupts, 0, sizeof(self.controller.state.interrupts))
        set_intms(self.controller, self.controller.irq.intms)
        self.attached.resume()
