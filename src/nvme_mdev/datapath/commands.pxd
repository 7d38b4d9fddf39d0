"""NVM commands: from a copied SQE to a request for a backend."""

from nvme_mdev.datapath.runtime cimport request_t

#: Validate the command in `request.slot`, fill in the request. The NVMe status: 0 when it is ready
#: for its backend, else what to complete it with (`request.error_location` says where).
cdef unsigned int command_parse(request_t *request) noexcept nogil
