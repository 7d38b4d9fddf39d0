"""Signalling a client through its eventfds, without waiting for it."""

cdef enum:
    #: There is no eventfd.
    NO_FD = -1

#: Bump an eventfd of the client's. One that could not be is given up: `fd` is no descriptor then, but
#: `client_fd` still knows it. False: nobody was told.
cdef bint signal_client(int *fd) noexcept nogil

#: The descriptor, for who closes it; NO_FD: there is none.
cdef int client_fd(int fd) noexcept nogil
