"""Where a namespace is in its controller's table (see namespace_places.pxd)."""

from libc.stdint cimport uint32_t
from libc.string cimport memmove

from nvme_mdev.datapath.runtime cimport (
    HIGH_NAMESPACES, NAMESPACES, controller_t, high_place_t, namespace_t,
)


cdef uint32_t high_index(controller_t *controller, uint32_t nsid) noexcept nogil:
    """Index of the first high namespace whose NSID is not lower: where it is, or belongs."""
    cdef uint32_t first = 0
    cdef uint32_t end = controller.high_count
    cdef uint32_t middle
    while first < end:
        middle = (first + end) // 2
        if controller.high[middle].nsid < nsid:
            first = middle + 1
        else:
            end = middle
    return first


cdef inline bint is_high(controller_t *controller, uint32_t index, uint32_t nsid) noexcept nogil:
    return index < controller.high_count and controller.high[index].nsid == nsid


cdef namespace_t *find_namespace(controller_t *controller, uint32_t nsid) noexcept nogil:
    cdef uint32_t index
    if nsid == 0:
        return NULL
    if nsid <= NAMESPACES:
        return &controller.namespaces[nsid]
    index = high_index(controller, nsid)
    if not is_high(controller, index, nsid):
        return NULL
    return &controller.namespaces[controller.high[index].place]


cdef bint has_place(controller_t *controller, uint32_t nsid) noexcept:
    return controller.high_count < HIGH_NAMESPACES or find_namespace(controller, nsid) != NULL


cdef uint32_t free_place(controller_t *controller) noexcept:
    """A place for a high namespace; there is one."""
    cdef uint32_t place = NAMESPACES + 1
    while controller.namespaces[place].backend != NULL:
        place += 1
    return place


cdef uint32_t take_high(controller_t *controller, uint32_t nsid) noexcept:
    cdef uint32_t index = high_index(controller, nsid)
    cdef uint32_t place
    if is_high(controller, index, nsid):
        return controller.high[index].place
    place = free_place(controller)
    memmove(&controller.high[index + 1], &controller.high[index],
            (controller.high_count - index) * sizeof(high_place_t))
    controller.high[index].nsid = nsid
    controller.high[index].place = place
    controller.high_count += 1
    return place


cdef uint32_t take_place(controller_t *controller, uint32_t nsid) noexcept:
    cdef uint32_t place = nsid if nsid <= NAMESPACES else take_high(controller, nsid)
    controller.places_end = max(controller.places_end, place + 1)
    return place


cdef void give_place(controller_t *controller, uint32_t nsid) noexcept:
    cdef uint32_t index = high_index(controller, nsid)
    if is_high(controller, index, nsid):
        controller.high_count -= 1
        memmove(&controller.high[index], &controller.high[index + 1],
                (controller.high_count - index) * sizeof(high_place_t))
    while controller.places_end > 1 and (
            controller.namespaces[controller.places_end - 1].backend == NULL):
        controller.places_end -= 1
