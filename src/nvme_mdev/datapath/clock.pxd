"""Time and waiting: the monotonic clock in nanoseconds, the time-stamp counter, poll(2)."""

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    static inline uint64_t now_ns(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    static inline void nap_ns(long ns)
    {
        struct timespec t = {0, ns};
        nanosleep(&t, NULL);
    }
    /* The high 64 bits of a product: scales a random 64-bit number to 0 .. b - 1. */
    static inline uint64_t multiply_high(uint64_t a, uint64_t b)
    {
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    }
    /* A number times a 32.32 fixed-point factor. */
    static inline uint64_t multiply_fixed(uint64_t a, uint64_t factor)
    {
        return (uint64_t)(((unsigned __int128)a * factor) >> 32);
    }
    """
    uint64_t now_ns()
    void nap_ns(long ns)
    uint64_t multiply_high(uint64_t a, uint64_t b)
    uint64_t multiply_fixed(uint64_t a, uint64_t factor)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    short POLLIN

#: Ticks of the time-stamp counter a second; waits until 20 ms have gone by since import.
cdef uint64_t ticks_hz() noexcept nogil
