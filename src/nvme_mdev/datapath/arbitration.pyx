"""Which queues an arbiter has (see arbitration.pxd)."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, realloc

from nvme_mdev.datapath.runtime cimport arbiter_t, controller_t, iothread_t, sq_t


cdef arbiter_t *find_arbiter(iothread_t *thread, controller_t *controller) noexcept:
    cdef uint32_t i
    for i in range(thread.arbiter_count):
        if thread.arbiters[i].controller == controller:
            return thread.arbiters[i]
    return NULL


cdef arbiter_t *make_arbiter(iothread_t *thread, controller_t *controller) except NULL:
    cdef arbiter_t *arbiter = <arbiter_t *> calloc(1, sizeof(arbiter_t))
    cdef arbiter_t **arbiters = <arbiter_t **> realloc(
        thread.arbiters, (thread.arbiter_count + 1) * sizeof(arbiter_t *))
    if arbiters != NULL:
        thread.arbiters = arbiters
    if arbiter == NULL or arbiters == NULL:
        free(arbiter)
        raise MemoryError
    arbiter.controller = controller
    arbiters[thread.arbiter_count] = arbiter
    thread.arbiter_count += 1
    # Each turn has to look after it (`iothread_t.inflight`).
    thread.inflight += 1
    thread.chores += 1
    return arbiter


cdef void drop_arbiter(iothread_t *thread, arbiter_t *arbiter) noexcept:
    cdef uint32_t i
    for i in range(thread.arbiter_count):
        if thread.arbiters[i] == arbiter:
            thread.arbiter_count -= 1
            thread.arbiters[i] = thread.arbiters[thread.arbiter_count]
            thread.inflight -= 1
            thread.chores -= 1
            free(arbiter)
            return


cdef int arbiter_add(iothread_t *thread, sq_t *sq) except -1:
    cdef arbiter_t *arbiter = find_arbiter(thread, sq.controller)
    cdef uint32_t priority, last, i
    if arbiter == NULL:
        arbiter = make_arbiter(thread, sq.controller)
    last = arbiter.first[sq.priority] + arbiter.count[sq.priority]
    for i in range(arbiter.first[3] + arbiter.count[3], last, -1):
        arbiter.queues[i] = arbiter.queues[i - 1]
    arbiter.queues[last] = sq
    arbiter.count[sq.priority] += 1
    for priority in range(sq.priority + 1, 4):
        arbiter.first[priority] += 1
    return 0


cdef bint arbiter_remove(iothread_t *thread, sq_t *sq) noexcept:
    """False: no arbiter has it."""
    cdef arbiter_t *arbiter = find_arbiter(thread, sq.controller)
    cdef uint32_t priority, total, i
    if arbiter == NULL:
        return False
    total = arbiter.first[3] + arbiter.count[3]
    for i in range(total):
        if arbiter.queues[i] == sq:
            break
    else:
        return False
    for i in range(i, total - 1):
        arbiter.queues[i] = arbiter.queues[i + 1]
    arbiter.count[sq.priority] -= 1
    arbiter.turn[sq.priority] = 0
    for priority in range(sq.priority + 1, 4):
        arbiter.first[priority] -= 1
    if total == 1:
        drop_arbiter(thread, arbiter)
    return True
