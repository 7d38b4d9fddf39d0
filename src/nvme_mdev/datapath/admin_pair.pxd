"""The admin queue pair, which the control plane serves itself."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, request_t


#: Copy the next admin command into a slot; NULL: there is none.
cdef request_t *admin_fetch(controller_t *controller) noexcept
#: Whether there is room for a completion.
cdef bint admin_room(controller_t *controller) noexcept
#: Post the completion of the command in a slot (there is room), and give the slot back.
cdef void admin_complete(controller_t *controller, uint32_t slot, uint32_t result, uint32_t status) noexcept
