"""A controller's namespaces, as the data path needs them."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, namespace_t, sq_t


#: End the controller's commands that wait for limits: those of an SQ or (NULL) all, of a namespace or
#: (NULL) of all. The IOThreads stand.
cdef void end_throttled(
    controller_t *controller, sq_t *sq, namespace_t *ns, uint32_t status) noexcept
