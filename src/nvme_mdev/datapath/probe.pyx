"""What tests and benchmarks ask of the data path: turns of an IOThread that does not run, one after
the other in the calling thread; its clock; how its structs lie in cache lines.

For counting what a turn costs: nothing depends on when the thread looks, as it does when it spins.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t

from nvme_mdev.datapath.atomics cimport read_tsc, store_release32
from nvme_mdev.datapath.iothread cimport IOThread, take_turns as take_turns_of
from nvme_mdev.datapath.layout cimport io_counters_t, path_counters_t, slot_t
from nvme_mdev.datapath.lines cimport LINE_SIZE
from nvme_mdev.datapath.runtime cimport aggregation_t, cq_t, iothread_t, region_t, share_t, sq_t
from nvme_mdev.datapath.uring cimport io_uring_cqe, io_uring_sqe, uring_destroy, uring_of, uring_t

from contextlib import contextmanager

from nvme_mdev.datapath.backends import passthru

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_sq:
        unsigned *khead
        unsigned *ktail
        io_uring_sqe *sqes
        unsigned ring_mask
    cdef struct io_uring_cq:
        unsigned *ktail
        io_uring_cqe *cqes
        unsigned ring_mask
    #: `io_uring` of uring.pxd, with what is in it.
    cdef struct rings_t "io_uring":
        io_uring_sq sq
        io_uring_cq cq
        unsigned flags
        int enter_ring_fd
    enum:
        IORING_SETUP_SQE128
        IORING_SETUP_CQE32


def take_turns(IOThread iothread not None, uint32_t count):
    cdef uint32_t work
    if iothread.worker is not None:
        raise RuntimeError(f"IOThread {iothread.name} runs: it takes its turns itself")
    with nogil:
        work = take_turns_of(iothread.thread, count)
    return work


def stop_clock(IOThread iothread not None):
    iothread.pause()
    iothread.thread.clock = read_tsc()
    iothread.resume()


def pass_time(IOThread iothread not None, int64_t ticks):
    if not iothread.thread.clock:
        raise RuntimeError("the clock has not been stopped")
    iothread.pause()
    iothread.thread.clock += <uint64_t> ticks
    iothread.resume()


def struct_sizes():
    return {
        "sq_t": sizeof(sq_t), "cq_t": sizeof(cq_t), "share_t": sizeof(share_t),
        "region_t": sizeof(region_t), "aggregation_t": sizeof(aggregation_t),
        "slot_t": sizeof(slot_t), "io_counters_t": sizeof(io_counters_t),
        "path_counters_t": sizeof(path_counters_t),
    }


def line_starts():
    cdef sq_t *sq = NULL
    cdef iothread_t *thread = NULL
    cdef path_counters_t *counters = NULL
    return {
        "iothread_t.state": <size_t> &thread.state,
        "iothread_t.queues": <size_t> &thread.queues,
        "sq_t.event_idx": <size_t> &sq.event_idx,
        "path_counters_t.translated_timed": <size_t> &counters.translated_timed,
    }


def line_places(IOThread iothread not None):
    cdef sq_t *sq = iothread.thread.queues[0]
    return [place % LINE_SIZE for place in (
        <size_t> iothread.thread, <size_t> sq, <size_t> sq.cq, <size_t> sq.controller.memory.regions,
        <size_t> sq.controller.shares, <size_t> sq.path_counters, <size_t> sq.slots)]


@contextmanager
def by_hand(IOThread iothread not None):
    if iothread.worker is not None:
        raise RuntimeError(f"IOThread {iothread.name} runs: it does itself what it is called for")
    iothread.by_hand = True
    try:
        yield
    finally:
        iothread.by_hand = False
        uring_destroy(iothread.thread)


cdef uring_t *uring_of_any(IOThread iothread):
    """For files, or else for passed commands; NULL: it has neither."""
    if iothread.thread.uring != NULL:
        return uring_of(iothread.thread)
    return <uring_t *> <uintptr_t> passthru.rings.get((iothread, False), 0)


def cut_off_kernel(IOThread iothread not None):
    cdef uring_t *uring = uring_of_any(iothread)
    if uring == NULL:
        raise RuntimeError(f"IOThread {iothread.name} has no io_uring")
    # io_uring_enter fails with EBADF; what is registered goes through another descriptor.
    (<rings_t *> &uring.ring).enter_ring_fd = -1


def complete_ring(IOThread iothread not None, int32_t result):
    cdef uring_t *uring = uring_of_any(iothread)
    cdef rings_t *rings
    cdef io_uring_cqe *cqe
    cdef uint32_t head, tail, count, sqe_shift, cqe_shift
    if uring == NULL or (<rings_t *> &uring.ring).enter_ring_fd != -1:
        raise RuntimeError(f"IOThread {iothread.name}: its io_uring is the kernel's")
    rings = <rings_t *> &uring.ring
    # The rings of passed commands have entries of twice the size.
    sqe_shift = rings.flags & IORING_SETUP_SQE128 != 0
    cqe_shift = rings.flags & IORING_SETUP_CQE32 != 0
    head, tail = rings.sq.khead[0], rings.cq.ktail[0]
    count = rings.sq.ktail[0] - head
    for i in range(count):
        cqe = &rings.cq.cqes[((tail + i) & rings.cq.ring_mask) << cqe_shift]
        cqe.user_data = rings.sq.sqes[((head + i) & rings.sq.ring_mask) << sqe_shift].user_data
        cqe.res = result
    store_release32(rings.sq.khead, head + count)
    store_release32(rings.cq.ktail, tail + count)
    uring.prepared -= count
    return count
