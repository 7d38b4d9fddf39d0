"""A namespace on a file or block device whose data is encrypted there (`cipher.pxd`).

Nothing goes between guest memory and the kernel directly. What is written is copied out of guest
memory once, encrypted in the copy, and written from it; what is read is decrypted in a buffer of ours
and copied to the guest then, who never sees ciphertext and cannot change what is being decrypted.
A command is done a buffer at a time. Each IOThread has its buffers, made when it attaches, and as
many commands as find none wait for one in their order, as they would in a drive's queue.

Blocks are not deallocated: that would tell where there is no data, and they would read as noise.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.uio cimport iovec

from nvme_mdev.datapath.backends.per_iothread cimport (
    free_place, give_up, keep, kept_for, per_iothread_t, place_t,
)
from nvme_mdev.datapath.backends.uring cimport (
    RWF_DSYNC, UringBackend, give_up_direct, goes_direct, medium_t, nvme_status, position, prepare_flush,
    ring_for, send, sqe_on, uring_backend_cancel,
)
from nvme_mdev.datapath.chain cimport chain_append, chain_next, chain_t, chain_take
from nvme_mdev.datapath.cipher cimport (
    SECTOR_SHIFT, Key, cipher_decrypt, cipher_encrypt, cipher_forget, cipher_t, cipher_use,
)
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport (
    OP_DEALLOCATE, OP_FLUSH, OP_READ, OP_WRITE, REQUEST_BUFFERED, REQUEST_EXPIRED, REQUEST_FUA,
    backend_ops_t, iothread_t, request_t,
)
from nvme_mdev.datapath.status cimport (
    SC_ABORT_REQUESTED, SC_INTERNAL_ERROR, SC_SUCCESS, SC_UNRECOVERED_READ, SC_WRITE_FAULT,
)
from nvme_mdev.datapath.uring cimport io_uring_prep_read, io_uring_prep_write, io_uring_sqe

from nvme_mdev.datapath.backends.encrypted_raw import EncryptedRawMedium
from nvme_mdev.datapath.backends.key_file import KeyFile
from nvme_mdev.datapath.cipher import keep_out_of_core_dumps

cdef extern from *:
    int __builtin_ctzll(unsigned long long) nogil

cdef enum:
    #: Buffers of an IOThread, and their size: 32 MiB of address space, memory only as it is used.
    BUFFERS = 64
    BUFFER_SIZE = 512 << 10

#: What an IOThread has of one namespace.
cdef struct lane_t:
    cipher_t cipher
    uint8_t *buffers
    #: Bit n: buffer n is free.
    uint64_t free_buffers
    #: Commands without a buffer.
    chain_t waiting


# -- buffers --------------------------------------------------------------------------------------


cdef inline medium_t *medium_of(request_t *request) noexcept nogil:
    return <medium_t *> request.ns.backend.context


cdef inline lane_t *lane_of(iothread_t *thread, request_t *request) noexcept nogil:
    return <lane_t *> kept_for(<per_iothread_t *> medium_of(request).lanes, thread)


cdef inline bint take_buffer(lane_t *lane, request_t *request) noexcept nogil:
    """False: there is none."""
    cdef int number
    if lane.free_buffers == 0:
        return False
    number = __builtin_ctzll(lane.free_buffers)
    lane.free_buffers &= lane.free_buffers - 1
    request.bounce = lane.buffers + number * BUFFER_SIZE
    return True


cdef inline void give_buffer(lane_t *lane, request_t *request) noexcept nogil:
    lane.free_buffers |= <uint64_t> 1 << (<uint64_t> (request.bounce - lane.buffers) // BUFFER_SIZE)
    request.bounce = NULL


# -- copies ---------------------------------------------------------------------------------------


cdef void copy(request_t *request, uint64_t length) noexcept nogil:
    """Between the buffer and guest memory, from where the command stands."""
    cdef uint64_t skip = request.done
    cdef uint64_t at = 0
    cdef uint64_t part
    cdef uint8_t *guest
    cdef iovec *segment = request.iov
    while at < length:
        if skip >= segment.iov_len:
            skip -= segment.iov_len
        else:
            guest = <uint8_t *> segment.iov_base + skip
            part = min(segment.iov_len - skip, length - at)
            if request.operation == OP_READ:
                memcpy(guest, request.bounce + at, part)
            else:
                memcpy(request.bounce + at, guest, part)
            at += part
            skip = 0
        segment += 1


cdef inline uint64_t sector_of(request_t *request) noexcept nogil:
    """Sectors are counted from the namespace's first byte."""
    return (request.offset + request.done) >> SECTOR_SHIFT


cdef inline uint64_t part_of(request_t *request) noexcept nogil:
    """Bytes that are done next."""
    return min(request.length - request.done, <uint64_t> BUFFER_SIZE)


cdef bint encrypt(lane_t *lane, request_t *request) noexcept nogil:
    """Fill the buffer with what is to be written. False: it failed."""
    cdef uint64_t length = part_of(request)
    if request.operation == OP_WRITE:
        copy(request, length)
    else:
        memset(request.bounce, 0, length)
    return cipher_encrypt(&lane.cipher, request.bounce, sector_of(request), length)


cdef bint decrypt(lane_t *lane, request_t *request, uint64_t length) noexcept nogil:
    """Give the guest what was read. False: it failed."""
    if not cipher_decrypt(&lane.cipher, request.bounce, sector_of(request), length):
        return False
    copy(request, length)
    return True


# -- starting -------------------------------------------------------------------------------------


cdef void start_part(iothread_t *thread, lane_t *lane, request_t *request) noexcept nogil:
    """Read or write what fits the buffer; the request has a status when that cannot begin."""
    cdef medium_t *medium = medium_of(request)
    cdef uint32_t slot = medium.buffered
    cdef uint32_t length = <uint32_t> part_of(request)
    cdef io_uring_sqe *sqe
    if goes_direct(medium, request):
        slot = medium.direct
    else:
        request.flags |= REQUEST_BUFFERED
    if request.operation != OP_READ and not encrypt(lane, request):
        request.status = SC_INTERNAL_ERROR
        return
    sqe = sqe_on(thread, ring_for(thread, request, slot), request)
    if sqe == NULL:
        return
    if request.operation == OP_READ:
        io_uring_prep_read(sqe, slot, request.bounce, length, position(request))
    else:
        io_uring_prep_write(sqe, slot, request.bounce, length, position(request))
        sqe.rw_flags = RWF_DSYNC if request.flags & REQUEST_FUA else 0
    send(sqe, request)


cdef inline void start(iothread_t *thread, lane_t *lane, request_t *request) noexcept nogil:
    """With a buffer, the next part; a command that nobody waits for any more has no other."""
    if request.flags & REQUEST_EXPIRED:
        request.status = SC_ABORT_REQUESTED
    if request.status == SC_SUCCESS:
        start_part(thread, lane, request)


cdef inline void finish_if_idle(iothread_t *thread, lane_t *lane, request_t *request) noexcept nogil:
    if request.pending == 0:
        if request.bounce != NULL:
            give_buffer(lane, request)
        request_done(thread, request)


cdef void encrypted_submit(iothread_t *thread, request_t *request) noexcept nogil:
    cdef lane_t *lane = lane_of(thread, request)
    request.status = SC_SUCCESS
    if request.operation == OP_FLUSH:
        if not medium_of(request).read_only:
            prepare_flush(thread, request, medium_of(request))
    elif request.operation == OP_DEALLOCATE:
        # Advice, which another namespace of the controller follows.
        pass
    elif lane.waiting.first == NULL and take_buffer(lane, request):
        start(thread, lane, request)
    else:
        thread.inflight += 1
        chain_append(&lane.waiting, request)
        return
    finish_if_idle(thread, lane, request)


cdef uint32_t start_waiting(iothread_t *thread, void *context) noexcept nogil:
    """A poller: buffers that have become free go to those that wait for them."""
    cdef lane_t *lane = <lane_t *> context
    cdef request_t *request
    cdef uint32_t count = 0
    while count < BUFFERS and lane.waiting.first != NULL and take_buffer(lane, lane.waiting.first):
        request = chain_take(&lane.waiting)
        thread.inflight -= 1
        start(thread, lane, request)
        finish_if_idle(thread, lane, request)
        count += 1
    return count


cdef void encrypted_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    """What waits for a buffer ends when it is its turn, and not well."""
    cdef request_t *waiting = lane_of(thread, request).waiting.first
    while waiting != NULL:
        if waiting == request:
            request.status = SC_ABORT_REQUESTED
            return
        waiting = chain_next(waiting)
    uring_backend_cancel(thread, request)


# -- finishing ------------------------------------------------------------------------------------


cdef bint part_over(lane_t *lane, request_t *request, uint64_t count) noexcept nogil:
    """So many bytes were read or written: whole blocks count. True: something is left to do."""
    count &= <uint64_t> -1 << request.ns.block_shift
    if count == 0:
        # The file ends here: it was cut while it is being served.
        request.status = SC_UNRECOVERED_READ if request.operation == OP_READ else SC_WRITE_FAULT
        return False
    if request.operation == OP_READ and not decrypt(lane, request, count):
        request.status = SC_INTERNAL_ERROR
        return False
    request.done += count
    return request.done < request.length


cdef bint to_be_continued(lane_t *lane, request_t *request, int32_t result) noexcept nogil:
    """Account for an operation that ended; True: it takes another one."""
    if result >= 0:
        return request.operation != OP_FLUSH and part_over(lane, request, <uint64_t> result)
    if result == -EAGAIN or result == -EINTR:
        return True
    if result == -EINVAL and request.operation != OP_FLUSH and not request.flags & REQUEST_BUFFERED:
        give_up_direct(medium_of(request), request)
        return True
    request.status = nvme_status(request, -result)
    return False


cdef void encrypted_complete(iothread_t *thread, request_t *request, int32_t result) noexcept nogil:
    cdef lane_t *lane = lane_of(thread, request)
    request.pending -= 1
    thread.inflight -= 1
    if to_be_continued(lane, request, result):
        if request.operation == OP_FLUSH:
            prepare_flush(thread, request, medium_of(request))
        else:
            start(thread, lane, request)
    finish_if_idle(thread, lane, request)


cdef backend_ops_t encrypted_ops
encrypted_ops.submit = encrypted_submit
encrypted_ops.complete = encrypted_complete
encrypted_ops.cancel = encrypted_cancel


# -- the control plane's side ---------------------------------------------------------------------


cdef lane_t *make_lane() except NULL:
    """Without a key yet."""
    cdef lane_t *lane = <lane_t *> line_calloc(1, sizeof(lane_t))
    cdef void *buffers
    if lane == NULL:
        raise MemoryError
    buffers = mmap(NULL, BUFFERS * BUFFER_SIZE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if buffers == MAP_FAILED:
        free(lane)
        raise MemoryError
    lane.buffers = <uint8_t *> buffers
    lane.free_buffers = <uint64_t> -1
    return lane


cdef void free_lane(lane_t *lane) noexcept:
    cipher_forget(&lane.cipher)
    munmap(lane.buffers, BUFFERS * BUFFER_SIZE)
    free(lane)


cdef class EncryptedBackend(UringBackend):
    """An image file or a block device with a key (see encrypted.pyi)."""

    #: A `lane_t` each.
    cdef per_iothread_t lanes
    cdef Key key
    cdef readonly object key_file

    def __init__(self, path, key_file, *, block_size=None, read_only=False, offset=0, length=None):
        keep_out_of_core_dumps()
        self.key_file = KeyFile(key_file, shared=read_only)
        try:
            self.key = self.key_file.read()
            super().__init__(path, block_size=block_size, read_only=read_only, offset=offset,
                             length=length, inline_io=False)
        except BaseException:
            self.key_file.close()
            raise
        self.encrypted = True
        self.can_deallocate = self.deallocate_zeroes = False
        self.preferred_deallocate_granularity = 0
        self.medium.lanes = &self.lanes
        self.backend.ops = &encrypted_ops
        self.backend.uses_buffers = False

    cdef int begin_on(self, IOThread iothread) except -1:
        cdef place_t *place = free_place(&self.lanes, self.name)
        cdef lane_t *lane = make_lane()
        try:
            cipher_use(&lane.cipher, self.key)
            iothread.add_poller(start_waiting, lane)
        except BaseException:
            free_lane(lane)
            raise
        keep(place, iothread.thread, lane)
        try:
            UringBackend.begin_on(self, iothread)
        except BaseException:
            self._close_lane(iothread)
            raise
        return 0

    cdef int end_on(self, IOThread iothread) except -1:
        UringBackend.end_on(self, iothread)
        self._close_lane(iothread)
        return 0

    cdef int _close_lane(self, IOThread iothread) except -1:
        cdef lane_t *lane = <lane_t *> give_up(&self.lanes, iothread.thread)
        iothread.remove_poller(lane)
        free_lane(lane)
        return 0

    def new_key(self):
        key = Key.random()
        self.key_file.replace(key)
        return key

    def use_key(self, Key key):
        cdef IOThread iothread
        self.key = key
        for iothread in self.served_on:
            iothread.pause()
            try:
                cipher_use(&(<lane_t *> kept_for(&self.lanes, iothread.thread)).cipher, key)
            finally:
                iothread.resume()

    def forget_old_key(self):
        self.key_file.forget_old()

    def raw(self):
        if self.opened is None:
            return None
        return EncryptedRawMedium(
            self.key, self.opened.buffered_fd, self.opened.offset, self.opened.direct_fd)

    def close(self):
        UringBackend.close(self)
        self.key_file.close()
