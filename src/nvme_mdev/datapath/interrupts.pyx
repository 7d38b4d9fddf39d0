"""Eventfds, masks and pending bits of a controller's interrupts, for the control plane.

Raising one is the IOThread's business (`queues.pxd`). What is here runs while it stands still.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from nvme_mdev.datapath.layout cimport QUEUES
from nvme_mdev.datapath.queues cimport raise_interrupt, signal_fd
from nvme_mdev.datapath.runtime cimport controller_t, cq_t, interrupts_t


cdef void interrupts_init(interrupts_t *irq) noexcept:
    memset(irq.msix_fd, 0xff, sizeof(irq.msix_fd))
    irq.intx_fd = -1


cdef void deliver_pending(interrupts_t *irq, uint32_t vector) noexcept:
    if irq.msix_pending[vector] and irq.msix_fd[vector] >= 0:
        irq.msix_pending[vector] = 0
        signal_fd(irq.msix_fd[vector])


cdef int set_vector(interrupts_t *irq, uint32_t vector, int fd) noexcept:
    cdef int old = irq.msix_fd[vector]
    irq.msix_fd[vector] = fd
    irq.msix_vectors += <uint32_t> (fd >= 0) - <uint32_t> (old >= 0)
    if not irq.msix_masked[vector]:
        deliver_pending(irq, vector)
    return old


cdef void mask_vector(interrupts_t *irq, uint32_t vector, bint masked) noexcept:
    irq.msix_masked[vector] = masked
    if not masked:
        deliver_pending(irq, vector)
        irq.msix_pending[vector] = 0


cdef int set_pin(controller_t *controller, int fd) noexcept:
    cdef int old = controller.irq.intx_fd
    controller.irq.intx_fd = fd
    controller.irq.intx_masked = 0
    assert_pin(controller)
    return old


cdef void assert_pin(controller_t *controller) noexcept:
    cdef uint32_t qid
    cdef cq_t *cq
    if controller.irq.msix_vectors or controller.irq.intx_masked:
        return
    for qid in range(QUEUES):
        cq = &controller.cqs[qid]
        if cq.size and cq.interrupts and raise_interrupt(cq):
            return
