"""Commands for namespaces that are not simply there."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport request_t

#: A namespace that is inactive, or not for every command; as `parse_by_opcode` of commands.pxd.
cdef uint32_t parse_restricted(request_t *request) noexcept nogil
#: An NSID that is not a place in the controller's table.
cdef uint32_t parse_elsewhere(request_t *request) noexcept nogil
