"""How long a thread may have a processor that others wait for: short, so that it gets it at once.

The kernel's scheduler (EEVDF; sched(7), and `sched_setattr`, since Linux 6.12) lets who asks for short
slices go first: it has as large a share as before, in smaller pieces. A client's message wakes two
threads, the control plane's and a parked IOThread, and it is the second that the guest waits for.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset


cdef extern from "<sys/syscall.h>" nogil:
    long SYS_sched_getattr
    long SYS_sched_setattr

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    #: The least that the kernel takes.
    SLICE_NS = 100000
    #: SCHED_OTHER and SCHED_BATCH of <linux/sched.h>: the policies that have such slices.
    POLICY_OTHER = 0
    POLICY_BATCH = 3

#: `struct sched_attr` of <linux/sched/types.h>, as far as it has been since Linux 3.14.
cdef struct sched_attr_t:
    uint32_t size
    uint32_t policy
    uint64_t flags
    int32_t nice
    uint32_t priority
    uint64_t runtime
    uint64_t deadline
    uint64_t period


cdef inline void shorten_slices() noexcept nogil:
    """Of the calling thread. A kernel that knows no such thing, or a real-time policy: nothing."""
    cdef sched_attr_t attributes
    memset(&attributes, 0, sizeof(attributes))
    if syscall(SYS_sched_getattr, 0, &attributes, <unsigned int> sizeof(attributes), 0) != 0:
        return
    if attributes.policy != POLICY_OTHER and attributes.policy != POLICY_BATCH:
        return
    attributes.size = sizeof(attributes)
    attributes.runtime = SLICE_NS
    syscall(SYS_sched_setattr, 0, &attributes, 0)
