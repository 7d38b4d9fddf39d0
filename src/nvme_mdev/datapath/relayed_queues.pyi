"""A controller's queues where someone stands between them and the guest: a relay."""

from collections.abc import Callable

from nvme_mdev.datapath.memory import GuestMemory

class RelayedQueues:
    """The doorbells that the guest writes, and those that the queues follow."""

    #: Called with (qid, completion, created) when a queue has come or is about to go.
    on_queue: Callable[[int, bool, bool], None] | None

    #: Called with a qid or None (all): how much of it is not moved yet, which `QueueTable.inflight`
    #: counts, too.
    work: Callable[[int | None], int] | None

    def begin(self, memory: GuestMemory, doorbells: memoryview, fd: int) -> None:
        """Use this memory, and these doorbells (1024 words), in place of the guest's.

        Whoever asks for it moves what the guest rings for, and what it is told. `fd` becomes
        readable when a doorbell was written through the socket, and when a completion was posted;
        no interrupts are sent. Nothing may be in flight. OSError: a backend cannot use the memory.
        """

    def end(self, memory: GuestMemory) -> None:
        """Use this memory, which is the guest's, and its own doorbells."""

    def guest_doorbell(self, qid: int, *, completion: bool = False) -> int:
        """The register that the guest writes."""

    def doorbell(self, qid: int, *, completion: bool = False) -> int:
        """The register that the queue follows."""

    def ring(self, qid: int, value: int, *, completion: bool = False) -> None:
        """Write it."""
