"""What the data path keeps of a controller in this process only: pointers, caches, free lists.

All of it can be made anew from the shared memory (`layout.pxd`) and the client's DMA map. The
structs point downwards (thread -> queue -> controller), commands carry everything they need.

Cache lines: what the IOThread writes per command lives in `request_t`, `slot_t` and the queue's
first line; what the control plane writes is on lines of its own. Where several threads have a struct
each, in an array, it is whole lines and comes from `line_calloc` (docs/performance.md has the table).
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from nvme_mdev.datapath.layout cimport (
    HOST_QUEUES, IO_QUEUES, QUEUES, bad_range_t, controller_state_t, cq_state_t, io_counters_t,
    path_counters_t, slot_t, sq_state_t,
)

cdef enum:
    #: Namespace identifiers, from 1 on, that are their own place in a controller's table, and higher
    #: ones that it can have at a time (`namespace_places.pyx`).
    NAMESPACES = 256
    HIGH_NAMESPACES = 256
    #: Places of the table; place 0 is unused.
    PLACES = 1 + NAMESPACES + HIGH_NAMESPACES
    #: Guest pages of the largest queue: 64 Ki entries of 64 bytes.
    QUEUE_PAGES = 1024
    #: Guest memory is registered with io_uring in chunks of 16 MiB, as I/O comes to use them.
    CHUNK_SHIFT = 24
    #: The kernel's limit (IORING_MAX_REG_BUFFERS).
    BUFFERS = 16384
    NO_BUFFER = 0xffffffff
    PAGE_SHIFT = 12
    PAGE_SIZE = 4096
    #: Commands fetched from one queue in a turn when the arbitration burst does not say less.
    BATCH = 64
    #: Completions that can gather before they are posted: a batch fetched and a batch reaped.
    DONE_CAPACITY = 4 * BATCH

    #: `iothread_t.retry`: what was given back that commands may wait for.
    RETRY_RANGES = 1
    RETRY_BOUNCES = 2

    #: Fused pairs that a thread executes at a time.
    RANGE_LOCKS = 16

    #: Reasons not to fetch from a queue (`held`).
    HELD_ASKED = 1
    #: Its memory is not mapped at the moment.
    HELD_MEMORY = 2
    #: Its doorbell was invalid; until a reset.
    HELD_ERROR = 4
    #: The host has paused the controller; queues made meanwhile are held, too.
    HELD_PAUSED = 8

    #: Interrupts of a CQ: none; one for each batch; held back as feature 08h says.
    INTERRUPTS_NONE = 0
    INTERRUPTS_AT_ONCE = 1
    INTERRUPTS_COALESCED = 2
    #: None to the guest: whoever moves the completions to it is told (`controller_t.relay_fd`).
    INTERRUPTS_RELAYED = 3
    #: More completions than any aggregation threshold waits for: what must not be held back.
    ENTRIES_URGENT = 1024

    #: States of an IOThread.
    RUNNING = 0
    STANDING = 1

#: What a backend is asked to do.
cdef enum operation_t:
    OP_READ
    OP_WRITE
    OP_FLUSH
    OP_WRITE_ZEROES
    OP_DEALLOCATE
    OP_COMPARE
    OP_VERIFY
    OP_WRITE_UNCORRECTABLE
    #: Segments are source ranges, as those of OP_DEALLOCATE; offset and length are the destination.
    OP_COPY
    #: Executed by the control plane; moves no blocks.
    OP_DEFERRED

cdef enum:
    #: Force Unit Access: durable before it completes.
    REQUEST_FUA = 1
    #: Write Zeroes may deallocate (DEAC).
    REQUEST_DEALLOCATE = 2
    #: Went through the buffered file descriptor (its addresses do not suit O_DIRECT).
    REQUEST_BUFFERED = 4
    #: Holds a reference on registered guest memory instead of an iovec.
    REQUEST_FIXED = 8
    #: Expired and reported once.
    REQUEST_EXPIRED = 16
    #: `error_lba` says where it failed; otherwise that follows from the command.
    REQUEST_LBA = 32
    #: Its host was preempted: if it is aborted, that is why.
    REQUEST_PREEMPTED = 64
    #: It waits for its namespace's limits and uses nothing but its slot (`throttle.pyx`) ...
    REQUEST_THROTTLED = 128
    #: ... together with the second command of its fused pair, which is the next in line.
    REQUEST_PAIRED = 256

    #: Why commands for a backend have to look closer (`backend_t.attention`): it has unreadable
    #: blocks; a fused pair has a range for itself; it has limits.
    ATTENTION_BAD = 1
    ATTENTION_LOCKED = 2
    ATTENTION_LIMITED = 4

    #: What a limit is about: everything, what reads, what writes.
    LIMIT_TOTAL = 0
    LIMIT_READ = 1
    LIMIT_WRITE = 2
    LIMITS = 3

    NS_STATE = 0xffff
    NS_GROUPS_SHIFT = 16
    #: The groups of commands that a reservation can refuse (NVMe Base 2.x, section 8.1.22).
    GROUP_READ = 1
    GROUP_WRITE = 2

    #: Bytes of data that a command of the control plane brings at most.
    DEFERRED_DATA = 16

#: One mapping of the client: IOVA [iova, iova + size) is at `address`.
cdef struct region_t:
    uint64_t iova
    uint64_t size
    #: NULL: known but not accessible (mapped without a file descriptor).
    uint8_t *address
    #: `size` where it can be read, and where it can be written; otherwise 0.
    uint64_t readable_size
    uint64_t writable_size
    #: Start of the file mapping that `address` lies in, and its number (`memory.pyx`).
    uint8_t *mapping
    uint32_t file
    #: Registered-buffer number of the first chunk of the file mapping, NO_BUFFER: not registered.
    uint32_t buffer_base
    #: A cache line each.
    uint64_t reserved

#: Where in the order of IOVAs a region is.
cdef struct leaf_entry_t:
    uint64_t iova
    #: Its number.
    uint32_t region
    uint32_t reserved

#: Some regions that come one after the other.
cdef struct leaf_t:
    #: IOVA of the first of them.
    uint64_t first
    leaf_entry_t *entries
    uint32_t count

#: The client's DMA map (`regions.pxd`).
cdef struct memory_map_t:
    #: By number, in no order; those that are not in use have no size. There is at least one.
    region_t *regions
    uint32_t count
    uint32_t capacity
    #: Numbers that were in use, and those of them that are not any more.
    uint32_t used
    uint32_t free_count
    uint32_t *free_regions
    #: Their order.
    leaf_t *leaves
    uint32_t leaf_count

#: A controller's namespace as the data path needs it. `backend` NULL: inactive.
cdef struct namespace_t:
    backend_t *backend
    #: Logical blocks.
    uint64_t blocks
    uint32_t block_shift
    uint32_t nsid
    uint32_t read_only
    #: Not 0: not for every command. NS_STATE: 1, on its way out: new commands find it inactive, those
    #: in flight still use it; or the status that new commands are refused with, since it is being
    #: formatted or sanitized (then all but Flush). Above it (NS_GROUPS_SHIFT) GROUP_*: what a reservation refuses.
    uint32_t restricted
    #: What was moved since it was attached, by each of the controller's IOThreads.
    io_counters_t *moved
    #: Commands that wait for its limits, by the same.
    throttled_t *throttled

#: A backend's entry points. All run on an IOThread, without the GIL.
cdef struct backend_ops_t:
    #: Start it; ends in `request_done`, at once or from `poll`. Never blocks for a medium.
    void (*submit)(iothread_t *thread, request_t *request) noexcept nogil
    #: An operation of it that went through io_uring is over; `result` as the kernel gives it.
    void (*complete)(iothread_t *thread, request_t *request, int32_t result) noexcept nogil
    #: Try to cancel what was submitted.
    void (*cancel)(iothread_t *thread, request_t *request) noexcept nogil

cdef struct backend_t:
    const backend_ops_t *ops
    #: The backend's own struct.
    void *context
    #: Bytes.
    uint64_t size
    #: Memory that holds its blocks: reads are prefetched; NULL: it is elsewhere.
    const uint8_t *data
    #: The backend's own.
    uint32_t flags
    #: Bit set of ATTENTION_*; on the line that every command reads.
    uint32_t attention
    #: Bit n: operation n is done by `submit`, not made of reads and writes (`compound.pyx`).
    uint32_t natives
    #: What it cannot do by itself is made of reads and writes (see backends/base.pyi).
    uint32_t emulates
    #: It makes use of `request_t.buffer`.
    uint32_t uses_buffers
    #: Its unreadable blocks: a table for each namespace that it is (`uncorrectable.pyx`).
    bad_table_t *bad
    uint32_t bad_lock
    #: Ranges that fused pairs have for themselves.
    uint32_t locked
    #: IOThreads that it is served on.
    uint32_t threads
    #: How it takes SGLs (SGLS, bits 1:0 and 16); 0: not at all.
    uint32_t sgls
    #: Its limits, with ATTENTION_LIMITED.
    throttle_t *throttle

#: A token bucket, kept as the time when it is full again (`token_bucket.pxd`); times are in
#: units of a sixteenth of a time-stamp counter tick.
cdef struct bucket_t:
    #: Modulo 2^64; IOThreads change it atomically.
    uint64_t full_at
    #: How long a token takes, with 24 fractional bits; 0: there is no limit.
    uint64_t token_time
    #: How long all tokens that it can hold take.
    uint64_t burst_time

#: The limits of a backend, of all controllers that it is a namespace of together.
cdef struct throttle_t:
    bucket_t commands[LIMITS]
    bucket_t bytes[LIMITS]

#: Commands of one namespace of one controller that wait on one IOThread for its limits.
cdef struct throttled_t:
    #: The next and the one before in the thread's ring; NULL: it is not in it, nothing waits.
    throttled_t *next
    throttled_t *previous
    namespace_t *ns
    #: What reads, and what writes, in the order of fetching (linked through `request_t.done`).
    request_t *first[2]
    request_t *last[2]
    #: When there can be tokens for the first of each, in the buckets' time.
    uint64_t due[2]
    #: Which of the two is looked at first.
    uint32_t turn
    #: Commands that wait, and that ever had to.
    uint32_t waiting
    uint64_t total

#: The part of a controller's table of unreadable blocks that is about one namespace.
cdef struct bad_table_t:
    bad_range_t *ranges
    uint64_t nsid
    bad_table_t *next

#: A command on its way. One for each slot, at the same index.
cdef struct request_t:
    slot_t *slot
    sq_t *sq
    namespace_t *ns
    #: Bytes into the backend, and how many.
    uint64_t offset
    uint64_t length
    #: Data segments in this process; `inline_iov` where two are enough.
    iovec *iov
    uint32_t iov_count
    uint16_t operation
    #: NVMe status, SCT << 8 | SC, with More and DNR; no phase.
    uint16_t status
    iovec inline_iov[2]
    # -- second half: only for what is not done at once
    uint32_t flags
    #: Parts that are still under way (one command can become several of the backend's).
    int32_t pending
    #: Bytes done by parts before (short reads and writes).
    uint64_t done
    #: Time-stamp counter when it was fetched.
    uint64_t started
    #: What it is besides one operation of its backend, NULL: nothing.
    compound_t *compound
    #: Dword 0 of the CQE.
    uint32_t result
    uint32_t error_location
    #: Registered buffer that holds the single segment, or NO_BUFFER; for a backend that uses them.
    uint32_t buffer
    uint32_t reserved
    #: The first block at fault, with REQUEST_LBA.
    uint64_t error_lba
    #: Aligned copy of what is written, for a backend that needs one; NULL: there is none.
    uint8_t *bounce

#: A command that is more than one operation of a backend, or that has to wait (`compound.pyx`).
cdef struct compound_t:
    request_t *request
    #: The next of those that wait.
    compound_t *next
    #: The other command of a fused pair.
    request_t *partner
    #: COMPOUND_* of compound.pxd.
    uint32_t kind
    #: The status that parsing gave (commands of a fused pair).
    uint32_t parsed
    #: It has begun: it does not wait any more.
    uint32_t started
    #: Its status is final: nothing is left but to post the completion.
    uint32_t over
    #: A fused pair waits for it.
    uint32_t awaited
    #: A flush comes first (Force Unit Access of a command that reads), and is done.
    uint32_t flush_first
    #: Reads and compares by itself, for a backend that cannot compare.
    uint32_t bounced
    #: The last operation was: a flush that comes first; a read into the bounce buffer; ...
    uint32_t operated
    #: The command as a whole, as `request_t` has it for a plain one.
    uint32_t operation
    #: Copy: the source range; Flush of all: the namespace's place; and the chunk in the bounce buffer (bytes).
    uint32_t index
    uint32_t chunk
    uint32_t data_count
    #: Compare: the guest's segments. Copy: source ranges (offset in the backend, length).
    iovec *data
    uint64_t offset
    uint64_t length
    #: Bytes done, and of these in the segment or source range that is next.
    uint64_t done
    uint64_t index_done
    uint8_t *bounce
    iovec step
    #: What a command of the control plane has brought, and whether it was fetched there.
    uint8_t brought[DEFERRED_DATA]
    uint32_t taken

cdef struct sq_t:
    # -- read and written each turn by the IOThread
    #: The doorbell that is polled: register page or shadow page.
    const uint32_t *tail_doorbell
    # Two words that are stored one by one and read together must not be neighbours: the compiler makes
    # one load of the two, which then waits until both stores, and all before them, are in the cache.
    uint32_t head
    uint32_t size
    #: Commands fetched so far, modulo 2^32.
    uint32_t fetched
    #: Not to be fetched from: held, invalid doorbell, or its memory is unmapped.
    uint32_t held
    #: Commands fetched and not completed.
    uint32_t inflight
    uint32_t free_count
    uint32_t qid
    #: Some of the commands to come were aborted while they waited.
    uint32_t aborted
    #: Those whose slots are free, linked through `request_t.done`.
    request_t *free_requests
    cq_t *cq
    sq_state_t *state
    #: EventIdx of the tail doorbell, NULL without shadow doorbells; where it was last set.
    uint32_t *event_idx
    # -- constant while the queue lives
    controller_t *controller
    request_t *requests
    slot_t *slots
    #: Segments for commands with more than two; `iov_stride` a slot.
    iovec *iov
    uint32_t iov_stride
    #: Slots that it can have, and those that are ready for use (`slots.pyx`).
    uint32_t slot_count
    uint32_t slots_ready
    uint32_t event_idx_head
    #: Index of the region that the last address was in.
    uint32_t region_hint
    #: The IOThread that fetches from it.
    iothread_t *thread
    uint8_t **pages
    #: What this thread counts for the controller.
    path_counters_t *path_counters
    io_counters_t *io_counters
    #: Commands that a turn takes at most.
    uint32_t burst
    #: Which of the controller's IOThreads it is.
    uint32_t host_queue
    #: Priority class (QPRIO), with weighted round robin.
    uint32_t priority
    #: Of `inflight`: those that wait for the limits of their namespace.
    uint32_t throttled
    uint32_t reserved[4]

cdef struct cq_t:
    # No neighbours either (see above): the load would wait for the CQE before, whose line the guest has.
    uint32_t tail
    uint32_t size
    uint32_t phase
    #: The guest's head as last read; room is known from it without touching the doorbell.
    uint32_t head
    #: Entries promised to commands in flight.
    uint32_t reserved_entries
    uint32_t interrupts
    uint32_t vector
    uint32_t qid
    const uint32_t *head_doorbell
    uint32_t *event_idx
    cq_state_t *state
    controller_t *controller
    #: Entries that no interrupt was sent for yet (this turn).
    uint32_t dirty
    #: Unusable: invalid doorbell or its memory is unmapped.
    uint32_t held
    uint8_t **pages
    #: The IOThread that posts to it, NULL: the control plane.
    iothread_t *thread
    #: Which of the controller's IOThreads that is.
    uint32_t host_queue
    #: The guest rings the head 4 bytes behind the SQ's tail, whatever CAP.DSTRD says.
    uint32_t head_behind_tail
    #: Where interrupts of its vector are held back.
    aggregation_t *aggregation
    path_counters_t *path_counters
    uint64_t reserved[2]

#: Interrupts of one vector that one IOThread holds back (feature 08h), on a line with no other's.
cdef struct aggregation_t:
    #: Time-stamp counter when it goes out at the latest.
    uint64_t deadline
    #: The queue that it is for; NULL: nothing is held back.
    cq_t *cq
    #: The next of the thread's list.
    aggregation_t *next
    #: Completions without an interrupt.
    uint32_t entries
    uint32_t reserved[9]

#: Interrupt delivery. The IOThread reads it, and sets `intx_masked` atomically.
cdef struct interrupts_t:
    #: Eventfds of the MSI-X or MSI vectors; -1: none.
    int vector_fd[QUEUES]
    #: By vector, masks and the pending bit: `controller_state_t.interrupts`.
    uint8_t *vector_state
    int intx_fd
    uint32_t intx_masked
    #: INTMS as a mask; bit 0 holds the pin back (pin-based interrupts use vector 0).
    uint32_t intms
    #: Vectors that have their eventfd: with one the pin is not used.
    uint32_t vectors
    #: They are those of MSI, which INTMS masks.
    uint32_t msi
    #: Feature 08h: completions that an interrupt waits for, and how long (time-stamp counter cycles).
    uint32_t aggregation_threshold
    uint64_t aggregation_time
    #: By IOThread and vector; made when the feature is first used.
    aggregation_t *aggregations

#: What one controller has of one of its IOThreads.
cdef struct share_t:
    #: Commands that wait for a bounce buffer, in the order in which they began to, and the controller
    #: that is next in turn.
    compound_t *first
    compound_t *last
    share_t *next
    #: Commands that wait for one, or for a range.
    uint32_t waiting
    #: Bytes of aligned copies of what is being written.
    uint64_t bounced
    uint64_t reserved[3]

#: Where a namespace with an identifier above NAMESPACES is.
cdef struct high_place_t:
    uint32_t nsid
    uint32_t place

cdef struct controller_t:
    controller_state_t *state
    memory_map_t *memory
    #: By place: the NSID, up to NAMESPACES.
    namespace_t *namespaces
    bad_table_t *bad_tables
    interrupts_t *irq
    sq_t *sqs
    cq_t *cqs
    #: Those that serve its queues; a CQ and its SQs have the same.
    iothread_t *threads[HOST_QUEUES]
    uint32_t thread_count
    #: What each of them has of it.
    share_t *shares
    #: The doorbell registers, and the exponent of their distance (CAP.DSTRD).
    uint32_t *doorbell_page
    uint32_t dstrd
    #: Bytes; what MDTS says.
    uint64_t max_transfer
    uint32_t page_size
    #: Memory that lies in an aligned piece of so many bytes is in one page, and not too much: the page size,
    #: or less where MDTS is less than a page.
    uint32_t piece_size
    #: Commands a turn takes from one queue.
    uint32_t burst
    #: Weighted round robin with urgent priority class (CC.AMS), and the commands of the high, medium
    #: and low class in a round (feature 01h); by QPRIO.
    uint32_t weighted
    uint32_t weights[4]
    #: Reset under way: completions are dropped.
    uint32_t stopped
    #: Told to the control plane through `notify_fd`: the admin doorbell moved (its last value) ...
    uint32_t admin_seen
    int notify_fd
    #: ... or a doorbell was invalid: bit set of queue errors is in `sq_error`/`cq_error`.
    uint32_t errors
    #: ... or an I/O command is for it (`deferred.pyx`).
    uint32_t deferred
    uint32_t sq_error[QUEUES]
    uint32_t cq_error[QUEUES]
    #: The client can ring without a system call that we would see.
    uint32_t doorbells_mapped
    #: Someone stands between the queues and the guest, and has the doorbells (`RelayedQueues.begin`).
    uint32_t relayed
    int relay_fd
    #: The host holds all I/O queues, those to come included.
    uint32_t paused
    #: How long an I/O command may take, for who else looks after that (`passthru.pyx`); 0: not said.
    uint32_t io_timeout_ms
    const uint32_t *admin_doorbell
    #: The highest NSID (NN).
    uint32_t max_nsid
    #: All places in use are below this.
    uint32_t places_end
    #: The namespaces above NAMESPACES, by ascending NSID.
    high_place_t high[HIGH_NAMESPACES]
    uint32_t high_count

#: A range of a backend that a fused pair has for itself, in bytes.
cdef struct range_lock_t:
    backend_t *backend
    uint64_t offset
    uint64_t length
    #: The pair's first command; NULL: no lock.
    request_t *owner

cdef struct compounds_t:
    #: Those that wait for a range, in the order in which they began to.
    compound_t *first
    compound_t *last
    #: Controllers with commands that wait for a bounce buffer; the first has the next one.
    share_t *first_in_turn
    share_t *last_in_turn
    #: Bit n: bounce buffer n is free.
    uint32_t free_bounces
    uint8_t *bounces
    range_lock_t locks[RANGE_LOCKS]

#: Arbitration between the queues that an IOThread serves for one controller (`arbitration.pxd`).
cdef struct arbiter_t:
    controller_t *controller
    #: By QPRIO: where the class begins in `queues`, how many it has, and whose turn it is.
    uint32_t first[4]
    uint32_t count[4]
    uint32_t turn[4]
    sq_t *queues[IO_QUEUES]

#: Something else that completes requests of a thread: asked once a turn while any are in flight.
cdef struct poller_t:
    #: How much there was to do; at most 64 requests are done by one call.
    uint32_t (*poll)(iothread_t *thread, void *context) noexcept nogil
    void *context

cdef struct iothread_t:
    # -- the control plane asks, on a line of its own
    #: Pauses asked for (they nest); not 0: stand still.
    uint32_t request
    uint32_t stopping
    #: Something for the thread to run while it stands still (io_uring wants its own thread).
    int (*call)(iothread_t *thread, void *argument) noexcept nogil
    void *call_argument
    int call_result
    uint32_t call_pending
    uint64_t poll_timeout_ns
    uint32_t pad0[6]
    # -- the thread answers
    #: STANDING: it touches nothing of what it polls, and looks at `request` before it does again.
    uint32_t state
    #: It sleeps on `wake_fd`.
    uint32_t parked
    int wake_fd
    #: An epoll set: `wake_fd`, and the sockets through which clients ring.
    int ring_set
    uint32_t pad1[12]
    # -- what it polls; changed while it stands
    #: Served in turn; then, from `queue_count` on, those that arbiters serve.
    sq_t **queues
    uint32_t queue_count
    uint32_t weighted_count
    uint32_t controller_count
    controller_t **controllers
    #: Its io_uring (`uring_t` of uring.pxd), and the one for devices that are polled; each NULL until a
    #: backend needs it.
    void *uring
    void *polled
    #: Its commands that wait, bounce buffers and locked ranges.
    compounds_t *compounds
    uint32_t retry
    poller_t *pollers
    uint32_t poller_count
    # -- its own
    #: Commands of the queue whose turn it is, and one more (the second of a fused pair).
    request_t **batch
    #: Requests that are done, completions not yet posted.
    request_t **done
    uint32_t done_count
    #: Requests handed to backends that complete later, and whatever else a turn must not forget:
    #: interrupts that are held back, arbiters.
    uint32_t inflight
    uint32_t turns
    #: Turns without work since `idle_since_ns` was taken.
    uint32_t idle_turns
    uint64_t idle_since_ns
    #: Serve arbiters and send what is held back and due; how many commands. Called through here, so
    #: that it does not become part of every turn.
    uint32_t (*look_after)(iothread_t *thread) noexcept nogil
    #: Arbiters, interrupts held back, namespaces whose commands wait for their limits: what
    #: `look_after` is there for.
    uint32_t chores
    uint32_t arbiter_count
    #: Interrupts held back.
    aggregation_t *aggregations
    #: Controllers with weighted round robin.
    arbiter_t **arbiters
    #: A ring of those that have commands that wait for limits, and how many it has; this one is next.
    throttled_t *throttled
    uint32_t throttled_count
    #: The next sleep, when it may not park.
    uint64_t nap_ns
    #: Somebody computes on its processor (`give_way.pxd`): until when it dozes and does not yield, and
    #: for how long the last time.
    uint64_t doze_until_ns
    uint64_t dozing_ns
    uint32_t dozing
    #: What time it is for token buckets, time-stamp counter ticks; 0: what the counter says. So a test
    #: can let time pass.
    uint64_t clock
    #: How often it has slept or stood; from 1, so that what counts from 0 takes notice at first.
    uint32_t rests
