"""`eventfd.h` as Cython sees it."""

cdef extern from "eventfd.h" nogil:
    int bump_eventfd(int fd)
