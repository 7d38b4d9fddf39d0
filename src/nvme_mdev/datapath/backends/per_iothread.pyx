"""What a backend keeps for each IOThread: taking a place, and giving it up."""

from libc.errno cimport ENOSPC
from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport iothread_t


cdef place_t *place_of(per_iothread_t *all, iothread_t *thread) noexcept:
    """The thread's place, or (NULL) a free one; NULL: there is none."""
    cdef uint32_t i
    for i in range(PLACES):
        if all.places[i].thread == thread:
            return &all.places[i]
    return NULL


cdef place_t *free_place(per_iothread_t *all, name) except NULL:
    cdef place_t *place = place_of(all, NULL)
    if place == NULL:
        raise OSError(ENOSPC, "too many IOThreads serve this namespace", name)
    return place


cdef void keep(place_t *place, iothread_t *thread, void *kept) noexcept:
    place.kept = kept
    place.thread = thread


cdef void *give_up(per_iothread_t *all, iothread_t *thread) noexcept:
    cdef place_t *place = place_of(all, thread)
    place.thread = NULL
    return place.kept
