"""The machine's own limits: what no controller can be faster than on it.

The least that a controller can do is look at the doorbell, look at the SQE, and complete it
(`EchoController`). What a workload measures against that is the machine's limit for a command: a
doorbell and a 64-byte entry one way between two processors, a 16-byte entry back, and the host's own
work. The other loops measure what a command is made of, one thing each; each runs in the calling
thread without the GIL, for a given time.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nvme_mdev.datapath.atomics cimport (
    cpu_relax, fence_full, load_acquire32, load_relaxed32, prefetch_read, prefetch_write, read_tsc,
    store_relaxed32, store_release32, store_release64,
)
from nvme_mdev.datapath.clock cimport multiply_high, now_ns
from nvme_mdev.datapath.eventfd cimport bump_eventfd
from nvme_mdev.datapath.host_rings cimport PHASE_BIT, cqe_t, queue_t, sqe_t
from nvme_mdev.host.queues cimport QueuePair

import os

cdef extern from *:
    """
    /* Nothing that comes later is begun, not even speculatively, before all that is under way is done. */
    static inline void wait_for_instructions(void)
    {
    #if defined(__x86_64__) || defined(__i386__)
        __asm__ volatile("lfence" ::: "memory");
    #elif defined(__aarch64__)
        __asm__ volatile("dsb ish; isb" ::: "memory");
    #endif
    }
    """
    void wait_for_instructions() nogil
    const uint64_t GOLDEN "UINT64_C(0x9E3779B97F4A7C15)"

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_sqe:
        pass
    cdef struct io_uring_cqe:
        pass
    cdef struct io_uring:
        pass
    int io_uring_queue_init(unsigned, io_uring *, unsigned)
    void io_uring_queue_exit(io_uring *)
    io_uring_sqe *io_uring_get_sqe(io_uring *)
    void io_uring_prep_nop(io_uring_sqe *)
    int io_uring_submit_and_wait(io_uring *, unsigned)
    int io_uring_wait_cqe(io_uring *, io_uring_cqe **)
    void io_uring_cqe_seen(io_uring *, io_uring_cqe *)

cdef enum:
    #: What is measured costs tens of nanoseconds, and so does a look at the clock.
    OPERATIONS_PER_LOOK = 256
    SPINS_PER_LOOK = 1024
    #: Bytes; a page, and the usual command.
    COPY_SIZE = 4096
    NOP_ENTRIES = 4
    WORDS_PER_LINE = 16
    CQES_PER_LINE = 4
    #: Commands that the echo controller takes at once, at most.
    BATCH = 64


cdef class EchoController:
    cdef QueuePair _queue
    cdef uint32_t _stop

    def __init__(self, QueuePair queue not None):
        if queue.queue.tail_doorbell.register == NULL:
            raise ValueError("the queue pair needs doorbells in memory")
        self._queue = queue
        self._stop = 0

    def run(self):
        cdef queue_t *queue = &self._queue.queue
        with nogil:
            serve(queue, &self._stop)

    def stop(self):
        store_relaxed32(&self._stop, 1)


cdef void serve(const queue_t *queue, const uint32_t *stop) noexcept nogil:
    # Copies: the host writes the struct with each command, and its line is none of a command's.
    cdef const uint32_t *doorbell = queue.tail_doorbell.register
    cdef const sqe_t *sq = queue.sq
    cdef cqe_t *cq = queue.cq
    cdef uint32_t sq_entries = queue.sq_entries, cq_entries = queue.cq_entries
    cdef uint32_t head = 0, tail = 0, seen = 0, phase = PHASE_BIT
    cdef uint16_t cids[BATCH]
    cdef uint32_t i, count
    memset(cq, 0, cq_entries * sizeof(cqe_t))
    while load_relaxed32(stop) == 0:
        # Acquire: the entries are read after the tail that covers them.
        seen = load_acquire32(doorbell)
        if seen == head:
            cpu_relax()
            continue
        count = seen - head if seen > head else sq_entries - head
        count = min(count, <uint32_t> BATCH, cq_entries - tail)
        if count > 1:
            prefetch(&sq[head], &cq[tail], count)
        for i in range(count):
            cids[i] = sq[head + i].cid
        head = head + count if head + count < sq_entries else 0
        # With nothing in between: a host that polls takes the line away as often as it can.
        for i in range(count):
            # Release: the dwords with SQHD and the phase tag go last, in one store.
            store_release64(
                <uint64_t *> &cq[tail + i].dw2, head | <uint64_t> (cids[i] | phase) << 32)
        tail += count
        if tail == cq_entries:
            tail = 0
            phase ^= PHASE_BIT


cdef inline void prefetch(const sqe_t *sqes, const cqe_t *cqes, uint32_t count) noexcept nogil:
    """Ask for a batch's lines, so that they come beside one another and not one after the other.

    Not for that of the first completion, which the host looks at all the time: it would have it back.
    """
    cdef uint32_t i
    for i in range(count):
        prefetch_read(&sqes[i])
    i = CQES_PER_LINE
    while i < count:
        prefetch_write(&cqes[i])
        i += CQES_PER_LINE


# -- what one processor does ---------------------------------------------------------------------
cdef inline double mean_ns(uint64_t begun, uint64_t count) noexcept nogil:
    return <double> (now_ns() - begun) / <double> count


def clock_read_ns(uint64_t runtime_ns):
    cdef uint64_t begun = now_ns()
    cdef uint64_t count = 0
    cdef uint32_t i
    with nogil:
        while now_ns() - begun < runtime_ns or count == 0:
            for i in range(OPERATIONS_PER_LOOK):
                read_tsc()
            count += OPERATIONS_PER_LOOK
    return mean_ns(begun, count)


def eventfd_write_ns(uint64_t runtime_ns, int fd):
    cdef uint64_t begun = now_ns()
    cdef uint64_t count = 0
    cdef uint32_t i
    cdef int error = 0
    with nogil:
        while (now_ns() - begun < runtime_ns or count == 0) and not error:
            for i in range(OPERATIONS_PER_LOOK):
                error = bump_eventfd(fd)
                if error:
                    break
            count += OPERATIONS_PER_LOOK
    if error:
        raise OSError(error, os.strerror(error))
    return mean_ns(begun, count)


def copy_ns(uint64_t runtime_ns, const uint8_t[::1] source not None, uint8_t[::1] target not None,
            bint alone=False):
    cdef uint64_t pages = source.shape[0] // COPY_SIZE
    cdef uint64_t random = GOLDEN
    cdef uint64_t count = 0
    cdef const uint8_t *first
    cdef uint8_t *to
    cdef uint64_t begun
    cdef uint32_t i
    if pages == 0 or target.shape[0] < COPY_SIZE:
        raise ValueError(f"source and target need {COPY_SIZE} bytes at least")
    first = &source[0]
    to = &target[0]
    begun = now_ns()
    with nogil:
        while now_ns() - begun < runtime_ns or count == 0:
            for i in range(OPERATIONS_PER_LOOK):
                # A Weyl sequence: equally spread, and cheap next to the copy.
                random += GOLDEN
                memcpy(to, first + multiply_high(random, pages) * COPY_SIZE, COPY_SIZE)
                if alone:
                    fence_full()
                    wait_for_instructions()
            count += OPERATIONS_PER_LOOK
    return mean_ns(begun, count)


cdef class EmptyRing:
    cdef io_uring _ring
    cdef bint _open

    def __cinit__(self):
        cdef int status = io_uring_queue_init(NOP_ENTRIES, &self._ring, 0)
        if status:
            raise OSError(-status, os.strerror(-status), "io_uring")
        self._open = True

    def nop_ns(self, uint64_t runtime_ns):
        cdef uint64_t begun = now_ns()
        cdef uint64_t count = 0
        cdef int status = 0
        if not self._open:
            raise ValueError("the ring is closed")
        with nogil:
            while (now_ns() - begun < runtime_ns or count == 0) and status >= 0:
                status = round_trip(&self._ring)
                count += 1
        if status < 0:
            raise OSError(-status, os.strerror(-status), "io_uring")
        return mean_ns(begun, count)

    def close(self):
        if self._open:
            io_uring_queue_exit(&self._ring)
            self._open = False

    def __dealloc__(self):
        if self._open:
            io_uring_queue_exit(&self._ring)


cdef int round_trip(io_uring *ring) noexcept nogil:
    """A no-operation through the ring: one system call; negative errno where it fails."""
    cdef io_uring_sqe *sqe = io_uring_get_sqe(ring)
    cdef io_uring_cqe *cqe
    cdef int status
    io_uring_prep_nop(sqe)
    status = io_uring_submit_and_wait(ring, 1)
    if status < 0:
        return status
    status = io_uring_wait_cqe(ring, &cqe)
    if status < 0:
        return status
    io_uring_cqe_seen(ring, cqe)
    return 0


# -- what two processors do ----------------------------------------------------------------------
cdef class CacheLine:
    #: The one word, in the middle of a buffer that keeps everything else two lines away.
    cdef uint32_t _words[4 * WORDS_PER_LINE]
    cdef uint32_t _stop

    def bounce_ns(self, uint64_t runtime_ns):
        cdef uint32_t *word = &self._words[2 * WORDS_PER_LINE]
        cdef uint64_t begun = now_ns()
        cdef uint64_t count = 0
        cdef uint32_t i
        with nogil:
            while now_ns() - begun < runtime_ns or count == 0:
                for i in range(OPERATIONS_PER_LOOK):
                    if not bounce(word, &self._stop):
                        break
                count += OPERATIONS_PER_LOOK
                if load_relaxed32(&self._stop):
                    break
        return mean_ns(begun, count)

    def reflect(self):
        cdef uint32_t *word = &self._words[2 * WORDS_PER_LINE]
        cdef uint32_t seen
        with nogil:
            while load_relaxed32(&self._stop) == 0:
                seen = load_acquire32(word)
                if seen & 1:
                    store_release32(word, seen + 1)

    def stop(self):
        store_relaxed32(&self._stop, 1)


cdef inline bint bounce(uint32_t *word, const uint32_t *stop) noexcept nogil:
    """Make the word odd and wait until the other side has made it even. False: told to stop."""
    cdef uint32_t sent = load_relaxed32(word) + 1
    cdef uint32_t spins = 0
    store_release32(word, sent)
    while load_acquire32(word) == sent:
        spins += 1
        if spins % SPINS_PER_LOOK == 0 and load_relaxed32(stop):
            return False
    return True
