"""Eventfds, masks and pending bits of a controller's interrupts, for the control plane."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, interrupts_t


#: No interrupt is listened to.
cdef void interrupts_init(interrupts_t *irq) noexcept
#: The eventfd of an MSI-X vector (-1: none), which gets what was pending; the old one.
cdef int set_vector(interrupts_t *irq, uint32_t vector, int fd) noexcept
#: Mask a vector, or unmask it and deliver what was pending.
cdef void mask_vector(interrupts_t *irq, uint32_t vector, bint masked) noexcept
#: The eventfd of the pin (-1: none); the old one.
cdef int set_pin(controller_t *controller, int fd) noexcept
#: The pin is a level: assert it while a CQ with interrupts has entries not consumed.
cdef void assert_pin(controller_t *controller) noexcept
