"""The rate of the time-stamp counter, measured against the monotonic clock.

The first of the two readings is taken at import, so that whoever asks later need not wait.
"""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc

cdef enum:
    #: Long enough for 1 in 10^5 with readings that are tens of nanoseconds apart.
    CALIBRATION_NS = 20000000
    #: Readings at each end, of which the tightest counts: an interruption spoils one, not all.
    READINGS = 32

cdef uint64_t first_ticks = 0
cdef uint64_t first_ns = 0
cdef uint64_t measured_hz = 0


cdef void read_both(uint64_t *ticks, uint64_t *ns) noexcept nogil:
    """The counter and the clock at the same moment, as nearly as can be."""
    cdef uint64_t best = <uint64_t> -1
    cdef uint64_t before, time, after
    cdef int reading
    for reading in range(READINGS):
        before = read_tsc()
        time = now_ns()
        after = read_tsc()
        if after - before < best:
            best = after - before
            ticks[0] = before + (best >> 1)
            ns[0] = time


cdef uint64_t ticks_hz() noexcept nogil:
    global measured_hz
    cdef uint64_t ticks = 0
    cdef uint64_t ns = 0
    if measured_hz == 0:
        ns = now_ns()
        if ns - first_ns < CALIBRATION_NS:
            nap_ns(CALIBRATION_NS - (ns - first_ns))
        read_both(&ticks, &ns)
        measured_hz = <uint64_t> (<double> (ticks - first_ticks) * 1e9 / <double> (ns - first_ns))
    return measured_hz


def tsc_hz():
    return ticks_hz()


read_both(&first_ticks, &first_ns)
