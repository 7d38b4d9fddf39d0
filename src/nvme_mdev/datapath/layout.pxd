"""The controller's shared memory: everything a new process needs to carry on.

One memfd a controller holds `controller_state_t`; the doorbell page is a memfd of its own, since a
client may map it. Integers are little endian, as on the wire (the build refuses other hosts). A
change to any struct here is a change of `STATE_VERSION`.

Who writes what: the control plane writes everything but what is marked "IOThread"; it changes what
an IOThread reads only while that thread is paused.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    STATE_VERSION = 6
    #: I/O queue pairs; the register CAP and the Number of Queues feature offer at most this many.
    IO_QUEUES = 128
    QUEUES = IO_QUEUES + 1
    #: Commands of one SQ that can be in flight; a deeper queue waits in guest memory.
    SLOTS = 1024
    ERROR_ENTRIES = 64
    #: IOThreads that serve one controller at most: N of its type, nvme-NQ_V1.
    HOST_QUEUES = 16
    #: Commands of one SQ that can be aborted while they wait in it, until they are fetched.
    ABORTS = 3
    #: Ranges of blocks that Write Uncorrectable has made unreadable, of all namespaces together.
    BAD_RANGES = 1024

    SLOT_FREE = 0
    #: Copied from the SQ, not completed: to be executed again by a new process.
    SLOT_BUSY = 1

    #: Why an interrupt vector is masked: its entry in the MSI-X table; SET_IRQS of the client; the
    #: function mask of MSI-X; INTMS (MSI). Or that an interrupt came meanwhile.
    INTERRUPT_TABLE_MASK = 1
    INTERRUPT_CLIENT_MASK = 2
    INTERRUPT_FUNCTION_MASK = 4
    INTERRUPT_INTMS_MASK = 8
    INTERRUPT_MASKS = 15
    INTERRUPT_PENDING = 16

    #: `cq_phase` of a command whose completion has no place yet.
    CQ_UNDECIDED = 2

    #: `stage` of a command of a fused pair: it has to be executed from the beginning.
    STAGE_NONE = 0
    #: (First command.) The comparison has succeeded, so the write may have begun.
    STAGE_COMPARED = 1
    #: And, above it, the status that the command completes with.
    STAGE_OVER = 2
    STAGE_STATUS_SHIFT = 16
    #: (Commands of the control plane.) It may have been done already: what tells is a number of the
    #: control plane's, above it.
    STAGE_DECIDED = 4

cdef extern from *:
    """
    #define STATE_MAGIC UINT64_C(0x3130564544444d4e)
    """
    #: "NMDDEV01".
    const uint64_t STATE_MAGIC

#: Submission queue entry (NVMe Base 2.x, section 4.1.1; NVM Command Set, section 3).
cdef struct nvme_sqe_t:
    uint8_t opcode
    #: FUSE in bits 1:0, PSDT in bits 7:6.
    uint8_t flags
    uint16_t cid
    uint32_t nsid
    uint32_t cdw2
    uint32_t cdw3
    uint64_t mptr
    uint64_t prp1
    uint64_t prp2
    uint32_t cdw10
    uint32_t cdw11
    uint32_t cdw12
    uint32_t cdw13
    uint32_t cdw14
    uint32_t cdw15

#: Completion queue entry (NVMe Base 2.x, section 4.2.1). `status` has the phase tag in bit 0.
cdef struct nvme_cqe_t:
    uint32_t dw0
    uint32_t dw1
    uint16_t sqhd
    uint16_t sqid
    uint16_t cid
    uint16_t status

#: Error Information Log entry (NVMe Base 2.x, section 5.1.12.1.2), 64 bytes.
cdef struct error_entry_t:
    uint64_t error_count
    uint16_t sqid
    uint16_t cid
    #: As in the CQE, phase tag included.
    uint16_t status
    #: Byte in bits 7:0, bit in 10:8 of the SQE; FFFFh: not one parameter.
    uint16_t parameter_error_location
    uint64_t lba
    uint32_t nsid
    uint8_t vendor
    uint8_t trtype
    uint16_t reserved
    uint64_t command_specific
    uint16_t trtype_specific
    uint8_t reserved2[22]

#: A submission queue, 64 bytes: what Create I/O SQ said, then where the fetching is.
cdef struct sq_state_t:
    uint64_t iova
    #: Entries, 0: the queue does not exist.
    uint32_t size
    uint16_t cqid
    uint16_t priority
    #: Next entry to fetch, and how many commands were fetched so far (modulo 2^32): stored as one
    #: word of 64 bits (IOThread).
    uint32_t head
    uint32_t fetched
    #: Commands that were completed while they waited (`aborts.pyx`): their number, the place of the
    #: completion with the identifier above it, how far that has come (the control plane).
    uint32_t aborted_sequence[ABORTS]
    uint32_t aborted_place[ABORTS]
    uint32_t aborted_state[ABORTS]
    #: `iova` is that of a PRP list that names the pages (PC = 0).
    uint16_t noncontiguous
    #: Slots that have been in use, from the first on; those behind mean nothing (IOThread).
    uint16_t slots

#: A completion queue, 64 bytes.
cdef struct cq_state_t:
    uint64_t iova
    #: Entries, 0: the queue does not exist.
    uint32_t size
    uint16_t vector
    uint16_t interrupts
    #: Next entry to write, and its phase tag: stored as one word of 64 bits (IOThread).
    uint32_t tail
    uint32_t phase
    #: `iova` is that of a PRP list that names the pages (PC = 0).
    uint32_t noncontiguous
    uint32_t reserved[9]

#: A command in flight, two cache lines: the copy of its SQE, then where it stands (IOThread).
cdef struct slot_t:
    nvme_sqe_t sqe
    #: Stored last when a command is fetched and when it is over.
    uint32_t state
    #: Where its completion goes, written before the CQE is (the phase last): tells a new process
    #: whether it went.
    uint32_t cq_index
    uint32_t cq_phase
    #: Index in the SQ that it was fetched from.
    uint32_t sq_index
    #: The how manieth command of its SQ it is (modulo 2^32): against `sq_state_t.fetched` it tells
    #: whether the head has moved past it, which `sq_index` cannot when the SQ has wrapped.
    uint32_t sequence
    #: How far a command has come that must not be executed twice; STAGE_NONE in a free slot.
    uint32_t stage
    uint32_t reserved[10]

#: Counts for the SMART log (IOThread; data in units of 512 bytes).
cdef struct io_counters_t:
    uint64_t read_commands
    uint64_t write_commands
    uint64_t read_units
    uint64_t write_units
    #: Unrecovered reads and failed writes.
    uint64_t media_errors
    uint64_t reserved[3]

#: The original's three counters (IOThread): how many; and how many of these were timed, and their
#: time-stamp counter cycles.
cdef struct path_counters_t:
    uint64_t translated
    uint64_t completed
    uint64_t interrupts
    uint64_t reserved[5]
    # -- a line for turns that are timed
    uint64_t translated_timed
    uint64_t translated_cycles
    uint64_t completed_timed
    uint64_t completed_cycles
    uint64_t interrupts_timed
    uint64_t interrupt_cycles
    uint64_t timed_reserved[2]

#: Unreadable blocks of a namespace (IOThread).
cdef struct bad_range_t:
    uint64_t slba
    uint64_t blocks
    #: 0: the entry is free. Stored last.
    uint64_t nsid
    uint64_t reserved

cdef struct controller_state_t:
    uint64_t magic
    uint32_t version
    uint32_t size
    uint64_t shadow_doorbell_iova
    uint64_t event_idx_iova
    #: Errors logged; bumped with an atomic add, since each IOThread logs its own (IOThread).
    uint64_t error_count
    #: By vector: INTERRUPT_* bits (control plane; the IOThread sets INTERRUPT_PENDING).
    uint8_t interrupts[256]
    uint8_t reserved[3800]
    #: They begin at a page, so that few pages are used where few of them are; the rest is a hole.
    slot_t slots[QUEUES][SLOTS]
    uint8_t registers[4096]
    uint8_t config_space[4096]
    uint8_t msix[8192]
    uint32_t features[256]
    uint32_t vector_config[256]
    uint32_t scratch[2048]
    uint32_t changed_namespaces[1024]
    uint8_t feature_data[4096]
    #: What outlives resets and clients: health, self-tests, sanitizing (controller/memory_map.py).
    uint64_t lifetime[2048]
    error_entry_t error_log[ERROR_ENTRIES]
    bad_range_t bad_ranges[BAD_RANGES]
    #: A line each for every IOThread: what all of them did is the sum. The last of the path counters
    #: are the control plane's, which serves the admin queue.
    io_counters_t io_counters[HOST_QUEUES]
    path_counters_t path_counters[HOST_QUEUES + 1]
    sq_state_t sq[QUEUES]
    cq_state_t cq[QUEUES]
