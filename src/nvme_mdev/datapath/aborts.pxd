"""Aborting I/O commands (Abort, NVMe Base 2.x, section 5.1.1)."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport request_t, sq_t

#: Abort a command that waits in the SQ: its completion is posted. False: there is none, or no room.
cdef bint abort_waiting(sq_t *sq, uint32_t cid) noexcept
#: End a command that waits for its namespace's limits: its completion is to be posted (`thread.done`).
#: False: there is none.
cdef bint abort_throttled(sq_t *sq, uint32_t cid) noexcept
#: Ask the backend to cancel a command in flight; its request, or NULL: there is none.
cdef request_t *abort_in_flight(sq_t *sq, uint32_t cid) noexcept
#: Move the head past commands that were aborted while they waited. The tail up to which there is no
#: other one.
cdef uint32_t skip_aborted(sq_t *sq, uint32_t tail) noexcept nogil
#: Make sense of what a process before us was doing.
cdef void adopt_aborts(sq_t *sq) noexcept
