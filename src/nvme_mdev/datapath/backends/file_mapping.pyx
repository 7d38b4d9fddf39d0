"""A file that is memory (in tmpfs, on a DAX file system), mapped: its I/O is a copy, not a system call.

A mapping has no way to say no: a page that the file does not have is allocated when it is read, and
where there is no room for it, or the file has been cut, the access is SIGBUS. So only pages that the
file is known to have are touched. That is found out for 64 pages at a time, again after each 64th access that
found one missing, and forgotten where blocks are given back. What is missing is read and written with system
calls, which allocate what is written and fail as they should. Nothing here looks for holes (lseek(2), SEEK_HOLE):
where there are none it goes through all of the file.

Others may still cut the file, or punch holes into it, at any time. A hole costs a page; beyond a cut
`sigbus.pyx` puts zero pages in place, and this mapping is not used any more: what was being copied is done
again by a system call, which tells the guest what there is to tell. A file whose size has changed is mapped
anew.
"""

from libc.stdint cimport uint64_t, uint8_t
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.types cimport off_t

from nvme_mdev.datapath.atomics cimport (
    fetch_and64, fetch_or64, load_relaxed32, load_relaxed64, seldom, store_relaxed32,
)
from nvme_mdev.datapath.backends.copying cimport exceeds_caches, read_out, write_in
from nvme_mdev.datapath.runtime cimport OP_WRITE, PAGE_SHIFT, PAGE_SIZE, request_t
from nvme_mdev.datapath.sigbus cimport sigbus_flag, sigbus_guard, sigbus_release

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void *address, size_t length, unsigned char *resident)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, void *argument)

cdef extern from *:
    """
    #include <linux/fiemap.h>
    #include <linux/fs.h>
    """
    cdef struct fiemap_extent:
        uint64_t fe_logical
        uint64_t fe_length
    cdef struct fiemap:
        uint64_t fm_start
        uint64_t fm_length
        uint32_t fm_mapped_extents
        uint32_t fm_extent_count
    unsigned long FS_IOC_FIEMAP

cdef enum:
    STRETCH_SHIFT = 6
    STRETCH = 1 << STRETCH_SHIFT
    STRETCH_BYTES = STRETCH << PAGE_SHIFT
    #: Accesses that find a page of a stretch missing until its file is asked again.
    MISSES = 64


#: What FIEMAP fills in: a structure that ends with as many extents as there is room for.
cdef struct extents_t:
    fiemap head
    fiemap_extent[STRETCH] extents


cdef inline uint64_t bits_from(uint64_t first, uint64_t count) noexcept nogil:
    """`count` bits, 1 to 64, from number `first` on, as far as there are any."""
    return (<uint64_t> -1 >> (64 - count)) << first


cdef uint64_t stretches_of(uint64_t size) noexcept nogil:
    """Bytes of `stretches` for a mapping of so many bytes."""
    return ((size >> PAGE_SHIFT) + STRETCH - 1 >> STRETCH_SHIFT) * sizeof(stretch_t)


cdef void file_mapping_open(
    file_mapping_t *mapping, int fd, uint64_t start, uint64_t size, bint writable, bint dax
) noexcept nogil:
    cdef uint64_t lead = start & (PAGE_SIZE - 1)
    cdef uint64_t whole = (lead + size + PAGE_SIZE - 1) & ~<uint64_t> (PAGE_SIZE - 1)
    cdef int protection = PROT_READ | PROT_WRITE if writable else PROT_READ
    cdef void *base = mmap(NULL, whole, protection, MAP_SHARED, fd, <off_t> (start - lead))
    cdef void *stretches
    memset(mapping, 0, sizeof(file_mapping_t))
    if base == MAP_FAILED:
        return
    stretches = mmap(NULL, stretches_of(whole), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if stretches == MAP_FAILED:
        munmap(base, whole)
        return
    if sigbus_guard(<uint8_t *> base, whole) != 0:
        munmap(stretches, stretches_of(whole))
        munmap(base, whole)
        return
    mapping.base = <uint8_t *> base
    mapping.lead = lead
    mapping.size = whole
    mapping.past_caches = exceeds_caches(size)
    mapping.dax = dax
    mapping.fd = fd
    mapping.start = <off_t> (start - lead)
    mapping.stretches = <stretch_t *> stretches
    mapping.torn = sigbus_flag(mapping.base)


cdef void file_mapping_close(file_mapping_t *mapping) noexcept nogil:
    if mapping.base != NULL:
        sigbus_release(mapping.base)
        munmap(mapping.stretches, stretches_of(mapping.size))
        munmap(mapping.base, mapping.size)
        mapping.base = NULL


cdef uint64_t resident_pages(file_mapping_t *mapping, uint64_t at) noexcept nogil:
    """Which pages of the stretch at a byte of the mapping are in the page cache, as all of tmpfs is that is
    not swapped out: that is for a system call to fetch."""
    cdef unsigned char[STRETCH] resident
    cdef uint64_t size = min(mapping.size - at, <uint64_t> STRETCH_BYTES)
    cdef uint64_t present = 0
    cdef uint64_t i
    if mincore(mapping.base + at, size, resident) != 0:
        return 0
    for i in range(size >> PAGE_SHIFT):
        present |= <uint64_t> (resident[i] & 1) << i
    return present


cdef uint64_t allocated_pages(file_mapping_t *mapping, uint64_t at) noexcept nogil:
    """Which pages of the stretch at a byte of the mapping have blocks."""
    cdef extents_t asked
    cdef uint64_t start = <uint64_t> mapping.start + at
    cdef uint64_t end = start + STRETCH_BYTES
    cdef uint64_t first, behind
    cdef uint64_t present = 0
    cdef uint32_t i
    memset(&asked.head, 0, sizeof(asked.head))
    asked.head.fm_start = start
    asked.head.fm_length = STRETCH_BYTES
    asked.head.fm_extent_count = STRETCH
    if ioctl(mapping.fd, FS_IOC_FIEMAP, &asked) != 0:
        return 0
    for i in range(min(asked.head.fm_mapped_extents, <uint32_t> STRETCH)):
        # An extent may begin before what was asked for, and end behind it.
        first = max(asked.extents[i].fe_logical, start)
        behind = min(asked.extents[i].fe_logical + asked.extents[i].fe_length, end)
        first = (first - start + PAGE_SIZE - 1) >> PAGE_SHIFT
        behind = (behind - start) >> PAGE_SHIFT if behind > start else 0
        if behind > first:
            present |= bits_from(first, behind - first)
    return present


cdef void ask(file_mapping_t *mapping, uint64_t number) noexcept nogil:
    """Find out which pages of a stretch the file has."""
    cdef uint64_t at = number << STRETCH_SHIFT << PAGE_SHIFT
    cdef uint64_t present = allocated_pages(mapping, at) if mapping.dax else resident_pages(mapping, at)
    store_relaxed32(&mapping.stretches[number].misses, MISSES)
    fetch_or64(&mapping.stretches[number].present, present)


cdef bint is_there(file_mapping_t *mapping, uint64_t number, uint64_t wanted) noexcept nogil:
    """Whether the file has these pages of a stretch, after a look at it if one is due."""
    cdef stretch_t *stretch = &mapping.stretches[number]
    cdef uint32_t misses = load_relaxed32(&stretch.misses)
    if misses:
        store_relaxed32(&stretch.misses, misses - 1)
        return False
    ask(mapping, number)
    return load_relaxed64(&stretch.present) & wanted == wanted


cdef bint all_there(file_mapping_t *mapping, uint64_t first, uint64_t behind) noexcept nogil:
    """Whether the file has the pages from number `first` to before `behind`."""
    cdef uint64_t number, bit, count, wanted
    while first < behind:
        number = first >> STRETCH_SHIFT
        bit = first & (STRETCH - 1)
        count = min(behind - first, STRETCH - bit)
        wanted = bits_from(bit, count)
        if (load_relaxed64(&mapping.stretches[number].present) & wanted != wanted
                and not is_there(mapping, number, wanted)):
            return False
        first += count
    return True


cdef inline bint one_there(file_mapping_t *mapping, uint64_t page) noexcept nogil:
    """Whether the file is known to have this page."""
    return load_relaxed64(&mapping.stretches[page >> STRETCH_SHIFT].present) >> (page & (STRETCH - 1)) & 1


cdef bint mapped_io(file_mapping_t *mapping, request_t *request) noexcept nogil:
    cdef uint64_t at = mapping.lead + request.offset
    cdef uint64_t end = at + request.length
    cdef uint64_t first = at >> PAGE_SHIFT
    cdef uint64_t behind = (end + PAGE_SIZE - 1) >> PAGE_SHIFT
    if seldom(end > mapping.size or request.length > MAPPED_MOST or load_relaxed32(mapping.torn)):
        return False
    if behind - first > 1 or not one_there(mapping, first):
        if not all_there(mapping, first, behind):
            return False
    if request.operation == OP_WRITE:
        write_in(mapping.base + at, request, mapping.past_caches)
    else:
        read_out(mapping.base + at, request)
    # What was copied to or from a page that came in place of one is not what there is.
    return load_relaxed32(mapping.torn) == 0


cdef void file_mapping_forget(file_mapping_t *mapping, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t first, behind, number, bit, count
    if mapping.base == NULL or length == 0 or mapping.lead + offset >= mapping.size:
        return
    first = (mapping.lead + offset) >> PAGE_SHIFT
    length = min(length, mapping.size - mapping.lead - offset)
    behind = (mapping.lead + offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT
    while first < behind:
        number = first >> STRETCH_SHIFT
        bit = first & (STRETCH - 1)
        count = min(behind - first, STRETCH - bit)
        # A read would touch each page of what nobody asked about yet.
        if load_relaxed64(&mapping.stretches[number].present):
            fetch_and64(&mapping.stretches[number].present, ~bits_from(bit, count))
        first += count
