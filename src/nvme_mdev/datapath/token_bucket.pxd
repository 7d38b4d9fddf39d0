"""Token buckets: limits of a rate, with a burst.

A bucket holds at most `burst` tokens, and gets `rate` a second. What takes more than it can ever hold
may when it is full, and the bucket owes the rest. So in any time t no more than burst + rate * t is
taken, but for the last one.

It is one word, the time when the bucket is full again (a virtual scheduling algorithm, as ATM's
generic cell rate algorithm): taking tokens moves it, time does the filling. IOThreads that share a
bucket change the word atomically. Two that look at the same moment may both find the last token; then
it is owed, so the rate holds.
"""

from libc.stdint cimport int64_t, uint64_t

from nvme_mdev.datapath.atomics cimport compare_exchange64, load_relaxed64
from nvme_mdev.datapath.runtime cimport bucket_t

cdef enum:
    #: Fractional bits of a time in ticks: at 10 million a second a token is still 1 in 1000 exact.
    TICK_SHIFT = 4

cdef extern from *:
    """
    #include <stdint.h>
    /* How long so many tokens take; more than 10 years count as these. */
    static inline uint64_t bucket_time(uint64_t tokens, uint64_t token_time)
    {
        unsigned __int128 time = ((unsigned __int128)tokens * token_time) >> 24;
        return time > (UINT64_C(1) << 61) ? UINT64_C(1) << 61 : (uint64_t)time;
    }
    /* What a token takes at `rate` tokens a second of `hz` ticks. */
    static inline uint64_t bucket_token_time(uint64_t hz, uint64_t rate)
    {
        return (uint64_t)((((unsigned __int128)hz << 28) + rate / 2) / rate);
    }
    """
    uint64_t bucket_time(uint64_t tokens, uint64_t token_time) nogil
    uint64_t bucket_token_time(uint64_t hz, uint64_t rate) nogil


cdef inline void bucket_set(bucket_t *bucket, uint64_t hz, uint64_t rate, uint64_t burst, uint64_t now) noexcept nogil:
    """A limit, from now on with a full bucket; rate 0: none."""
    bucket.token_time = bucket_token_time(hz, rate) if rate else 0
    bucket.burst_time = bucket_time(burst, bucket.token_time)
    bucket.full_at = now


cdef inline uint64_t bucket_due(bucket_t *bucket, uint64_t tokens, uint64_t now) noexcept nogil:
    """When there will be so many tokens, `now` when there are: as times, modulo 2^64."""
    cdef uint64_t needed = bucket_time(tokens, bucket.token_time)
    cdef uint64_t due
    if needed > bucket.burst_time:
        needed = bucket.burst_time
    due = load_relaxed64(&bucket.full_at) + needed - bucket.burst_time
    return due if <int64_t> (due - now) > 0 else now


cdef inline void bucket_take(bucket_t *bucket, uint64_t tokens, uint64_t now) noexcept nogil:
    """Take tokens, which may not be there."""
    cdef uint64_t before, start
    while True:
        before = load_relaxed64(&bucket.full_at)
        start = before if <int64_t> (before - now) > 0 else now
        if compare_exchange64(
                &bucket.full_at, before, start + bucket_time(tokens, bucket.token_time)):
            return
