"""What tests and benchmarks ask of the data path: turns, a clock, how structs lie in lines."""

from contextlib import AbstractContextManager

from nvme_mdev.datapath.iothread import IOThread

def take_turns(iothread: IOThread, count: int) -> int:
    """Take `count` turns; how much there was to do in them, 0 when nothing.

    RuntimeError when the thread was started: its turns are its own.
    """

def stop_clock(iothread: IOThread) -> None:
    """For limits it stays as late as it is now, on this thread, but for `pass_time`."""

def pass_time(iothread: IOThread, ticks: int) -> None:
    """Let time pass for limits, in ticks of the time-stamp counter (`tsc_hz`); below 0: go back.

    RuntimeError: the clock was not stopped.
    """

def struct_sizes() -> dict[str, int]:
    """Bytes of the structs of which each thread, or queue, has one in an array."""

def line_starts() -> dict[str, int]:
    """Offsets of the fields that begin a line, in their structs."""

def line_places(iothread: IOThread) -> list[int]:
    """Where, in a cache line, the structs of a thread with at least one queue begin; bytes."""

def by_hand(iothread: IOThread) -> AbstractContextManager[None]:
    """In the block, what has to happen on the thread happens in the calling one: its io_uring is
    made there, too, and closed at the end, so that files can be served.

    RuntimeError when the thread was started.
    """

def cut_off_kernel(iothread: IOThread) -> None:
    """Leave what is put on the thread's io_uring from now on where it is, for `complete_ring`.

    That for files, or on a thread that serves none that for passed commands. RuntimeError: it has
    none.
    """

def complete_ring(iothread: IOThread, result: int) -> int:
    """In the kernel's place, complete what is on the thread's io_uring with this result (bytes, of
    a passed command its status, or -errno); how many operations that was. RuntimeError: the kernel
    was not cut off.
    """
