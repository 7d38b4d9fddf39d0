"""Requests in a row, first in, first out, linked through `request_t.done`.

For backends that complete a command as a whole: the field counts what parts before have done.
"""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.runtime cimport request_t

cdef struct chain_t:
    request_t *first
    request_t *last


cdef inline void chain_append(chain_t *chain, request_t *request) noexcept nogil:
    request.done = 0
    if chain.first == NULL:
        chain.first = request
    else:
        chain.last.done = <uint64_t> request
    chain.last = request


cdef inline request_t *chain_next(request_t *request) noexcept nogil:
    """The one after it; NULL: it is the last."""
    return <request_t *> request.done


cdef inline request_t *chain_take(chain_t *chain) noexcept nogil:
    """The first one, which is no longer in it; NULL: there is none."""
    cdef request_t *request = chain.first
    if request != NULL:
        chain.first = chain_next(request)
        request.done = 0
    return request
