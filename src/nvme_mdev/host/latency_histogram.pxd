"""Distributions of latencies, with fio's buckets."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

cdef extern from * nogil:
    """
    #define HIGHEST_BIT(value) (63 - __builtin_clzll(value))
    """
    uint32_t HIGHEST_BIT(uint64_t value)

cdef enum:
    #: fio's latency buckets (stat.h: FIO_IO_U_PLAT_BITS, FIO_IO_U_PLAT_GROUP_NR): 64 a power of
    #: two, so that a bucket is at most 1.6 % wide; the last one begins at 17 s.
    PLAT_BITS = 6
    PLAT_VALUES = 64
    PLAT_GROUPS = 29
    PLAT_BUCKETS = 1856

cdef struct histogram_t:
    uint64_t count
    #: Nanoseconds, and their squares.
    uint64_t total
    uint64_t least
    uint64_t most
    double squares
    uint64_t buckets[PLAT_BUCKETS]


cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    """fio's plat_val_to_idx."""
    if ns < 2 * PLAT_VALUES:
        return <uint32_t>ns
    cdef uint32_t error_bits = HIGHEST_BIT(ns) - PLAT_BITS
    cdef uint32_t index = ((error_bits + 1) << PLAT_BITS) + <uint32_t>((ns >> error_bits) & (PLAT_VALUES - 1))
    return index if index < PLAT_BUCKETS else <uint32_t>(PLAT_BUCKETS - 1)


cdef inline void record(histogram_t *histogram, uint64_t ns, uint64_t times) noexcept nogil:
    histogram.count += times
    histogram.total += ns * times
    histogram.squares += <double>ns * <double>ns * <double>times
    if ns < histogram.least:
        histogram.least = ns
    if ns > histogram.most:
        histogram.most = ns
    histogram.buckets[bucket_of(ns)] += times


cdef inline void clear_histogram(histogram_t *histogram) noexcept nogil:
    memset(histogram, 0, sizeof(histogram_t))
    histogram.least = <uint64_t>-1
