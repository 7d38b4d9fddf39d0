"""`atomics.h` as Cython sees it."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint32_t load_acquire32(const uint32_t *p)
    uint32_t load_relaxed32(const uint32_t *p)
    uint64_t load_relaxed64(const uint64_t *p)
    void store_release16(uint16_t *p, uint16_t value)
    void store_release32(uint32_t *p, uint32_t value)
    void store_relaxed32(uint32_t *p, uint32_t value)
    void store_release64(uint64_t *p, uint64_t value)
    void store_relaxed64(uint64_t *p, uint64_t value)
    uint32_t exchange32(uint32_t *p, uint32_t value)
    uint64_t fetch_add64(uint64_t *p, uint64_t value)
    uint64_t fetch_or64(uint64_t *p, uint64_t value)
    uint64_t fetch_and64(uint64_t *p, uint64_t value)
    bint compare_exchange64(uint64_t *p, uint64_t before, uint64_t after)
    void fence_full()
    void cpu_relax()
    uint64_t read_tsc()
    void prefetch_read(const void *p)
    void prefetch_write(const void *p)
    bint seldom(bint condition)
    void copy64(void *to, const void *from_)
