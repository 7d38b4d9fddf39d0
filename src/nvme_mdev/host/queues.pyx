"""A queue pair as Python drives it: one command at a time, any bytes, any doorbell value.

What a benchmark needs per command without Python is in `workload_loop.pyx`; it drives the same
`queue_t` through the inlines of `host_rings.pxd`.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from posix.unistd cimport read

from nvme_mdev.datapath.atomics cimport cpu_relax
from nvme_mdev.datapath.clock cimport POLLIN, nap_ns, now_ns, poll, pollfd
from nvme_mdev.datapath.host_rings cimport (
    PHASE_BIT, STATUS_SHIFT, advance_head, cqe_t, peek, post, ring, sqe_t,
)

from nvme_mdev.host.completion import Completion
from nvme_mdev.host.errors import QueueFullError

cdef enum:
    #: Time is looked at every so many turns of a spin loop.
    SPINS_PER_LOOK = 64
    #: How long `wait` spins before it naps, and how long a nap is; arbitrary, below a disk's time.
    SPIN_NS = 100000
    NAP_NS = 20000
    #: Longest time without looking at signals.
    LOOK_NS = 100000000


cdef uintptr_t _address(object buffer, Py_ssize_t size, list views) except? 0:
    """Address of a writable buffer of at least `size` bytes, kept alive in `views`."""
    cdef uint8_t[::1] view = buffer
    if view.shape[0] < size:
        raise ValueError(f"a buffer of {view.shape[0]} bytes is too small: {size} are needed")
    views.append(view)
    return <uintptr_t>&view[0]


cdef class QueuePair:
    def __cinit__(self):
        self.qid = -1
        self.eventfd = -1

    def __init__(
        self, int qid, *, sq, cq, int sq_entries, int cq_entries, write_doorbell,
        tail_register=None, head_register=None, tail_shadow=None, head_shadow=None, int eventfd=-1,
    ):
        if sq_entries < 2 or cq_entries < 2:
            raise ValueError("a queue has at least 2 entries")
        self._views = []
        self.qid = qid
        self.eventfd = eventfd
        self.sq_head = 0
        self._write_doorbell = write_doorbell
        self.queue.sq = <sqe_t *>_address(sq, sq_entries * <Py_ssize_t>sizeof(sqe_t), self._views)
        self.queue.cq = <cqe_t *>_address(cq, cq_entries * <Py_ssize_t>sizeof(cqe_t), self._views)
        self.queue.sq_entries = sq_entries
        self.queue.cq_entries = cq_entries
        self.queue.tail = 0
        self.queue.head = 0
        self.queue.phase = PHASE_BIT
        self._set_doorbell(&self.queue.tail_doorbell, tail_register, tail_shadow)
        self._set_doorbell(&self.queue.head_doorbell, head_register, head_shadow)
        self._closed = False

    cdef int _set_doorbell(self, doorbell_t *doorbell, register, shadow) except -1:
        doorbell.register = NULL
        doorbell.shadow = NULL
        doorbell.event_idx = NULL
        doorbell.value = 0
        if register is not None:
            doorbell.register = <uint32_t *>_address(register, 4, self._views)
        if shadow is not None:
            doorbell.shadow = <uint32_t *>_address(shadow[0], 4, self._views)
            doorbell.event_idx = <uint32_t *>_address(shadow[1], 4, self._views)
        return 0

    @property
    def sq_entries(self):
        return self.queue.sq_entries

    @property
    def cq_entries(self):
        return self.queue.cq_entries

    @property
    def tail(self):
        return self.queue.tail

    @property
    def head(self):
        return self.queue.head

    @property
    def rings_by_socket(self):
        return self.queue.tail_doorbell.register == NULL

    def close(self):
        self._closed = True
        # A new list: a workload that still runs holds on to the old one, and to the memory.
        self._views = []

    cdef int _check_open(self) except -1:
        if self._closed:
            raise ValueError(f"queue pair {self.qid} is closed")
        return 0

    cdef list views(self):
        """What keeps the rings and doorbells mapped; hold it while using them without the GIL."""
        self._check_open()
        return self._views

    cdef int by_socket(self, bint completion, uint32_t value) except -1:
        self._write_doorbell(completion, value)
        return 0

    cdef int ring_tail_doorbell(self) except -1:
        if ring(&self.queue.tail_doorbell, self.queue.tail):
            self.by_socket(False, self.queue.tail)
        return 0

    cdef int ring_head_doorbell(self) except -1:
        if ring(&self.queue.head_doorbell, self.queue.head):
            self.by_socket(True, self.queue.head)
        return 0

    # -- submission ----------------------------------------------------------------------------
    def room(self):
        """Entries that can be posted before the SQ is full (NVMe Base 2.x, section 3.3.1.5)."""
        return (self.sq_head - 1 - <int>self.queue.tail) % <int>self.queue.sq_entries

    def post(self, const uint8_t[::1] sqe not None, *, bint force=False):
        self._check_open()
        if sqe.shape[0] != sizeof(sqe_t):
            raise ValueError(f"a submission queue entry has 64 bytes, not {sqe.shape[0]}")
        if not force and self.room() == 0:
            raise QueueFullError(f"submission queue {self.qid} is full: reap completions first")
        post(&self.queue, <const sqe_t *>&sqe[0])

    def ring(self):
        self._check_open()
        self.ring_tail_doorbell()

    def submit(self, sqe not None, *, bint force=False):
        self.post(sqe, force=force)
        self.ring_tail_doorbell()

    def write_tail(self, uint32_t value):
        self._check_open()
        if ring(&self.queue.tail_doorbell, value):
            self.by_socket(False, value)

    def write_head(self, uint32_t value):
        self._check_open()
        if ring(&self.queue.head_doorbell, value):
            self.by_socket(True, value)

    # -- completion ----------------------------------------------------------------------------
    def reap(self, int maximum=0, *, bint acknowledge=True):
        self._check_open()
        cdef list found = []
        cdef uint32_t dw3 = 0
        cdef cqe_t *cqe
        if not 0 < maximum < <int>self.queue.cq_entries:
            # More than a queue of them are none of the controller's that keeps to its head.
            maximum = self.queue.cq_entries
        while peek(&self.queue, &dw3):
            cqe = &self.queue.cq[self.queue.head]
            self.sq_head = cqe.dw2 & 0xFFFF
            found.append(
                Completion(cqe.dw0, cqe.dw1, cqe.dw2 & 0xFFFF, cqe.dw2 >> 16, dw3 & 0xFFFF, dw3 >> STATUS_SHIFT)
            )
            advance_head(&self.queue)
            if len(found) == maximum:
                break
        if found and acknowledge:
            self.ring_head_doorbell()
        return found

    def acknowledge(self):
        self._check_open()
        self.ring_head_doorbell()

    def wait(self, double timeout):
        self._check_open()
        cdef uint64_t deadline = now_ns() + <uint64_t>(timeout * 1e9)
        cdef uint32_t dw3 = 0
        while not peek(&self.queue, &dw3):
            if self.eventfd >= 0:
                self._sleep(deadline)
            else:
                self._spin(deadline)
            if now_ns() >= deadline:
                return bool(peek(&self.queue, &dw3))
        return True

    cdef int _spin(self, uint64_t deadline) except -1:
        """Poll for a tenth of a second at most; signal handlers run between calls.

        A completion that takes longer than a spin is not worth a core: naps follow it, which
        let the device's own threads run on a small machine.
        """
        cdef uint64_t started = now_ns()
        cdef uint64_t until = started + LOOK_NS
        cdef uint64_t now = started
        cdef uint32_t dw3 = 0
        cdef int turn
        if until > deadline:
            until = deadline
        with nogil:
            while now < until and not peek(&self.queue, &dw3):
                if now - started > SPIN_NS:
                    nap_ns(NAP_NS)
                else:
                    for turn in range(SPINS_PER_LOOK):
                        if peek(&self.queue, &dw3):
                            break
                        cpu_relax()
                now = now_ns()
        return 0

    cdef int _sleep(self, uint64_t deadline) except -1:
        """Wait for the eventfd, for about a tenth of a second at most."""
        cdef pollfd waited
        cdef uint64_t count
        waited.fd = self.eventfd
        waited.events = POLLIN
        with nogil:
            if poll(&waited, 1, LOOK_NS // 1000000) > 0:
                read(waited.fd, &count, 8)
        return 0
