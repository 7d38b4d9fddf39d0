"""Turns of an IOThread that does not run, one after the other in the calling thread; its clock.

For counting what a turn costs: nothing depends on when the thread looks, as it does when it spins.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.iothread cimport IOThread, take_turns as take_turns_of


def take_turns(IOThread iothread not None, uint32_t count):
    cdef uint32_t work
    if iothread.worker is not None:
        raise RuntimeError(f"IOThread {iothread.name} runs: it takes its turns itself")
    with nogil:
        work = take_turns_of(iothread.thread, count)
    return work


def stop_clock(IOThread iothread not None):
    iothread.pause()
    iothread.thread.clock = read_tsc()
    iothread.resume()


def pass_time(IOThread iothread not None, int64_t ticks):
    if not iothread.thread.clock:
        raise RuntimeError("the clock has not been stopped")
    iothread.pause()
    iothread.thread.clock += <uint64_t> ticks
    iothread.resume()
