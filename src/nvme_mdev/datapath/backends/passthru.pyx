"""A namespace on the queues of the kernel's NVMe driver: io_uring passthrough.

A guest's command becomes an NVMe command of the namespace's character device (IORING_OP_URING_CMD on
/dev/ngXnY), past the block layer and its scheduler, while the host goes on using
the drive. NSID and LBA are rewritten; data moves between guest memory and the drive. The status that
the drive returns is the guest's, unchanged.

The commands need submission entries of 128 bytes and completions of 32, so each IOThread has a second
ring for them, one for all such namespaces; it polls where the driver has poll queues (IOPOLL).
Passthrough is in Linux 5.19, but polling and registered memory for it are in 6.1 only, as is
DEFER_TASKRUN.
"""

from libc.errno cimport EACCES, EAGAIN, EFAULT, EINTR, EINVAL, EPERM, ETIMEDOUT
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.uio cimport iovec

from nvme_mdev.datapath.backends.base cimport off_ring_complete
from nvme_mdev.datapath.backends.below cimport moves_data, names_ranges, rewrite, write_ranges
from nvme_mdev.datapath.backends.drive_backend cimport DriveBackend, served_t, way_of
from nvme_mdev.datapath.chain cimport chain_append, chain_t, chain_take
from nvme_mdev.datapath.host_rings cimport sqe_t
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.memory cimport buffer_range
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport (
    BUFFERS, NO_BUFFER, OP_DEALLOCATE, REQUEST_EXPIRED, backend_ops_t, iothread_t, request_t,
    sq_t,
)
from nvme_mdev.datapath.status cimport (
    SC_ABORT_REQUESTED, SC_DATA_TRANSFER_ERROR, SC_DNR, SC_INTERNAL_ERROR, SC_INVALID_OPCODE,
    SC_SUCCESS,
)
from nvme_mdev.datapath.uring cimport (
    BUFFER_NONE, BUFFER_REFUSED, BUFFER_REGISTERED, IORING_OP_URING_CMD, io_uring_sqe, uring_sqe,
    uring_submit, uring_submit_and_poll, uring_t, uring_use_buffer,
)

import os

from nvme_mdev.datapath.backends.temperature import temperature

cdef extern from "<linux/nvme_ioctl.h>" nogil:
    cdef struct nvme_uring_cmd:
        uint8_t opcode
        uint32_t nsid
        uint64_t addr
        uint32_t data_len
        uint32_t cdw10
        uint32_t cdw11
        uint32_t cdw12
        uint32_t timeout_ms
    enum:
        NVME_URING_CMD_IO
        NVME_URING_CMD_IO_VEC

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_params:
        uint32_t flags
        uint32_t cq_entries
    cdef struct cqe32_t "io_uring_cqe":
        uint64_t user_data
        int32_t res
        uint64_t *big_cqe
    int io_uring_queue_init_params(unsigned, void *, io_uring_params *)
    void io_uring_queue_exit(void *)
    int io_uring_register_files(void *, const int *, unsigned)
    int io_uring_register_buffers_sparse(void *, unsigned)
    int io_uring_register_buffers_update_tag(
        void *, unsigned, const iovec *, const unsigned long long *, unsigned)
    unsigned io_uring_peek_batch_cqe(void *, cqe32_t **, unsigned)
    void io_uring_cq_advance(void *, unsigned)
    enum:
        IORING_SETUP_CQSIZE
        IORING_SETUP_IOPOLL
        IORING_SETUP_SQE128
        IORING_SETUP_CQE32
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_DEFER_TASKRUN
        IORING_URING_CMD_FIXED

cdef extern from *:
    """
    #include <liburing.h>
    #include <linux/nvme_ioctl.h>
    /* The command lies in the second half of the SQE (<linux/io_uring.h>: cmd). */
    static inline struct nvme_uring_cmd *command_of(struct io_uring_sqe *sqe) {
        return (struct nvme_uring_cmd *) sqe->cmd;
    }
    static inline void set_command_flags(struct io_uring_sqe *sqe, unsigned flags) {
        sqe->uring_cmd_flags = flags;
    }
    static inline void set_buffer(struct io_uring_sqe *sqe, unsigned buffer) {
        sqe->buf_index = (unsigned short) buffer;
    }
    """
    nvme_uring_cmd *command_of(io_uring_sqe *sqe) nogil
    void set_command_flags(io_uring_sqe *sqe, unsigned flags) nogil
    void set_buffer(io_uring_sqe *sqe, unsigned buffer) nogil

cdef enum:
    #: SQEs between two submissions.
    ENTRIES = 256
    CQ_ENTRIES = 4096
    REAP = 64
    #: Bytes of an SQE of this ring.
    SQE_SIZE = 128
    #: Ranges of a Dataset Management command.
    RANGES_MOST = 256

#: An IOThread's ring for passthrough. IOPOLL rings and others are two.
cdef struct passthru_ring_t:
    #: First, so that its address is the ring's (`rings`).
    uring_t uring
    uint32_t users
    uint32_t flags
    #: `IOThread.lifeline`, for the ring to hold; -1: none.
    int lifeline
    #: Requests that the ring had no room for.
    chain_t waiting


# -- submitting -----------------------------------------------------------------------------------


cdef inline passthru_ring_t *ring_of(served_t *served, iothread_t *thread) noexcept nogil:
    return <passthru_ring_t *> way_of(served, thread)


cdef inline void end(iothread_t *thread, request_t *request, uint32_t status) noexcept nogil:
    request.status = <uint16_t> status
    thread.inflight -= 1
    request_done(thread, request)


cdef inline uint8_t *place_of_ranges(request_t *request) noexcept nogil:
    """Behind the ranges themselves, which are segments of the slot: there is room for both."""
    cdef sq_t *sq = request.sq
    return <uint8_t *> &sq.iov[(request.slot - sq.slots) * sq.iov_stride + RANGES_MOST]


cdef inline void point_to_data(
    passthru_ring_t *ring, served_t *served, request_t *request, io_uring_sqe *sqe,
    nvme_uring_cmd *command
) noexcept nogil:
    """The command's data, as the kernel takes it."""
    if names_ranges(request):
        command.data_len = write_ranges(&served.below, request, place_of_ranges(request))
        command.addr = <uint64_t> place_of_ranges(request)
    elif moves_data(request):
        if request.iov_count > 1:
            sqe.cmd_op = <uint32_t> NVME_URING_CMD_IO_VEC
            command.addr = <uint64_t> request.iov
            command.data_len = request.iov_count
            return
        command.addr = <uint64_t> request.iov[0].iov_base
        command.data_len = <uint32_t> request.length
        if request.buffer != NO_BUFFER and uring_use_buffer(&ring.uring, request.buffer):
            set_command_flags(sqe, IORING_URING_CMD_FIXED)
            set_buffer(sqe, request.buffer)


cdef void start(iothread_t *thread, passthru_ring_t *ring, request_t *request) noexcept nogil:
    """Prepare the request's command, or let it wait for room in the ring."""
    cdef served_t *served = <served_t *> request.ns.backend.context
    cdef sqe_t wanted
    cdef nvme_uring_cmd *command
    cdef io_uring_sqe *sqe
    cdef uint32_t status = rewrite(&served.below, request, &wanted)
    if status:
        end(thread, request, status)
        return
    sqe = uring_sqe(&ring.uring)
    if sqe == NULL:
        chain_append(&ring.waiting, request)
        return
    memset(sqe, 0, SQE_SIZE)
    sqe.opcode = <uint8_t> IORING_OP_URING_CMD
    sqe.fd = served.below.fd
    sqe.cmd_op = <uint32_t> NVME_URING_CMD_IO
    sqe.user_data = <uint64_t> request
    command = command_of(sqe)
    command.opcode = wanted.opcode
    command.nsid = wanted.nsid
    command.cdw10 = <uint32_t> wanted.slba
    command.cdw11 = <uint32_t> (wanted.slba >> 32)
    command.cdw12 = wanted.cdw12
    # The driver begins with an Abort then; 0: its own (nvme_core.io_timeout).
    command.timeout_ms = request.sq.controller.io_timeout_ms
    point_to_data(ring, served, request, sqe, command)


cdef void passthru_submit(iothread_t *thread, request_t *request) noexcept nogil:
    request.status = SC_SUCCESS
    thread.inflight += 1
    if request.operation == OP_DEALLOCATE and request.iov_count == 0:
        # Only hints, or empty ranges.
        end(thread, request, SC_SUCCESS)
        return
    start(thread, ring_of(<served_t *> request.ns.backend.context, thread), request)


# -- completing -----------------------------------------------------------------------------------


cdef uint32_t status_of(int error) noexcept nogil:
    """The NVMe status for what the kernel says before, or instead of, the drive."""
    if error == EINTR or error == ETIMEDOUT:
        # The driver gave up on it: a time-out, a reset, a drive that has gone.
        return SC_ABORT_REQUESTED
    if error == EFAULT:
        return SC_DATA_TRANSFER_ERROR | SC_DNR
    if error == EINVAL or error == EACCES or error == EPERM:
        return SC_INVALID_OPCODE | SC_DNR
    return SC_INTERNAL_ERROR


cdef inline void take(iothread_t *thread, passthru_ring_t *ring, cqe32_t *cqe) noexcept nogil:
    cdef request_t *request = <request_t *> cqe.user_data
    if cqe.res == -EAGAIN and not request.flags & REQUEST_EXPIRED:
        start(thread, ring, request)
        return
    request.result = 0 if cqe.res < 0 else <uint32_t> cqe.big_cqe[0]
    # 0 or more: the status field of the drive's completion.
    end(thread, request, <uint32_t> cqe.res if cqe.res >= 0 else status_of(-cqe.res))


cdef uint32_t passthru_poll(iothread_t *thread, void *context) noexcept nogil:
    """Submit what this turn prepared, take completions, prepare what waited for room."""
    cdef passthru_ring_t *ring = <passthru_ring_t *> context
    cdef cqe32_t *cqes[REAP]
    cdef uint32_t i, count
    if ring.flags & IORING_SETUP_IOPOLL:
        # Polling the drive is a system call; it submits, too.
        uring_submit_and_poll(&ring.uring)
    elif ring.uring.prepared:
        uring_submit(&ring.uring)
    count = io_uring_peek_batch_cqe(&ring.uring.ring, cqes, REAP)
    for i in range(count):
        take(thread, ring, cqes[i])
    if count:
        io_uring_cq_advance(&ring.uring.ring, count)
    for i in range(REAP):
        if ring.waiting.first == NULL:
            break
        start(thread, ring, chain_take(&ring.waiting))
    return count


cdef void passthru_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    """The driver has been told how long it may take (`start`): it has the drive abort the command,
    whose status is the guest's, and after as long again resets the drive; then the command ends as
    `status_of` says."""


cdef backend_ops_t passthru_ops
passthru_ops.submit = passthru_submit
passthru_ops.complete = off_ring_complete
passthru_ops.cancel = passthru_cancel


# -- rings ----------------------------------------------------------------------------------------


cdef int open_ring(iothread_t *thread, void *argument) noexcept nogil:
    """Make the ring; 0 or -errno. Runs on the thread, which becomes its only submitter."""
    cdef passthru_ring_t *ring = <passthru_ring_t *> argument
    cdef io_uring_params parameters
    cdef int status
    memset(&parameters, 0, sizeof(parameters))
    parameters.flags = (IORING_SETUP_CQSIZE | IORING_SETUP_SQE128 | IORING_SETUP_CQE32
                        | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | ring.flags)
    parameters.cq_entries = CQ_ENTRIES
    status = io_uring_queue_init_params(ENTRIES, &ring.uring.ring, &parameters)
    if status == 0 and io_uring_register_buffers_sparse(&ring.uring.ring, BUFFERS) != 0:
        memset(ring.uring.buffers, BUFFER_REFUSED, BUFFERS)
    if status == 0 and ring.lifeline >= 0:
        status = io_uring_register_files(&ring.uring.ring, &ring.lifeline, 1)
        if status:
            io_uring_queue_exit(&ring.uring.ring)
    return status


cdef int close_ring(iothread_t *thread, void *argument) noexcept nogil:
    io_uring_queue_exit(&(<passthru_ring_t *> argument).uring.ring)
    return 0


#: Guest memory that goes: argument of `drop_memory`.
cdef struct dropped_t:
    passthru_ring_t *ring
    uint64_t start
    uint64_t end


cdef int drop_memory(iothread_t *thread, void *argument) noexcept nogil:
    """Unregister every buffer that lies in the range."""
    cdef dropped_t *dropped = <dropped_t *> argument
    cdef uring_t *uring = &dropped.ring.uring
    cdef iovec memory
    cdef iovec none
    cdef unsigned long long tag = 0
    cdef uint32_t i
    none.iov_base = NULL
    none.iov_len = 0
    for i in range(BUFFERS):
        if uring.buffers[i] != BUFFER_REGISTERED:
            continue
        buffer_range(i, &memory)
        if dropped.start <= <uint64_t> memory.iov_base < dropped.end:
            io_uring_register_buffers_update_tag(&uring.ring, i, &none, &tag, 1)
            uring.buffers[i] = BUFFER_NONE
    return 0


#: (IOThread, polled) to the address of its ring.
rings = {}


cdef passthru_ring_t *take_ring(IOThread iothread, bint polled) except NULL:
    """The thread's ring, made for its first user."""
    cdef passthru_ring_t *ring
    cdef int status
    key = (iothread, polled)
    if key in rings:
        ring = <passthru_ring_t *> <uintptr_t> rings[key]
        ring.users += 1
        return ring
    ring = <passthru_ring_t *> calloc(1, sizeof(passthru_ring_t))
    if ring == NULL:
        raise MemoryError
    ring.flags = IORING_SETUP_IOPOLL if polled else 0
    ring.lifeline = iothread.lifeline
    status = iothread.call(open_ring, ring)
    if status:
        free(ring)
        why = "it needs Linux 6.1 or newer" if status == -EINVAL else os.strerror(-status)
        raise OSError(-status, f"io_uring passthrough: {why}")
    iothread.add_poller(passthru_poll, ring)
    ring.users = 1
    rings[key] = <uintptr_t> ring
    return ring


cdef int give_ring(IOThread iothread, passthru_ring_t *ring) except -1:
    ring.users -= 1
    if ring.users:
        return 0
    iothread.remove_poller(ring)
    iothread.call(close_ring, ring)
    del rings[(iothread, ring.flags != 0)]
    free(ring)
    return 0


# -- the control plane's side ---------------------------------------------------------------------


cdef class PassthruBackend(DriveBackend):
    """An NVMe namespace or partition (see passthru.pyi)."""

    cdef object drive
    cdef readonly bint polled

    def __init__(self, drive):
        self.drive = drive
        self.describe(drive.namespace)
        self.polled = drive.polled
        self.served.below.fd = drive.fd
        self.backend.ops = &passthru_ops
        self.backend.uses_buffers = True

    cdef void *open_way(self, IOThread iothread) except NULL:
        self.drive.take_queue(iothread)
        try:
            return take_ring(iothread, self.polled)
        except BaseException:
            self.drive.give_queue(iothread)
            raise

    cdef int close_way(self, IOThread iothread, void *way) except -1:
        give_ring(iothread, <passthru_ring_t *> way)
        self.drive.give_queue(iothread)
        return 0

    def use_memory(self, memory):
        memory.add_mapper(self)

    def leave_memory(self, memory):
        memory.remove_mapper(self)

    def map(self, address, size, fd, offset, *, writable):
        """The kernel reaches what this process reaches."""

    def unmap(self, address, size):
        cdef IOThread iothread
        cdef dropped_t dropped
        dropped.start = address
        dropped.end = address + size
        for iothread in self.served_on:
            dropped.ring = ring_of(self.served, iothread.thread)
            iothread.call(drop_memory, &dropped)

    def medium_size(self):
        size = self.drive.current_size()
        return size - size % self.block_size

    def medium_read_only(self):
        return self.drive.is_read_only()

    def change_medium(self, size):
        raise OSError(95, "a partition is resized by its owner", self.name)

    def flush(self):
        if not self.read_only:
            self.drive.flush()

    def temperature(self):
        return temperature(self.name)

    def smart(self):
        return self.drive.smart()

    def close(self):
        if self.drive is not None:
            self.drive.close()
            self.drive = None
