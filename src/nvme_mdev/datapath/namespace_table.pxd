"""A controller's namespaces, as the data path needs them."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.backends.base cimport Backend
from nvme_mdev.datapath.layout cimport io_counters_t
from nvme_mdev.datapath.runtime cimport controller_t, namespace_t, sq_t, throttled_t


#: Fill in or (backend None) clear a namespace, which has a place (`has_place`).
cdef int fill_namespace(controller_t *controller, uint32_t nsid, Backend backend) except -1
#: What was moved since it was attached, by all IOThreads together.
cdef io_counters_t namespace_moved(namespace_t *ns) noexcept
#: Commands that wait for its limits, and that ever had to.
cdef throttled_t namespace_throttled(namespace_t *ns) noexcept
#: End the controller's commands that wait for limits: those of an SQ or (NULL) all, of a namespace or
#: (NULL) of all. The IOThreads stand.
cdef void end_throttled(
    controller_t *controller, sq_t *sq, namespace_t *ns, uint32_t status) noexcept
#: Whether a command of the namespace is in flight that touches byte `start` or later (0: any), and
#: that writes, if only those count.
cdef bint namespace_used_from(
    controller_t *controller, namespace_t *ns, uint64_t start, bint writing) noexcept
