"""The rate of the time-stamp counter, measured against the monotonic clock."""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc

import time

#: The longer between the two readings, the better the rate; the first is taken at import.
cdef uint64_t first_tsc = read_tsc()
first_ns = time.monotonic_ns()

MEASURE_NS = 10_000_000


def tsc_hz():
    """Ticks a second. Waits until 10 ms have gone by since this module was imported."""
    passed = time.monotonic_ns() - first_ns
    if passed < MEASURE_NS:
        time.sleep((MEASURE_NS - passed) / 1e9)
    # Python's integers: the product does not fit 64 bits.
    ticks: object = read_tsc() - first_tsc
    return ticks * 1_000_000_000 // (time.monotonic_ns() - first_ns)
