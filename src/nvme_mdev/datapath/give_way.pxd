"""Giving the processor to others that need it, while there is nothing to do but to look.

A thread that polls gives way now and then: the kernel may need this processor for the very I/O that is
waited for (io_uring's workers, a device's interrupt thread), or a guest to send some. `sched_yield` is that
for the price of a system call, as long as those others soon sleep again. One that computes keeps the
processor for its whole slice, milliseconds; and again at the next yield, and the scheduler has counted the
spinning as the thread's own use of the processor. Then it is better to doze: to sleep until something is
finished, for a short time at most. A thread that has slept is given the processor when it wakes up.
"""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.clock cimport nap_ns, now_ns
from nvme_mdev.datapath.runtime cimport iothread_t
from nvme_mdev.datapath.uring cimport uring_of, uring_wait

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    #: A yield that takes longer went to somebody who computes.
    TAKEN_NS = 100000
    #: For so long yields are not tried again, at first and at most.
    DOZING_FIRST_NS = 10000000
    DOZING_MOST_NS = 1000000000
    #: A yield that is taken within so many times that is answered with twice as long.
    SOON = 4
    #: The longest that a doorbell goes unseen: while io_uring can wake the thread up, and else.
    DOZE_NS = 50000
    NAP_NS = 20000


cdef inline void doze(iothread_t *thread) noexcept nogil:
    thread.rests += 1
    if thread.uring != NULL and thread.inflight and uring_wait(uring_of(thread), DOZE_NS):
        return
    nap_ns(NAP_NS)


cdef inline void give_way(iothread_t *thread) noexcept nogil:
    cdef uint64_t now = now_ns()
    cdef uint64_t before = now
    thread.dozing = now < thread.doze_until_ns
    if thread.dozing:
        doze(thread)
        return
    sched_yield()
    now = now_ns()
    if now - before < TAKEN_NS:
        return
    # Who computes may well pause at times: it is not forgotten soon.
    if now - thread.doze_until_ns < SOON * thread.dozing_ns:
        thread.dozing_ns = min(2 * thread.dozing_ns, <uint64_t> DOZING_MOST_NS)
    else:
        thread.dozing_ns = DOZING_FIRST_NS
    thread.doze_until_ns = now + thread.dozing_ns
    thread.dozing = 1
