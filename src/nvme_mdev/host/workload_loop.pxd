"""What a workload's loop knows, and the loop."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nvme_mdev.datapath.host_rings cimport queue_t, sqe_t
from nvme_mdev.host.latency_histogram cimport histogram_t

cdef enum:
    OPCODE_WRITE = 1
    OPCODE_READ = 2

    DIRECTION_READ = 0
    DIRECTION_WRITE = 1

    STOP_DRAIN = 1
    STOP_ABANDON = 2

    #: How it ended; from FAILURE_TIMEOUT on with commands outstanding.
    FAILURE_NONE = 0
    FAILURE_STATUS = 1
    FAILURE_MISMATCH = 2
    FAILURE_TIMEOUT = 3
    FAILURE_UNKNOWN_CID = 4
    FAILURE_RING = 5
    FAILURE_ABANDONED = 6

#: A command that can be outstanding: its CID is its index. One cache line.
cdef struct slot_t:
    #: Time-stamp counter: when building began, when the doorbell had been rung.
    uint64_t started
    uint64_t submitted
    #: First logical block, and the command that follows it (`next_t` coding).
    uint64_t block
    uint64_t next
    uint8_t *data
    uint32_t direction
    uint32_t busy
    #: What was read must be what the pattern says.
    uint32_t check
    uint32_t padding[3]

#: One direction's measurements.
cdef struct measured_t:
    uint64_t commands
    histogram_t slat
    histogram_t clat
    histogram_t lat

cdef struct job_t:
    # -- read by the loop
    queue_t *queue
    slot_t *slots
    sqe_t *templates
    #: Commands decided upon ahead of time, a ring of `upcoming_mask` + 1: no arithmetic between a
    #: completion and the command that follows it.
    uint64_t *upcoming
    uint32_t *found
    uint32_t upcoming_mask
    uint32_t depth
    #: Completions taken before the doorbell is rung.
    uint32_t batch
    #: Completions taken before the CQ head doorbell is rung.
    uint32_t lazy
    uint32_t verify
    #: Every block carries the pattern, not only those written here.
    uint32_t check_all
    uint32_t interrupts
    int eventfd
    # -- what comes next
    uint64_t random
    #: Of 2^32: how many commands are reads; 2^32 is all of them.
    uint64_t read_share
    uint32_t is_random
    #: Read back every unit that `written` names, once.
    uint32_t scan
    uint64_t first_block
    uint64_t units
    uint64_t cursor
    uint32_t blocks_per_io
    uint32_t block_size
    uint64_t seed
    #: A bit for each unit that was written and completed; NULL without verification.
    uint64_t *written
    # -- where it stands
    uint64_t taken
    uint64_t decided
    uint64_t limit
    uint64_t deadline
    uint64_t timeout
    #: When something completed last, and the doorbell time of the last submission.
    uint64_t now
    #: The last look at the clock without a completion, and how long nobody looked in all.
    uint64_t looked
    uint64_t stood_still
    uint32_t outstanding
    uint32_t unacknowledged
    uint32_t issuing
    uint32_t failure
    uint64_t errors
    uint64_t mismatches
    uint64_t checked_blocks
    uint64_t wakeups
    uint64_t max_errors
    uint32_t first_failure
    uint32_t first_direction
    uint64_t first_block_of_error
    uint32_t first_status
    uint32_t first_cid
    #: Nanoseconds a tick, 32.32 fixed point.
    uint64_t tick_ns
    uint64_t begun_ns
    uint64_t ended_ns
    #: Write a doorbell register through the socket, on behalf of `owner`.
    int (*ring_by_socket)(job_t *job, bint completion, uint32_t value) noexcept nogil
    void *owner
    measured_t *measured
    # -- shared with other threads; a line of its own
    uint64_t padding[8]
    uint64_t progress
    uint32_t stop
    uint32_t padding2[13]

#: Run a job to its end: nothing is outstanding any more, or it has failed.
cdef void run_job(job_t *job) noexcept nogil
#: Several jobs in one thread, a sweep of each in turn.
cdef void run_in_turn(job_t **jobs, uint32_t count) noexcept nogil
