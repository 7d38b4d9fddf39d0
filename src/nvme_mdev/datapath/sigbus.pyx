"""Containment of SIGBUS in memory that a client, or a controller below, shares with us.

A peer may shrink the file under a mapping at any time; the kernel then raises SIGBUS at our next
access. The handler puts zero pages from there to the end of the mapping and returns, so that the
access goes on: that guest sees zeroes, and nobody else sees anything; a controller below is not rung. A
SIGBUS anywhere else goes where it went before.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap,
)

from nvme_mdev.datapath.atomics cimport (
    fetch_add64, load_relaxed32, load_relaxed64, store_relaxed32, store_release64,
)

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        void *si_addr
    ctypedef struct sigset_t:
        pass
    cdef struct sigaction_t "sigaction":
        void (*sa_sigaction)(int, siginfo_t *, void *) noexcept nogil
        int sa_flags
        sigset_t sa_mask
    int sigaction(int number, const sigaction_t *action, sigaction_t *old)
    int sigemptyset(sigset_t *mask)
    enum:
        SIGBUS
        SA_SIGINFO

cdef enum:
    #: Guarded mappings at a time; a client has one or two.
    GUARDS = 4096

#: A guarded mapping. `end` 0: free. It is stored last and cleared first, so that the handler,
#: which may run in another thread at any time, never sees half an entry.
cdef struct guard_t:
    uint64_t start
    uint64_t end
    #: Some of it was replaced.
    uint32_t contained

cdef guard_t guards[GUARDS]
cdef sigaction_t previous
cdef uint64_t contained


cdef int install() noexcept nogil:
    """Make the handler ours, unless it is: another one may have been put over it since."""
    cdef sigaction_t action
    cdef sigaction_t current
    sigaction(SIGBUS, NULL, &current)
    if current.sa_sigaction == handle_sigbus:
        return 0
    memcpy(&previous, &current, sizeof(previous))
    action.sa_sigaction = handle_sigbus
    action.sa_flags = SA_SIGINFO
    sigemptyset(&action.sa_mask)
    return sigaction(SIGBUS, &action, NULL)


cdef int sigbus_guard(uint8_t *start, uint64_t size) noexcept nogil:
    cdef uint32_t i
    if install() != 0:
        return -1
    for i in range(GUARDS):
        if guards[i].end == 0:
            guards[i].start = <uint64_t> start
            store_relaxed32(&guards[i].contained, 0)
            store_release64(&guards[i].end, <uint64_t> start + size)
            return 0
    return -1


cdef guard_t *guard_of(uint8_t *start) noexcept nogil:
    """NULL: there is none."""
    cdef uint32_t i
    for i in range(GUARDS):
        if guards[i].end != 0 and guards[i].start == <uint64_t> start:
            return &guards[i]
    return NULL


cdef void sigbus_release(uint8_t *start) noexcept nogil:
    cdef guard_t *guard = guard_of(start)
    if guard != NULL:
        store_release64(&guard.end, 0)


cdef const uint32_t *sigbus_flag(uint8_t *start) noexcept nogil:
    cdef guard_t *guard = guard_of(start)
    return NULL if guard == NULL else &guard.contained


cdef bint sigbus_contained(uint8_t *start) noexcept nogil:
    cdef const uint32_t *flag = sigbus_flag(start)
    return flag != NULL and load_relaxed32(flag) != 0


cdef bint zero_from(uint64_t start, uint64_t end) noexcept nogil:
    """Zero pages in place of [start, end)."""
    return mmap(
        <void *> start, end - start, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0,
    ) != MAP_FAILED


cdef bint contain(uint64_t address) noexcept nogil:
    """Replace the rest of the guarded mapping that holds the address; False: it is in none.

    A mapping of huge pages can only be replaced from the start of one. The flag is set first: a thread
    that sees nothing of it after its copy has not copied to or from a page that came in between.
    """
    cdef uint64_t[3] page_sizes = [4 << 10, 2 << 20, 1 << 30]
    cdef uint64_t end, first
    cdef uint32_t i, size
    for i in range(GUARDS):
        end = load_relaxed64(&guards[i].end)
        if end != 0 and guards[i].start <= address < end:
            store_relaxed32(&guards[i].contained, 1)
            for size in range(3):
                first = address & ~(page_sizes[size] - 1)
                if first >= guards[i].start and zero_from(first, end):
                    return True
    return False


cdef void handle_sigbus(int number, siginfo_t *info, void *context) noexcept nogil:
    if contain(<uint64_t> info.si_addr):
        fetch_add64(&contained, 1)
        return
    # Not ours: the access is repeated on return and meets the handler that was there before.
    sigaction(SIGBUS, &previous, NULL)


def contained_count() -> int:
    """How many faults were contained since the process began."""
    return load_relaxed64(&contained)
