"""Where queues and doorbells are in guest memory: the lookup, and who still uses a range.

A queue is an IOVA in the shared state and a page pointer for each of its pages here. The pointers are
made anew whenever the client's DMA map changes. All of it runs on the control plane's thread while
the IOThreads stand still.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.uio cimport iovec

from nvme_mdev.datapath.atomics cimport load_relaxed64
from nvme_mdev.datapath.compound cimport guest_segments
from nvme_mdev.datapath.layout cimport QUEUES, SLOT_BUSY
from nvme_mdev.datapath.memory cimport memory_translate
from nvme_mdev.datapath.queues cimport CQE_SIZE, SQE_SIZE, behind_tail
from nvme_mdev.datapath.regions cimport place_t, region_next, region_place
from nvme_mdev.datapath.runtime cimport (
    HELD_MEMORY, PAGE_SHIFT, PAGE_SIZE, REQUEST_THROTTLED, controller_t, cq_t, region_t,
    request_t, sq_t,
)


cdef enum:
    #: Mappings that are looked at before memory counts as in use by what is in flight.
    REGIONS_LOOKED_AT = 64


cdef uint32_t page_count(uint64_t entries, uint64_t entry_size) noexcept:
    return <uint32_t> ((entries * entry_size + PAGE_SIZE - 1) >> PAGE_SHIFT)


#: What the completions of a queue go to that the guest has taken away from under its commands.
cdef uint8_t nowhere[PAGE_SIZE]


# -- looking up ---------------------------------------------------------------------------------


cdef bint load_entry(controller_t *controller, uint64_t list_, uint64_t *entry, uint32_t *hint) noexcept:
    """Read an entry of a PRP list that names a page or another page of the list; False: it does not."""
    cdef uint64_t length = 8
    cdef uint8_t *address = memory_translate(controller.memory, list_, &length, False, hint)
    if address == NULL:
        return False
    entry[0] = load_relaxed64(<uint64_t *> address)
    return not entry[0] & (controller.page_size - 1)


cdef bint next_page(
    controller_t *controller, uint64_t *list_, uint64_t *page, bint last, uint32_t *hint
) noexcept:
    """Advance in a PRP list. The last entry of a page of it leads to the next one, if more is to come."""
    if (list_[0] & (controller.page_size - 1)) == controller.page_size - 8 and not last:
        if not load_entry(controller, list_[0], list_, hint):
            return False
    if not load_entry(controller, list_[0], page, hint):
        return False
    list_[0] += 8
    return True


cdef bint bind_list(
    controller_t *controller, uint8_t **pages, uint32_t count, uint64_t list_, bint write
) noexcept:
    """As `bind_pages`, of a queue that a PRP list describes (Base 2.x, section 3.3.3.1)."""
    cdef uint32_t per_page = controller.page_size >> PAGE_SHIFT
    cdef uint32_t list_hint = 0
    cdef uint32_t i = 0
    cdef uint32_t part
    cdef uint64_t page = 0
    cdef bint complete = True
    if list_ & 7:
        return False
    while i < count:
        part = min(per_page, count - i)
        if not next_page(controller, &list_, &page, count - i <= per_page, &list_hint):
            memset(&pages[i], 0, (count - i) * sizeof(uint8_t *))
            return False
        complete &= bind_pages(controller, &pages[i], part, page, write)
        i += part
    return complete


cdef bint bind_pages(
    controller_t *controller, uint8_t **pages, uint32_t count, uint64_t iova, bint write
) noexcept:
    """Look up each page (of 4 KiB) of a queue; False: one is not mapped."""
    cdef uint32_t hint = 0
    cdef uint32_t i
    cdef uint64_t length
    cdef bint complete = True
    for i in range(count):
        length = PAGE_SIZE
        pages[i] = memory_translate(
            controller.memory, iova + (<uint64_t> i << PAGE_SHIFT), &length, write, &hint)
        if pages[i] == NULL:
            complete = False
    return complete


cdef uint32_t *find_doorbell(
    controller_t *controller, uint32_t qid, bint completion, uint64_t shadow_iova
) noexcept:
    """The doorbell's place in the register page, or (I/O queues) in a shadow page; NULL: gone."""
    cdef uint32_t offset = (2 * qid + completion) * (4 << controller.dstrd)
    cdef uint64_t length = 4
    cdef uint32_t hint = 0
    if shadow_iova == 0 or qid == 0:
        return &controller.doorbell_page[offset >> 2]
    return <uint32_t *> memory_translate(
        controller.memory, shadow_iova + offset, &length, True, &hint)


cdef bint bind_sq_doorbell(controller_t *controller, uint32_t qid) noexcept:
    """Find the SQ's doorbell and EventIdx. False: the shadow page is away, the queue has to be held
    and has something else to look at."""
    cdef sq_t *sq = &controller.sqs[qid]
    cdef uint64_t events = controller.state.event_idx_iova
    sq.event_idx = find_doorbell(controller, qid, False, events) if events and qid else NULL
    sq.tail_doorbell = find_doorbell(controller, qid, False, controller.state.shadow_doorbell_iova)
    if sq.tail_doorbell == NULL:
        sq.tail_doorbell = &controller.doorbell_page[0]
        return False
    return True


cdef bint bind_cq_doorbell(controller_t *controller, uint32_t qid) noexcept:
    """As `bind_sq_doorbell`."""
    cdef cq_t *cq = &controller.cqs[qid]
    cdef uint64_t events = controller.state.event_idx_iova
    cq.event_idx = find_doorbell(controller, qid, True, events) if events and qid else NULL
    cq.head_doorbell = find_doorbell(controller, qid, True, controller.state.shadow_doorbell_iova)
    if cq.head_behind_tail:
        cq.head_doorbell = behind_tail(cq)
    if cq.head_doorbell == NULL:
        cq.head_doorbell = &controller.doorbell_page[0]
        return False
    return True


cdef void bind_doorbells(controller_t *controller, uint32_t qid) noexcept:
    if controller.sqs[qid].size:
        bind_sq_doorbell(controller, qid)
    if controller.cqs[qid].size:
        bind_cq_doorbell(controller, qid)


cdef void bind_sq(controller_t *controller, uint32_t qid) noexcept:
    cdef sq_t *sq = &controller.sqs[qid]
    cdef uint32_t count = page_count(sq.size, SQE_SIZE)
    cdef bint complete = (bind_list if sq.state.noncontiguous else bind_pages)(
        controller, sq.pages, count, sq.state.iova, False)
    sq.region_hint = 0
    if not bind_sq_doorbell(controller, qid):
        complete = False
    sq.held = sq.held & ~HELD_MEMORY if complete else sq.held | HELD_MEMORY


cdef void bind_cq(controller_t *controller, uint32_t qid) noexcept:
    cdef cq_t *cq = &controller.cqs[qid]
    cdef uint32_t count = page_count(cq.size, CQE_SIZE)
    cdef bint complete = (bind_list if cq.state.noncontiguous else bind_pages)(
        controller, cq.pages, count, cq.state.iova, True)
    cdef uint32_t i
    if not complete:
        # The guest may have changed the list of a queue that has commands in flight: they complete to
        # nowhere. No more are fetched meanwhile.
        for i in range(count):
            if cq.pages[i] == NULL:
                cq.pages[i] = nowhere
    if not bind_cq_doorbell(controller, qid):
        complete = False
    cq.held = cq.held & ~HELD_MEMORY if complete else cq.held | HELD_MEMORY


cdef void bind_all(controller_t *controller) noexcept:
    cdef uint32_t qid
    for qid in range(QUEUES):
        if controller.sqs[qid].size:
            bind_sq(controller, qid)
        if controller.cqs[qid].size:
            bind_cq(controller, qid)


cdef inline bint overlap(uint64_t first, uint64_t length, uint64_t iova, uint64_t size) noexcept:
    return size == 0 or first - iova < size or iova - first < length


cdef bint concerns(
    uint32_t held, uint32_t noncontiguous, uint64_t first, uint64_t length,
    uint64_t iova, uint64_t size
) noexcept:
    """Whether a queue can look different. Where a PRP list leads is not known without reading it."""
    return held & HELD_MEMORY or noncontiguous or overlap(first, length, iova, size)


cdef void bind_changed(controller_t *controller, uint64_t iova, uint64_t size) noexcept:
    cdef uint64_t shadow = controller.state.shadow_doorbell_iova
    cdef uint64_t events = controller.state.event_idx_iova
    cdef sq_t *sq
    cdef cq_t *cq
    cdef uint32_t qid
    cdef bint found = (shadow and overlap(shadow, PAGE_SIZE, iova, size)
                       or events and overlap(events, PAGE_SIZE, iova, size))
    for qid in range(QUEUES):
        sq = &controller.sqs[qid]
        cq = &controller.cqs[qid]
        if sq.size:
            found |= concerns(sq.held, sq.state.noncontiguous, sq.state.iova,
                              <uint64_t> sq.size * SQE_SIZE, iova, size)
        if cq.size:
            found |= concerns(cq.held, cq.state.noncontiguous, cq.state.iova,
                              <uint64_t> cq.size * CQE_SIZE, iova, size)
    if found:
        bind_all(controller)


# -- who still uses it --------------------------------------------------------------------------


cdef inline bint lies_in(region_t *region, void *address) noexcept:
    return <uint64_t> address - <uint64_t> region.address < region.size


cdef bint moves_through(request_t *request, region_t *region) noexcept:
    """Whether a request in flight reads or writes the region."""
    cdef uint32_t i, count
    cdef iovec *segments = guest_segments(request, &count)
    for i in range(count):
        # Segments of neighbouring mappings merge: one may begin before the region and end after it.
        if (<uint64_t> segments[i].iov_base < <uint64_t> region.address + region.size
                and <uint64_t> region.address
                < <uint64_t> segments[i].iov_base + segments[i].iov_len):
            return True
    return False


cdef bint region_in_use(controller_t *controller, region_t *region) noexcept:
    cdef sq_t *sq
    cdef uint32_t qid, i
    for qid in range(1, QUEUES):
        sq = &controller.sqs[qid]
        if sq.size == 0 or sq.inflight == sq.throttled:
            continue
        for i in range(page_count(sq.cq.size, CQE_SIZE)):
            if lies_in(region, sq.cq.pages[i]):
                return True
        for i in range(sq.slots_ready):
            if (sq.slots[i].state == SLOT_BUSY and not sq.requests[i].flags & REQUEST_THROTTLED
                    and moves_through(&sq.requests[i], region)):
                return True
    return False


cdef bint anything_in_flight(controller_t *controller) noexcept:
    cdef uint32_t qid
    for qid in range(1, QUEUES):
        if controller.sqs[qid].size and (
                controller.sqs[qid].inflight != controller.sqs[qid].throttled):
            return True
    return False


cdef bint memory_in_use(controller_t *controller, uint64_t iova, uint64_t size) noexcept:
    cdef region_t *region
    cdef place_t place = region_place(controller.memory, iova)
    cdef uint32_t left = REGIONS_LOOKED_AT
    if not anything_in_flight(controller):
        return False
    while left and size:
        region = region_next(controller.memory, &place)
        if region == NULL or region.iova - iova >= size:
            return False
        if region.address != NULL and region_in_use(controller, region):
            return True
        left -= 1
    # All of memory, or so much of it that it takes longer to look than to wait.
    return True
