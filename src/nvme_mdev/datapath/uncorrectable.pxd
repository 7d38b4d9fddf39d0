"""Blocks that Write Uncorrectable has made unreadable (NVM Command Set 1.x, section 3.2.7)."""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.runtime cimport backend_t, bad_table_t, controller_t, namespace_t

#: Whether a range has an unreadable block; `first` is the lowest. Offsets are blocks.
cdef bint bad_find(backend_t *backend, uint64_t slba, uint64_t blocks, uint64_t *first) noexcept nogil
#: Make a range unreadable, in the table of the controller that was asked to. False: it is full.
cdef bint bad_add(
    controller_t *controller, namespace_t *ns, uint64_t slba, uint64_t blocks) noexcept nogil
#: The range was written: it is readable again.
cdef void bad_clear(backend_t *backend, uint64_t slba, uint64_t blocks) noexcept nogil
#: What a namespace that there is no more has left in the controller's state.
cdef void bad_forget(controller_t *controller, uint64_t nsid) noexcept
#: A namespace's table speaks for the backend from now on, and does not any more.
cdef void bad_attach(backend_t *backend, bad_table_t *table) noexcept
cdef void bad_detach(backend_t *backend, bad_table_t *table) noexcept
#: A fused pair has a range of the backend for itself from now on, and has not any more.
cdef void lock_attention(backend_t *backend) noexcept nogil
cdef void unlock_attention(backend_t *backend) noexcept nogil
