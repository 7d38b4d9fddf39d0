"""Ranges of a backend that fused pairs have for themselves, on one IOThread."""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.runtime cimport compound_t, compounds_t, iothread_t, request_t

#: Whether a command in flight (or waiting) uses bytes [begin, end) of its backend.
cdef bint request_touches(request_t *request, uint64_t begin, uint64_t end) noexcept nogil
#: Whether a pair has a range that the command touches.
cdef bint conflicts(compounds_t *compounds, request_t *request) noexcept nogil
#: The pair's range is its own, and nobody else is at it. False: it has to wait.
cdef bint have_range(iothread_t *thread, compound_t *compound) noexcept nogil
#: Give back what the first command of a pair has, if it has a range.
cdef void give_range(iothread_t *thread, request_t *owner) noexcept nogil
#: A pair whose comparison has succeeded has its range for itself before anything else is started.
cdef void reserve_range(iothread_t *thread, request_t *request) noexcept nogil
