"""What a backend keeps for each IOThread that serves it, where that thread finds it."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport iothread_t

cdef enum:
    #: IOThreads that one namespace can be served by, where something is kept for each.
    PLACES = 64

#: A place for an IOThread; NULL: a free one. Other threads look for theirs while it is taken or freed.
cdef struct place_t:
    iothread_t *thread
    void *kept

cdef struct per_iothread_t:
    place_t places[PLACES]


cdef inline void *kept_for(per_iothread_t *all, iothread_t *thread) noexcept nogil:
    """The thread's: it has a place."""
    cdef uint32_t i
    for i in range(PLACES):
        if all.places[i].thread == thread:
            break
    return all.places[i].kept


#: OSError: as many IOThreads as can be serve the namespace `name`.
cdef place_t *free_place(per_iothread_t *all, name) except NULL
#: From now on `kept_for` finds it there.
cdef void keep(place_t *place, iothread_t *thread, void *kept) noexcept
#: The place is free; what was kept there.
cdef void *give_up(per_iothread_t *all, iothread_t *thread) noexcept
