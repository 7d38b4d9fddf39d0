"""What every backend has in common."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.clock cimport ticks_hz
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.runtime cimport ATTENTION_LIMITED, LIMITS, bucket_t, iothread_t, request_t
from nvme_mdev.datapath.throttle cimport limit_time, throttle_look_again
from nvme_mdev.datapath.token_bucket cimport TICK_SHIFT, bucket_set

import errno

from nvme_mdev.datapath.backends.drive import NO_LIMITS
from nvme_mdev.datapath.limits import LIMIT_NAMES, check_limit
from nvme_mdev.spec.nvme_identify_controller import Sgls


cdef void off_ring_complete(iothread_t *thread, request_t *request, int32_t result) noexcept nogil:
    pass


cdef void at_once_cancel(iothread_t *thread, request_t *request) noexcept nogil:
    pass


cdef class Backend:
    """A place where a namespace's blocks live (see base.pyi)."""

    def __cinit__(self, *args, **kwargs):
        self.can_compare = self.can_verify = self.can_copy = self.emulates = True
        self.can_write_uncorrectable = True
        self.command_limits = NO_LIMITS
        self.sgls = int(Sgls.BYTE_ALIGNED | Sgls.BIT_BUCKET)
        self.served_on = {}
        self.limits = {}
        self.backend.throttle = &self.throttle

    cdef int attach(self, IOThread iothread) except -1:
        if iothread not in self.served_on:
            self.begin_on(iothread)
        self.served_on[iothread] = self.served_on.get(iothread, 0) + 1
        self.backend.threads = len(self.served_on)
        return 0

    cdef int detach(self, IOThread iothread) except -1:
        self.served_on[iothread] -= 1
        if self.served_on[iothread] == 0:
            del self.served_on[iothread]
            self.backend.threads = len(self.served_on)
            self.end_on(iothread)
        return 0

    cdef int begin_on(self, IOThread iothread) except -1:
        return 0

    cdef int end_on(self, IOThread iothread) except -1:
        return 0

    @property
    def threads(self):
        return self.backend.threads

    cdef int set_size(self, uint64_t size) except -1:
        self.size = size - size % self.block_size
        self.backend.size = self.size
        return 0

    cdef int set_read_only(self, bint read_only) except -1:
        self.read_only = read_only
        return 0

    def set_limits(self, limits):
        cdef bucket_t *bucket
        cdef IOThread iothread
        cdef uint64_t now = read_tsc() << TICK_SHIFT
        cdef uint32_t kind
        for name, limit in limits.items():
            check_limit(name, limit)
        for iothread in self.served_on:
            iothread.pause()
            now = limit_time(iothread.thread)
        for kind in range(2 * LIMITS):
            bucket = &self.throttle.commands[kind] if kind < LIMITS else &self.throttle.bytes[kind - LIMITS]
            rate, burst = limits.get(LIMIT_NAMES[kind], (0, 0))
            bucket_set(bucket, ticks_hz(), rate, burst, now)
        # IOThreads change the other bits, and all that serve it stand.
        self.backend.attention &= ~<uint32_t> ATTENTION_LIMITED
        if limits:
            self.backend.attention |= ATTENTION_LIMITED
        self.limits = dict(limits)
        for iothread in self.served_on:
            throttle_look_again(iothread.thread)
            iothread.resume()

    def use_memory(self, memory):
        """It sees what this process sees."""

    def leave_memory(self, memory):
        """As `use_memory`."""

    @property
    def transfer_limit(self):
        """Nothing here has one."""
        return 0

    def medium_size(self):
        return self.size

    def medium_read_only(self):
        return self.read_only

    def change_medium(self, size):
        """Nothing to do: it is as large as `set_size` says."""

    def flush(self):
        """Make everything that was written durable: nothing to do without a volatile cache."""

    def temperature(self):
        """Nothing here has one."""
        return None

    def smart(self):
        """Nothing here has one."""
        return None

    def raw(self):
        """Nobody can maintain it."""
        return None

    def new_key(self):
        """It has none."""
        raise OSError(errno.ENOTSUP, "is not encrypted", self.name)

    def use_key(self, key):
        """It takes none."""

    def forget_old_key(self):
        """There is none."""

    def can_have_blocks(self, block_size):
        """As the medium is: in memory blocks of any size can be."""
        return self.size >= block_size

    def format(self, block_size):
        """Serve blocks of another size; every IOThread that serves it is paused."""
        self.optimal_io_boundary = self.optimal_io_boundary * self.block_size // block_size
        self.preferred_write_granularity = (
            self.preferred_write_granularity * self.block_size // block_size)
        self.preferred_deallocate_granularity = (
            self.preferred_deallocate_granularity * self.block_size // block_size)
        self.block_size = block_size
        self.size -= self.size % block_size
        self.backend.size = self.size

    def close(self):
        """Give up what it holds; it serves no more."""


def check_block_size(size, block_size):
    """The size in whole blocks, in bytes; ValueError: there is not one, or no such block size."""
    if block_size not in (512, 4096):
        raise ValueError(f"block size {block_size} is not supported: use 512 or 4096")
    if size < block_size:
        raise ValueError(f"{size} bytes is too small: one block of {block_size} bytes is the least")
    return size - size % block_size
