"""I/O commands that the control plane executes: the reservation commands."""

from libc.stdint cimport uint8_t, uint32_t

from nvme_mdev.datapath.runtime cimport namespace_t, request_t, sq_t

#: Check a reservation command as far as its data goes; COMPOUND, or the status it is refused with.
cdef uint32_t parse_reservation(request_t *request) noexcept nogil

# The control plane's side; the IOThreads stand still.

#: The next command that was handed over and not taken yet, in the order of fetching, of the SQ; NULL:
#: there is none.
cdef request_t *take_deferred(sq_t *sq) noexcept
#: The command in a slot, if it is the one that was taken.
cdef request_t *find_deferred(sq_t *sq, uint32_t slot, uint32_t sequence) noexcept
#: Copy data to where the command points, what is missing as zeroes.
cdef void answer_deferred(request_t *request, const uint8_t *data, uint32_t size) noexcept
#: Its status is final, for a process after this one, too, unless it posts its completion first.
cdef void settle_deferred(request_t *request, uint32_t status) noexcept
#: Mark, and ask backends to cancel, what is in flight of a namespace and not the control plane's: the
#: next of these at `slot` or behind; NULL: there is none.
cdef request_t *preempt_next(sq_t *sq, namespace_t *ns, uint32_t slot) noexcept
