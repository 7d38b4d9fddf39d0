/* Memory ordering and the processor's small instructions, for Cython: it has no words for them.
 *
 * Names follow C11: a load with acquire order is not passed by later accesses, a store with
 * release order does not pass earlier ones. Every use says in a comment what it orders.
 */
#ifndef NVME_MDEV_ATOMICS_H
#define NVME_MDEV_ATOMICS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t load_acquire32(const volatile uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline uint32_t load_relaxed32(const volatile uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline uint64_t load_relaxed64(const volatile uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline void store_release16(volatile uint16_t *p, uint16_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static inline void store_release32(volatile uint32_t *p, uint32_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static inline void store_relaxed32(volatile uint32_t *p, uint32_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELAXED);
}

static inline void store_release64(volatile uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static inline void store_relaxed64(volatile uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELAXED);
}

static inline uint32_t exchange32(volatile uint32_t *p, uint32_t value)
{
    return __atomic_exchange_n(p, value, __ATOMIC_ACQ_REL);
}

static inline uint64_t fetch_add64(volatile uint64_t *p, uint64_t value)
{
    return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}

static inline uint64_t fetch_or64(volatile uint64_t *p, uint64_t value)
{
    return __atomic_fetch_or(p, value, __ATOMIC_RELAXED);
}

static inline uint64_t fetch_and64(volatile uint64_t *p, uint64_t value)
{
    return __atomic_fetch_and(p, value, __ATOMIC_RELAXED);
}

/* True: it was `before` and is `after` now. */
static inline int compare_exchange64(volatile uint64_t *p, uint64_t before, uint64_t after)
{
    return __atomic_compare_exchange_n(p, &before, after, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* A full fence: the one order that neither acquire nor release gives is store before load. */
static inline void fence_full(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Tell the core that this is a spin loop. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The time-stamp counter: constant rate, not ordered with the instructions around it. */
static inline uint64_t read_tsc(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t value;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
#else
#error "no time-stamp counter known for this processor"
#endif
}

/* The empty statements keep functions that do nothing else: GCC takes these for pure. */
static inline void prefetch_read(const void *p)
{
    __builtin_prefetch(p, 0, 3);
    __asm__ volatile("");
}

static inline void prefetch_write(const void *p)
{
#if defined(__x86_64__)
    /* GCC writes a prefetch for reading unless it is told of PRFCHW, which every x86-64 processor
     * takes (the first ones do nothing then). */
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1, 3);
    __asm__ volatile("");
#endif
}

/* A condition that is seldom true: what follows from it is kept out of the way of the rest. */
#define seldom(condition) __builtin_expect(!!(condition), 0)

/* 64 bytes in a fixed-size copy, which the compiler turns into vector moves. */
static inline void copy64(void *to, const void *from)
{
    memcpy(to, from, 64);
}

#endif
