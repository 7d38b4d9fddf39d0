"""A namespace on a file or block device, through io_uring.

Data moves without a copy, between guest memory and the kernel. I/O that suits O_DIRECT goes through
a descriptor opened so, what does not through a second, buffered one; both are made durable by the same
fdatasync. The kernel does not keep direct and buffered *writes* to one page of a file coherent: one can
be lost, and the next fsync of whomever fails. So no medium gets both. Where blocks are smaller than its
direct I/O wants, all goes through the buffered descriptor; data that only lies wrongly in memory is
copied before it is written directly. (A buffered read harms nobody.) A medium that answers at once is
not asked through io_uring (`inline_io.pxd`).
"""

from libc.errno cimport (
    EACCES, EAGAIN, EDQUOT, EFAULT, EFBIG, EINTR, EINVAL, ENOSPC, EOPNOTSUPP, EPERM, EROFS,
)
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.types cimport off_t

from nvme_mdev.datapath.atomics cimport read_tsc, store_relaxed64
from nvme_mdev.datapath.backends.file_mapping cimport (
    file_mapping_close, file_mapping_forget, file_mapping_open, file_mapping_t,
)
from nvme_mdev.datapath.backends.inline_io cimport (
    INLINE_MOST, INLINE_MOST_ALONE, INLINE_PAUSE_MOST_NS, INLINE_PAUSE_NS, INLINE_POST, INLINE_SLOW_NS,
    by_system_call, inline_pauses, inline_t, inline_took, through_mapping,
)
from nvme_mdev.datapath.clock cimport multiply_fixed, ticks_hz
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.completing cimport complete_done
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.runtime cimport (
    NO_BUFFER, OP_DEALLOCATE, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES,
    REQUEST_BUFFERED, REQUEST_DEALLOCATE, REQUEST_EXPIRED, REQUEST_FUA, backend_ops_t, iothread_t, request_t,
    share_t,
)
from nvme_mdev.datapath.status cimport (
    SC_ABORT_REQUESTED, SC_CAPACITY_EXCEEDED, SC_DATA_TRANSFER_ERROR, SC_DNR,
    SC_INVALID_OPCODE, SC_NAMESPACE_NOT_READY, SC_NAMESPACE_WRITE_PROTECTED,
    SC_SUCCESS, SC_UNRECOVERED_READ, SC_WRITE_FAULT,
)
from nvme_mdev.datapath.uring cimport (
    IORING_FSYNC_DATASYNC, IORING_OP_URING_CMD, URING_FILES, io_uring_prep_cancel64, io_uring_prep_fallocate,
    io_uring_prep_fsync, io_uring_prep_read, io_uring_prep_read_fixed, io_uring_prep_readv2,
    io_uring_prep_write, io_uring_prep_write_fixed, io_uring_prep_writev2, io_uring_sqe, uring_create,
    uring_create_polled, uring_file_slot_t, uring_of, uring_poll_devices, uring_register_file, uring_t,
    uring_use_buffer,
)

import os

from nvme_mdev.datapath.backends.medium import open_medium
from nvme_mdev.datapath.backends.raw import RawMedium
from nvme_mdev.datapath.backends.temperature import temperature
from nvme_mdev.datapath.backends.base import check_block_size

cdef extern from "<errno.h>":
    enum:
        ECANCELED

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <stdlib.h>
    #include <sys/ioctl.h>
    /* Discard by io_uring command, since Linux 6.12 (<linux/blkdev.h> BLOCK_URING_CMD_DISCARD). */
    #define DISCARD_COMMAND _IO(0x12, 0)
    """
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_ZERO_RANGE
    uint32_t DISCARD_COMMAND
    void *aligned_alloc(size_t alignment, size_t size) nogil

cdef enum:
    #: Stages of a request that takes several operations after one another, kept in `request.result`
    #: until it completes (no NVM command here has a result of its own).
    STAGE_FIRST = 0
    #: Write Zeroes as the kernel would not do it: a hole instead, then plain writes of zeroes.
    STAGE_PUNCH = 1
    STAGE_WRITE = 2
    #: The flush that makes Force Unit Access true where the operation itself cannot.
    STAGE_FLUSH = 3

    #: Zeroes are written from one page-aligned block of this size, again and again.
    ZEROES = 1 << 20
    PAGE_ALIGNMENT = 4096
    #: Bytes of a file deallocated before others have their turn.
    DEALLOCATE_PART = 64 << 20
    #: Bytes of a controller that an IOThread copies to where direct I/O takes them, at a time. More
    #: than any guest has that is not out for memory.
    BOUNCED_MOST = 32 << 20
    #: Segments that the kernel takes at once (UIO_MAXIOV); the rest is a short read or write's.
    IOV_MOST = 1024

cdef enum:
    #: Number of `IOThread.lifeline`.
    LIFELINE_SLOT = URING_FILES - 1

#: File-table numbers in use in this process.
cdef uint8_t slot_used[URING_FILES]
cdef uint8_t *zeroes = NULL


cdef uint32_t allocate_slot() except? 0xfffffffe:
    cdef uint32_t i
    for i in range(LIFELINE_SLOT):
        if not slot_used[i]:
            slot_used[i] = 1
            return i
    raise OSError(24, "too many files are being served")


# -- what to ask of the kernel --------------------------------------------------------------------


cdef inline bint suits_direct(medium_t *medium, request_t *request) noexcept nogil:
    """Offset, length and every segment are aligned as direct I/O wants them."""
    cdef uint64_t offsets = request.offset | request.length
    cdef uint64_t addresses = 0
    cdef uint32_t i
    if not goes_direct(medium, request):
        return False
    for i in range(request.iov_count):
        addresses |= <uint64_t> request.iov[i].iov_base
        if request.iov_count > 1:
            offsets |= request.iov[i].iov_len
    return not (addresses & medium.memory_mask or offsets & medium.offset_mask)


cdef inline io_uring_sqe *next_sqe(iothread_t *thread, request_t *request) noexcept nogil:
    """For what is no direct Read or Write."""
    return sqe_on(thread, uring_of(thread), request)


cdef void prepare_read(iothread_t *thread, request_t *request, uint32_t slot) noexcept nogil:
    cdef uring_t *uring = ring_for(thread, request, slot)
    cdef io_uring_sqe *sqe = sqe_on(thread, uring, request)
    cdef uint64_t offset = position(request)
    if sqe == NULL:
        return
    if request.iov_count > 1:
        io_uring_prep_readv2(sqe, slot, request.iov, min(request.iov_count, <uint32_t> IOV_MOST),
                             offset, 0)
    elif request.buffer != NO_BUFFER and uring_use_buffer(uring, request.buffer):
        io_uring_prep_read_fixed(sqe, slot, request.iov.iov_base, <uint32_t> request.iov.iov_len,
                                 offset, <int> request.buffer)
    else:
        io_uring_prep_read(sqe, slot, request.iov.iov_base, <uint32_t> request.iov.iov_len, offset)
    send(sqe, request)


cdef void prepare_write(iothread_t *thread, request_t *request, uint32_t slot) noexcept nogil:
    cdef uring_t *uring = ring_for(thread, request, slot)
    cdef io_uring_sqe *sqe = sqe_on(thread, uring, request)
    cdef uint64_t offset = position(request)
    cdef uint32_t flags = RWF_DSYNC if request.flags & REQUEST_FUA else 0
    if sqe == NULL:
        return
    if request.iov_count > 1:
        io_uring_prep_writev2(sqe, slot, request.iov, min(request.iov_count, <uint32_t> IOV_MOST),
                              offset, 0)
    elif request.buffer != NO_BUFFER and uring_use_buffer(uring, request.buffer):
        io_uring_prep_write_fixed(sqe, slot, request.iov.iov_base, <uint32_t> request.iov.iov_len,
                                  offset, <int> request.buffer)
    else:
        io_uring_prep_write(sqe, slot, request.iov.iov_base, <uint32_t> request.iov.iov_len, offset)
    sqe.rw_flags = flags
    send(sqe, request)


cdef void prepare_flush(iothread_t *thread, request_t *request, medium_t *medium) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread, request)
    if sqe == NULL:
        return
    io_uring_prep_fsync(sqe, medium.buffered, IORING_FSYNC_DATASYNC)
    send(sqe, request)


cdef void prepare_fallocate(
    iothread_t *thread, request_t *request, medium_t *medium, int mode, uint64_t offset, uint64_t length
) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread, request)
    if sqe == NULL:
        return
    # A read in between may find the file as it was before: that costs a page, no more.
    file_mapping_forget(&medium.at_once.mapping, offset, length)
    io_uring_prep_fallocate(
        sqe, medium.buffered, mode | FALLOC_FL_KEEP_SIZE, medium.start + offset, length)
    send(sqe, request)


cdef void prepare_discard(
    iothread_t *thread, request_t *request, medium_t *medium, uint64_t offset, uint64_t length
) noexcept nogil:
    """Discard a range of a block device."""
    cdef io_uring_sqe *sqe = next_sqe(thread, request)
    if sqe == NULL:
        return
    memset(sqe, 0, sizeof(io_uring_sqe))
    sqe.opcode = <uint8_t> IORING_OP_URING_CMD
    sqe.fd = <int32_t> medium.buffered
    sqe.cmd_op = DISCARD_COMMAND
    sqe.addr = medium.start + offset
    sqe.addr3 = length
    send(sqe, request)


# -- starting -------------------------------------------------------------------------------------


cdef bint bounce(request_t *request) noexcept nogil:
    """Copy what is written, none of it yet, to where direct I/O takes it. False: there is no room, and
    a status."""
    cdef share_t *share = &request.sq.controller.shares[request.sq.host_queue]
    cdef uint64_t size = request.length
    cdef uint8_t *copy = NULL
    cdef uint64_t at = 0
    cdef uint32_t i
    if share.bounced + size <= BOUNCED_MOST:
        copy = <uint8_t *> aligned_alloc(
            PAGE_ALIGNMENT, (size + PAGE_ALIGNMENT - 1) & ~<uint64_t> (PAGE_ALIGNMENT - 1))
    if copy == NULL:
        request.status = SC_NAMESPACE_NOT_READY
        return False
    for i in range(request.iov_count):
        memcpy(copy + at, request.iov[i].iov_base, request.iov[i].iov_len)
        at += request.iov[i].iov_len
    share.bounced += size
    request.bounce = copy
    request.inline_iov[0].iov_base = copy
    request.inline_iov[0].iov_len = size
    request.iov = request.inline_iov
    request.iov_count = 1
    request.buffer = NO_BUFFER
    return True


cdef void end_bounce(request_t *request) noexcept nogil:
    request.sq.controller.shares[request.sq.host_queue].bounced -= request.length
    free(request.bounce)
    request.bounce = NULL


cdef void start_io(iothread_t *thread, request_t *request, medium_t *medium) noexcept nogil:
    """Read or Write."""
    cdef uint32_t slot
    if suits_direct(medium, request):
        slot = medium.direct
    elif (request.operation == OP_WRITE and request.done == 0 and request.bounce == NULL
            and goes_direct(medium, request)):
        if not bounce(request):
            return
        slot = medium.direct
    else:
        slot = medium.buffered
        request.flags |= REQUEST_BUFFERED
    if request.operation == OP_WRITE:
        prepare_write(thread, request, slot)
    else:
        prepare_read(thread, request, slot)


cdef void start_zeroes(iothread_t *thread, request_t *request, medium_t *medium) noexcept nogil:
    """Write Zeroes: a hole where the command allows one (DEAC), else a zeroed range."""
    cdef io_uring_sqe *sqe
    cdef uint64_t length
    if request.result == STAGE_FIRST and not request.flags & REQUEST_DEALLOCATE:
        prepare_fallocate(thread, request, medium, FALLOC_FL_ZERO_RANGE, request.offset, request.length)
    elif request.result <= STAGE_PUNCH:
        request.result = STAGE_PUNCH
        prepare_fallocate(thread, request, medium, FALLOC_FL_PUNCH_HOLE, request.offset, request.length)
    else:
        sqe = next_sqe(thread, request)
        if sqe == NULL:
            return
        length = request.length - request.done
        io_uring_prep_write(
            sqe, medium.direct if goes_direct(medium, request) else medium.buffered, zeroes,
            <uint32_t> min(length, <uint64_t> ZEROES), position(request))
        send(sqe, request)


cdef void start_deallocate(iothread_t *thread, request_t *request, medium_t *medium) noexcept nogil:
    """An operation a range; nothing, when `request.done` says that all of them are done.

    In a file the ranges are done a part at a time: its file system lets nobody write to it while it
    gives blocks back, which takes seconds where it has to tell a drive (the `discard` mount option).
    """
    cdef uint64_t part = <uint64_t> -1 if medium.discard_command else DEALLOCATE_PART
    cdef uint64_t done = request.done
    cdef uint64_t offset, length
    cdef uint32_t i
    for i in range(request.iov_count):
        length = request.iov[i].iov_len
        if done >= length:
            done -= length
            continue
        offset = <uint64_t> request.iov[i].iov_base + done
        length = min(length - done, part)
        done = 0
        if medium.discard_command:
            prepare_discard(thread, request, medium, offset, length)
        else:
            prepare_fallocate(thread, request, medium, FALLOC_FL_PUNCH_HOLE, offset, length)
        request.done += length
        part -= length
        if part == 0:
            break


cdef void start(iothread_t *thread, request_t *request) noexcept nogil:
    cdef medium_t *medium = <medium_t *> request.ns.backend.context
    if request.operation == OP_FLUSH or request.result == STAGE_FLUSH:
        # Nothing written can be lost through a descriptor that cannot write.
        if not medium.read_only:
            prepare_flush(thread, request, medium)
    elif request.operation == OP_WRITE_ZEROES:
        start_zeroes(thread, request, medium)
    elif request.operation == OP_DEALLOCATE:
        start_deallocate(thread, request, medium)
    else:
        start_io(thread, request, medium)


cdef inline void finish_if_idle(iothread_t *thread, request_t *request) noexcept nogil:
    """Complete the request when no operation of it is under way."""
    if request.pending == 0:
        if request.bounce != NULL:
            end_bounce(request)
        request.result = 0
        request_done(thread, request)


cdef inline int inline_descriptor(request_t *request, medium_t *medium) noexcept nogil:
    """Of a Read or Write within the system call; -1: it goes through io_uring."""
    if suits_direct(medium, request):
        return medium.at_once.direct
    if request.operation == OP_WRITE and goes_direct(medium, request):
        return -1
    return medium.at_once.buffered


cdef inline bint done_inline(iothread_t *thread, request_t *request, medium_t *medium) noexcept nogil:
    """Do a short Read or Write now, where the medium is one for that. False: io_uring does it (again)."""
    cdef uint64_t before = read_tsc()
    cdef bint done
    if request.operation > OP_WRITE or inline_pauses(thread, &medium.at_once, before):
        return False
    done = through_mapping(request, &medium.at_once) or by_system_call(
        request, &medium.at_once, inline_descriptor(request, medium),
        <off_t> (medium.start + request.offset))
    inline_took(thread, &medium.at_once, before)
    return done


cdef void uring_backend_submit(iothread_t *thread, request_t *request) noexcept nogil:
    request.status = SC_SUCCESS
    start(thread, request)
    finish_if_idle(thread, request)


cdef void inline_submit(iothread_t *thread, request_t *request) noexcept nogil:
    """Of a medium that answers at once."""
    if not done_inline(thread, request, <medium_t *> request.ns.backend.context):
        uring_backend_submit(thread, request)
        return
    request.status = SC_SUCCESS
    request_done(thread, request)
    if thread.done_count >= INLINE_POST:
        complete_done(thread)


cdef void uring_backend_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    cdef io_uring_sqe *sqe = uring_sqe(uring_of(thread))
    if sqe != NULL:
        io_uring_prep_cancel64(sqe, <uint64_t> request, 0)
        sqe.user_data = 0


# -- finishing ------------------------------------------------------------------------------------


cdef uint32_t nvme_status(request_t *request, int error) noexcept nogil:
    if error == ENOSPC or error == EDQUOT or error == EFBIG:
        return SC_CAPACITY_EXCEEDED | SC_DNR
    if error == EFAULT:
        # The guest's memory went away under the command.
        return SC_DATA_TRANSFER_ERROR | SC_DNR
    if error == EOPNOTSUPP:
        return SC_INVALID_OPCODE | SC_DNR
    if error == EROFS or error == EPERM or error == EACCES:
        return SC_NAMESPACE_WRITE_PROTECTED | SC_DNR
    if error == ECANCELED:
        return SC_ABORT_REQUESTED
    if request.operation == OP_READ:
        return SC_UNRECOVERED_READ
    return SC_WRITE_FAULT


cdef void skip_done(request_t *request, uint64_t count) noexcept nogil:
    """Move the segments past bytes that are done (a short read or write)."""
    request.done += count
    request.buffer = NO_BUFFER
    if request.operation == OP_WRITE_ZEROES:
        return
    while count and count >= request.iov.iov_len:
        count -= request.iov.iov_len
        request.iov += 1
        request.iov_count -= 1
    if count:
        request.iov.iov_base = <uint8_t *> request.iov.iov_base + count
        request.iov.iov_len -= count


cdef bint retry(request_t *request, int error) noexcept nogil:
    """True: the operation is worth starting again, in the way that is now set in the request."""
    if error == EAGAIN or error == EINTR:
        return True
    if request.operation == OP_WRITE_ZEROES and error == EOPNOTSUPP and request.result < STAGE_WRITE:
        request.result += 1
        return True
    return False


cdef bint succeeded(request_t *request, uint64_t count) noexcept nogil:
    """Account for an operation that went well; True: it takes another one."""
    cdef bint moves_data = request.operation in (OP_READ, OP_WRITE) or (
        request.result == STAGE_WRITE)
    if moves_data and count < request.length - request.done:
        if count == 0:
            # The file ends here: it was cut while it is being served.
            request.status = SC_UNRECOVERED_READ if request.operation != OP_WRITE else SC_WRITE_FAULT
            return False
        skip_done(request, count)
        return True
    if (request.operation == OP_WRITE_ZEROES and request.flags & REQUEST_FUA
            and request.result != STAGE_FLUSH):
        request.result = STAGE_FLUSH
        return True
    return False


cdef void give_up_direct(medium_t *medium, request_t *request) noexcept nogil:
    store_relaxed64(&medium.offset_mask, <uint64_t> -1)
    request.flags |= REQUEST_BUFFERED


cdef void start_buffered(iothread_t *thread, request_t *request) noexcept nogil:
    """The same again, and not directly."""
    cdef medium_t *medium = <medium_t *> request.ns.backend.context
    give_up_direct(medium, request)
    if request.operation == OP_WRITE:
        prepare_write(thread, request, medium.buffered)
    else:
        prepare_read(thread, request, medium.buffered)


cdef void deallocate_more(iothread_t *thread, request_t *request) noexcept nogil:
    """A part of a Deallocate is over: start the next, if there is one and nobody waits in vain."""
    if request.status == SC_SUCCESS and request.flags & REQUEST_EXPIRED:
        request.status = SC_ABORT_REQUESTED
    if request.status == SC_SUCCESS:
        start(thread, request)


cdef void uring_backend_complete(iothread_t *thread, request_t *request, int32_t result) noexcept nogil:
    request.pending -= 1
    thread.inflight -= 1
    if result >= 0:
        if succeeded(request, <uint64_t> result):
            start(thread, request)
    elif (result == -EINVAL and not request.flags & REQUEST_BUFFERED
            and request.operation in (OP_READ, OP_WRITE)):
        start_buffered(thread, request)
    elif request.operation != OP_DEALLOCATE and retry(request, -result):
        start(thread, request)
    elif request.status == SC_SUCCESS:
        request.status = nvme_status(request, -result)
    if request.operation == OP_DEALLOCATE and request.pending == 0:
        deallocate_more(thread, request)
    finish_if_idle(thread, request)


cdef backend_ops_t uring_ops
uring_ops.submit = uring_backend_submit
uring_ops.complete = uring_backend_complete
uring_ops.cancel = uring_backend_cancel

cdef backend_ops_t inline_ops
inline_ops.submit = inline_submit
inline_ops.complete = uring_backend_complete
inline_ops.cancel = uring_backend_cancel


# -- the control plane's side -----------------------------------------------------------------------


cdef class UringBackend(Backend):
    """An image file or a block device (see uring.pyi)."""

    def __cinit__(self, *args, **kwargs):
        self.medium = <medium_t *> calloc(1, sizeof(medium_t))
        if self.medium == NULL:
            raise MemoryError
        self.medium.direct = self.medium.buffered = NO_SLOT

    def __init__(self, path, *, block_size=None, read_only=False, offset=0, length=None,
                 inline_io=None):
        global zeroes
        if zeroes == NULL:
            zeroes = <uint8_t *> aligned_alloc(PAGE_ALIGNMENT, ZEROES)
            if zeroes == NULL:
                raise MemoryError
            memset(zeroes, 0, ZEROES)
        self.opened = open_medium(path, read_only=read_only, offset=offset, length=length)
        try:
            self._adopt(self.opened, block_size)
            self._use_inline(self.opened, inline_io)
        except BaseException:
            self.close()
            raise

    def _adopt(self, opened, block_size):
        """Take over what the medium told of itself."""
        self.block_size = block_size or opened.default_block_size
        if self.block_size < opened.logical_block_size:
            raise ValueError(
                f"{opened.path} has blocks of {opened.logical_block_size} bytes: "
                f"it cannot be served with --block-size {self.block_size}")
        if opened.offset % self.block_size:
            raise ValueError(f"{opened.path}: offset {opened.offset} is not a multiple of the block "
                             f"size, {self.block_size} bytes")
        self.size = check_block_size(opened.size, self.block_size)
        self.name = opened.path
        self.identity = opened.identity
        self.read_only = opened.read_only
        self.volatile_cache = True
        self.can_write_zeroes = True
        self.can_deallocate = opened.can_deallocate
        self.deallocate_zeroes = opened.deallocate_zeroes
        self.optimal_io_boundary = opened.optimal_io_boundary // self.block_size
        self.preferred_write_granularity = opened.preferred_write // self.block_size
        self.preferred_deallocate_granularity = opened.preferred_deallocate // self.block_size
        self.medium.buffered = allocate_slot()
        if opened.direct_fd is not None:
            self.medium.direct = allocate_slot()
        self.medium.memory_mask = opened.memory_alignment - 1
        self.medium.offset_mask = opened.offset_alignment - 1
        self.medium.discard_command = opened.discard_command
        self.medium.read_only = opened.read_only
        self.polled = self.medium.polled = opened.polled and opened.direct_fd is not None
        self.medium.start = opened.offset
        self.backend.ops = &uring_ops
        self.backend.uses_buffers = True
        self.backend.context = self.medium
        self.backend.size = self.size

    def _use_inline(self, opened, wanted):
        """I/O within the system call: as the user says, or where the medium answers at once."""
        cdef inline_t *at_once = &self.medium.at_once
        cdef uint64_t per_ns
        self.inline_io = opened.answers_at_once if wanted is None else wanted
        if not self.inline_io:
            return
        per_ns = (ticks_hz() << 32) // 1000000000
        self.backend.ops = &inline_ops
        # One processor for the guest and one for the IOThread: workers would only take turns with these.
        at_once.most = INLINE_MOST if len(os.sched_getaffinity(0)) > 2 else INLINE_MOST_ALONE
        at_once.direct = -1 if opened.direct_fd is None else opened.direct_fd
        at_once.buffered = opened.buffered_fd if opened.in_memory or wanted else -1
        at_once.slow = <uint64_t> -1 if wanted else multiply_fixed(INLINE_SLOW_NS, per_ns)
        at_once.pause = at_once.pause_first = multiply_fixed(INLINE_PAUSE_NS, per_ns)
        at_once.pause_most = multiply_fixed(INLINE_PAUSE_MOST_NS, per_ns)
        self._map()

    cdef int _map(self) except -1:
        """A file that is memory is mapped, as far as it is served."""
        cdef file_mapping_t *mapping = &self.medium.at_once.mapping
        self.backend.data = NULL
        file_mapping_close(mapping)
        if self.opened.mappable and self.inline_io:
            file_mapping_open(
                mapping, self.opened.buffered_fd, self.medium.start, self.size,
                not self.opened.read_only, self.opened.dax)
            if mapping.base != NULL:
                self.backend.data = mapping.base + mapping.lead
        return 0

    @property
    def mapped(self):
        cdef file_mapping_t *mapping = &self.medium.at_once.mapping
        return mapping.base != NULL and not mapping.torn[0]

    cdef int set_size(self, uint64_t size) except -1:
        Backend.set_size(self, size)
        return self._map()

    cdef int begin_on(self, IOThread iothread) except -1:
        cdef int status
        if iothread.thread.uring == NULL:
            status = iothread.call(uring_create, NULL)
            if status:
                raise OSError(-status, f"io_uring: {os.strerror(-status)} "
                              "(see kernel.io_uring_disabled)")
            if iothread.lifeline >= 0:
                self._register(iothread, LIFELINE_SLOT, iothread.lifeline)
        if self.polled:
            self._attach_polled(iothread)
        self._register(iothread, self.medium.buffered, self.opened.buffered_fd)
        if self.medium.direct != NO_SLOT:
            self._register(iothread, self.medium.direct, self.opened.direct_fd)
        return 0

    cdef int _attach_polled(self, IOThread iothread) except -1:
        """The direct descriptor goes into the table of the ring that polls, too."""
        cdef int status
        if iothread.thread.polled == NULL:
            status = iothread.call(uring_create_polled, NULL)
            if status:
                raise OSError(-status, f"io_uring with IOPOLL: {os.strerror(-status)}")
            iothread.add_poller(uring_poll_devices, NULL)
            if iothread.lifeline >= 0:
                self._register(iothread, LIFELINE_SLOT, iothread.lifeline, polled=True)
        self._register(iothread, self.medium.direct, self.opened.direct_fd, polled=True)
        return 0

    cdef int end_on(self, IOThread iothread) except -1:
        self._register(iothread, self.medium.buffered, -1)
        if self.medium.direct != NO_SLOT:
            self._register(iothread, self.medium.direct, -1)
        if self.polled:
            self._register(iothread, self.medium.direct, -1, polled=True)
        return 0

    cdef int _register(self, IOThread iothread, uint32_t slot, int fd, bint polled=False) except -1:
        cdef uring_file_slot_t argument
        cdef int status
        argument.slot = slot
        argument.fd = fd
        argument.polled = polled
        status = iothread.call(uring_register_file, &argument)
        if status:
            raise OSError(-status, f"io_uring: {os.strerror(-status)}", self.name)
        return 0

    @property
    def inline_pauses(self):
        return self.medium.at_once.pauses

    def medium_size(self):
        size = self.opened.current_size()
        return size - size % self.block_size

    def medium_read_only(self):
        return self.opened.is_read_only()

    def change_medium(self, size):
        self.opened.resize(size)

    def flush(self):
        if not self.read_only:
            os.fdatasync(self.opened.buffered_fd)

    def temperature(self):
        return temperature(self.name)

    def raw(self):
        if self.opened is None:
            return None
        return RawMedium(
            self.opened.buffered_fd, self.opened.offset, self.opened.direct_fd, self._gave_back)

    def _gave_back(self, offset, length):
        """The medium has no blocks there any more."""
        file_mapping_forget(&self.medium.at_once.mapping, offset, length)

    def can_have_blocks(self, block_size):
        return (block_size >= self.opened.logical_block_size
                and self.opened.offset % block_size == 0 and self.size >= block_size)

    def close(self):
        cdef uint32_t slot
        for slot in (self.medium.direct, self.medium.buffered):
            if slot != NO_SLOT:
                slot_used[slot] = 0
        self.medium.direct = self.medium.buffered = NO_SLOT
        file_mapping_close(&self.medium.at_once.mapping)
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    def __dealloc__(self):
        free(self.medium)
