/* A write to an eventfd without the C library, for which it is a cancellation point: where a process
 * has several threads, that is two locked operations around the system call. */
#ifndef NVME_MDEV_EVENTFD_H
#define NVME_MDEV_EVENTFD_H

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Add one to an eventfd: 0, or the error's number. */
static inline int bump_eventfd(int fd)
{
    const uint64_t one = 1;
#if defined(__x86_64__) && !defined(__ILP32__)
    long result = SYS_write;
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"((long)fd), "S"(&one), "d"(sizeof(one))
                     : "rcx", "r11", "memory");
    return result < 0 ? (int)-result : 0;
#else
    return syscall(SYS_write, fd, &one, sizeof(one)) < 0 ? errno : 0;
#endif
}

#endif
