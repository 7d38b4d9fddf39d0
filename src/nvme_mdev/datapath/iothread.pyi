"""The polling thread that moves commands between guests' queues and backends."""

class IOThread:
    """A native thread that runs without the GIL; serves queues of one or more controllers."""

    name: str
    #: The processor that it is pinned to, None: any.
    cpu: int | None
    #: A file descriptor that the thread's io_uring is to hold, too, -1 for none: the kernel closes
    #: it when the last I/O is done, be that after the process' death. Set before namespaces are.
    lifeline: int

    def __init__(
        self, name: str, *, cpu: int | None = None, poll_timeout_ms: int = 500
    ) -> None: ...
    def start(self) -> None:
        """Start polling. OSError: the thread cannot be pinned, or io_uring is not to be had."""

    def stop(self) -> None:
        """Stop and join; queues must have been detached."""

    def pause(self) -> None:
        """Return when the thread stands still; may be nested, each needs its `resume`."""

    def resume(self) -> None: ...
    def wake(self) -> None:
        """Make a parked thread look at its queues (a doorbell came through the socket)."""

    def listen(self, fd: int) -> None:
        """While it is parked, any message on this socket makes it look at shadow doorbells.

        A guest stores what it rings there before it rings: who reads the message need not be waited
        for. OSError as of epoll. Until `ignore`, which must come before the socket is closed.
        """

    def ignore(self, fd: int) -> None:
        """No longer `listen`; nothing to do for a thread that does not, or has stopped."""

    def configure(self, *, cpu: int | None = None, poll_timeout_ms: int | None = None) -> None:
        """Pin to a processor (OSError: there is none of this number), or poll so long when idle.

        At once, while it runs, too; None leaves a setting as it is.
        """

    def unpin(self) -> None:
        """Run on every processor that the calling thread may use."""

    @property
    def poll_timeout_ms(self) -> int:
        """How long it polls without work before it sleeps (milliseconds)."""

    @property
    def asleep(self) -> bool:
        """It sleeps, or is about to: parked, or between two looks at mapped doorbells."""

    @property
    def queue_count(self) -> int:
        """I/O submission queues that it polls, of all its controllers."""
