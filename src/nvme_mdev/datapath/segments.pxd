"""Segments: the pieces of a command's data in this process, as PRPs and SGLs describe them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

from nvme_mdev.datapath.memory cimport memory_translate
from nvme_mdev.datapath.runtime cimport memory_map_t
from nvme_mdev.datapath.status cimport (
    SC_DATA_TRANSFER_ERROR, SC_DNR, SC_SGL_COUNT_INVALID, SC_SUCCESS,
)


cdef inline uint32_t add_segment(
    memory_map_t *memory, uint64_t iova, uint64_t length, bint write,
    iovec *iov, uint32_t capacity, uint32_t *count, uint32_t *hint,
) noexcept nogil:
    """Append [iova, iova + length), cut where the mapping is; the NVMe status.

    Too many segments can only come from an SGL: what PRPs describe has no more than pages.
    """
    cdef uint64_t part
    cdef uint8_t *address
    cdef iovec *last
    while length:
        part = length
        address = memory_translate(memory, iova, &part, write, hint)
        if address == NULL:
            return SC_DATA_TRANSFER_ERROR | SC_DNR
        last = &iov[count[0] - 1] if count[0] else NULL
        if last != NULL and <uint8_t *> last.iov_base + last.iov_len == address:
            last.iov_len += part
        elif count[0] == capacity:
            return SC_SGL_COUNT_INVALID | SC_DNR
        else:
            iov[count[0]].iov_base = address
            iov[count[0]].iov_len = part
            count[0] += 1
        length -= part
        # Wraps to 0 only when nothing is left: a mapping does not wrap.
        iova += part
    return SC_SUCCESS
