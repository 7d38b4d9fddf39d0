"""A controller's queues: the control plane's handle on the data path."""

from collections.abc import Sequence

from nvme_mdev.datapath.admin_pair import AdminPair
from nvme_mdev.datapath.deferred_commands import DeferredCommands
from nvme_mdev.datapath.dma_windows import DmaWindows
from nvme_mdev.datapath.interrupts import Interrupts
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.namespace_table import NamespaceTable
from nvme_mdev.datapath.relayed_queues import RelayedQueues
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.datapath.statistics import InFlight, PathStatistics, QueueError, SubmissionQueue

#: Answers of `ring_doorbell`.
DOORBELL_OK: int
DOORBELL_INVALID_REGISTER: int
DOORBELL_INVALID_VALUE: int

class QueueTable:
    """The queues of one controller, as IOThreads see them, and what else it has there.

    Every method is called from the control plane's thread. Those that change what an IOThread
    reads pause it meanwhile. The admin queue is this thread's own: an IOThread only watches its
    doorbell and makes `notify_fd` readable.
    """

    def __init__(
        self,
        state: ControllerState,
        memory: GuestMemory,
        iothreads: IOThread | Sequence[IOThread],
        *,
        max_transfer: int = ...,
        max_nsid: int = ...,
    ) -> None:
        """Attach a controller without queues to IOThreads (1 to `MAX_IOTHREADS`, ValueError).

        CQ n and its SQs are served by thread (n - 1) modulo their number; the first looks after the
        admin doorbell, too. `max_transfer`: bytes of a command. `max_nsid`: the highest NSID, NN.
        """

    @property
    def state(self) -> ControllerState: ...
    @property
    def memory(self) -> GuestMemory:
        """The guest's, or that of a relay (`RelayedQueues.begin`)."""

    @property
    def iothreads(self) -> tuple[IOThread, ...]: ...
    @property
    def notify_fd(self) -> int:
        """An eventfd: readable when the admin doorbell moved, or `take_errors` or
        `DeferredCommands.take` has something."""

    @property
    def namespaces(self) -> NamespaceTable: ...
    @property
    def interrupts(self) -> Interrupts: ...
    @property
    def dma(self) -> DmaWindows: ...
    @property
    def admin(self) -> AdminPair: ...
    @property
    def deferred(self) -> DeferredCommands: ...
    @property
    def relayed(self) -> RelayedQueues: ...

    #: The client can ring without a system call that we would see (it was given the page): the
    #: IOThread then sleeps in short steps instead of parking. True until told otherwise.
    doorbells_mapped: bool

    def close(self) -> None:
        """Detach from the IOThread and free everything; nothing may be in flight."""

    # -- life cycle ------------------------------------------------------------------------
    def enable(
        self,
        *,
        admin_sq: int,
        admin_sq_size: int,
        admin_cq: int,
        admin_cq_size: int,
        page_size: int,
        dstrd: int = 0,
        weighted: bool = False,
    ) -> None:
        """CC.EN 0 to 1: bind the admin queue pair (IOVAs; sizes in entries), zero the doorbells.

        `weighted`: weighted round robin with urgent priority class (CC.AMS), by the SQs' priority.
        """

    def stop(self) -> None:
        """No more fetching, no more completions posted (controller reset).

        Then wait for `inflight() == 0`.
        """

    def disable(self) -> None:
        """After `stop` and drain: forget all queues, slots, shadow doorbells."""

    def hold(self, qid: int | None = None) -> None:
        """Stop fetching from one I/O SQ, or all of them; what is in flight completes normally."""

    def release(self, qid: int | None = None) -> None: ...

    #: The host holds all I/O SQs, those that are created meanwhile included, whatever `release`
    #: says; what is in flight completes normally. Resets do not change it.
    paused: bool
    #: How long a command may take, for backends whose medium has a time-out for each; 0: not said.
    io_timeout_ms: int

    def inflight(self, qid: int | None = None) -> int:
        """Commands that are being executed, of one I/O SQ or all I/O SQs.

        What waits for a namespace's limits is not: nothing has to wait for it.
        """

    #: Commands that wait for the limits of their namespaces.
    throttled: int

    def end_throttled(self, qid: int | None = None) -> None:
        """End those of an I/O SQ, or of all, with Command Aborted due to SQ Deletion.

        The queue is held: no others follow. KeyError: there is none.
        """

    def cancel_expired(self, timeout_ms: int) -> list[tuple[int, int]]:
        """Ask the backend to cancel I/O older than this; (qid, CID) of each such command."""

    def abort_command(self, qid: int, cid: int) -> InFlight | bool:
        """Abort an I/O command; KeyError: there is no such SQ.

        True: it waited in the SQ, or for its namespace's limits, and is completed with Command
        Abort Requested. False: there is none, or it cannot be. Of one that is in flight the backend
        was asked to cancel it, which may come too late.
        """

    def is_in_flight(self, command: InFlight) -> bool:
        """Whether it has no completion yet; KeyError: its SQ is gone."""

    # -- after a process before us ----------------------------------------------------------
    def adopt(self, *, page_size: int, dstrd: int = 0, weighted: bool = False) -> None:
        """Take over the queues that the state describes, as a process that died has left them.

        Guest memory is mapped as it was. Commands whose completion was posted are over; heads and
        tails are set right where that process had no time for it. ValueError: a queue is not in
        guest memory.
        """

    def execute_again(self) -> None:
        """Execute the I/O commands that are in flight after `adopt`, and serve the queues.

        Each completion queue's interrupt is raised once: nobody knows whether it was.
        """

    # -- queues (the controller has validated everything but the memory) ----------------------
    def create_cq(
        self,
        qid: int,
        iova: int,
        size: int,
        vector: int,
        *,
        interrupts: bool,
        contiguous: bool = True,
    ) -> None:
        """Not contiguous: `iova` is that of a PRP list that names its pages, and stays in use."""

    def delete_cq(self, qid: int) -> None: ...
    def create_sq(
        self,
        qid: int,
        cqid: int,
        iova: int,
        size: int,
        *,
        priority: int = 0,
        contiguous: bool = True,
    ) -> None: ...
    def delete_sq(self, qid: int) -> None:
        """The SQ must be held and have nothing in flight."""

    def has_sq(self, qid: int) -> bool: ...
    def has_cq(self, qid: int) -> bool: ...
    def sq_place(self, qid: int) -> tuple[int, int] | None:
        """IOVA and entries of an SQ, None: there is none."""

    def cq_place(self, qid: int) -> tuple[int, int] | None:
        """IOVA and entries of a CQ, None: there is none."""

    def is_contiguous(self, qid: int, *, completion: bool = False) -> bool:
        """Whether the queue is in consecutive pages, not in those of a PRP list."""

    def sqs_of_cq(self, cqid: int) -> list[int]: ...
    def cq_of_sq(self, qid: int) -> int:
        """The CQ of an SQ."""

    def cq_tail(self, qid: int) -> int:
        """Where the next completion goes; those before it are in memory."""

    def submission_queues(self) -> list[SubmissionQueue]:
        """The I/O submission queues, by ascending identifier."""

    def set_arbitration(self, burst: int, high: int = 1, medium: int = 1, low: int = 1) -> None:
        """Most commands taken from one queue in a turn (0: no limit asked for), and, with weighted
        round robin, the commands of each priority class in a round."""

    def set_doorbell_buffers(self, shadow_iova: int, event_idx_iova: int) -> bool:
        """Doorbell Buffer Config (NVMe Base, section 5.2.5).

        False: the pages are not writable memory.
        """

    def ring_doorbell(self, qid: int, value: int, *, completion: bool = False) -> int:
        """A write to a doorbell register (SQ tail, or CQ head) through the socket; wakes the
        IOThread."""

    def ring_behind_tail(self, qid: int, value: int) -> None:
        """A write to the 4 bytes behind an SQ tail doorbell, where drivers that take no notice of
        CAP.DSTRD ring the CQ head: kept, as in mapped memory, and looked at when the CQ is full."""

    # -- errors ----------------------------------------------------------------------------
    def log_controller_error(self, status: int) -> None:
        """Add an entry to the error log that belongs to no command, and so has the queue FFFFh.

        `status` as in `AdminPair.complete` (Base 5.1.12.1.2).
        """

    def take_errors(self) -> list[QueueError]:
        """Doorbell errors found since the last call."""

    def clear_notify(self) -> None:
        """Reset `notify_fd`, before looking at what it told of."""

    def log_transfer_error(self, qid: int, cid: int, status: int, nsid: int) -> None:
        """Add an entry to the Error Information log: a command's data did not get to the guest."""

    # -- numbers ---------------------------------------------------------------------------
    def statistics(self) -> PathStatistics:
        """What all IOThreads, and the control plane for the admin queue, did together."""

    def thread_statistics(self) -> list[PathStatistics]:
        """What each IOThread did, in the order of `iothreads`."""
