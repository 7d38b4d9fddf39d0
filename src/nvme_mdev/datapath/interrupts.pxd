"""Eventfds, masks and pending bits of a controller's interrupts, for the control plane."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t


#: No interrupt is listened to.
cdef void interrupts_init(controller_t *controller) noexcept
#: The eventfd of a vector of MSI-X or MSI (-1: none), which gets what was pending; the old one.
cdef int set_vector(controller_t *controller, uint32_t vector, int fd) noexcept
#: Mask a vector for a reason (INTERRUPT_*_MASK), or take that back and deliver what was pending.
cdef void mask_vector(controller_t *controller, uint32_t vector, uint32_t reason, bint masked) noexcept
#: The eventfd of the pin (-1: none); the old one.
cdef int set_pin(controller_t *controller, int fd) noexcept
#: INTMS: it holds back the pin or the vectors of MSI.
cdef void set_intms(controller_t *controller, uint32_t mask) noexcept
#: The pin is a level: assert it while a CQ with interrupts has entries not consumed.
cdef void assert_pin(controller_t *controller) noexcept
#: Whether the pin's level is asserted, whoever sees it (Status.INTx).
cdef bint pin_level(controller_t *controller) noexcept
