"""A namespace on queue pairs of our own: commands go to another NVMe controller as they are.

Only what must be is rewritten: the command identifier, the NSID, the LBA, and the data pointer. The
controller below (a drive behind VFIO, or another vfio-user controller) reaches this process' memory
at the addresses that it has here, guest memory included; so the segments that a command's PRPs or SGLs
were checked and translated to are its data pointer below, PRPs or an SGL as well. Neither data nor, for
up to two pages or one descriptor, a list is copied. A longer list is written anew for the controller
below: the guest could change its own after it was checked, to addresses of another guest.

One queue pair serves all namespaces of a controller below on one IOThread. The status that it
returns is the guest's, unchanged.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.uio cimport iovec

from nvme_mdev.datapath.backends.base cimport off_ring_complete
from nvme_mdev.datapath.backends.below cimport moves_data, names_ranges, rewrite, write_ranges
from nvme_mdev.datapath.backends.drive_backend cimport DriveBackend, served_t, way_of
from nvme_mdev.datapath.chain cimport chain_append, chain_next, chain_t, chain_take
from nvme_mdev.datapath.data_pointer cimport FLAGS_SGL
from nvme_mdev.datapath.host_rings cimport (
    PHASE_BIT, STATUS_SHIFT, advance_head, cqe_t, peek, post, queue_t, ring, sqe_t,
)
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport (
    OP_DEALLOCATE, PAGE_SIZE, REQUEST_EXPIRED, backend_ops_t, backend_t, iothread_t, request_t,
)
from nvme_mdev.datapath.sgl cimport (
    DESCRIPTOR_SIZE, TYPE_BIT_BUCKET, TYPE_DATA_BLOCK, TYPE_LAST_SEGMENT, TYPE_SHIFT, sgl_sink,
)
from nvme_mdev.datapath.status cimport (
    SC_ABORT_REQUESTED, SC_DNR, SC_INTERNAL_ERROR, SC_SGL_COUNT_INVALID, SC_SGL_TYPE_INVALID, SC_SUCCESS,
)

cdef enum:
    #: SGLS, bit 16.
    SGLS_BIT_BUCKET = 1 << 16

    #: Completions taken in a turn; as many fit into `iothread_t.done` beside those of a batch.
    REAP = 64

    #: What `lower_t.state` says.
    LOWER_RUNNING = 0
    #: The controller below is being reset: commands wait.
    LOWER_STOPPED = 1
    #: It is gone: commands fail.
    LOWER_GONE = 2

#: A queue pair on the controller below.
cdef struct lower_t:
    queue_t queue
    #: Requests by command identifier, NULL: free. One less than entries can be outstanding.
    request_t **requests
    uint16_t *free_cids
    uint32_t free_count
    uint32_t cids
    #: A page for each identifier (PRP list, or ranges of Dataset Management), and its IOVA.
    uint8_t *pages
    uint64_t pages_iova
    uint32_t state
    #: Completions that named no command.
    uint32_t strays
    #: For want of an identifier, or while the controller below is reset.
    chain_t waiting
    #: Over, with `request.status`, but for being posted.
    chain_t ended


# -- what the controller below is told --------------------------------------------------------------


cdef uint32_t write_list(lower_t *lower, request_t *request, uint32_t cid, sqe_t *sqe) noexcept nogil:
    """PRP1 and PRP2 for any segments that PRPs can describe; the NVMe status.

    All begin and end on pages, but for the first's beginning and the last's end: segments that come
    from PRPs do.
    """
    cdef uint64_t *list_ = <uint64_t *> (lower.pages + <uint64_t> cid * PAGE_SIZE)
    cdef uint32_t count = 0
    cdef uint32_t i
    cdef uint64_t address, end
    sqe.prp1 = <uint64_t> request.iov[0].iov_base
    for i in range(request.iov_count):
        address = <uint64_t> request.iov[i].iov_base
        end = address + request.iov[i].iov_len
        if (i and address & (PAGE_SIZE - 1)) or (i + 1 < request.iov_count and end & (PAGE_SIZE - 1)):
            return SC_INTERNAL_ERROR | SC_DNR
        # The page that PRP1 is in is not listed.
        address = (address & ~<uint64_t> (PAGE_SIZE - 1)) + PAGE_SIZE if i == 0 else address
        while address < end:
            if count == PAGE_SIZE // 8:
                return SC_INTERNAL_ERROR | SC_DNR
            list_[count] = address
            count += 1
            address += PAGE_SIZE
    if count <= 1:
        sqe.prp2 = list_[0] if count else 0
    else:
        sqe.prp2 = lower.pages_iova + <uint64_t> cid * PAGE_SIZE
    return SC_SUCCESS


cdef inline uint32_t describe(
    backend_t *backend, const iovec *segment, uint64_t *address, uint64_t *word
) noexcept nogil:
    """One segment as an SGL descriptor; the NVMe status."""
    cdef bint bucket = segment.iov_base == <void *> sgl_sink()
    if bucket and not backend.sgls & SGLS_BIT_BUCKET:
        return SC_SGL_TYPE_INVALID | SC_DNR
    address[0] = 0 if bucket else <uint64_t> segment.iov_base
    word[0] = segment.iov_len | <uint64_t> (TYPE_BIT_BUCKET if bucket else TYPE_DATA_BLOCK) << TYPE_SHIFT
    return SC_SUCCESS


cdef uint32_t write_sgl(lower_t *lower, request_t *request, uint32_t cid, sqe_t *sqe) noexcept nogil:
    """An SGL for the segments of the guest's, which are as it wanted them; the NVMe status."""
    cdef backend_t *backend = request.ns.backend
    cdef uint64_t *list_ = <uint64_t *> (lower.pages + <uint64_t> cid * PAGE_SIZE)
    cdef uint32_t i, status
    sqe.flags = FLAGS_SGL
    if request.iov_count == 1:
        return describe(backend, request.iov, &sqe.prp1, &sqe.prp2)
    if request.iov_count > PAGE_SIZE // DESCRIPTOR_SIZE:
        return SC_SGL_COUNT_INVALID | SC_DNR
    for i in range(request.iov_count):
        status = describe(backend, &request.iov[i], &list_[2 * i], &list_[2 * i + 1])
        if status:
            return status
    sqe.prp1 = lower.pages_iova + <uint64_t> cid * PAGE_SIZE
    sqe.prp2 = request.iov_count * DESCRIPTOR_SIZE | <uint64_t> TYPE_LAST_SEGMENT << TYPE_SHIFT
    return SC_SUCCESS


cdef inline uint32_t point_to_data(lower_t *lower, request_t *request, uint32_t cid, sqe_t *sqe) noexcept nogil:
    """The command's data pointer below; the NVMe status. Usually it is one page, or two."""
    cdef uint64_t first = <uint64_t> request.iov[0].iov_base
    cdef uint64_t in_first = PAGE_SIZE - (first & (PAGE_SIZE - 1))
    if request.slot.sqe.flags & FLAGS_SGL:
        return write_sgl(lower, request, cid, sqe)
    if request.iov_count == 1 and request.length <= in_first + PAGE_SIZE:
        sqe.prp1 = first
        sqe.prp2 = first + in_first if request.length > in_first else 0
        return SC_SUCCESS
    return write_list(lower, request, cid, sqe)


cdef inline uint32_t translate(
    lower_t *lower, served_t *served, request_t *request, uint32_t cid, sqe_t *sqe
) noexcept nogil:
    """The command for the controller below; the NVMe status: 0, or why there is none."""
    cdef uint32_t status = rewrite(&served.below, request, sqe)
    sqe.cid = <uint16_t> cid
    if status:
        return status
    if moves_data(request):
        return point_to_data(lower, request, cid, sqe)
    if names_ranges(request):
        write_ranges(&served.below, request, lower.pages + <uint64_t> cid * PAGE_SIZE)
        sqe.prp1 = lower.pages_iova + <uint64_t> cid * PAGE_SIZE
    return SC_SUCCESS


# -- submitting and completing ----------------------------------------------------------------------


cdef inline void end(iothread_t *thread, request_t *request, uint32_t status) noexcept nogil:
    request.status = <uint16_t> status
    thread.inflight -= 1
    request_done(thread, request)


cdef inline void start(iothread_t *thread, lower_t *lower, request_t *request) noexcept nogil:
    """Post the request's command; there is an identifier. The doorbell is rung in `lower_poll`."""
    cdef sqe_t sqe
    cdef uint32_t cid = lower.free_cids[lower.free_count - 1]
    cdef uint32_t status = translate(
        lower, <served_t *> request.ns.backend.context, request, cid, &sqe)
    if status:
        end(thread, request, status)
        return
    lower.free_count -= 1
    lower.requests[cid] = request
    post(&lower.queue, &sqe)


cdef inline lower_t *lower_of(served_t *served, iothread_t *thread) noexcept nogil:
    return <lower_t *> way_of(served, thread)


cdef void nvme_submit(iothread_t *thread, request_t *request) noexcept nogil:
    cdef lower_t *lower = lower_of(<served_t *> request.ns.backend.context, thread)
    request.status = SC_SUCCESS
    thread.inflight += 1
    if request.operation == OP_DEALLOCATE and request.iov_count == 0:
        # Only hints, or empty ranges.
        end(thread, request, SC_SUCCESS)
    elif lower.state == LOWER_GONE:
        end(thread, request, SC_INTERNAL_ERROR)
    elif lower.free_count and lower.state == LOWER_RUNNING and lower.waiting.first == NULL:
        start(thread, lower, request)
    else:
        chain_append(&lower.waiting, request)


cdef inline void take(iothread_t *thread, lower_t *lower, uint32_t dw3) noexcept nogil:
    """One completion; what it says of the command is the guest's."""
    cdef cqe_t *cqe = &lower.queue.cq[lower.queue.head]
    cdef uint32_t cid = dw3 & 0xffff
    cdef request_t *request = lower.requests[cid] if cid < lower.cids else NULL
    if request == NULL:
        lower.strays += 1
        return
    lower.requests[cid] = NULL
    lower.free_cids[lower.free_count] = <uint16_t> cid
    lower.free_count += 1
    request.result = cqe.dw0
    end(thread, request, dw3 >> STATUS_SHIFT)


cdef inline void ring_tail(lower_t *lower) noexcept nogil:
    """Tell the controller below of what was posted. Its doorbells are mapped."""
    if lower.queue.tail_doorbell.value != lower.queue.tail:
        ring(&lower.queue.tail_doorbell, lower.queue.tail)


cdef uint32_t lower_poll(iothread_t *thread, void *context) noexcept nogil:
    """Ring for what this turn posted, take completions, post what waited for room."""
    cdef lower_t *lower = <lower_t *> context
    cdef uint32_t count = 0
    cdef uint32_t dw3 = 0
    cdef request_t *request
    while count < REAP and lower.ended.first != NULL:
        request = chain_take(&lower.ended)
        end(thread, request, request.status)
        count += 1
    if lower.state != LOWER_RUNNING:
        return count
    ring_tail(lower)
    while count < REAP and peek(&lower.queue, &dw3):
        take(thread, lower, dw3)
        advance_head(&lower.queue)
        count += 1
    if lower.queue.head_doorbell.value != lower.queue.head:
        ring(&lower.queue.head_doorbell, lower.queue.head)
    while lower.free_count and lower.waiting.first != NULL and count < REAP:
        start(thread, lower, chain_take(&lower.waiting))
        count += 1
    ring_tail(lower)
    return count


cdef void nvme_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    """It is marked as expired, and `LowerQueue.expired` tells whoever can abort it or reset the
    controller below."""


cdef void lost_submit(iothread_t *thread, request_t *request) noexcept nogil:
    """What is below is not what the command was meant for."""
    request.status = SC_INTERNAL_ERROR
    request_done(thread, request)


cdef backend_ops_t nvme_ops
nvme_ops.submit = nvme_submit
nvme_ops.complete = off_ring_complete
nvme_ops.cancel = nvme_cancel

cdef backend_ops_t lost_ops
lost_ops.submit = lost_submit
lost_ops.complete = off_ring_complete
lost_ops.cancel = nvme_cancel


# -- the control plane's side -----------------------------------------------------------------------


cdef void *address_of(object buffer, Py_ssize_t size, list views) except NULL:
    """Address of a writable buffer of at least `size` bytes, kept alive in `views`."""
    cdef uint8_t[::1] view = buffer
    if view.shape[0] < size:
        raise ValueError(f"a buffer of {view.shape[0]} bytes is too small: {size} are needed")
    views.append(view)
    return &view[0]


cdef class LowerQueue:
    """A queue pair set aside on a controller below (see nvme.pyi)."""

    cdef lower_t lower
    cdef IOThread iothread
    cdef list views

    def __init__(self, IOThread iothread not None, entries):
        if not 2 <= entries <= 65536:
            raise ValueError(f"{entries} entries: a queue has 2 to 65536")
        self.iothread = iothread
        self.views = []
        self.lower.state = LOWER_STOPPED
        # A full queue would look like an empty one.
        self.lower.cids = entries - 1
        self.lower.requests = <request_t **> calloc(entries, sizeof(request_t *))
        self.lower.free_cids = <uint16_t *> calloc(entries, sizeof(uint16_t))
        if self.lower.requests == NULL or self.lower.free_cids == NULL:
            raise MemoryError
        self._free_all()
        iothread.add_poller(lower_poll, &self.lower)

    def __dealloc__(self):
        free(self.lower.requests)
        free(self.lower.free_cids)

    cdef void _free_all(self) noexcept:
        """Every identifier is free; those that are used first are on top."""
        cdef uint32_t i
        for i in range(self.lower.cids):
            self.lower.free_cids[i] = <uint16_t> (self.lower.cids - 1 - i)
        self.lower.free_count = self.lower.cids

    def run(self, *, sq, cq, tail_register, head_register, pages, pages_iova):
        cdef queue_t *queue = &self.lower.queue
        cdef uint32_t entries = self.lower.cids + 1
        cdef list views = []
        self.iothread.pause()
        try:
            self._take_back(SC_SUCCESS)
            memset(queue, 0, sizeof(queue_t))
            queue.sq = <sqe_t *> address_of(sq, entries * sizeof(sqe_t), views)
            queue.cq = <cqe_t *> address_of(cq, entries * sizeof(cqe_t), views)
            queue.tail_doorbell.register = <uint32_t *> address_of(tail_register, 4, views)
            queue.head_doorbell.register = <uint32_t *> address_of(head_register, 4, views)
            self.lower.pages = <uint8_t *> address_of(pages, entries * PAGE_SIZE, views)
            self.lower.pages_iova = pages_iova
            queue.sq_entries = queue.cq_entries = entries
            queue.phase = PHASE_BIT
            self.views = views
            self.lower.state = LOWER_RUNNING
        finally:
            self.iothread.resume()
        self.iothread.wake()

    def stop(self):
        self.iothread.pause()
        try:
            if self.lower.state == LOWER_RUNNING:
                self.lower.state = LOWER_STOPPED
            # Nobody looks at the rings now: their memory can go.
            self.views = []
        finally:
            self.iothread.resume()

    def fail(self):
        self.iothread.pause()
        try:
            self.lower.state = LOWER_GONE
            self._take_back(SC_INTERNAL_ERROR)
            self.views = []
        finally:
            self.iothread.resume()

    cdef void _take_back(self, uint32_t status) noexcept:
        """What is outstanding ends with a status, or (0) waits to be posted again, before the rest.

        What has expired ends in any case: its time is over; so does what its namespace is lost for.
        """
        cdef lower_t *lower = &self.lower
        cdef chain_t rest = lower.waiting
        cdef request_t *request
        cdef uint32_t cid
        lower.waiting.first = NULL
        for cid in range(lower.cids):
            request = lower.requests[cid]
            lower.requests[cid] = NULL
            if request != NULL:
                self._put_back(request, status)
        request = chain_take(&rest)
        while request != NULL:
            self._put_back(request, status)
            request = chain_take(&rest)
        self._free_all()

    cdef void _put_back(self, request_t *request, uint32_t status) noexcept:
        if request.flags & REQUEST_EXPIRED:
            request.status = SC_ABORT_REQUESTED
        elif request.ns.backend.ops == &lost_ops:
            request.status = SC_INTERNAL_ERROR
        elif status:
            request.status = <uint16_t> status
        else:
            chain_append(&self.lower.waiting, request)
            return
        chain_append(&self.lower.ended, request)

    def expired(self):
        cdef uint32_t cid
        cdef request_t *request
        cdef bint waits = False
        self.iothread.pause()
        try:
            request = self.lower.waiting.first
            while request != NULL and not waits:
                waits = (request.flags & REQUEST_EXPIRED) != 0
                request = chain_next(request)
            return waits, [
                cid for cid in range(self.lower.cids)
                if self.lower.requests[cid] != NULL and self.lower.requests[cid].flags & REQUEST_EXPIRED
            ]
        finally:
            self.iothread.resume()

    @property
    def entries(self):
        return self.lower.cids + 1

    @property
    def outstanding(self):
        return self.lower.cids - self.lower.free_count

    @property
    def strays(self):
        return self.lower.strays

    def close(self):
        self.iothread.pause()
        try:
            self.iothread.remove_poller(&self.lower)
            self.views = []
        finally:
            self.iothread.resume()


cdef class NvmeBackend(DriveBackend):
    """A namespace of a controller below (see nvme.pyi)."""

    cdef readonly object parent

    def __init__(self, parent, drive):
        self.parent = parent
        self.describe(drive)
        self.sgls = int(drive.sgls)
        self.backend.ops = &nvme_ops

    @property
    def lost(self):
        return self.backend.ops == &lost_ops

    @lost.setter
    def lost(self, bint lost):
        # One pointer: an IOThread sees the one or the other.
        self.backend.ops = &lost_ops if lost else &nvme_ops

    cdef void *open_way(self, IOThread iothread) except NULL:
        cdef LowerQueue queue = self.parent.take_queue(iothread)
        return &queue.lower

    cdef int close_way(self, IOThread iothread, void *way) except -1:
        self.parent.give_queue(iothread)
        return 0

    def use_memory(self, memory):
        memory.add_mapper(self.parent)

    def leave_memory(self, memory):
        memory.remove_mapper(self.parent)

    def medium_size(self):
        return self.parent.current_blocks(self) * self.block_size

    def medium_read_only(self):
        return self.parent.is_read_only(self)

    def change_medium(self, size):
        raise OSError(95, "the namespace below is resized by its owner", self.name)

    def flush(self):
        self.parent.flush(self)

    def temperature(self):
        return self.parent.temperature()

    def smart(self):
        return self.parent.smart()

    def close(self):
        if self.parent is not None:
            parent, self.parent = self.parent, None
            parent.release(self)
