"""What a thread does that has nothing to do: it spins, gives way, and after a while sleeps.

Whoever rings stores the doorbell, then looks whether the thread sleeps; the thread says that it does,
then looks at the doorbells once more. So one of them always sees the other.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport read as read_fd

from nvme_mdev.datapath.atomics cimport (
    cpu_relax, fence_full, load_acquire32, load_relaxed32, store_relaxed32, store_release32,
)
from nvme_mdev.datapath.clock cimport now_ns
from nvme_mdev.datapath.fetching cimport ADMIN_TURNS, can_fetch, poll_admin
from nvme_mdev.datapath.give_way cimport give_way
from nvme_mdev.datapath.runtime cimport RUNNING, STANDING, iothread_t, sq_t

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *mask)
    short POLLIN

cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        uint32_t events
    int epoll_wait(int set, epoll_event *events, int count, int timeout_ms)

cdef enum:
    #: Turns without work between two looks at the clock.
    IDLE_TURNS = 1024
    #: Turns without work between two offers of the processor, while I/O is in flight.
    YIELD_TURNS = 128
    #: Sleeps of a thread that may not park (ARCHITECTURE, decision 6).
    NAP_FIRST_NS = 20000
    NAP_LAST_NS = 1000000
    #: How long a thread polls because a socket has something, which need not be a ring.
    HEARD_NS = 1000000
    #: Sockets that one wake-up hears of; the others wake it again.
    SOCKETS_AT_ONCE = 16


cdef bint prepare_to_sleep(iothread_t *thread) noexcept nogil:
    """Ask guests with shadow doorbells for a ring; False: there is work already."""
    cdef uint32_t i, tail
    cdef sq_t *sq
    for i in range(thread.queue_count + thread.weighted_count):
        sq = thread.queues[i]
        if sq.event_idx != NULL:
            store_relaxed32(sq.event_idx, sq.head)
            # Out of place: the next batch moves it behind the head again.
            sq.event_idx_head = sq.head + (sq.size >> 1)
            if sq.event_idx_head >= sq.size:
                sq.event_idx_head -= sq.size
    # The event index goes out before the doorbell is looked at for the last time.
    fence_full()
    if load_acquire32(&thread.call_pending) or load_acquire32(&thread.stopping):
        return False
    for i in range(thread.queue_count + thread.weighted_count):
        sq = thread.queues[i]
        tail = load_acquire32(sq.tail_doorbell)
        if tail != sq.head and not sq.held and (tail >= sq.size or can_fetch(sq, tail)):
            return False
    return poll_admin(thread) == 0


cdef inline bint polls(iothread_t *thread) noexcept nogil:
    """There is a doorbell to look at: of an I/O queue, or of the admin queue of a guest that starts."""
    cdef uint32_t i
    if thread.queue_count + thread.weighted_count:
        return True
    for i in range(thread.controller_count):
        if thread.controllers[i].admin_doorbell != NULL:
            return True
    return False


cdef bint may_park(iothread_t *thread) noexcept nogil:
    """Every ring would come through the socket, or be seen: nothing waits for room in a CQ, or for
    time, and no client has the doorbell page mapped."""
    cdef uint32_t i
    if thread.throttled_count:
        return False
    for i in range(thread.queue_count + thread.weighted_count):
        if (load_relaxed32(thread.queues[i].tail_doorbell) != thread.queues[i].head
                and not thread.queues[i].held):
            return False
        if thread.queues[i].controller.doorbells_mapped:
            return False
    for i in range(thread.controller_count):
        if (thread.controllers[i].admin_doorbell != NULL
                and thread.controllers[i].doorbells_mapped):
            return False
    return True


cdef bint rung_in_memory(iothread_t *thread) noexcept nogil:
    """A guest stores what it rings in a shadow doorbell: any message that follows is enough to know."""
    cdef uint32_t i
    for i in range(thread.queue_count + thread.weighted_count):
        if thread.queues[i].event_idx != NULL:
            return True
    return False


cdef bint wait_for_wake(iothread_t *thread, const timespec *timeout) noexcept nogil:
    """Until the control plane calls (NULL: for ever); False: it did not."""
    cdef pollfd woken
    woken.fd = thread.wake_fd
    woken.events = POLLIN
    return ppoll(&woken, 1, timeout, NULL) > 0


cdef bint wait_for_message(iothread_t *thread) noexcept nogil:
    """Until a client sends anything, or the control plane calls; False: a signal came."""
    cdef epoll_event heard[SOCKETS_AT_ONCE]
    return epoll_wait(thread.ring_set, heard, SOCKETS_AT_ONCE, -1) > 0


cdef void sleep_on(iothread_t *thread, uint64_t ns) noexcept nogil:
    """Sleep until woken, or for so long (0: until woken). The thread stands meanwhile."""
    cdef timespec timeout
    cdef uint64_t ignored, patience
    cdef bint woken
    timeout.tv_sec = 0
    timeout.tv_nsec = <int64_t> ns
    thread.rests += 1
    store_release32(&thread.state, STANDING)
    if ns:
        woken = wait_for_wake(thread, &timeout)
    elif rung_in_memory(thread):
        woken = wait_for_message(thread)
    else:
        woken = wait_for_wake(thread, NULL)
    if woken and read_fd(thread.wake_fd, &ignored, 8) == 8:
        # Who wakes it up may have more: it polls again for a while.
        thread.idle_since_ns = 0
    elif woken:
        # The message need not be a ring, so the while is a short one.
        patience = min(thread.poll_timeout_ns, <uint64_t> HEARD_NS)
        thread.idle_since_ns = now_ns() - (thread.poll_timeout_ns - patience)
    store_relaxed32(&thread.state, RUNNING)
    fence_full()


cdef inline bint io_in_flight(iothread_t *thread) noexcept nogil:
    """Something is under way that ends by itself: no time to sleep. Arbiters are always there, and what
    waits for limits can do so for long."""
    return thread.inflight > thread.arbiter_count + thread.throttled_count


cdef void idle(iothread_t *thread) noexcept nogil:
    """Nothing was to do this turn: spin, and after the poll timeout sleep."""
    cdef uint64_t now
    cpu_relax()
    thread.idle_turns += 1
    if thread.idle_turns % (
            YIELD_TURNS if io_in_flight(thread) or thread.dozing else IDLE_TURNS) == 0:
        give_way(thread)
    if thread.idle_turns % IDLE_TURNS and thread.poll_timeout_ns and polls(thread):
        return
    now = now_ns()
    if thread.idle_since_ns == 0:
        thread.idle_since_ns = now
        thread.nap_ns = NAP_FIRST_NS
    if io_in_flight(thread) or (
            now - thread.idle_since_ns < thread.poll_timeout_ns and polls(thread)):
        return
    # Whoever rings from now on sees `parked` or is seen by us: the fence is in the next call.
    store_relaxed32(&thread.parked, 1)
    if prepare_to_sleep(thread):
        if may_park(thread):
            sleep_on(thread, 0)
        else:
            sleep_on(thread, thread.nap_ns)
            thread.nap_ns = min(thread.nap_ns * 2, <uint64_t> NAP_LAST_NS)
        # The next sleep comes after one turn, unless that finds work.
        thread.idle_turns = IDLE_TURNS - 1
        thread.turns = ADMIN_TURNS - 1
    store_relaxed32(&thread.parked, 0)
