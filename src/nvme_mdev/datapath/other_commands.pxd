"""NVM commands besides Read and Write."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport request_t

#: The opcode is one of OPCODES, and neither Read nor Write; as `parse_by_opcode` of commands.pxd.
cdef uint32_t parse_others(request_t *request) noexcept nogil
