"""Commands that wait for the limits of their namespace: IOPS and bandwidth (see throttle.pyx)."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.runtime cimport (
    controller_t, iothread_t, namespace_t, request_t, sq_t,
)
from nvme_mdev.datapath.token_bucket cimport TICK_SHIFT


cdef inline uint64_t limit_time(iothread_t *thread) noexcept nogil:
    """Now, as token buckets have it."""
    return (thread.clock if thread.clock else read_tsc()) << TICK_SHIFT


#: Entry `index` of a batch is ready, and its namespace has limits. How many entries have to wait for
#: these, and do; 0: it has what it needs, and may begin.
cdef uint32_t throttle_hold(
    iothread_t *thread, request_t **batch, uint32_t index, uint32_t count) noexcept nogil
#: Take the next command that need not wait any more, with the other of its fused pair, out of the
#: thread's ring; how many that is. It has to be parsed anew.
cdef uint32_t throttle_next(iothread_t *thread, uint64_t now, request_t **batch) noexcept nogil
#: Copy reads its list anew when it begins: take what that has become more than it waited for.
cdef void throttle_charge(iothread_t *thread, request_t *request, uint64_t charged, uint64_t now) noexcept nogil
#: Have one command wait no longer; with it (`partner`, else NULL) the other of its fused pair. False:
#: it does not wait. The thread stands.
cdef bint throttle_forget(iothread_t *thread, request_t *request, request_t **partner) noexcept nogil
#: End commands that wait with a status: those of an SQ, or (NULL) of all, of a namespace or (NULL) of
#: all. Their completions are in `thread.done`; True: there are some, call again. The thread stands.
cdef bint throttle_give_up(
    iothread_t *thread, controller_t *controller, sq_t *sq, namespace_t *ns, uint32_t status
) noexcept nogil
#: End a command that waits no longer (`thread.done`). The thread stands.
cdef void throttle_end(iothread_t *thread, request_t *request, uint32_t status) noexcept nogil
#: Limits have changed: whoever waits has to look again. The thread stands.
cdef void throttle_look_again(iothread_t *thread) noexcept nogil
