"""The polling thread that moves commands between guests' queues and backends.

One turn: look at each queue's doorbell; fetch, parse and submit what is new, in batches; reap what
io_uring finished; post completions; raise interrupts. No lock, no allocation, and no system call but
the backend's and the interrupt's.

The control plane changes what the thread reads only while it stands still. It asks with `request`,
the thread answers with `state`, at the top of its turn. A sleeping thread already stands: each side
stores its word, then (full fence) loads the other's, so one of them always sees the other.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from posix.unistd cimport close, usleep

from nvme_mdev.datapath.arbitration cimport arbiter_add, arbiter_remove
from nvme_mdev.datapath.atomics cimport (
    cpu_relax, fence_full, load_acquire32, load_relaxed32, store_relaxed32, store_release32,
)
from nvme_mdev.datapath.completing cimport complete_done
from nvme_mdev.datapath.compound cimport compounds_create, compounds_destroy
from nvme_mdev.datapath.fetching cimport ADMIN_TURNS, look_after, poll_admin, serve
from nvme_mdev.datapath.idling cimport idle
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.queues cimport wake_thread
from nvme_mdev.datapath.runtime cimport (
    BATCH, DONE_CAPACITY, RUNNING, STANDING, controller_t, iothread_t, poller_t, request_t, sq_t,
)
from nvme_mdev.datapath.time_slice cimport shorten_slices
from nvme_mdev.datapath.uring cimport uring_destroy, uring_of, uring_poll, uring_submit

import contextlib
import os
import select
import threading

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_TIMERSLACK
    int prctl(int option, unsigned long argument)

cdef enum:
    #: Spins before a waiting thread lets the other have the processor.
    PATIENCE = 2000
    PATIENCE_NAP_US = 20


cdef inline uint32_t reap(iothread_t *thread) noexcept nogil:
    """Submit what backends prepared this turn, take what is finished; what else is due."""
    cdef uint32_t count = 0
    cdef uint32_t i
    if thread.chores:
        count = thread.look_after(thread)
    if thread.uring != NULL:
        if uring_of(thread).prepared:
            uring_submit(uring_of(thread))
        count += uring_poll(thread)
        if thread.done_count:
            complete_done(thread)
    for i in range(thread.poller_count):
        count += thread.pollers[i].poll(thread, thread.pollers[i].context)
        if thread.done_count:
            complete_done(thread)
    return count


cdef inline bint asked_to_stand(iothread_t *thread) noexcept nogil:
    return load_acquire32(&thread.request) or load_acquire32(&thread.call_pending)


cdef void reverse(sq_t **queues, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count // 2):
        queues[i], queues[count - 1 - i] = queues[count - 1 - i], queues[i]


cdef void put_last(iothread_t *thread, uint32_t count) noexcept nogil:
    """The first `count` queues had their turn: after a turn that is cut short the others are first."""
    reverse(thread.queues, count)
    reverse(thread.queues + count, thread.queue_count - count)
    reverse(thread.queues, thread.queue_count)


cdef inline uint32_t turn(iothread_t *thread) noexcept nogil:
    """Everything once; how much there was to do."""
    cdef uint32_t work = 0
    cdef uint32_t i, tail
    cdef sq_t *sq
    for i in range(thread.queue_count):
        sq = thread.queues[i]
        tail = load_acquire32(sq.tail_doorbell)
        if tail != sq.head and not sq.held:
            work += serve(thread, sq, tail)
            if asked_to_stand(thread):
                # A batch of long commands of each queue is too long to wait for.
                put_last(thread, i + 1)
                break
    if thread.inflight:
        work += reap(thread)
    thread.turns += 1
    if thread.turns % ADMIN_TURNS == 0:
        work += poll_admin(thread)
    return work


cdef uint32_t take_turns(iothread_t *thread, uint32_t count) noexcept nogil:
    # For `probe.pyx`: what a command costs is counted in here.
    cdef uint32_t work = 0
    cdef uint32_t i
    for i in range(count):
        work += turn(thread)
    return work


cdef void stand(iothread_t *thread) noexcept nogil:
    """Stand still until nobody asks for it; run what the control plane wants run here."""
    cdef uint32_t spins = 0
    thread.rests += 1
    store_release32(&thread.state, STANDING)
    while asked_to_stand(thread):
        if load_acquire32(&thread.call_pending):
            thread.call_result = thread.call(thread, thread.call_argument)
            store_release32(&thread.call_pending, 0)
        cpu_relax()
        spins += 1
        if spins > PATIENCE:
            usleep(PATIENCE_NAP_US)
    store_relaxed32(&thread.state, RUNNING)
    fence_full()


cdef void run(iothread_t *thread) noexcept nogil:
    """The thread: turns until it is told to stop."""
    prctl(PR_SET_TIMERSLACK, 1)
    shorten_slices()
    store_relaxed32(&thread.state, RUNNING)
    fence_full()
    while True:
        # Both can be asked for again the moment the thread runs: hence the loop.
        while asked_to_stand(thread):
            stand(thread)
        if load_relaxed32(&thread.stopping):
            break
        if turn(thread):
            thread.idle_turns = 0
            thread.idle_since_ns = 0
        else:
            idle(thread)
    uring_destroy(thread)
    store_release32(&thread.state, STANDING)


# -- the control plane's side ---------------------------------------------------------------------


cdef class IOThread:
    """A native thread that runs without the GIL (see iothread.pyi)."""

    def __cinit__(self, str name, *, cpu=None, poll_timeout_ms=500):
        self.thread = <iothread_t *> line_calloc(1, sizeof(iothread_t))
        if self.thread == NULL:
            raise MemoryError
        self.thread.wake_fd = -1
        self.thread.batch = <request_t **> calloc(BATCH + 1, sizeof(request_t *))
        self.thread.done = <request_t **> calloc(DONE_CAPACITY, sizeof(request_t *))
        self.thread.compounds = compounds_create()
        if self.thread.batch == NULL or self.thread.done == NULL or self.thread.compounds == NULL:
            raise MemoryError
        self.thread.state = STANDING
        self.thread.look_after = look_after
        self.thread.rests = 1
        self.name = name

    def __init__(self, name, *, cpu=None, poll_timeout_ms=500):
        self.configure(cpu=cpu, poll_timeout_ms=poll_timeout_ms)
        self.worker = None
        self.lifeline = -1

    def __dealloc__(self):
        if self.thread == NULL:
            return
        self.close_wake()
        free(self.thread.batch)
        free(self.thread.done)
        compounds_destroy(self.thread.compounds)
        free(self.thread.queues)
        free(self.thread.arbiters)
        free(self.thread.controllers)
        free(self.thread.pollers)
        free(self.thread)

    def configure(self, *, cpu=None, poll_timeout_ms=None):
        if poll_timeout_ms is not None:
            if poll_timeout_ms < 0:
                raise ValueError("the poll timeout cannot be negative")
            self.pause()
            self.thread.poll_timeout_ns = <uint64_t> poll_timeout_ms * 1000000
            self.resume()
        if cpu is not None:
            if self.worker is not None:
                os.sched_setaffinity(self.worker.native_id, {cpu})
            self.cpu = cpu

    def unpin(self):
        if self.worker is not None:
            os.sched_setaffinity(self.worker.native_id, os.sched_getaffinity(0))
        self.cpu = None

    @property
    def poll_timeout_ms(self):
        return self.thread.poll_timeout_ns // 1000000

    @property
    def asleep(self):
        return bool(load_relaxed32(&self.thread.parked))

    @property
    def queue_count(self):
        return self.thread.queue_count + self.thread.weighted_count

    cdef void close_wake(self) noexcept:
        if self.thread.wake_fd >= 0:
            close(self.thread.wake_fd)
            self.thread.wake_fd = -1

    def start(self):
        self.thread.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.rings = select.epoll()
        self.rings.register(self.thread.wake_fd, select.EPOLLIN)
        self.thread.ring_set = self.rings.fileno()
        self.started = threading.Event()
        self.failure = None
        self.thread.stopping = 0
        self.worker = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.worker.start()
        self.started.wait()
        if self.failure is not None:
            self.worker.join()
            self.worker = None
            self.rings.close()
            self.close_wake()
            raise self.failure

    def _run(self):
        try:
            if self.cpu is not None:
                os.sched_setaffinity(0, {self.cpu})
        except OSError as error:
            self.failure = OSError(error.errno, f"CPU {self.cpu}: {error.strerror}")
        self.started.set()
        if self.failure is None:
            with nogil:
                run(self.thread)

    def stop(self):
        if self.worker is None:
            return
        store_release32(&self.thread.stopping, 1)
        self.wake()
        self.worker.join()
        self.worker = None
        self.rings.close()
        self.close_wake()

    def wake(self):
        wake_thread(self.thread)

    def listen(self, fd):
        # Edges: whoever reads the socket may take his time, and the thread does not wait for him.
        self.rings.register(fd, select.EPOLLIN | select.EPOLLET)

    def ignore(self, fd):
        if self.worker is not None:
            with contextlib.suppress(FileNotFoundError):
                self.rings.unregister(fd)

    def pause(self):
        self.thread.request += 1
        fence_full()
        if self.worker is None or self.thread.request > 1:
            return
        with nogil:
            wait_until(&self.thread.state, STANDING)

    def resume(self):
        store_release32(&self.thread.request, self.thread.request - 1)

    cdef int call(self, int (*function)(iothread_t *, void *) noexcept nogil, void *argument) except? -9999:
        if self.by_hand:
            return function(self.thread, argument)
        if self.worker is None:
            raise RuntimeError(f"IOThread {self.name} is not running")
        self.thread.call = function
        self.thread.call_argument = argument
        store_release32(&self.thread.call_pending, 1)
        self.wake()
        with nogil:
            wait_until(&self.thread.call_pending, 0)
        return self.thread.call_result

    cdef int add_queue(self, sq_t *sq) except -1:
        cdef iothread_t *thread = self.thread
        cdef uint32_t total = thread.queue_count + thread.weighted_count
        cdef sq_t **queues = <sq_t **> realloc(thread.queues, (total + 1) * sizeof(sq_t *))
        if queues == NULL:
            raise MemoryError
        thread.queues = queues
        if sq.controller.weighted:
            arbiter_add(thread, sq)
            queues[total] = sq
            thread.weighted_count += 1
        else:
            # Those that arbiters serve come last.
            queues[total] = queues[thread.queue_count]
            queues[thread.queue_count] = sq
            thread.queue_count += 1
        return 0

    cdef void remove_queue(self, sq_t *sq) noexcept:
        cdef iothread_t *thread = self.thread
        cdef uint32_t total = thread.queue_count + thread.weighted_count
        cdef uint32_t i
        for i in range(total):
            if thread.queues[i] == sq:
                break
        else:
            return
        if arbiter_remove(thread, sq):
            thread.weighted_count -= 1
            thread.queues[i] = thread.queues[total - 1]
        else:
            thread.queue_count -= 1
            thread.queues[i] = thread.queues[thread.queue_count]
            thread.queues[thread.queue_count] = thread.queues[total - 1]

    cdef int add_poller(
        self, uint32_t (*poll)(iothread_t *, void *) noexcept nogil, void *context
    ) except -1:
        cdef poller_t *pollers
        self.pause()
        try:
            pollers = <poller_t *> realloc(
                self.thread.pollers, (self.thread.poller_count + 1) * sizeof(poller_t))
            if pollers == NULL:
                raise MemoryError
            pollers[self.thread.poller_count].poll = poll
            pollers[self.thread.poller_count].context = context
            self.thread.pollers = pollers
            self.thread.poller_count += 1
        finally:
            self.resume()
        return 0

    cdef int remove_poller(self, void *context) except -1:
        cdef uint32_t i
        self.pause()
        for i in range(self.thread.poller_count):
            if self.thread.pollers[i].context == context:
                self.thread.poller_count -= 1
                self.thread.pollers[i] = self.thread.pollers[self.thread.poller_count]
                break
        self.resume()
        return 0

    cdef int add_controller(self, controller_t *controller) except -1:
        cdef controller_t **controllers = <controller_t **> realloc(
            self.thread.controllers, (self.thread.controller_count + 1) * sizeof(controller_t *))
        if controllers == NULL:
            raise MemoryError
        controllers[self.thread.controller_count] = controller
        self.thread.controllers = controllers
        self.thread.controller_count += 1
        return 0

    cdef void remove_controller(self, controller_t *controller) noexcept:
        cdef uint32_t i
        for i in range(self.thread.controller_count):
            if self.thread.controllers[i] == controller:
                self.thread.controller_count -= 1
                self.thread.controllers[i] = self.thread.controllers[self.thread.controller_count]
                return


cdef void wait_until(uint32_t *word, uint32_t value) noexcept nogil:
    """Spin, then with short sleeps, until the thread stores the value."""
    cdef uint32_t spins = 0
    while load_acquire32(word) != value:
        cpu_relax()
        spins += 1
        if spins > PATIENCE:
            usleep(PATIENCE_NAP_US)
