"""A file that is memory (in tmpfs, on a DAX file system), mapped: its I/O is a copy, not a system call."""

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from posix.types cimport off_t

from nvme_mdev.datapath.runtime cimport request_t

cdef enum:
    #: Bytes of the longest Read or Write that is done so: everything else that the thread serves waits
    #: for it.
    MAPPED_MOST = 1 << 20

#: 64 pages of the file.
cdef struct stretch_t:
    #: A bit for each page that the file is known to have.
    uint64_t present
    #: So many accesses miss before the file is asked again; 0: the next asks.
    uint32_t misses

#: The part of a file that is served.
cdef struct file_mapping_t:
    #: The page in which it begins, and the byte of it there. NULL: it is not mapped.
    uint8_t *base
    uint64_t lead
    #: Bytes of the mapping, in whole pages.
    uint64_t size
    #: Stores go past the caches: the file is larger than they are.
    uint32_t past_caches
    #: Its blocks are the medium; else they are the page cache's.
    uint32_t dax
    int fd
    #: The page's byte in the file.
    off_t start
    stretch_t *stretches
    #: Not 0: some of it was lost (`sigbus.pyx`), and none of it is used any more.
    const uint32_t *torn

#: Map `size` bytes of a file from byte `start` on. Not mapped afterwards: it cannot be, and is no worse.
cdef void file_mapping_open(
    file_mapping_t *mapping, int fd, uint64_t start, uint64_t size, bint writable, bint dax
) noexcept nogil
#: Nothing uses it any more.
cdef void file_mapping_close(file_mapping_t *mapping) noexcept nogil
#: The file may have given back these bytes of the part that is served.
cdef void file_mapping_forget(file_mapping_t *mapping, uint64_t offset, uint64_t length) noexcept nogil
#: A Read or Write, without Force Unit Access. False: it is not done, or only half, and to be done otherwise.
cdef bint mapped_io(file_mapping_t *mapping, request_t *request) noexcept nogil
