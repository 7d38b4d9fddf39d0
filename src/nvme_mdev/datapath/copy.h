/* A copy whose destination is not wanted in the caches. */
#ifndef NVME_MDEV_COPY_H
#define NVME_MDEV_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

/* Streaming stores fill whole lines without reading them first. They are not ordered with other
 * stores, hence the fence: whoever sees what is stored after the copy sees the copy. */
static inline void copy_past_caches(void *to, const void *from, size_t size)
{
    char *out = to;
    const char *in = from;
    if (((uintptr_t)out & 63) || (size & 63)) {
        memcpy(out, in, size);
        return;
    }
    for (size_t i = 0; i < size; i += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(in + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(in + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(in + i + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(in + i + 48));
        _mm_stream_si128((__m128i *)(out + i), a);
        _mm_stream_si128((__m128i *)(out + i + 16), b);
        _mm_stream_si128((__m128i *)(out + i + 32), c);
        _mm_stream_si128((__m128i *)(out + i + 48), d);
    }
    _mm_sfence();
}
#else
static inline void copy_past_caches(void *to, const void *from, size_t size)
{
    memcpy(to, from, size);
}
#endif

#endif
