"""Containment of SIGBUS in memory that a client shares with us."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

#: Watch a mapping: a page that its file lost becomes a zero page. -1: too many mappings, or the
#: signal cannot be had.
cdef int sigbus_guard(uint8_t *start, uint64_t size) noexcept nogil
cdef void sigbus_release(uint8_t *start) noexcept nogil
#: Whether some of a watched mapping was replaced.
cdef bint sigbus_contained(uint8_t *start) noexcept nogil
#: The word that tells it, not 0: some was, or is just being replaced. NULL: the mapping is not watched.
cdef const uint32_t *sigbus_flag(uint8_t *start) noexcept nogil
