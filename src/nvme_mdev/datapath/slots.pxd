"""A submission queue's command slots (see slots.pyx)."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport sq_t

#: Take the slots that the queue has used so far: none of a new queue.
cdef void take_slots(sq_t *sq) noexcept
#: There are not so many free slots: have more. How many there are then, of those wanted.
cdef uint32_t more_slots(sq_t *sq, uint32_t wanted) noexcept nogil
#: The queue goes away.
cdef void give_back_slots(sq_t *sq) noexcept
