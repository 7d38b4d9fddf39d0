"""A namespace without a medium: writes vanish, reads leave the guest's memory alone.

With a latency each command takes at least so long from when it was fetched, however many are
outstanding, as on a drive with as many channels: a stand-in for hardware.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.backends.base cimport Backend, off_ring_complete, at_once_cancel
from nvme_mdev.datapath.backends.per_iothread cimport (
    free_place, give_up, keep, kept_for, per_iothread_t, place_t,
)
from nvme_mdev.datapath.chain cimport chain_append, chain_t, chain_take
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.lines cimport line_calloc
from nvme_mdev.datapath.queues cimport request_done
from nvme_mdev.datapath.runtime cimport OP_WRITE_UNCORRECTABLE, backend_ops_t, iothread_t, request_t
from nvme_mdev.datapath.status cimport SC_ABORT_REQUESTED, SC_SUCCESS

from nvme_mdev.datapath.backends.base import check_block_size
from nvme_mdev.datapath.backends.raw import NoMedium

cdef enum:
    #: Commands that one look completes.
    REAP = 64

#: The commands of one IOThread that are not old enough yet, oldest first.
cdef struct delay_t:
    #: Time-stamp counter ticks.
    uint64_t latency
    chain_t commands


cdef void null_submit(iothread_t *thread, request_t *request) noexcept nogil:
    request.status = SC_SUCCESS
    request_done(thread, request)


cdef backend_ops_t null_ops
null_ops.submit = null_submit
null_ops.complete = off_ring_complete
null_ops.cancel = at_once_cancel


cdef void delayed_submit(iothread_t *thread, request_t *request) noexcept nogil:
    cdef delay_t *delay = <delay_t *> kept_for(<per_iothread_t *> request.ns.backend.context, thread)
    request.status = SC_SUCCESS
    thread.inflight += 1
    chain_append(&delay.commands, request)


cdef void delayed_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    """It ends when it is old enough, but not well."""
    request.status = SC_ABORT_REQUESTED


cdef uint32_t delayed_poll(iothread_t *thread, void *context) noexcept nogil:
    """Complete what is old enough. Commands are fetched, and so get old, one after the other."""
    cdef delay_t *delay = <delay_t *> context
    cdef uint64_t now = read_tsc()
    cdef uint32_t count = 0
    while (count < REAP and delay.commands.first != NULL
            and now - delay.commands.first.started >= delay.latency):
        thread.inflight -= 1
        request_done(thread, chain_take(&delay.commands))
        count += 1
    return count


cdef backend_ops_t delayed_ops
delayed_ops.submit = delayed_submit
delayed_ops.complete = off_ring_complete
delayed_ops.cancel = delayed_cancel


cdef class NullBackend(Backend):
    """No medium (see null.pyi)."""

    #: Of a namespace with a latency, a `delay_t` each.
    cdef per_iothread_t delays
    #: Time-stamp counter ticks.
    cdef uint64_t latency

    def __init__(self, size, block_size=512, latency_ns=0):
        self.size = check_block_size(size, block_size)
        self.block_size = block_size
        self.name = f"null:{size}"
        self.identity = ""
        self.can_write_zeroes = self.can_deallocate = True
        self.latency = latency_ns * ticks_hz() // 1000000000
        self.backend.ops = &delayed_ops if latency_ns else &null_ops
        self.backend.size = self.size
        # It does everything by itself: nothing.
        self.backend.natives = 0xffffffff & ~(1 << OP_WRITE_UNCORRECTABLE)
        self.backend.context = &self.delays

    cdef int begin_on(self, IOThread iothread) except -1:
        cdef place_t *place
        cdef delay_t *delay
        if self.backend.ops != &delayed_ops:
            return 0
        place = free_place(&self.delays, self.name)
        delay = <delay_t *> line_calloc(1, sizeof(delay_t))
        if delay == NULL:
            raise MemoryError
        delay.latency = self.latency
        try:
            iothread.add_poller(delayed_poll, delay)
        except BaseException:
            free(delay)
            raise
        keep(place, iothread.thread, delay)
        return 0

    cdef int end_on(self, IOThread iothread) except -1:
        cdef delay_t *delay
        if self.backend.ops != &delayed_ops:
            return 0
        delay = <delay_t *> give_up(&self.delays, iothread.thread)
        iothread.remove_poller(delay)
        free(delay)
        return 0

    def raw(self):
        return NoMedium()
