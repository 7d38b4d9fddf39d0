"""Turns of an IOThread that does not run, one after the other in the calling thread.

For counting what a turn costs: nothing depends on when the thread looks, as it does when it spins.
"""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.iothread cimport IOThread, take_turns as take_turns_of


def take_turns(IOThread iothread not None, uint32_t count):
    cdef uint32_t work
    if iothread.worker is not None:
        raise RuntimeError(f"IOThread {iothread.name} runs: it takes its turns itself")
    with nogil:
        work = take_turns_of(iothread.thread, count)
    return work
