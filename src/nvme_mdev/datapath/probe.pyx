"""What tests and benchmarks ask of the data path: turns of an IOThread that does not run, one after
the other in the calling thread; its clock; how its structs lie in cache lines.

For counting what a turn costs: nothing depends on when the thread looks, as it does when it spins.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from nvme_mdev.datapath.atomics cimport read_tsc
from nvme_mdev.datapath.iothread cimport IOThread, take_turns as take_turns_of
from nvme_mdev.datapath.layout cimport io_counters_t, path_counters_t, slot_t
from nvme_mdev.datapath.lines cimport LINE_SIZE
from nvme_mdev.datapath.runtime cimport aggregation_t, cq_t, iothread_t, region_t, share_t, sq_t


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


def struct_sizes():
    return {
        "sq_t": sizeof(sq_t), "cq_t": sizeof(cq_t), "share_t": sizeof(share_t),
        "region_t": sizeof(region_t), "aggregation_t": sizeof(aggregation_t),
        "slot_t": sizeof(slot_t), "io_counters_t": sizeof(io_counters_t),
        "path_counters_t": sizeof(path_counters_t),
    }


def line_starts():
    cdef sq_t *sq = NULL
    cdef iothread_t *thread = NULL
    cdef path_counters_t *counters = NULL
    return {
        "iothread_t.state": <size_t> &thread.state,
        "iothread_t.queues": <size_t> &thread.queues,
        "sq_t.event_idx": <size_t> &sq.event_idx,
        "path_counters_t.translated_timed": <size_t> &counters.translated_timed,
    }


def line_places(IOThread iothread not None):
    cdef size_t thread = <size_t> iothread.thread
    cdef size_t queue = <size_t> iothread.thread.queues[0]
    cdef size_t regions = <size_t> iothread.thread.queues[0].controller.memory.regions
    return [place % LINE_SIZE for place in (
        thread, queue, <size_t> iothread.thread.queues[0].cq, regions,
        <size_t> iothread.thread.queues[0].controller.shares,
        <size_t> iothread.thread.queues[0].path_counters, <size_t> iothread.thread.queues[0].slots)]
