"""Memory in whole cache lines: what one thread writes is on no line that another uses."""

from libc.string cimport memset

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    LINE_SIZE = 64


cdef inline void *line_calloc(size_t count, size_t size) noexcept nogil:
    """As calloc, from the beginning of a line to the end of one; for free(). NULL: out of memory."""
    cdef size_t whole = (count * size + LINE_SIZE - 1) // LINE_SIZE * LINE_SIZE
    cdef void *memory = aligned_alloc(LINE_SIZE, whole)
    if memory != NULL:
        memset(memory, 0, whole)
    return memory
