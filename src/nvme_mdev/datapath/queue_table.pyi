"""A controller's queues: the control plane's handle on the data path."""

from collections.abc import Callable, Sequence

from nvme_mdev.datapath.backends.base import Backend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.datapath.memory import GuestMemory
from nvme_mdev.datapath.state import ControllerState
from nvme_mdev.datapath.statistics import (
    DeferredCommand,
    InFlight,
    IoCounters,
    PathStatistics,
    QueueError,
    SubmissionQueue,
    Throttled,
)

#: Answers of `ring_doorbell`.
DOORBELL_OK: int
DOORBELL_INVALID_REGISTER: int
DOORBELL_INVALID_VALUE: int

class QueueTable:
    """Queues, namespaces, interrupts and guest memory of one controller, as IOThreads see them.

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

    #: An eventfd: readable when the admin doorbell moved or `take_errors` has something.
    notify_fd: int
    memory: GuestMemory
    iothreads: tuple[IOThread, ...]
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

    def sqs_of_cq(self, cqid: int) -> list[int]: ...
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

    # -- admin commands --------------------------------------------------------------------
    def fetch_admin(self) -> tuple[int, bytes] | None:
        """Next admin command: (slot, the 64-byte SQE copied into it), or None."""

    def complete_admin(
        self,
        slot: int,
        result: int,
        status: int,
        *,
        error_location: int = 0xFFFF,
        log_error: bool = True,
    ) -> bool:
        """Post the CQE and raise its interrupt. False: the admin CQ is full, call again later.

        `result` is dword 0; `status` the status field without phase: SCT << 8 | SC, More 2000h,
        DNR 4000h.
        """

    def pending_admin(self) -> list[tuple[int, bytes]]:
        """Fetched admin commands without a completion (AERs among them), the oldest first."""

    def abort_command(self, qid: int, cid: int) -> InFlight | bool:
        """Abort an I/O command; KeyError: there is no such SQ.

        True: it waited in the SQ, or for its namespace's limits, and is completed with Command
        Abort Requested. False: there is none, or it cannot be. Of one that is in flight the backend
        was asked to cancel it, which may come too late.
        """

    def is_in_flight(self, command: InFlight) -> bool:
        """Whether it has no completion yet; KeyError: its SQ is gone."""

    def log_controller_error(self, status: int) -> None:
        """Add an entry to the error log that belongs to no command, and so has the queue FFFFh.

        `status` as in `complete_admin` (Base 5.1.12.1.2).
        """

    def take_errors(self) -> list[QueueError]:
        """Doorbell errors found since the last call."""

    def clear_notify(self) -> None:
        """Reset `notify_fd`, before looking at what it told of."""

    # -- someone between the queues and the guest --------------------------------------------
    #: Called with (qid, completion, created) when a queue has come or is about to go.
    on_queue: Callable[[int, bool, bool], None] | None

    #: Called with a qid or None (all): how much of it is not moved yet; part of `inflight`.
    relayed_work: Callable[[int | None], int] | None

    def relay(self, memory: GuestMemory, doorbells: memoryview, fd: int) -> None:
        """Use this memory, and these doorbells (1024 words), in place of the guest's.

        Whoever asks for it moves what the guest rings for, and what it is told. `fd` becomes
        readable when a doorbell was written through the socket, and when a completion was posted;
        no interrupts are sent. Nothing may be in flight. OSError: a backend cannot use the memory.
        """

    def end_relay(self, memory: GuestMemory) -> None:
        """Use this memory, which is the guest's, and its own doorbells."""

    def guest_doorbell(self, qid: int, *, completion: bool = False) -> int:
        """The register that the guest writes."""

    def relayed_doorbell(self, qid: int, *, completion: bool = False) -> int:
        """The register that the queue follows."""

    def relay_doorbell(self, qid: int, value: int, *, completion: bool = False) -> None:
        """Write it."""

    def cq_tail(self, qid: int) -> int:
        """Where the next completion goes; those before it are in memory."""

    def is_contiguous(self, qid: int, *, completion: bool = False) -> bool:
        """Whether the queue is in consecutive pages, not in those of a PRP list."""

    def cq_of_sq(self, qid: int) -> int:
        """The CQ of an SQ."""

    def raise_interrupt(self, cqid: int) -> None:
        """Send the interrupt of a CQ, if it has one."""

    def log_transfer_error(self, qid: int, cid: int, status: int, nsid: int) -> None:
        """Add an entry to the Error Information log: a command's data did not get to the guest."""

    # -- I/O commands of the control plane ---------------------------------------------------
    def take_deferred(self) -> list[DeferredCommand]:
        """The reservation commands that came since the last call; `notify_fd` tells of them.

        Each is in flight until `complete_deferred`. The other methods raise KeyError for one that
        is not, since its queue is gone.
        """

    def decided_deferred(self, command: DeferredCommand) -> int | None:
        """The number that `decide_deferred` was given by a process before us, None: it was not."""

    def decide_deferred(self, command: DeferredCommand, number: int) -> None:
        """What the command does is about to happen; then `number` (16 bits of it) has been used."""

    def settle_deferred(
        self, command: DeferredCommand, status: int, location: int = 0xFFFF
    ) -> None:
        """What the command does is done, and this is its status, for the next process, too."""

    def complete_deferred(self, command: DeferredCommand, data: bytes = b"") -> None:
        """Return data, zeroes behind it, and post the completion of a command that is settled."""

    def preempt(self, nsid: int) -> list[InFlight]:
        """Have what is in flight of a namespace cancelled, but for reservation commands.

        What that stops ends with Command Aborted due to Preempt and Abort; the rest completes.
        """

    # -- guest memory ----------------------------------------------------------------------
    def map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """`GuestMemory.map`, and queues in that memory go on. Same errors."""

    def try_unmap(self, iova: int, size: int) -> int | None:
        """`GuestMemory.unmap`, or None while commands in flight use the range.

        Queues are held then: call again.
        """

    def try_unmap_all(self) -> int | None: ...
    def give_up_unmap(self) -> None:
        """The range stays mapped after all: queues that an unmapping has held go on."""

    # -- namespaces ------------------------------------------------------------------------
    def set_namespace(self, nsid: int, backend: Backend | None) -> None:
        """Attach or (None) detach; nothing of it may be in flight when detaching.

        ValueError: an NSID that cannot be, or one above 256 when there are 256 of those.
        """

    # These ten raise KeyError where no namespace is attached.
    def clear_uncorrectable(self, nsid: int) -> None:
        """Make every block readable that Write Uncorrectable has made unreadable, by whichever
        controller that shares it. Whoever erases the medium has to.
        """

    def forget_uncorrectable(self, nsid: int) -> None:
        """What Write Uncorrectable has left of a namespace that there is no more."""

    def retire_namespace(self, nsid: int, retired: bool = True) -> None:
        """New commands find the namespace inactive; those in flight complete normally.

        With `retired` False it is active again.
        """

    def bar_namespace(self, nsid: int, status: int) -> None:
        """Refuse new commands with this status (SCT << 8 | SC), 0: serve them again."""

    def refuse_groups(self, nsid: int, groups: int) -> None:
        """Refuse the commands of these groups (`CommandGroup`) with Reservation Conflict."""

    def format_namespace(self, nsid: int, block_size: int) -> None:
        """Blocks of another size from the next command on; nothing may be in flight."""

    def protect_namespace(self, nsid: int, read_only: bool) -> None:
        """Refuse commands that write, from the next one on, or no longer refuse them."""

    def lock_namespace(self, nsid: int, locked: bool) -> None:
        """Refuse everything that writes, or (False) only where the backend is read-only."""

    def resize_namespace(self, nsid: int, size: int) -> None:
        """The namespace has `size` bytes from the next command on, rounded down to blocks.

        What is in flight completes normally. OSError: the backend cannot have that size.
        """

    def namespace_in_use(self, nsid: int, start: int = 0, *, writing: bool = False) -> bool:
        """Whether a command of the namespace is in flight that touches byte `start` or later.

        With `start` 0 any command counts, Flush too; with `writing` those that can change it.
        """

    def namespace_counters(self, nsid: int) -> IoCounters:
        """What was moved since the namespace was attached."""

    def namespace_throttled(self, nsid: int) -> Throttled:
        """The controller's commands that wait for the namespace's limits, and that ever had to."""

    # -- interrupts ------------------------------------------------------------------------
    def set_vector(self, vector: int, fd: int | None, *, msi: bool = False) -> None:
        """The eventfd of a vector of MSI-X, or of MSI (the table owns it from now on, and closes
        it). It gets what is pending. Nobody uses both kinds."""

    def mask_vector(self, vector: int, masked: bool, *, by_table: bool = False) -> None:
        """Mask, or unmask and deliver what was pending. A vector is masked as long as the client
        (SET_IRQS), its entry in the MSI-X table (`by_table`), or the function mask says so."""

    def mask_function(self, masked: bool) -> None:
        """The function mask of MSI-X: all vectors."""

    def pending_vectors(self) -> list[int]:
        """Vectors with an interrupt that a mask has held back: the Pending Bit Array."""

    def forget_masks(self) -> None:
        """No vector is masked by anything but INTMS, none is pending (device reset)."""

    def set_intx(self, fd: int | None) -> None: ...
    def mask_intx(self, masked: bool) -> None:
        """Mask or unmask the pin, which its own delivery masks (VFIO_IRQ_INFO_AUTOMASKED).

        Unmasking asserts it again while a completion queue with interrupts enabled has entries
        that the guest has not consumed.
        """

    def set_intms(self, mask: int) -> None:
        """INTMS/INTMC changed (the register's value)."""

    def configure_coalescing(self) -> None:
        """Features 08h and 09h in the shared state changed: hold interrupts back as they say."""

    #: The pin is asserted: a completion queue with interrupts enabled has entries not consumed, and
    #: INTMS does not hold it back. What Status.INTx of PCI says.
    pin_level: bool

    def trigger(self, vector: int) -> None:
        """Signal a vector's eventfd (SET_IRQS with ACTION_TRIGGER); vector -1: INTx."""

    def clear_interrupts(self) -> None:
        """Close every eventfd (the client went away, or the device was reset)."""

    # -- numbers ---------------------------------------------------------------------------
    def statistics(self) -> PathStatistics:
        """What all IOThreads, and the control plane for the admin queue, did together."""

    def thread_statistics(self) -> list[PathStatistics]:
        """What each IOThread did, in the order of `iothreads`."""

    def submission_queues(self) -> list[SubmissionQueue]:
        """The I/O submission queues, by ascending identifier."""
