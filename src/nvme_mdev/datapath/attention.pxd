"""Commands that take more than to hand one page to their backend."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport request_t

#: The command is ready, and more than one operation (COMPOUND_* of compound.pxd); the NVMe status.
cdef uint32_t make_compound(request_t *request, uint32_t kind) noexcept nogil
#: The end of parsing a command that is ready, as far as it goes (`kind`: COMPOUND_PLAIN), or that the backend
#: cannot do as it is; the NVMe status.
cdef uint32_t look_closer(request_t *request, uint32_t kind) noexcept nogil
#: The end of parsing a Read or Write whose data is not one page in one piece; the NVMe status.
cdef uint32_t map_and_look(request_t *request, bint to_guest) noexcept nogil
