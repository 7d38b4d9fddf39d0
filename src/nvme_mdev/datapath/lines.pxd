"""Cache lines: memory in whole ones, so that what one thread writes is on no line that another uses."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from nvme_mdev.datapath.atomics cimport prefetch_read

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


cdef inline void prefetch_lines(const uint8_t *line, uint32_t count) noexcept nogil:
    """Ask for lines that will be read soon."""
    cdef const uint8_t *end = line + count * LINE_SIZE
    while line < end:
        prefetch_read(line)
        line += LINE_SIZE
