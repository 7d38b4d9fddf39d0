"""What both forms of direct mode have in common: what the drive can, and a way for each IOThread."""

from libc.stdlib cimport calloc, free

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.backends.below cimport natives_of
from nvme_mdev.datapath.backends.per_iothread cimport free_place, give_up, keep, place_t
from nvme_mdev.datapath.iothread cimport IOThread


cdef class DriveBackend(Backend):
    """A namespace, or a range of one, of a controller below."""

    def __cinit__(self, *args, **kwargs):
        self.served = <served_t *> calloc(1, sizeof(served_t))
        if self.served == NULL:
            raise MemoryError
        self.backend.context = self.served

    cdef int describe(self, drive) except -1:
        self.name = drive.name
        self.identity = drive.identity
        self.block_size = drive.block_size
        self.size = drive.blocks * drive.block_size
        self.read_only = drive.read_only
        self.volatile_cache = drive.volatile_cache
        self.emulates = False
        self.can_compare = drive.can_compare
        self.can_verify = drive.can_verify
        self.can_write_uncorrectable = drive.can_write_uncorrectable
        self.copy_limits = drive.copy_limits
        self.command_limits = drive.command_limits
        self.can_copy = self.copy_limits is not None
        self.can_write_zeroes = drive.can_write_zeroes
        self.can_deallocate = drive.can_deallocate
        self.deallocate_zeroes = drive.deallocate_zeroes
        self.atomicity = drive.atomicity
        self.optimal_io_boundary = drive.optimal_io_boundary
        self.preferred_write_granularity = drive.preferred_write
        self.preferred_deallocate_granularity = drive.preferred_deallocate
        self.max_transfer = drive.max_transfer
        self.served.below.nsid = drive.nsid
        self.served.below.start = drive.start
        self.served.below.block_shift = drive.block_size.bit_length() - 1
        self.backend.natives = natives_of(drive)
        self.backend.size = self.size
        return 0

    cdef void *open_way(self, IOThread iothread) except NULL:
        raise NotImplementedError

    cdef int close_way(self, IOThread iothread, void *way) except -1:
        raise NotImplementedError

    cdef int begin_on(self, IOThread iothread) except -1:
        cdef place_t *place = free_place(&self.served.ways, self.name)
        keep(place, iothread.thread, self.open_way(iothread))
        return 0

    cdef int end_on(self, IOThread iothread) except -1:
        self.close_way(iothread, give_up(&self.served.ways, iothread.thread))
        return 0

    @property
    def transfer_limit(self):
        return self.max_transfer

    def can_have_blocks(self, block_size):
        return block_size == self.block_size

    def __dealloc__(self):
        free(self.served)
