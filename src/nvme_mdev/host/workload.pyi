"""What is to be done on a queue pair, and what its loop has measured."""

from collections.abc import Sequence

from nvme_mdev.host.queues import QueuePair
from nvme_mdev.host.samples import Failure, FirstError, Measured

def bucket_index(ns: int) -> int:
    """The bucket of a distribution that a latency falls into."""

def block_pattern(block: int, seed: int, size: int) -> bytes:
    """The data of a logical block of `size` bytes (at least 512) under verification."""

class Workload:
    """Commands of one size on one queue pair, kept `len(prps)` deep.

    `run` runs without the GIL in the thread that calls it; `stop` and `progress` are for others.
    The queue pair must have nothing outstanding, and belongs to the workload while it runs.
    """

    @property
    def queue(self) -> QueuePair: ...
    @property
    def progress(self) -> int:
        """Commands completed so far."""
    @property
    def written_units(self) -> int:
        """How many different units were written under verification."""
    @property
    def elapsed_ns(self) -> int:
        """From before the first submission to after the last completion."""
    @property
    def errors(self) -> int:
        """Commands completed with an error status, over all runs."""
    @property
    def mismatches(self) -> int:
        """Logical blocks read that were not what had been written."""
    @property
    def checked_blocks(self) -> int:
        """Logical blocks read and compared."""
    @property
    def wakeups(self) -> int:
        """Interrupts taken in the last run."""
    @property
    def failure(self) -> Failure:
        """Why the last run ended before its time."""
    @property
    def first_error(self) -> FirstError | None: ...
    def __init__(
        self,
        queue: QueuePair,
        *,
        nsid: int,
        block_size: int,
        blocks_per_io: int,
        first_block: int,
        units: int,
        prps: Sequence[tuple[int, int]],
        data: memoryview,
        data_stride: int,
        read_fraction: float = 1.0,
        random: bool = True,
        seed: int = 1,
        data_seed: int = 1,
        verify: bool = False,
        check_all: bool = False,
        runtime_ns: int = 0,
        commands: int = 0,
        timeout_ns: int = ...,
        max_errors: int = 0,
        batch: int = 0,
    ) -> None:
        """Describe the work.

        A command moves `blocks_per_io` logical blocks of `block_size` bytes; it starts at
        `first_block` plus a multiple of that, of which there are `units`. `prps` are PRP1 and
        PRP2 of each command that can be outstanding, `data` their buffers, `data_stride` apart
        (8-byte aligned).

        It ends after `runtime_ns` or `commands`, whichever comes first (0: never). `seed` makes
        the random numbers. With `verify` writes carry `block_pattern(block, data_seed)`, and
        reads of what was written here (`check_all`: every read) must return it.
        More than `max_errors` error statuses or mismatches end the run; so does a time of
        `timeout_ns` (default 30 s) without any completion. `batch` completions at most are
        taken before the doorbell is rung (0: as many as there are).
        """

    def run(self) -> None:
        """Do the work; measurements start from zero. Look at `failure` afterwards.

        Raises what ringing a doorbell through the socket raised.
        """

    def run_read_back(self) -> None:
        """Read and compare everything that was written under verification, in order, once."""

    def stop(self, *, abandon: bool = False) -> None:
        """End the run soon: outstanding commands are awaited, unless `abandon`."""

    def measured(self, *, write: bool) -> Measured:
        """What the last run measured in one direction."""

def run_together(workloads: Sequence[Workload]) -> None:
    """Run several in the calling thread, a look at each in turn, until the last is over.

    ValueError: one of them sleeps for interrupts. Raises what ringing a doorbell through the socket
    raised.
    """
