"""Where queues and doorbells are in guest memory: the lookup, and who still uses a range."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.runtime cimport controller_t


#: Pages that so many entries need.
cdef uint32_t page_count(uint64_t entries, uint64_t entry_size) noexcept
#: Point a queue pair at its doorbells: register page or shadow page.
cdef void bind_doorbells(controller_t *controller, uint32_t qid) noexcept
#: Look up the pages and the doorbell of a queue; it is held (HELD_MEMORY) while one is not mapped.
cdef void bind_sq(controller_t *controller, uint32_t qid) noexcept
cdef void bind_cq(controller_t *controller, uint32_t qid) noexcept
#: Guest memory changed: look up everything that queues point to again.
cdef void bind_all(controller_t *controller) noexcept
#: The same, if a change of this range (size 0: all of it) can matter to a queue.
cdef void bind_changed(controller_t *controller, uint64_t iova, uint64_t size) noexcept
#: Whether commands in flight use the range (size 0: all of memory).
cdef bint memory_in_use(controller_t *controller, uint64_t iova, uint64_t size) noexcept
