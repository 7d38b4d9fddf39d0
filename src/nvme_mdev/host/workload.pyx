"""The benchmark loop: keeps a queue pair's commands outstanding and measures each of them.

One turn of the loop (`turn`) does, in this order, because the controller waits for the first two:

1. *sweep*: take new completions, a batch at most; post the next command in the place of each;
2. *ring* the submission queue's tail doorbell, once;
3. *account*: latencies into the histograms, decide upon the commands after next, now that the
   controller is busy; the CQ head doorbell every now and then, never so late that the
   completion queue could fill up.

Time is read twice a turn: when the first completion is found and when the doorbell was rung. A
command's submission latency is that of its batch; its completion is dated to its batch's first.
"""

from array import array

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign
from posix.unistd cimport read

from nvme_mdev.datapath.atomics cimport (
    cpu_relax, load_relaxed32, load_relaxed64, prefetch_write, read_tsc, store_relaxed32,
    store_relaxed64,
)
from nvme_mdev.datapath.clock cimport (
    POLLIN, multiply_fixed, multiply_high, now_ns, poll, pollfd, ticks_hz,
)
from nvme_mdev.datapath.host_rings cimport (
    STATUS_SHIFT, advance_head, peek, post, queue_t, ring, sqe_t,
)
from nvme_mdev.host.queues cimport QueuePair

from nvme_mdev.host.samples import Failure, FirstError, Measured, Samples

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    """
    #define HIGHEST_BIT(value) (63 - __builtin_clzll(value))
    #define LOWEST_BIT(value) __builtin_ctzll(value)
    #define COUNT_BITS(value) __builtin_popcountll(value)
    #define LIKELY(condition) __builtin_expect(!!(condition), 1)
    #define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
    """
    uint32_t HIGHEST_BIT(uint64_t value)
    uint32_t LOWEST_BIT(uint64_t value)
    uint32_t COUNT_BITS(uint64_t value)
    bint UNLIKELY(bint condition)
    const uint64_t GOLDEN "UINT64_C(0x9E3779B97F4A7C15)"
    const uint64_t WYRAND_ADD "UINT64_C(0xA0761D6478BD642F)"
    const uint64_t WYRAND_XOR "UINT64_C(0xE7037ED1A0B428DB)"
    #: Coding of a decided command: the first block, and this bit for a write.
    const uint64_t NEXT_WRITE "(UINT64_C(1) << 63)"
    const uint64_t NEXT_NONE "UINT64_MAX"

cdef enum:
    OPCODE_WRITE = 1
    OPCODE_READ = 2
    FAILURE_NONE = 0
    FAILURE_STATUS = 1
    FAILURE_MISMATCH = 2
    FAILURE_TIMEOUT = 3
    FAILURE_UNKNOWN_CID = 4
    FAILURE_RING = 5
    FAILURE_ABANDONED = 6
    #: Empty looks at the completion queue between two looks at the clock and the stop flag.
    SPINS_PER_LOOK = 1024
    #: A look that comes this part of a time-out (a shift) after the last one: nobody looked meanwhile.
    STANDSTILL_SHIFT = 3
    #: Longest sleep for an interrupt without looking at the stop flag (milliseconds).
    SLEEP_MS = 100
    MIN_BLOCK_SIZE = 512


# -- random numbers and the data pattern ---------------------------------------------------------
cdef inline uint64_t next_random(uint64_t *state) noexcept nogil:
    """wyrand: 64 random bits for two multiplications (Wang Yi, wyhash)."""
    state[0] += WYRAND_ADD
    cdef uint64_t other = state[0] ^ WYRAND_XOR
    return multiply_high(state[0], other) ^ (state[0] * other)


cdef inline uint64_t pattern_base(uint64_t block, uint64_t seed) noexcept nogil:
    cdef uint64_t state = block * GOLDEN ^ seed
    return next_random(&state)


cdef void fill_block(uint64_t *words, uint32_t count, uint64_t block, uint64_t seed) noexcept nogil:
    """A block's pattern: its number, the seed, then words that follow from both."""
    cdef uint64_t base = pattern_base(block, seed)
    cdef uint32_t i
    for i in range(2, count):
        words[i] = base + i * GOLDEN
    words[0] = block
    words[1] = seed


cdef bint block_differs(const uint64_t *words, uint32_t count, uint64_t block, uint64_t seed) noexcept nogil:
    cdef uint64_t base = pattern_base(block, seed)
    cdef uint64_t difference = (words[0] ^ block) | (words[1] ^ seed)
    cdef uint32_t i
    for i in range(2, count):
        difference |= words[i] ^ (base + i * GOLDEN)
    return difference != 0


# -- histograms ----------------------------------------------------------------------------------
cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    """fio's plat_val_to_idx."""
    if ns < 2 * PLAT_VALUES:
        return <uint32_t>ns
    cdef uint32_t error_bits = HIGHEST_BIT(ns) - PLAT_BITS
    cdef uint32_t index = ((error_bits + 1) << PLAT_BITS) + <uint32_t>((ns >> error_bits) & (PLAT_VALUES - 1))
    return index if index < PLAT_BUCKETS else <uint32_t>(PLAT_BUCKETS - 1)


cdef inline void record(histogram_t *histogram, uint64_t ns, uint64_t times) noexcept nogil:
    histogram.count += times
    histogram.total += ns * times
    histogram.squares += <double>ns * <double>ns * <double>times
    if ns < histogram.least:
        histogram.least = ns
    if ns > histogram.most:
        histogram.most = ns
    histogram.buckets[bucket_of(ns)] += times


# -- deciding what to do -------------------------------------------------------------------------
cdef uint64_t next_written(job_t *job) noexcept nogil:
    """The next unit to read back, or `units` at the end."""
    cdef uint64_t word
    while job.cursor < job.units:
        word = job.written[job.cursor >> 6] >> (job.cursor & 63)
        if word != 0:
            job.cursor += LOWEST_BIT(word)
            return job.cursor
        job.cursor = (job.cursor | 63) + 1
    return job.units


cdef uint64_t decide(job_t *job) noexcept nogil:
    """The command after those already decided upon."""
    cdef uint64_t unit, bits
    cdef uint64_t direction = 0
    if UNLIKELY(job.scan):
        unit = next_written(job)
        job.cursor = unit + 1
        if unit >= job.units:
            return NEXT_NONE
        return job.first_block + unit * job.blocks_per_io
    if job.read_share != (<uint64_t>1 << 32):
        bits = next_random(&job.random) >> 32
        if bits >= job.read_share:
            direction = NEXT_WRITE
    if job.is_random:
        unit = multiply_high(next_random(&job.random), job.units)
    else:
        unit = job.cursor
        job.cursor += 1
        if job.cursor == job.units:
            job.cursor = 0
    return (job.first_block + unit * job.blocks_per_io) | direction


cdef void decide_ahead(job_t *job) noexcept nogil:
    """Keep the ring of upcoming commands full."""
    while job.decided - job.taken <= job.upcoming_mask:
        job.upcoming[job.decided & job.upcoming_mask] = decide(job)
        job.decided += 1


# -- errors and verification ---------------------------------------------------------------------
cdef void note_error(job_t *job, uint32_t failure, slot_t *slot, uint64_t block, uint32_t status) noexcept nogil:
    if job.first_failure == FAILURE_NONE:
        job.first_failure = failure
        job.first_direction = slot.direction
        job.first_block_of_error = block
        job.first_status = status
        job.first_cid = <uint32_t>(slot - job.slots)
    if job.errors + job.mismatches > job.max_errors:
        job.failure = failure
        job.issuing = 0


cdef void check_data(job_t *job, slot_t *slot) noexcept nogil:
    """What was read against the pattern."""
    cdef uint32_t i
    cdef uint32_t words = job.block_size // 8
    for i in range(job.blocks_per_io):
        if block_differs(<uint64_t *>(slot.data + i * job.block_size), words, slot.block + i, job.seed):
            job.mismatches += 1
            note_error(job, FAILURE_MISMATCH, slot, slot.block + i, 0)
    job.checked_blocks += job.blocks_per_io


cdef inline uint64_t unit_of(job_t *job, uint64_t block) noexcept nogil:
    return (block - job.first_block) // job.blocks_per_io


cdef void verify_completion(job_t *job, slot_t *slot) noexcept nogil:
    cdef uint64_t unit
    if slot.direction == DIRECTION_WRITE:
        unit = unit_of(job, slot.block)
        job.written[unit >> 6] |= <uint64_t>1 << (unit & 63)
    elif slot.check:
        check_data(job, slot)


cdef void fill_data(job_t *job, slot_t *slot, uint64_t block) noexcept nogil:
    cdef uint32_t i
    for i in range(job.blocks_per_io):
        fill_block(<uint64_t *>(slot.data + i * job.block_size), job.block_size // 8, block + i, job.seed)


cdef bint must_check(job_t *job, slot_t *slot) noexcept nogil:
    """Whether the read that was just submitted has an expected answer.

    Every completion taken before its doorbell counts: those writes are on the medium.
    """
    if slot.direction != DIRECTION_READ:
        return False
    if job.check_all or job.scan:
        return True
    cdef uint64_t unit = unit_of(job, slot.block)
    return (job.written[unit >> 6] >> (unit & 63)) & 1


# -- the loop ------------------------------------------------------------------------------------
cdef inline void issue(job_t *job, slot_t *slot, uint32_t cid) noexcept nogil:
    """Post the next command into a free slot; its accounts follow after the doorbell."""
    cdef uint64_t following = NEXT_NONE
    cdef sqe_t *entry
    if job.issuing and job.taken < job.limit:
        following = job.upcoming[job.taken & job.upcoming_mask]
    slot.next = following
    if UNLIKELY(following == NEXT_NONE):
        return
    job.taken += 1
    if UNLIKELY(job.verify) and following & NEXT_WRITE:
        fill_data(job, slot, following & ~NEXT_WRITE)
    entry = &job.queue.sq[job.queue.tail]
    post(job.queue, &job.templates[cid])
    # Stores over stores: to change the template and copy it then would stall on the forwarding.
    entry.slba = following & ~NEXT_WRITE
    entry.opcode = OPCODE_WRITE if following & NEXT_WRITE else OPCODE_READ


cdef inline uint32_t sweep(job_t *job) noexcept nogil:
    """Take completions, a batch at most, and post a command for each; how many were found."""
    cdef uint32_t found = 0
    cdef uint32_t dw3 = 0
    cdef uint32_t cid
    cdef slot_t *slot
    while found < job.batch and peek(job.queue, &dw3):
        if found == 0:
            job.now = read_tsc()
        advance_head(job.queue)
        cid = dw3 & 0xFFFF
        if UNLIKELY(cid >= job.depth or not job.slots[cid].busy):
            job.failure = FAILURE_UNKNOWN_CID
            job.first_failure = FAILURE_UNKNOWN_CID
            job.first_cid = cid
            break
        slot = &job.slots[cid]
        # A second completion of it names no command: `account` would end, and count, it twice.
        slot.busy = 0
        if UNLIKELY(dw3 >> STATUS_SHIFT != 0):
            job.errors += 1
            slot.check = 0
            note_error(job, FAILURE_STATUS, slot, slot.block, dw3 >> STATUS_SHIFT)
        elif UNLIKELY(job.verify):
            verify_completion(job, slot)
        job.found[found] = cid
        found += 1
        issue(job, slot, cid)
    return found


cdef int ring_by_socket(job_t *job, bint completion, uint32_t value) noexcept with gil:
    """Write a doorbell register through the socket; what goes wrong is kept for `run`."""
    try:
        (<Workload>job.owner).queue.by_socket(completion, value)
    except BaseException as error:
        (<Workload>job.owner)._error = error
        job.failure = FAILURE_RING
    return 0


cdef inline void start_next(job_t *job, slot_t *slot, uint64_t now, uint64_t rung) noexcept nogil:
    """Make the slot's next command its current one; without one the slot is free."""
    if UNLIKELY(slot.next == NEXT_NONE):
        slot.busy = 0
        job.outstanding -= 1
        return
    slot.busy = 1
    slot.block = slot.next & ~NEXT_WRITE
    slot.direction = DIRECTION_WRITE if slot.next & NEXT_WRITE else DIRECTION_READ
    slot.started = now
    slot.submitted = rung
    if UNLIKELY(job.verify):
        slot.check = must_check(job, slot)


cdef inline void account(job_t *job, uint32_t found, uint64_t rung) noexcept nogil:
    """Book what `sweep` found, and the commands that took their places."""
    cdef uint64_t now = job.now
    cdef uint32_t i
    cdef uint32_t submitted[2]
    cdef slot_t *slot
    cdef measured_t *measured
    submitted[0] = submitted[1] = 0
    for i in range(found):
        slot = &job.slots[job.found[i]]
        measured = &job.measured[slot.direction]
        measured.commands += 1
        record(&measured.clat, multiply_fixed(now - slot.submitted, job.tick_ns), 1)
        record(&measured.lat, multiply_fixed(now - slot.started, job.tick_ns), 1)
        start_next(job, slot, now, rung)
        submitted[slot.direction] += slot.busy
    if submitted[0]:
        record(&job.measured[0].slat, multiply_fixed(rung - now, job.tick_ns), submitted[0])
    if submitted[1]:
        record(&job.measured[1].slat, multiply_fixed(rung - now, job.tick_ns), submitted[1])


cdef inline void turn(job_t *job, uint32_t found) noexcept nogil:
    """After a sweep that found something: ring, then book."""
    cdef queue_t *queue = job.queue
    cdef uint64_t rung
    if queue.tail != queue.tail_doorbell.value and ring(&queue.tail_doorbell, queue.tail):
        ring_by_socket(job, False, queue.tail)
    rung = read_tsc()
    # The controller has read these lines a lap ago; have them back before they are written.
    prefetch_write(&queue.sq[queue.tail])
    account(job, found, rung)
    job.unacknowledged += found
    if job.unacknowledged >= job.lazy:
        job.unacknowledged = 0
        if ring(&queue.head_doorbell, queue.head):
            ring_by_socket(job, True, queue.head)
    if UNLIKELY(job.now >= job.deadline or load_relaxed32(&job.stop) != 0):
        job.issuing = 0
    decide_ahead(job)
    store_relaxed64(&job.progress, job.taken - job.outstanding)


cdef void look_around(job_t *job) noexcept nogil:
    """What a turn without completions has time for: the stop flag, the deadline, time-outs."""
    cdef uint32_t stop = load_relaxed32(&job.stop)
    cdef uint64_t now = read_tsc()
    if stop != 0 or now >= job.deadline:
        job.issuing = 0
    if stop == STOP_ABANDON:
        job.failure = FAILURE_ABANDONED
    # Signed: the counters of two processors need not agree to the last tick.
    if <long long>(job.now - job.looked) > 0:
        job.looked = job.now
    if <long long>(now - job.looked) > <long long>(job.timeout >> STANDSTILL_SHIFT):
        # This thread did not run: it was stopped, or its machine was suspended.
        job.stood_still += now - job.looked
    job.looked = now
    if <long long>(now - job.now) > <long long>(job.timeout + job.stood_still):
        job.failure = FAILURE_TIMEOUT


cdef void sleep_for_interrupt(job_t *job) noexcept nogil:
    cdef pollfd waited
    cdef uint64_t count
    waited.fd = job.eventfd
    waited.events = POLLIN
    if poll(&waited, 1, SLEEP_MS) > 0 and read(job.eventfd, &count, 8) == 8:
        job.wakeups += 1


cdef void begin(job_t *job) noexcept nogil:
    """Fill the queue."""
    cdef uint32_t cid
    cdef uint32_t posted = 0
    decide_ahead(job)
    job.now = job.looked = read_tsc()
    job.stood_still = 0
    for cid in range(job.depth):
        issue(job, &job.slots[cid], cid)
        if job.slots[cid].next != NEXT_NONE:
            posted += 1
            # The ring of upcoming commands is as deep as the queue: taken once, it is empty.
            decide_ahead(job)
    if posted and ring(&job.queue.tail_doorbell, job.queue.tail):
        ring_by_socket(job, False, job.queue.tail)
    cdef uint64_t rung = read_tsc()
    job.outstanding = posted
    cdef uint64_t slat = multiply_fixed(rung - job.now, job.tick_ns)
    for cid in range(posted):
        start_next(job, &job.slots[cid], job.now, rung)
        record(&job.measured[job.slots[cid].direction].slat, slat, 1)


cdef void acknowledge(job_t *job) noexcept nogil:
    """Ring the CQ head doorbell for the last completions, if that is still to be done."""
    if job.unacknowledged and job.failure != FAILURE_RING:
        job.unacknowledged = 0
        if ring(&job.queue.head_doorbell, job.queue.head):
            ring_by_socket(job, True, job.queue.head)


cdef void run_job(job_t *job) noexcept nogil:
    cdef uint32_t found
    cdef uint32_t idle = 0
    job.begun_ns = now_ns()
    begin(job)
    while job.outstanding != 0 and job.failure < FAILURE_TIMEOUT:
        found = sweep(job)
        if found != 0:
            turn(job, found)
            idle = 0
        elif job.interrupts:
            sleep_for_interrupt(job)
            look_around(job)
        elif idle < SPINS_PER_LOOK:
            idle += 1
            cpu_relax()
        else:
            idle = 0
            look_around(job)
            # The controller may be waiting for this very processor.
            sched_yield()
    job.ended_ns = now_ns()
    acknowledge(job)


cdef inline bint is_over(job_t *job) noexcept nogil:
    return job.outstanding == 0 or job.failure >= FAILURE_TIMEOUT


cdef void run_in_turn(job_t **jobs, uint32_t count) noexcept nogil:
    """Several jobs in one thread, a sweep of each in turn."""
    cdef uint32_t found = 0
    cdef uint32_t idle = 0
    cdef uint32_t i, left, took
    cdef uint64_t begun = now_ns()
    for i in range(count):
        jobs[i].begun_ns = begun
        begin(jobs[i])
    left = count
    while left:
        found = left = 0
        for i in range(count):
            if is_over(jobs[i]):
                continue
            left += 1
            took = sweep(jobs[i])
            if took:
                turn(jobs[i], took)
                found += took
        idle = 0 if found else idle + 1
        if found == 0 and idle % SPINS_PER_LOOK:
            cpu_relax()
        elif found == 0:
            for i in range(count):
                if not is_over(jobs[i]):
                    look_around(jobs[i])
            sched_yield()
    begun = now_ns()
    for i in range(count):
        jobs[i].ended_ns = begun
        acknowledge(jobs[i])


# -- Python --------------------------------------------------------------------------------------
cdef void clear_histogram(histogram_t *histogram) noexcept nogil:
    memset(histogram, 0, sizeof(histogram_t))
    histogram.least = <uint64_t>-1


cdef void clear_measured(job_t *job) noexcept nogil:
    cdef int direction
    for direction in range(2):
        job.measured[direction].commands = 0
        clear_histogram(&job.measured[direction].slat)
        clear_histogram(&job.measured[direction].clat)
        clear_histogram(&job.measured[direction].lat)


cdef object samples_of(histogram_t *histogram):
    buckets = array("Q", bytes(8 * PLAT_BUCKETS))
    cdef uint64_t[::1] view = buckets
    cdef int i
    for i in range(PLAT_BUCKETS):
        view[i] = histogram.buckets[i]
    least = histogram.least if histogram.count else 0
    return Samples(
        histogram.count, histogram.total, least, histogram.most, histogram.squares, buckets
    )


cdef void *zeroed_lines(size_t size) except NULL:
    """Zeroed memory on cache lines of its own."""
    cdef void *memory = NULL
    if posix_memalign(&memory, 128, (size + 127) & ~<size_t>127) != 0:
        raise MemoryError
    memset(memory, 0, (size + 127) & ~<size_t>127)
    return memory


def bucket_index(uint64_t ns):
    return bucket_of(ns)


def block_pattern(uint64_t block, uint64_t seed, uint32_t size):
    if size < MIN_BLOCK_SIZE or size % 8:
        raise ValueError(f"a block has at least {MIN_BLOCK_SIZE} bytes, a multiple of 8")
    data = bytearray(size)
    cdef uint8_t[::1] view = data
    fill_block(<uint64_t *>&view[0], size // 8, block, seed)
    return bytes(data)


cdef class Workload:
    def __init__(
        self, QueuePair queue not None, *, uint32_t nsid, uint32_t block_size, uint32_t blocks_per_io,
        uint64_t first_block, uint64_t units, prps, data not None, uint64_t data_stride,
        double read_fraction=1.0, bint random=True, uint64_t seed=1, uint64_t data_seed=1,
        bint verify=False, bint check_all=False, uint64_t runtime_ns=0, uint64_t commands=0,
        uint64_t timeout_ns=30_000_000_000, uint64_t max_errors=0, uint32_t batch=0,
    ):
        cdef job_t *job = &self.job
        cdef uint32_t depth = len(prps)
        if self.job.slots != NULL:
            raise ValueError("a workload is set up once")
        if not 1 <= depth < min(queue.sq_entries, queue.cq_entries):
            raise ValueError(f"{depth} commands do not fit into the queue pair")
        if units < 1 or blocks_per_io < 1 or block_size < MIN_BLOCK_SIZE or block_size % 8:
            raise ValueError("units, blocks_per_io and block_size must be at least one block")
        self._data = data
        if data_stride < block_size * blocks_per_io or self._data.shape[0] < <Py_ssize_t>(data_stride * depth):
            raise ValueError("the data buffer is too small")
        self.queue = queue
        cdef double hz = <double>ticks_hz()
        job.queue = &queue.queue
        job.depth = depth
        job.batch = min(batch, depth) if batch else depth
        job.interrupts = queue.eventfd >= 0
        job.eventfd = queue.eventfd
        job.lazy = self._lazy()
        job.verify = verify
        job.check_all = check_all
        job.random = seed
        job.read_share = <uint64_t>(read_fraction * 4294967296.0)
        job.is_random = random
        job.first_block = first_block
        job.units = units
        job.blocks_per_io = blocks_per_io
        job.block_size = block_size
        job.seed = data_seed
        job.limit = commands if commands else <uint64_t>-1
        self._runtime_ticks = <uint64_t>(<double>runtime_ns * hz / 1e9)
        job.timeout = <uint64_t>(<double>timeout_ns * hz / 1e9)
        job.max_errors = max_errors
        job.tick_ns = <uint64_t>(1e9 / hz * 4294967296.0)
        job.owner = <void *>self
        self._allocate(nsid, prps, data_stride)

    cdef uint32_t _lazy(self):
        """A quarter of the completion queue, or less when the rest is needed for the depth."""
        cdef uint32_t entries = self.job.queue.cq_entries
        if self.job.interrupts or entries - self.job.depth <= 2:
            return 1
        return max(1, min(entries // 4, entries - 1 - self.job.depth))

    cdef int _allocate(self, uint32_t nsid, prps, uint64_t data_stride) except -1:
        cdef job_t *job = &self.job
        cdef uint32_t upcoming = 1
        cdef uint32_t i
        while upcoming < job.depth:
            upcoming *= 2
        job.upcoming_mask = upcoming - 1
        job.upcoming = <uint64_t *>zeroed_lines(upcoming * sizeof(uint64_t))
        job.found = <uint32_t *>zeroed_lines(job.depth * sizeof(uint32_t))
        job.templates = <sqe_t *>zeroed_lines(job.depth * sizeof(sqe_t))
        job.measured = <measured_t *>zeroed_lines(2 * sizeof(measured_t))
        if job.verify:
            job.written = <uint64_t *>calloc((job.units + 63) // 64, 8)
            if job.written == NULL:
                raise MemoryError
        job.slots = <slot_t *>zeroed_lines(job.depth * sizeof(slot_t))
        for i in range(job.depth):
            job.slots[i].data = &self._data[i * data_stride]
            job.templates[i].opcode = OPCODE_READ
            job.templates[i].cid = <uint16_t>i
            job.templates[i].nsid = nsid
            job.templates[i].prp1, job.templates[i].prp2 = prps[i]
            job.templates[i].cdw12 = job.blocks_per_io - 1
        return 0

    def __dealloc__(self):
        free(self.job.upcoming)
        free(self.job.found)
        free(self.job.templates)
        free(self.job.measured)
        free(self.job.written)
        free(self.job.slots)

    def run(self):
        self._run(False)

    def run_read_back(self):
        if self.job.written == NULL:
            raise ValueError("only a verifying workload knows what it has written")
        self.job.limit = <uint64_t>-1
        self._run(True)

    cdef int _run(self, bint scan) except -1:
        cdef list memory = self.queue.views()
        self._prepare(scan)
        with nogil:
            run_job(&self.job)
        del memory
        self._finish()
        return 0

    cdef int _prepare(self, bint scan) except -1:
        cdef job_t *job = &self.job
        cdef uint32_t i
        clear_measured(job)
        job.scan = scan
        job.cursor = 0
        job.taken = job.decided = 0
        job.issuing = load_relaxed32(&job.stop) == 0
        job.failure = FAILURE_NONE
        job.wakeups = 0
        self._error = None
        for i in range(job.depth):
            job.slots[i].busy = 0
        job.deadline = <uint64_t>-1
        if self._runtime_ticks and not scan:
            job.deadline = read_tsc() + self._runtime_ticks
        return 0

    cdef int _finish(self) except -1:
        cdef job_t *job = &self.job
        if job.failure >= FAILURE_TIMEOUT and job.first_failure == FAILURE_NONE:
            job.first_failure = job.failure
        if self._error is not None:
            raise self._error
        return 0

    def stop(self, *, bint abandon=False):
        store_relaxed32(&self.job.stop, STOP_ABANDON if abandon else STOP_DRAIN)

    @property
    def progress(self):
        return load_relaxed64(&self.job.progress)

    @property
    def written_units(self):
        cdef uint64_t i, count = 0
        if self.job.written == NULL:
            return 0
        for i in range((self.job.units + 63) // 64):
            count += COUNT_BITS(self.job.written[i])
        return count

    @property
    def elapsed_ns(self):
        return self.job.ended_ns - self.job.begun_ns

    @property
    def errors(self):
        return self.job.errors

    @property
    def mismatches(self):
        return self.job.mismatches

    @property
    def checked_blocks(self):
        return self.job.checked_blocks

    @property
    def wakeups(self):
        return self.job.wakeups

    @property
    def failure(self):
        return Failure(self.job.failure)

    @property
    def first_error(self):
        if self.job.first_failure == FAILURE_NONE:
            return None
        return FirstError(
            Failure(self.job.first_failure), bool(self.job.first_direction),
            self.job.first_block_of_error, self.job.first_status, self.job.first_cid,
        )

    def measured(self, *, bint write):
        cdef measured_t *one = &self.job.measured[DIRECTION_WRITE if write else DIRECTION_READ]
        return Measured(one.commands, samples_of(&one.slat), samples_of(&one.clat), samples_of(&one.lat))


def run_together(workloads):
    cdef Workload workload
    cdef uint32_t count = len(workloads)
    cdef uint32_t i = 0
    cdef list memory = []
    cdef job_t **jobs
    for workload in workloads:
        if workload.job.interrupts:
            raise ValueError("a workload that sleeps for interrupts runs alone")
        memory.append(workload.queue.views())
    jobs = <job_t **>calloc(max(count, <uint32_t>1), sizeof(job_t *))
    if jobs == NULL:
        raise MemoryError
    try:
        for workload in workloads:
            workload._prepare(False)
            jobs[i] = &workload.job
            i += 1
        with nogil:
            run_in_turn(jobs, count)
    finally:
        free(jobs)
    for workload in workloads:
        workload._finish()
