"""Fetching, for an IOThread's turn."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.atomics cimport load_acquire32
from nvme_mdev.datapath.queues cimport signal_fd
from nvme_mdev.datapath.runtime cimport controller_t, iothread_t, request_t, sq_t

cdef enum:
    #: Turns between two looks at the admin doorbells, whose commands take Python's time anyway.
    ADMIN_TURNS = 16


#: Fetch, parse and submit what an SQ has up to a tail, a batch at most; how many commands.
cdef uint32_t serve(iothread_t *thread, sq_t *sq, uint32_t tail) noexcept nogil
#: Whether `serve` would do anything.
cdef bint can_fetch(sq_t *sq, uint32_t tail) noexcept nogil
#: Hand parsed commands of one SQ, in the order of fetching, to their backends.
cdef void submit_batch(iothread_t *thread, request_t **batch, uint32_t count) noexcept nogil
#: What a turn does besides plain queues and requests.
cdef uint32_t look_after(iothread_t *thread) noexcept nogil


cdef inline uint32_t poll_admin(iothread_t *thread) noexcept nogil:
    """Tell the control plane of admin doorbells that moved."""
    cdef uint32_t i, tail
    cdef uint32_t moved = 0
    cdef controller_t *controller
    for i in range(thread.controller_count):
        controller = thread.controllers[i]
        if controller.admin_doorbell != NULL:
            tail = load_acquire32(controller.admin_doorbell)
            if tail != controller.admin_seen:
                controller.admin_seen = tail
                signal_fd(controller.notify_fd)
                moved += 1
    return moved
