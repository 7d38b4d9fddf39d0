"""The machine's own limits: what no controller can be faster than on it.

Everything here runs without the GIL in the calling thread. `runtime_ns` is how long to measure;
results are the mean time of one operation in nanoseconds.
"""

from nvme_mdev.host.queues import QueuePair

class EchoController:
    """Completes every command of one queue pair in this process, in a thread of its own.

    It trusts its host: no check, no backpressure. The queue pair's doorbells are plain memory.
    """

    def __init__(self, queue: QueuePair) -> None: ...
    def run(self) -> None:
        """Serve, without the GIL, until `stop`."""

    def stop(self) -> None: ...

class CacheLine:
    """A word that two processors hand to each other: one calls `reflect`, the other `bounce_ns`."""

    def bounce_ns(self, runtime_ns: int) -> float:
        """The time from a store to the sight of the answer; returns early after `stop`."""

    def reflect(self) -> None:
        """Answer until `stop`."""

    def stop(self) -> None: ...

class EmptyRing:
    """An io_uring that does nothing. OSError: it is not to be had."""

    def nop_ns(self, runtime_ns: int) -> float:
        """Submit a no-operation and take its completion, in one system call. OSError as above."""

    def close(self) -> None: ...

def clock_read_ns(runtime_ns: int) -> float:
    """Read the time-stamp counter."""

def eventfd_write_ns(runtime_ns: int, fd: int) -> float:
    """Write to an eventfd on which nobody waits. OSError: it cannot be written."""

def copy_ns(runtime_ns: int, source: memoryview, target: memoryview, alone: bool = False) -> float:
    """Copy 4 KiB from one of the pages of `source`, each in turn at random, to `target`.

    `alone`: none begins before the last one is over, as at depth 1; else the processor waits for
    the memory of several at a time.
    """
