"""The pattern that a verifying workload writes: every block is known from its number and a seed."""

from libc.stdint cimport uint32_t, uint64_t

from nvme_mdev.datapath.clock cimport multiply_high

cdef extern from *:
    const uint64_t GOLDEN "UINT64_C(0x9E3779B97F4A7C15)"
    const uint64_t WYRAND_ADD "UINT64_C(0xA0761D6478BD642F)"
    const uint64_t WYRAND_XOR "UINT64_C(0xE7037ED1A0B428DB)"


cdef inline uint64_t next_random(uint64_t *state) noexcept nogil:
    """wyrand: 64 random bits for two multiplications (Wang Yi, wyhash)."""
    state[0] += WYRAND_ADD
    cdef uint64_t other = state[0] ^ WYRAND_XOR
    return multiply_high(state[0], other) ^ (state[0] * other)


cdef inline uint64_t pattern_base(uint64_t block, uint64_t seed) noexcept nogil:
    cdef uint64_t state = block * GOLDEN ^ seed
    return next_random(&state)


cdef inline void fill_block(uint64_t *words, uint32_t count, uint64_t block, uint64_t seed) noexcept nogil:
    """A block's pattern: its number, the seed, then words that follow from both."""
    cdef uint64_t base = pattern_base(block, seed)
    cdef uint32_t i
    for i in range(2, count):
        words[i] = base + i * GOLDEN
    words[0] = block
    words[1] = seed


cdef inline bint block_differs(
    const uint64_t *words, uint32_t count, uint64_t block, uint64_t seed
) noexcept nogil:
    """It does not have its pattern."""
    cdef uint64_t base = pattern_base(block, seed)
    cdef uint64_t difference = (words[0] ^ block) | (words[1] ^ seed)
    cdef uint32_t i
    for i in range(2, count):
        difference |= words[i] ^ (base + i * GOLDEN)
    return difference != 0
