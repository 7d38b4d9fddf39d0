"""NVM commands: from a copied SQE to a request for a backend."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.layout cimport nvme_sqe_t
from nvme_mdev.datapath.runtime cimport request_t

#: Validate the command in `request.slot`, fill in the request, which is new (`command_parse`).
cdef uint32_t parse_by_opcode(request_t *request) noexcept nogil
#: The first block that a command names; 0 for one without blocks.
cdef uint64_t sqe_lba(const nvme_sqe_t *sqe) noexcept nogil
#: The first block at fault, for the error log; 0 for a command without blocks.
cdef uint64_t command_lba(request_t *request) noexcept nogil
