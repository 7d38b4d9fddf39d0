"""Commands whose data is a list of block ranges: Dataset Management and Copy."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport request_t

cdef enum:
    #: Limits of Copy, which Identify Namespace tells: bytes of a source range (MSSRL), bytes of a
    #: command (MCL), source ranges (MSRC + 1). One command must not keep the others waiting long.
    COPY_RANGE_MOST = 1 << 20
    COPY_MOST = 4 << 20
    COPY_RANGES_MOST = 128

#: As `command_parse`, for these opcodes; the namespace is known.
cdef uint32_t parse_dataset_management(request_t *request) noexcept nogil
cdef uint32_t parse_copy(request_t *request) noexcept nogil
