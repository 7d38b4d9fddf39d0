"""Blocks that Write Uncorrectable has made unreadable (NVM Command Set 1.x, section 3.2.7).

The medium below cannot keep them, so the controller's shared state does: ranges, of which there is a
bounded number. A backend that is the namespace of several controllers has a table of each, and its
unreadable blocks are those of all tables.

A process that is killed in the middle leaves more blocks unreadable, never fewer, than were: the
command that made blocks readable is executed again and does so.
"""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport cpu_relax, exchange32, store_release32, store_release64
from nvme_mdev.datapath.layout cimport BAD_RANGES, bad_range_t
from nvme_mdev.datapath.runtime cimport (
    ATTENTION_BAD, ATTENTION_LOCKED, backend_t, bad_table_t, controller_t, namespace_t,
)


cdef inline void acquire(backend_t *backend) noexcept nogil:
    """IOThreads that serve the backend take turns; only where there are unreadable blocks."""
    while exchange32(&backend.bad_lock, 1):
        cpu_relax()


cdef inline void release(backend_t *backend) noexcept nogil:
    store_release32(&backend.bad_lock, 0)


cdef inline bint overlaps(bad_range_t *entry, uint64_t nsid, uint64_t slba, uint64_t blocks) noexcept nogil:
    return entry.nsid == nsid and slba < entry.slba + entry.blocks and (
        entry.slba < slba or entry.slba - slba < blocks)


cdef void lock_attention(backend_t *backend) noexcept nogil:
    acquire(backend)
    backend.locked += 1
    store_release32(&backend.attention, backend.attention | ATTENTION_LOCKED)
    release(backend)


cdef void unlock_attention(backend_t *backend) noexcept nogil:
    acquire(backend)
    backend.locked -= 1
    if backend.locked == 0:
        store_release32(&backend.attention, backend.attention & ~<uint32_t> ATTENTION_LOCKED)
    release(backend)


cdef bint find(backend_t *backend, uint64_t slba, uint64_t blocks, uint64_t *first) noexcept nogil:
    cdef bad_table_t *table = backend.bad
    cdef bad_range_t *entry
    cdef bint found = False
    cdef uint32_t i
    while table != NULL:
        for i in range(BAD_RANGES):
            entry = &table.ranges[i]
            if overlaps(entry, table.nsid, slba, blocks):
                if not found or max(entry.slba, slba) < first[0]:
                    first[0] = max(entry.slba, slba)
                found = True
        table = table.next
    return found


cdef bint bad_find(backend_t *backend, uint64_t slba, uint64_t blocks, uint64_t *first) noexcept nogil:
    cdef bint found
    acquire(backend)
    found = find(backend, slba, blocks, first)
    release(backend)
    return found


cdef inline void set_attention(backend_t *backend) noexcept nogil:
    """Whether there is any unreadable block."""
    cdef bad_table_t *table = backend.bad
    cdef uint32_t i
    while table != NULL:
        for i in range(BAD_RANGES):
            if table.ranges[i].nsid == table.nsid:
                store_release32(&backend.attention, backend.attention | ATTENTION_BAD)
                return
        table = table.next
    store_release32(&backend.attention, backend.attention & ~<uint32_t> ATTENTION_BAD)


cdef bint insert(bad_table_t *table, uint64_t slba, uint64_t blocks) noexcept nogil:
    """Take a free entry. The identifier goes last: it makes the entry valid."""
    cdef uint32_t i
    for i in range(BAD_RANGES):
        if table.ranges[i].nsid == 0:
            table.ranges[i].slba = slba
            table.ranges[i].blocks = blocks
            store_release64(&table.ranges[i].nsid, table.nsid)
            return True
    return False


cdef bint grow(bad_table_t *table, uint64_t slba, uint64_t blocks) noexcept nogil:
    """Make an entry longer that the range continues: what is written in order takes one entry."""
    cdef bad_range_t *entry
    cdef uint64_t end = slba + blocks
    cdef uint32_t i
    for i in range(BAD_RANGES):
        entry = &table.ranges[i]
        if entry.nsid == table.nsid and entry.slba <= slba <= entry.slba + entry.blocks:
            if end > entry.slba + entry.blocks:
                store_release64(&entry.blocks, end - entry.slba)
            return True
    return False


cdef bint bad_add(
    controller_t *controller, namespace_t *ns, uint64_t slba, uint64_t blocks
) noexcept nogil:
    cdef backend_t *backend = ns.backend
    cdef bad_table_t *table = backend.bad
    cdef bint added = False
    acquire(backend)
    while table != NULL and (
            table.ranges != controller.state.bad_ranges or table.nsid != ns.nsid):
        table = table.next
    if table != NULL:
        added = grow(table, slba, blocks) or insert(table, slba, blocks)
    set_attention(backend)
    release(backend)
    return added


cdef void cut(bad_table_t *table, bad_range_t *entry, uint64_t slba, uint64_t end) noexcept nogil:
    """Take [slba, end), with which it overlaps, out of an entry.

    What is left behind it gets an entry of its own first. Where there is none, it is forgotten: the
    blocks are readable then, and hold what they held.
    """
    cdef uint64_t entry_end = entry.slba + entry.blocks
    if entry.slba < slba:
        if end < entry_end:
            insert(table, end, entry_end - end)
        store_release64(&entry.blocks, slba - entry.slba)
    elif end < entry_end:
        insert(table, end, entry_end - end)
        store_release64(&entry.nsid, 0)
    else:
        store_release64(&entry.nsid, 0)


cdef void bad_clear(backend_t *backend, uint64_t slba, uint64_t blocks) noexcept nogil:
    cdef bad_table_t *table
    cdef uint32_t i
    acquire(backend)
    table = backend.bad
    while table != NULL:
        for i in range(BAD_RANGES):
            if overlaps(&table.ranges[i], table.nsid, slba, blocks):
                cut(table, &table.ranges[i], slba, <uint64_t> -1 if blocks > <uint64_t> -1 - slba else slba + blocks)
        table = table.next
    set_attention(backend)
    release(backend)


cdef void bad_forget(controller_t *controller, uint64_t nsid) noexcept:
    cdef uint32_t i
    for i in range(BAD_RANGES):
        if controller.state.bad_ranges[i].nsid == nsid:
            store_release64(&controller.state.bad_ranges[i].nsid, 0)


cdef void bad_attach(backend_t *backend, bad_table_t *table) noexcept:
    acquire(backend)
    table.next = backend.bad
    backend.bad = table
    set_attention(backend)
    release(backend)


cdef void bad_detach(backend_t *backend, bad_table_t *table) noexcept:
    cdef bad_table_t **link
    acquire(backend)
    link = &backend.bad
    while link[0] != NULL and link[0] != table:
        link = &link[0].next
    if link[0] != NULL:
        link[0] = table.next
    set_attention(backend)
    release(backend)
