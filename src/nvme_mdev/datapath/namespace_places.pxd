"""Where a namespace is in its controller's table, by NSID.

NSIDs up to `NAMESPACES` are their own places: the command path indexes with them, and comes here for
none of them. The few namespaces with higher NSIDs have the places behind, in the order in which they
came, and are found by halving a sorted list. The table never moves: commands point into it.

The IOThreads stand still while the control plane takes a place or gives one back.
"""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.runtime cimport controller_t, namespace_t


#: The namespace; inactive: NULL, or one without a backend.
cdef namespace_t *find_namespace(controller_t *controller, uint32_t nsid) noexcept nogil
#: Whether the namespace has a place, or can get one.
cdef bint has_place(controller_t *controller, uint32_t nsid) noexcept
#: The place of the namespace, which it gets if it has none.
cdef uint32_t take_place(controller_t *controller, uint32_t nsid) noexcept
#: The namespace is gone from its place, which another one can have.
cdef void give_place(controller_t *controller, uint32_t nsid) noexcept
