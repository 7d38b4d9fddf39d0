"""A workload: one queue pair, what is to be done on it, and what was measured (see workload.pyi).

The loop that does it is `workload_loop.pyx`.
"""

from array import array

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from nvme_mdev.datapath.atomics cimport load_relaxed32, load_relaxed64, read_tsc, store_relaxed32
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.host_rings cimport sqe_t
from nvme_mdev.host.block_pattern cimport fill_block
from nvme_mdev.host.latency_histogram cimport PLAT_BUCKETS, bucket_of, clear_histogram, histogram_t
from nvme_mdev.host.queues cimport QueuePair
from nvme_mdev.host.workload_loop cimport (
    DIRECTION_READ, DIRECTION_WRITE, FAILURE_NONE, FAILURE_RING, FAILURE_TIMEOUT, OPCODE_READ, STOP_ABANDON,
    STOP_DRAIN, job_t, measured_t, run_in_turn, run_job, slot_t,
)

from nvme_mdev.host.samples import Failure, FirstError, Measured, Samples

cdef extern from *:
    int COUNT_BITS "__builtin_popcountll"(uint64_t value) nogil

cdef enum:
    MIN_BLOCK_SIZE = 512


cdef int ring_by_socket(job_t *job, bint completion, uint32_t value) noexcept with gil:
    """Write a doorbell register through the socket; what goes wrong is kept for `run`."""
    try:
        (<Workload>job.owner).queue.by_socket(completion, value)
    except BaseException as error:
        (<Workload>job.owner)._error = error
        job.failure = FAILURE_RING
    return 0


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
        job.ring_by_socket = ring_by_socket
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
