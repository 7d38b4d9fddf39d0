"""The I/O of a ublk device (``<linux/ublk_cmd.h>``): the kernel's requests as NVMe commands.

The kernel hands a request over by completing a command of io_uring (FETCH), and has its answer with
the command that fetches the next one under that tag (COMMIT_AND_FETCH). Between the two it is a
command on an NVMe queue pair, whose identifier is the tag. The data of a tag has a place of its own, in
memory that the controller sees; the kernel copies between there and the pages of the request.

A turn takes what the kernel has, rings, takes what the controller has, and answers. Without either
the thread spins for a moment, and then sleeps in io_uring until a request or the interrupt comes.
"""

from libc.errno cimport EBUSY, EINTR, EINVAL, EIO, ENODATA, ENOSPC, EOPNOTSUPP, EROFS
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport read, write

from nvme_mdev.datapath.atomics cimport cpu_relax, load_relaxed32, store_relaxed32
from nvme_mdev.datapath.clock cimport POLLIN, now_ns
from nvme_mdev.datapath.host_rings cimport (
    STATUS_SHIFT, advance_head, peek, post, queue_t, ring, sqe_t,
)
from nvme_mdev.host.queues cimport QueuePair

import os

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_sqe:
        uint8_t opcode
        int32_t fd
        uint32_t cmd_op
        uint64_t user_data
    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
    cdef struct io_uring:
        pass
    cdef struct io_uring_params:
        uint32_t flags
    int io_uring_queue_init_params(unsigned, io_uring *, io_uring_params *)
    void io_uring_queue_exit(io_uring *)
    io_uring_sqe *io_uring_get_sqe(io_uring *)
    int io_uring_submit(io_uring *)
    int io_uring_submit_and_wait(io_uring *, unsigned)
    int io_uring_wait_cqe(io_uring *, io_uring_cqe **)
    unsigned io_uring_peek_batch_cqe(io_uring *, io_uring_cqe **, unsigned)
    void io_uring_cq_advance(io_uring *, unsigned)
    void io_uring_prep_poll_add(io_uring_sqe *, int, unsigned)
    enum:
        IORING_OP_URING_CMD
        IORING_SETUP_SQE128
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_DEFER_TASKRUN
        IORING_SETUP_TASKRUN_FLAG

cdef extern from *:
    """
    #include <liburing.h>
    /* The command of a driver lies behind the fields that all operations have. */
    static inline void *command_area(struct io_uring_sqe *sqe) { return sqe->cmd; }
    """
    void *command_area(io_uring_sqe *sqe) nogil
    #: _IOWR('u', number, struct ublksrv_io_cmd).
    const uint32_t FETCH_REQ "UINT32_C(0xC0107520)"
    const uint32_t COMMIT_AND_FETCH_REQ "UINT32_C(0xC0107521)"
    const uint64_t INTERRUPT "UINT64_MAX"

cdef enum:
    # Of a request: struct ublksrv_io_desc.op_flags.
    UBLK_OP_MASK = 0xFF
    UBLK_OP_READ = 0
    UBLK_OP_WRITE = 1
    UBLK_OP_FLUSH = 2
    UBLK_OP_DISCARD = 3
    UBLK_OP_WRITE_ZEROES = 5
    UBLK_FUA = 1 << 13
    #: Write Zeroes that must not deallocate.
    UBLK_NOUNMAP = 1 << 15

    NVME_FLUSH = 0x00
    NVME_WRITE = 0x01
    NVME_READ = 0x02
    NVME_WRITE_ZEROES = 0x08
    NVME_DATASET_MANAGEMENT = 0x09
    CDW12_DEAC = 1 << 25
    CDW12_FUA = 1 << 30
    CDW11_AD = 1 << 2

    # The status field without the phase tag (Base 2.x, section 4.2.3).
    STATUS_CODE = 0x7FF
    STATUS_DNR = 1 << 14
    SC_INVALID_OPCODE = 0x001
    SC_CAPACITY_EXCEEDED = 0x081
    SC_WRITE_PROTECTED = 0x020
    SC_RESERVATION_CONFLICT = 0x083
    SC_UNRECOVERED_READ = 0x281

    PAGE_SIZE = 4096
    SECTOR_SHIFT = 9
    CONTROL_HEADER_SIZE = 32
    CONTROL_ENTRIES = 4
    REAP = 64
    #: As often as Linux' driver tries a command again that may be (nvme_core.max_retries).
    MOST_TRIES = 5
    #: Empty turns between two looks at the clock, and how long a thread spins before it sleeps.
    SPINS_PER_LOOK = 64
    SPIN_NS = 50000

#: struct ublksrv_io_desc.
cdef struct request_desc_t:
    uint32_t op_flags
    uint32_t sectors
    uint64_t start_sector
    uint64_t addr

#: struct ublksrv_io_cmd.
cdef struct io_command_t:
    uint16_t queue
    uint16_t tag
    int32_t result
    uint64_t addr

cdef struct device_queue_t:
    io_uring ring
    queue_t *nvme
    const request_desc_t *descriptors
    #: A tag's data, and behind it the page of its PRP list, are `stride` bytes from the next one's.
    uint8_t *data
    uint64_t data_iova
    uint64_t stride
    uint32_t buffer_size
    #: By tag: how often its command was tried; 0: the controller has none of it.
    uint8_t *tries
    int fd
    int eventfd
    uint16_t number
    uint16_t depth
    uint32_t nsid
    #: Of a block, in sectors.
    uint32_t block_shift
    bint zeroes_deallocate
    #: The interrupt is waited for in the ring.
    bint armed
    #: Commands that the controller has.
    uint32_t outstanding
    #: Tags that the kernel has taken back: the device is being stopped.
    uint32_t ended
    uint64_t requests
    uint64_t errors
    #: Another thread sets them.
    uint32_t stop
    uint32_t refuses


# -- control commands -----------------------------------------------------------------------------


def control(int fd, uint32_t command, const uint8_t[::1] header not None):
    if header.shape[0] != CONTROL_HEADER_SIZE:
        raise ValueError(f"a header has {CONTROL_HEADER_SIZE} bytes")
    cdef io_uring control_ring
    cdef io_uring_params parameters
    cdef io_uring_sqe *sqe
    cdef io_uring_cqe *cqe = NULL
    cdef int result
    memset(&parameters, 0, sizeof(parameters))
    parameters.flags = IORING_SETUP_SQE128
    result = io_uring_queue_init_params(CONTROL_ENTRIES, &control_ring, &parameters)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    sqe = io_uring_get_sqe(&control_ring)
    if sqe == NULL:
        # A ring that is new has entries; the compiler knows it only like this.
        io_uring_queue_exit(&control_ring)
        raise OSError(EBUSY, os.strerror(EBUSY))
    memset(sqe, 0, 128)
    sqe.opcode = <uint8_t>IORING_OP_URING_CMD
    sqe.fd = fd
    sqe.cmd_op = command
    memcpy(command_area(sqe), &header[0], CONTROL_HEADER_SIZE)
    with nogil:
        result = io_uring_submit(&control_ring)
        while result >= 0 or result == -EINTR:
            result = io_uring_wait_cqe(&control_ring, &cqe)
            if result == 0:
                result = cqe.res
                break
        io_uring_queue_exit(&control_ring)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


# -- from requests to commands ----------------------------------------------------------------------


cdef inline uint64_t iova_of(device_queue_t *queue, uint32_t tag) noexcept nogil:
    return queue.data_iova + tag * queue.stride


cdef inline void point_to_data(device_queue_t *queue, uint32_t tag, uint32_t size, sqe_t *sqe) noexcept nogil:
    """PRP1 and PRP2: the pages of a tag are one behind the other, its list was written once."""
    cdef uint64_t iova = iova_of(queue, tag)
    sqe.prp1 = iova
    if size > 2 * PAGE_SIZE:
        sqe.prp2 = iova + queue.buffer_size
    elif size > PAGE_SIZE:
        sqe.prp2 = iova + PAGE_SIZE


cdef inline void name_range(device_queue_t *queue, uint32_t tag, uint64_t slba, uint32_t blocks) noexcept nogil:
    """Dataset Management's only range (NVM Command Set 1.x, section 3.2.3)."""
    cdef uint64_t *range_ = <uint64_t *>(queue.data + tag * queue.stride)
    range_[0] = <uint64_t>blocks << 32
    range_[1] = slba


cdef int translate(device_queue_t *queue, uint32_t tag, sqe_t *sqe) noexcept nogil:
    """The command for a request; 0, or the error number of one that there is none for."""
    cdef const request_desc_t *request = &queue.descriptors[tag]
    cdef uint32_t operation = request.op_flags & UBLK_OP_MASK
    cdef uint64_t size = <uint64_t>request.sectors << SECTOR_SHIFT
    cdef uint32_t blocks = request.sectors >> queue.block_shift
    if load_relaxed32(&queue.refuses):
        return EIO
    memset(sqe, 0, sizeof(sqe_t))
    sqe.cid = <uint16_t>tag
    sqe.nsid = queue.nsid
    if operation == UBLK_OP_FLUSH:
        sqe.opcode = NVME_FLUSH
        return 0
    if blocks == 0:
        return EINVAL
    sqe.slba = request.start_sector >> queue.block_shift
    if operation == UBLK_OP_DISCARD:
        sqe.opcode = NVME_DATASET_MANAGEMENT
        name_range(queue, tag, sqe.slba, blocks)
        sqe.slba = <uint64_t>CDW11_AD << 32
        sqe.prp1 = iova_of(queue, tag)
        return 0
    sqe.cdw12 = (blocks - 1) | (CDW12_FUA if request.op_flags & UBLK_FUA else 0)
    if operation == UBLK_OP_WRITE_ZEROES:
        sqe.opcode = NVME_WRITE_ZEROES
        if queue.zeroes_deallocate and not request.op_flags & UBLK_NOUNMAP:
            sqe.cdw12 |= CDW12_DEAC
        return 0 if blocks <= 65536 else EINVAL
    if size > queue.buffer_size:
        return EINVAL
    point_to_data(queue, tag, <uint32_t>size, sqe)
    if operation == UBLK_OP_READ:
        sqe.opcode = NVME_READ
    elif operation == UBLK_OP_WRITE:
        sqe.opcode = NVME_WRITE
    else:
        return EOPNOTSUPP
    return 0


cdef int error_of(uint32_t status) noexcept nogil:
    """What the kernel is told of a command's status, as Linux' driver translates it."""
    cdef uint32_t code = status & STATUS_CODE
    if code == SC_CAPACITY_EXCEEDED:
        return ENOSPC
    if code == SC_INVALID_OPCODE:
        return EOPNOTSUPP
    if code == SC_WRITE_PROTECTED:
        return EROFS
    if code == SC_RESERVATION_CONFLICT:
        return EBUSY
    if code == SC_UNRECOVERED_READ:
        return ENODATA
    return EIO


# -- the loop -----------------------------------------------------------------------------------------


cdef inline io_uring_sqe *entry(device_queue_t *queue) noexcept nogil:
    """An SQE; the ring has room for one a tag and the interrupt's."""
    cdef io_uring_sqe *sqe = io_uring_get_sqe(&queue.ring)
    while sqe == NULL:
        io_uring_submit(&queue.ring)
        sqe = io_uring_get_sqe(&queue.ring)
    return sqe


cdef void tell_kernel(device_queue_t *queue, uint32_t tag, uint32_t operation, int32_t result) noexcept nogil:
    """FETCH, or COMMIT_AND_FETCH with the result of a request: bytes, or a negative error."""
    cdef io_uring_sqe *sqe = entry(queue)
    cdef io_command_t *command
    memset(sqe, 0, 64)
    sqe.opcode = <uint8_t>IORING_OP_URING_CMD
    sqe.fd = queue.fd
    sqe.cmd_op = operation
    sqe.user_data = tag
    command = <io_command_t *>command_area(sqe)
    command.queue = queue.number
    command.tag = <uint16_t>tag
    command.result = result
    command.addr = <uint64_t>(queue.data + tag * queue.stride)


cdef inline void answer(device_queue_t *queue, uint32_t tag, int error) noexcept nogil:
    cdef int32_t result = <int32_t>(queue.descriptors[tag].sectors << SECTOR_SHIFT)
    queue.tries[tag] = 0
    queue.requests += 1
    if error:
        queue.errors += 1
        result = -error
    tell_kernel(queue, tag, COMMIT_AND_FETCH_REQ, result)


cdef void start(device_queue_t *queue, uint32_t tag) noexcept nogil:
    """Post the request's command; the doorbell is rung once a turn."""
    cdef sqe_t sqe
    cdef int error = translate(queue, tag, &sqe)
    if error:
        answer(queue, tag, error)
        return
    queue.tries[tag] += 1
    queue.outstanding += 1
    post(queue.nvme, &sqe)


cdef void finish(device_queue_t *queue, uint32_t tag, uint32_t status) noexcept nogil:
    """A command is done: the request is, or it is tried again."""
    queue.outstanding -= 1
    if status == 0:
        answer(queue, tag, 0)
    elif not status & STATUS_DNR and queue.tries[tag] <= MOST_TRIES:
        start(queue, tag)
    else:
        answer(queue, tag, error_of(status))


cdef uint32_t take_requests(device_queue_t *queue) noexcept nogil:
    """Start what the kernel has handed over; how much there was."""
    cdef io_uring_cqe *cqes[REAP]
    cdef uint32_t count = io_uring_peek_batch_cqe(&queue.ring, cqes, REAP)
    cdef uint32_t i, tag
    for i in range(count):
        if cqes[i].user_data == INTERRUPT:
            queue.armed = False
            continue
        tag = <uint32_t>cqes[i].user_data
        if cqes[i].res == 0:
            start(queue, tag)
        else:
            # -ENODEV: the device is being stopped, and the tag is not fetched again.
            queue.ended += 1
    if count:
        io_uring_cq_advance(&queue.ring, count)
    return count


cdef uint32_t take_completions(device_queue_t *queue) noexcept nogil:
    """Finish what the controller has completed; how much there was."""
    cdef queue_t *nvme = queue.nvme
    cdef uint32_t dw3 = 0
    cdef uint32_t count = 0
    cdef uint32_t tag
    while count < REAP and peek(nvme, &dw3):
        advance_head(nvme)
        count += 1
        tag = dw3 & 0xFFFF
        if tag < queue.depth and queue.tries[tag]:
            finish(queue, tag, dw3 >> STATUS_SHIFT)
    if count:
        ring(&nvme.head_doorbell, nvme.head)
    return count


cdef inline void ring_tail(device_queue_t *queue) noexcept nogil:
    if queue.nvme.tail_doorbell.value != queue.nvme.tail:
        ring(&queue.nvme.tail_doorbell, queue.nvme.tail)


cdef void rest(device_queue_t *queue) noexcept nogil:
    """Sleep until the kernel or the controller has something."""
    cdef uint64_t count
    cdef uint32_t dw3 = 0
    cdef io_uring_sqe *sqe
    if not queue.armed:
        # An interrupt of a completion that was taken already.
        read(queue.eventfd, &count, 8)
        if peek(queue.nvme, &dw3) or load_relaxed32(&queue.stop):
            return
        sqe = entry(queue)
        io_uring_prep_poll_add(sqe, queue.eventfd, POLLIN)
        sqe.user_data = INTERRUPT
        queue.armed = True
    io_uring_submit_and_wait(&queue.ring, 1)


cdef int serve(device_queue_t *queue) noexcept nogil:
    """Until every tag has ended, or `stop` is set; 0 or a negative error number."""
    cdef io_uring_params parameters
    cdef uint32_t tag, did
    cdef uint32_t idle = 0
    cdef uint64_t idle_since = 0
    cdef int status
    memset(&parameters, 0, sizeof(parameters))
    parameters.flags = (
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG)
    status = io_uring_queue_init_params(queue.depth + 1, &queue.ring, &parameters)
    if status < 0:
        return status
    for tag in range(queue.depth):
        tell_kernel(queue, tag, FETCH_REQ, 0)
    io_uring_submit(&queue.ring)
    while queue.ended < queue.depth and not load_relaxed32(&queue.stop):
        did = take_requests(queue)
        ring_tail(queue)
        did += take_completions(queue)
        ring_tail(queue)
        if did:
            idle = 0
            io_uring_submit(&queue.ring)
            continue
        idle += 1
        if queue.outstanding and idle < SPINS_PER_LOOK:
            cpu_relax()
        elif queue.outstanding and idle == SPINS_PER_LOOK:
            idle_since = now_ns()
        elif queue.outstanding and now_ns() - idle_since < SPIN_NS:
            cpu_relax()
        else:
            rest(queue)
    io_uring_queue_exit(&queue.ring)
    return 0


# -- Python -------------------------------------------------------------------------------------------


cdef class UblkQueue:
    """One hardware queue of a ublk device (see ublk.pyi)."""

    cdef device_queue_t queue
    cdef QueuePair pair
    cdef uint8_t[::1] data
    cdef const uint8_t[::1] descriptors

    def __init__(
        self, QueuePair pair not None, *, int fd, uint16_t number, uint16_t depth, descriptors,
        data, uint64_t data_iova, uint32_t buffer_size, uint32_t nsid, uint32_t block_size,
        bint zeroes_deallocate,
    ):
        cdef device_queue_t *queue = &self.queue
        if pair.queue.tail_doorbell.register == NULL or pair.eventfd < 0:
            raise ValueError("the queue pair needs mapped doorbells and interrupts")
        if not 0 < depth < min(pair.queue.sq_entries, pair.queue.cq_entries):
            raise ValueError(f"{depth} commands do not fit into the queue pair")
        if buffer_size % PAGE_SIZE or not 0 < buffer_size <= PAGE_SIZE * (PAGE_SIZE // 8):
            raise ValueError(f"{buffer_size} bytes are not what a page of PRP list describes")
        self.pair = pair
        self.data = data
        self.descriptors = descriptors
        queue.stride = buffer_size + PAGE_SIZE
        if self.data.shape[0] < <Py_ssize_t>(depth * queue.stride):
            raise ValueError("the data buffer is too small")
        if self.descriptors.shape[0] < <Py_ssize_t>(depth * sizeof(request_desc_t)):
            raise ValueError("the descriptors are too few")
        queue.tries = <uint8_t *>calloc(depth, 1)
        if queue.tries == NULL:
            raise MemoryError
        queue.nvme = &pair.queue
        queue.descriptors = <const request_desc_t *>&self.descriptors[0]
        queue.data = &self.data[0]
        queue.data_iova = data_iova
        queue.buffer_size = buffer_size
        queue.fd = fd
        queue.eventfd = pair.eventfd
        queue.number = number
        queue.depth = depth
        queue.nsid = nsid
        while block_size >> SECTOR_SHIFT > 1 << queue.block_shift:
            queue.block_shift += 1
        queue.zeroes_deallocate = zeroes_deallocate
        self._write_lists()

    cdef void _write_lists(self) noexcept:
        """The PRP list of each tag: its pages but for the first."""
        cdef uint32_t tag, i
        cdef uint64_t *list_
        for tag in range(self.queue.depth):
            list_ = <uint64_t *>(self.queue.data + tag * self.queue.stride + self.queue.buffer_size)
            for i in range(self.queue.buffer_size // PAGE_SIZE - 1):
                list_[i] = iova_of(&self.queue, tag) + (i + 1) * PAGE_SIZE

    def run(self):
        cdef int status
        cdef list memory = self.pair.views()
        with nogil:
            status = serve(&self.queue)
        del memory
        if status:
            raise OSError(-status, os.strerror(-status))

    def stop(self):
        cdef uint64_t one = 1
        store_relaxed32(&self.queue.stop, 1)
        write(self.queue.eventfd, &one, 8)

    def refuse(self):
        store_relaxed32(&self.queue.refuses, 1)

    def close(self):
        self.data = self.descriptors = None

    @property
    def requests(self):
        return self.queue.requests

    @property
    def outstanding(self):
        return self.queue.outstanding

    @property
    def errors(self):
        return self.queue.errors

    def __dealloc__(self):
        free(self.queue.tries)
