"""A namespace on queue pairs of our own: commands go to another NVMe controller as they are."""

from typing import Protocol

from nvme_mdev.datapath.backends.base import Backend
from nvme_mdev.datapath.backends.drive import DriveNamespace
from nvme_mdev.datapath.iothread import IOThread

class LowerQueue:
    """A queue pair set aside on a controller below, for one IOThread.

    Requests wait until it runs. Every method pauses the IOThread, so none waits for I/O.
    """

    #: Of both rings; one less can be outstanding.
    entries: int
    #: Commands that the controller below has.
    outstanding: int
    #: Completions that named no command: a controller that does not keep the rules.
    strays: int

    def __init__(self, iothread: IOThread, entries: int) -> None: ...
    def run(
        self,
        *,
        sq: memoryview,
        cq: memoryview,
        tail_register: memoryview,
        head_register: memoryview,
        pages: memoryview,
        pages_iova: int,
    ) -> None:
        """Drive zeroed rings from their start; what was outstanding is executed again.

        The controller below has been reset: it touches nothing of what it was given before. What
        expired meanwhile ends (Command Abort Requested), and so do commands for a namespace that is
        lost (Internal Error).

        `pages`: one of 4 KiB an entry, which the controller below sees at `pages_iova`.
        """

    def stop(self) -> None:
        """The controller below is about to be reset: leave it alone until `run` or `fail`."""

    def fail(self) -> None:
        """The controller below is gone: everything fails (Internal Error), now and later."""

    def expired(self) -> tuple[bool, list[int]]:
        """Whether requests that wait have expired; identifiers of outstanding ones that have."""

    def close(self) -> None:
        """It is used no more; nothing is in flight."""

class Parent(Protocol):
    """Whose queues and namespaces they are; also a `nvme_mdev.datapath.memory.Mapper`."""

    def take_queue(self, iothread: IOThread) -> LowerQueue:
        """The IOThread's queue pair; its uses are counted. UserError: there is none left."""

    def give_queue(self, iothread: IOThread) -> None:
        """One use less."""

    def map(self, address: int, size: int, fd: int, offset: int, *, writable: bool) -> None: ...
    def unmap(self, address: int, size: int) -> None: ...
    def current_blocks(self, backend: NvmeBackend) -> int:
        """Blocks that the namespace has now (OSError: it is gone)."""

    def is_read_only(self, backend: NvmeBackend) -> bool:
        """Whether it can be written to now."""

    def flush(self, backend: NvmeBackend) -> None:
        """Make what was written durable (OSError: it may not be)."""

    def temperature(self) -> int | None:
        """Kelvin."""

    def smart(self) -> bytes | None:
        """Its SMART log, as read last."""

    def release(self, backend: NvmeBackend) -> None:
        """The namespace is served no more."""

class NvmeBackend(Backend):
    """A namespace, or a range of one, of a controller below."""

    parent: Parent
    #: What is below is not what it was (another format, another drive): commands fail (Internal
    #: Error) from the next that an IOThread takes on, and none is executed again.
    lost: bool

    def __init__(self, parent: Parent, drive: DriveNamespace) -> None: ...
