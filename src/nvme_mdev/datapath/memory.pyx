"""The client's DMA map (VFIO_USER_DMA_MAP and UNMAP) and copies in and out of guest memory.

A client maps parts of few files many times over: firmware remaps RAM in pieces, and a virtual IOMMU
maps single pages. So a file is mapped once and whole, and a region is a window onto it: mapping a
region costs no system call, and the kernel's limit on mappings does not bound the number of regions.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.types cimport off_t
from posix.uio cimport iovec

from nvme_mdev.datapath.regions cimport (
    place_t, region_add, region_below, region_next, region_place, region_remove, regions_clear,
    regions_create, regions_destroy,
)
from nvme_mdev.datapath.runtime cimport BUFFERS, CHUNK_SHIFT, NO_BUFFER, PAGE_SIZE, region_t
from nvme_mdev.datapath.sigbus cimport sigbus_guard, sigbus_release

import errno as errno_names
import os
import stat

#: Regions that one client may map, as VERSION tells it (max_dma_maps).
MAX_REGIONS = 131072

cdef enum:
    #: Different files that one client may map; QEMU has a memory backend or two and some ROMs.
    FILES = 1024
    PLACE_ALIGNMENT = 1 << 30

cdef extern from *:
    """
    #define PLACES_START (UINT64_C(1) << 36)
    #define PLACES_END (UINT64_C(1) << 39)
    """
    #: Where guest memory is mapped: 64 GiB to 512 GiB, in steps of a huge page of 1 GiB.
    const uint64_t PLACES_START
    const uint64_t PLACES_END

cdef extern from "<sys/mman.h>" nogil:
    int MADV_DONTFORK
    int MADV_HUGEPAGE
    int madvise(void *address, size_t length, int advice)

#: Where the next file is mapped, if that is free.
cdef uint64_t next_place = PLACES_START

#: What each registered-buffer number stands for, for all clients of the process; length 0: free.
cdef iovec buffer_memory[BUFFERS]


cdef void buffer_range(uint32_t buffer, iovec *memory) noexcept nogil:
    memory[0] = buffer_memory[buffer]


cdef inline uint64_t chunks(uint64_t size) noexcept:
    """Registered buffers that a file mapping of `size` bytes can become."""
    return (size + (1 << CHUNK_SHIFT) - 1) >> CHUNK_SHIFT


cdef uint32_t allocate_buffers(uint8_t *address, uint64_t size) noexcept:
    """First of the consecutive buffer numbers that the memory needs, or NO_BUFFER."""
    cdef uint64_t wanted = chunks(size)
    cdef uint64_t run = 0
    cdef uint32_t first, i
    for first in range(BUFFERS):
        run = 0 if buffer_memory[first].iov_len else run + 1
        if run == wanted:
            break
    else:
        return NO_BUFFER
    first = <uint32_t> (first + 1 - wanted)
    for i in range(<uint32_t> wanted):
        buffer_memory[first + i].iov_base = address + (<uint64_t> i << CHUNK_SHIFT)
        buffer_memory[first + i].iov_len = min(<uint64_t> 1 << CHUNK_SHIFT, size - (<uint64_t> i << CHUNK_SHIFT))
    return first


def release_buffers(uint32_t first, uint32_t count):
    """Buffer numbers that no io_uring has registered any more can be used again."""
    if first < BUFFERS and count <= BUFFERS - first:
        memset(&buffer_memory[first], 0, count * sizeof(iovec))


class GuestMemoryError(Exception):
    """An IOVA range that is not mapped, or not mapped for this access."""


cdef class GuestMemory:
    """A sorted table of mapped IOVA ranges (see memory.pyi)."""

    def __cinit__(self, *, sparse=False):
        self.sparse = sparse
        self.dropped_buffers = []
        self.mappers = {}
        self.files = <file_mapping_t *> calloc(FILES, sizeof(file_mapping_t))
        if self.files == NULL:
            raise MemoryError
        regions_create(&self.table)

    def __dealloc__(self):
        cdef uint32_t i
        if self.files != NULL:
            for i in range(FILES):
                if self.files[i].users:
                    self.files[i].users = 1
                    self.close_file(&self.files[i])
        free(self.files)
        regions_destroy(&self.table)

    cdef bint is_free(self, uint64_t first, uint64_t length):
        """Whether no region has any of the range, which does not wrap."""
        cdef region_t *below = region_below(&self.table, first + (length - 1))
        return below == NULL or (below.iova < first and first - below.iova >= below.size)

    cdef file_mapping_t *find_file(self, uint64_t device, uint64_t inode, uint64_t end, bint writable):
        cdef uint32_t i
        cdef file_mapping_t *file
        for i in range(self.file_count):
            file = &self.files[i]
            if (file.users and file.whole and file.device == device and file.inode == inode
                    and end <= file.size and (file.writable or not writable)):
                return file
        return NULL

    cdef file_mapping_t *open_file(
        self, int fd, uint64_t offset, uint64_t size, bint writable
    ) except NULL:
        """The mapping that holds [offset, offset + size) of the file; its use count goes up."""
        cdef file_mapping_t *file
        cdef uint32_t i
        status = os.fstat(fd)
        regular = stat.S_ISREG(status.st_mode)
        if regular and offset + size > status.st_size:
            raise ValueError("the mapping reaches past the end of its file")
        if regular:
            file = self.find_file(status.st_dev, status.st_ino, offset + size, writable)
            if file != NULL:
                file.users += 1
                return file
        for i in range(FILES):
            file = &self.files[i]
            if not file.users:
                break
        else:
            raise ValueError("too many different files are mapped")
        self.file_count = max(self.file_count, i + 1)
        file.device = status.st_dev
        file.inode = status.st_ino
        file.whole = regular
        file.offset = 0 if regular else offset
        file.size = (status.st_size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1) if regular else size
        file.writable = writable
        map_file(file, fd, self.sparse)
        file.users = 1
        try:
            self.map_elsewhere(file)
        except BaseException:
            self.close_file(file)
            raise
        return file

    cdef int map_elsewhere(self, file_mapping_t *file) except -1:
        """Have every mapper map the file; all of them, or OSError."""
        done = []
        try:
            for mapper in self.mappers:
                map_with(mapper, file)
                done.append(mapper)
        except BaseException:
            for mapper in done:
                mapper.unmap(<uintptr_t> file.address, file.size)
            raise
        return 0

    def add_mapper(self, mapper):
        cdef uint32_t i
        if mapper in self.mappers:
            self.mappers[mapper] += 1
            return
        done = []
        try:
            for i in range(FILES):
                if self.files[i].users:
                    map_with(mapper, &self.files[i])
                    done.append(i)
        except BaseException:
            for i in done:
                mapper.unmap(<uintptr_t> self.files[i].address, self.files[i].size)
            raise
        self.mappers[mapper] = 1

    def remove_mapper(self, mapper):
        cdef uint32_t i
        self.mappers[mapper] -= 1
        if self.mappers[mapper]:
            return
        del self.mappers[mapper]
        for i in range(FILES):
            if self.files[i].users:
                mapper.unmap(<uintptr_t> self.files[i].address, self.files[i].size)

    def map(self, iova, size, fd, offset, *, readable, writable):
        cdef uint64_t first = iova
        cdef uint64_t length = size
        cdef uint64_t file_offset = offset
        cdef region_t region
        cdef file_mapping_t *file
        if length == 0 or (first | length) & (PAGE_SIZE - 1) or first + length - 1 < first:
            raise ValueError("the range is empty, wraps, or is not in whole pages")
        if fd is not None and (file_offset & (PAGE_SIZE - 1) or file_offset + length < file_offset
                               or (file_offset + length) >> 63):
            raise ValueError("the offset is not in whole pages, or too large")
        if self.table.count >= MAX_REGIONS:
            raise OSError(errno_names.ENOSPC, "too many DMA mappings")
        if not self.is_free(first, length):
            raise ValueError("the range overlaps a mapping")
        memset(&region, 0, sizeof(region))
        region.iova = first
        region.size = length
        region.buffer_base = NO_BUFFER
        if fd is not None and (readable or writable):
            file = self.open_file(fd, file_offset, length, writable)
            region.address = file.address + (file_offset - file.offset)
            region.readable_size = length
            region.writable_size = length if writable else 0
            region.buffer_base = file.buffer_base
            region.mapping = file.address
            region.file = <uint32_t> (file - self.files)
        try:
            region_add(&self.table, &region)
        except MemoryError:
            self.close_region(&region)
            raise

    def unmap(self, iova, size):
        cdef uint64_t first = iova
        cdef uint64_t length = size
        cdef uint64_t removed = 0
        cdef region_t *region
        cdef place_t place
        if length == 0 or first + length - 1 < first:
            raise ValueError("the range is empty or wraps")
        self.check_whole(first, length)
        while True:
            place = region_place(&self.table, first)
            region = region_next(&self.table, &place)
            if region == NULL or region.iova - first >= length:
                return removed
            removed += region.size
            self.close_region(region)
            region_remove(&self.table, region.iova)

    def check_whole(self, uint64_t first, uint64_t length):
        """ValueError: a region is only in part in the range."""
        cdef region_t *region = region_below(&self.table, first)
        cdef bint cut = region != NULL and region.iova != first and first - region.iova < region.size
        region = region_below(&self.table, first + (length - 1))
        cut |= region != NULL and region.iova >= first and length - (region.iova - first) < region.size
        if cut:
            raise ValueError("the range cuts a mapping in two")

    cdef int close_region(self, region_t *region) except -1:
        """Give up the region's share of its file."""
        if region.mapping != NULL:
            self.close_file(&self.files[region.file])
        return 0

    cdef int close_file(self, file_mapping_t *file) except -1:
        """Drop one use; unmap with the last."""
        file.users -= 1
        if file.users:
            return 0
        for mapper in self.mappers:
            mapper.unmap(<uintptr_t> file.address, file.size)
        os.close(file.fd)
        sigbus_release(file.address)
        munmap(file.address, file.size)
        file.address = NULL
        if file.buffer_base != NO_BUFFER:
            self.dropped_buffers.append((file.buffer_base, chunks(file.size)))
        return 0

    def clear(self):
        cdef place_t place = region_place(&self.table, 0)
        cdef region_t *region = region_next(&self.table, &place)
        cdef uint64_t removed = 0
        while region != NULL:
            removed += region.size
            self.close_region(region)
            region = region_next(&self.table, &place)
        regions_clear(&self.table)
        return removed

    def ranges(self):
        cdef place_t place = region_place(&self.table, 0)
        cdef region_t *region = region_next(&self.table, &place)
        found = []
        while region != NULL:
            found.append(
                (region.iova, region.size, region.address != NULL, bool(region.writable_size)))
            region = region_next(&self.table, &place)
        return found

    def covers(self, iova, size, *, writable):
        cdef uint64_t position = iova
        cdef uint64_t left = size
        cdef uint64_t length
        cdef uint32_t hint = 0
        if left and position + (left - 1) < position:
            return False
        while left:
            length = left
            if memory_translate(&self.table, position, &length, writable, &hint) == NULL:
                return False
            left -= length
            position += length
        return True

    def overlaps(self, iova, size):
        return not self.is_free(iova, size)

    cdef int copy(self, uint64_t iova, uint8_t *buffer, uint64_t size, bint write) except -1:
        cdef uint32_t hint = 0
        cdef uint64_t length
        cdef uint8_t *address
        while size:
            length = size
            address = memory_translate(&self.table, iova, &length, write, &hint)
            if address == NULL:
                raise GuestMemoryError(f"IOVA {iova:#x} is not mapped for this access")
            if write:
                memcpy(address, buffer, length)
            else:
                memcpy(buffer, address, length)
            buffer += length
            size -= length
            # The last step may wrap to 0 at the top of the address space; size is 0 then.
            iova += length
        return 0

    def read(self, iova, size):
        data = PyBytes_FromStringAndSize(NULL, size)
        self.copy(iova, <uint8_t *> PyBytes_AS_STRING(data), size, False)
        return data

    def write(self, iova, data):
        cdef const uint8_t[::1] view = data
        if view.shape[0]:
            self.copy(iova, <uint8_t *> &view[0], view.shape[0], True)


cdef int map_with(mapper, file_mapping_t *file) except -1:
    """Have a mapper map the file where it is here."""
    mapper.map(<uintptr_t> file.address, file.size, file.fd, file.offset, writable=bool(file.writable))
    return 0


cdef void *place_for(uint64_t size) noexcept:
    """Where to ask the kernel to map so much: aligned for huge pages, among the low addresses.

    A controller below reaches guest memory at its addresses here, and an IOMMU may have no more than
    39 bits. Nothing else of a process is there; the kernel decides otherwise where it must.
    """
    global next_place
    cdef uint64_t length = (size + PLACE_ALIGNMENT - 1) & ~<uint64_t> (PLACE_ALIGNMENT - 1)
    if length > PLACES_END - PLACES_START:
        return NULL
    if length > PLACES_END - next_place:
        next_place = PLACES_START
    next_place += length
    return <void *> (next_place - length)


cdef int map_file(file_mapping_t *file, int fd, bint sparse) except -1:
    """Map the file; OSError as the kernel says. Of a sparse one no more is used than is touched."""
    cdef int protection = PROT_READ | (PROT_WRITE if file.writable else 0)
    cdef void *address
    file.fd = os.dup(fd)
    address = mmap(
        place_for(file.size), file.size, protection, MAP_SHARED, fd, <off_t> file.offset)
    if address == MAP_FAILED:
        error = errno
        os.close(file.fd)
        raise OSError(error, os.strerror(error))
    if sigbus_guard(<uint8_t *> address, file.size) != 0:
        munmap(address, file.size)
        os.close(file.fd)
        raise ValueError("too many mappings in this process")
    madvise(address, file.size, MADV_DONTFORK)
    file.address = <uint8_t *> address
    file.buffer_base = NO_BUFFER
    if not sparse:
        madvise(address, file.size, MADV_HUGEPAGE)
        file.buffer_base = allocate_buffers(file.address, file.size)
    return 0
