"""Signalling a client through its eventfds, without waiting for it.

A write to an eventfd blocks where it is full and O_NONBLOCK is not set, and both are the client's to
choose at any time: it has the same file description. No look before the write can rule that out. So
each thread says when it is about to write, and a watch, a thread of its own, interrupts with a signal
who is still at it 50 to 100 ms later. The eventfd is not used again: no driver leaves one full.

The watch looks around while there are interrupts, and sleeps, but for once a second, while there are
none.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport memset
from posix.stdlib cimport posix_memalign
from posix.time cimport timespec
from posix.unistd cimport getpid, usleep

from nvme_mdev.datapath.atomics cimport (
    load_relaxed32, store_relaxed32, store_release32,
)
from nvme_mdev.datapath.eventfd cimport bump_eventfd

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef unsigned int pthread_key_t
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_create(pthread_t *thread, void *attributes, void *(*run)(void *) noexcept nogil, void *argument)
    int pthread_detach(pthread_t thread)
    int pthread_key_create(pthread_key_t *key, void (*destructor)(void *) noexcept nogil)
    void *pthread_getspecific(pthread_key_t key)
    int pthread_setspecific(pthread_key_t key, const void *value)
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    cdef struct sigaction_t "sigaction":
        void (*sa_handler)(int) noexcept nogil
    int sigaction(int number, const sigaction_t *action, sigaction_t *old)
    int sigfillset(sigset_t *signals)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *old)
    int SIG_SETMASK
    #: One of the last real-time signals: nobody else's default. Valgrind keeps the very last.
    int KICK "(SIGRTMAX - 1)"

cdef extern from "<sys/syscall.h>" nogil:
    int SYS_futex
    int SYS_gettid
    int SYS_tgkill

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<linux/futex.h>" nogil:
    int FUTEX_WAIT_PRIVATE
    int FUTEX_WAKE_PRIVATE

cdef enum:
    CACHE_LINE = 64
    #: Between two looks of the watch.
    PERIOD_US = 50000
    #: How long it sleeps when nothing happens: it may have missed the store of one who began.
    REST_S = 1
    #: What is an eventfd that was given up: GIVEN_UP - fd.
    GIVEN_UP = -2

#: A thread that signals, on a cache line of its own.
cdef struct signaller_t:
    #: Counts calls, begun and ended: odd while it is in one.
    uint32_t calls
    #: The same as the watch saw it last.
    uint32_t seen
    int thread_id
    uint32_t in_use
    signaller_t *next

cdef pthread_key_t key
cdef pthread_mutex_t lock
#: All that there ever were; those whose threads are gone are used again.
cdef signaller_t *signallers = NULL
cdef uint32_t watched = 0
#: The watch sleeps.
cdef uint32_t resting = 0


# -- the watch ------------------------------------------------------------------------------------


cdef bint look_around() noexcept nogil:
    """Interrupt who is where he was the last time. False: nothing has happened since."""
    cdef signaller_t *signaller
    cdef uint32_t calls
    cdef bint busy = False
    pthread_mutex_lock(&lock)
    signaller = signallers
    while signaller != NULL:
        calls = load_relaxed32(&signaller.calls)
        if calls != signaller.seen:
            busy = True
        elif calls & 1:
            busy = True
            # The thread is there: it is in a call, or has just left it.
            syscall(SYS_tgkill, getpid(), signaller.thread_id, KICK)
        signaller.seen = calls
        signaller = signaller.next
    pthread_mutex_unlock(&lock)
    return busy


cdef void *watch(void *nothing) noexcept nogil:
    """The thread."""
    cdef timespec rest
    rest.tv_sec = REST_S
    rest.tv_nsec = 0
    while True:
        if look_around():
            usleep(PERIOD_US)
            continue
        store_release32(&resting, 1)
        syscall(SYS_futex, &resting, FUTEX_WAIT_PRIVATE, 1, &rest, NULL, 0)
        store_relaxed32(&resting, 0)


cdef void start_watch() noexcept nogil:
    """With every signal blocked: those of the process are for others."""
    global watched
    cdef pthread_t thread
    cdef sigset_t everything, before
    sigfillset(&everything)
    pthread_sigmask(SIG_SETMASK, &everything, &before)
    if pthread_create(&thread, NULL, watch, NULL) == 0:
        pthread_detach(thread)
        watched = 1
    pthread_sigmask(SIG_SETMASK, &before, NULL)


# -- who is watched -------------------------------------------------------------------------------


cdef signaller_t *register() noexcept nogil:
    """Have this thread watched. NULL: there is no memory for that."""
    global signallers
    cdef signaller_t *signaller
    cdef void *memory = NULL
    pthread_mutex_lock(&lock)
    signaller = signallers
    while signaller != NULL and signaller.in_use:
        signaller = signaller.next
    if signaller == NULL and posix_memalign(&memory, CACHE_LINE, CACHE_LINE) == 0:
        signaller = <signaller_t *> memory
        memset(signaller, 0, sizeof(signaller_t))
        signaller.next = signallers
        signallers = signaller
    if signaller != NULL:
        signaller.in_use = 1
        signaller.thread_id = <int> syscall(SYS_gettid)
    if not watched:
        start_watch()
    pthread_mutex_unlock(&lock)
    if signaller != NULL:
        pthread_setspecific(key, signaller)
    return signaller


cdef void unregister(void *signaller) noexcept nogil:
    """The thread ends."""
    pthread_mutex_lock(&lock)
    (<signaller_t *> signaller).in_use = 0
    pthread_mutex_unlock(&lock)


cdef void kicked(int number) noexcept nogil:
    """Does nothing: the signal is for the system call that it interrupts."""


cdef int prepare() noexcept nogil:
    """0, or the error's number."""
    cdef sigaction_t action
    memset(&action, 0, sizeof(action))
    # Without SA_RESTART: a blocked system call returns (EINTR).
    action.sa_handler = kicked
    if sigaction(KICK, &action, NULL) != 0:
        return errno
    pthread_mutex_init(&lock, NULL)
    return pthread_key_create(&key, unregister)


# -- signalling -----------------------------------------------------------------------------------


cdef bint signal_client(int *fd) noexcept nogil:
    cdef signaller_t *signaller = <signaller_t *> pthread_getspecific(key)
    cdef int error
    if fd[0] < 0:
        return False
    if signaller == NULL:
        signaller = register()
        if signaller == NULL:
            return False
    store_relaxed32(&signaller.calls, signaller.calls + 1)
    if load_relaxed32(&resting):
        store_relaxed32(&resting, 0)
        syscall(SYS_futex, &resting, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0)
    error = bump_eventfd(fd[0])
    if error == EINTR:
        fd[0] = GIVEN_UP - fd[0]
    store_relaxed32(&signaller.calls, signaller.calls + 1)
    # A full one is as good as bumped.
    return error == 0 or error == EAGAIN


cdef int client_fd(int fd) noexcept nogil:
    return GIVEN_UP - fd if fd < NO_FD else fd


def signal_eventfd(fd):
    cdef int used = fd
    return signal_client(&used)


if prepare() != 0:
    raise OSError("cannot prepare to signal clients")
