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

from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport read

from nvme_mdev.datapath.atomics cimport (
    cpu_relax, load_relaxed32, prefetch_write, read_tsc, store_relaxed64,
)
from nvme_mdev.datapath.clock cimport POLLIN, multiply_fixed, multiply_high, now_ns, poll, pollfd
from nvme_mdev.datapath.host_rings cimport STATUS_SHIFT, advance_head, peek, post, queue_t, ring, sqe_t
from nvme_mdev.host.block_pattern cimport block_differs, fill_block, next_random
from nvme_mdev.host.latency_histogram cimport record

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    """
    #define LOWEST_BIT(value) __builtin_ctzll(value)
    #define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
    """
    uint32_t LOWEST_BIT(uint64_t value)
    bint UNLIKELY(bint condition)
    #: Coding of a decided command: the first block, and this bit for a write.
    const uint64_t NEXT_WRITE "(UINT64_C(1) << 63)"
    const uint64_t NEXT_NONE "UINT64_MAX"

cdef enum:
    #: Empty looks at the completion queue between two looks at the clock and the stop flag.
    SPINS_PER_LOOK = 1024
    #: A look that comes this part of a time-out (a shift) after the last one: nobody looked meanwhile.
    STANDSTILL_SHIFT = 3
    #: Longest sleep for an interrupt without looking at the stop flag (milliseconds).
    SLEEP_MS = 100


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
        job.ring_by_socket(job, False, queue.tail)
    rung = read_tsc()
    # The controller has read these lines a lap ago; have them back before they are written.
    prefetch_write(&queue.sq[queue.tail])
    account(job, found, rung)
    job.unacknowledged += found
    if job.unacknowledged >= job.lazy:
        job.unacknowledged = 0
        if ring(&queue.head_doorbell, queue.head):
            job.ring_by_socket(job, True, queue.head)
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
        job.ring_by_socket(job, False, job.queue.tail)
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
            job.ring_by_socket(job, True, job.queue.head)


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
