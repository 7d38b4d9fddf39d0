"""How fast the time-stamp counter runs."""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc

cdef enum:
    #: Long enough for 1 in 10^5 with readings that are tens of nanoseconds apart.
    CALIBRATION_NS = 20000000
    #: Readings at each end, of which the tightest counts: an interruption spoils one, not all.
    READINGS = 32

cdef uint64_t measured_hz = 0


cdef void read_both(uint64_t *ticks, uint64_t *ns) noexcept nogil:
    """The counter and the clock at the same moment, as nearly as can be."""
    cdef uint64_t best = <uint64_t>-1
    cdef uint64_t before, time, after
    cdef int reading
    for reading in range(READINGS):
        before = read_tsc()
        time = now_ns()
        after = read_tsc()
        if after - before < best:
            best = after - before
            ticks[0] = before + best // 2
            ns[0] = time


cdef uint64_t ticks_hz() noexcept nogil:
    """Ticks of the time-stamp counter a second; measured at the first call, which takes 20 ms."""
    global measured_hz
    cdef uint64_t ticks0 = 0, ticks1 = 0, ns0 = 0, ns1 = 0
    if measured_hz == 0:
        read_both(&ticks0, &ns0)
        nap_ns(CALIBRATION_NS)
        read_both(&ticks1, &ns1)
        measured_hz = <uint64_t>(<double>(ticks1 - ticks0) * 1e9 / <double>(ns1 - ns0))
    return measured_hz


def tsc_hz():
    return ticks_hz()
