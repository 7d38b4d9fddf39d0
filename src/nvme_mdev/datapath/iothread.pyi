"""The polling thread that moves commands between guests' queues and backends."""

class IOThread:
    """A native thread that runs without the GIL; serves queues of one or more controllers."""

    name: str
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

    def configure(self, *, cpu: int | None = None, poll_timeout_ms: int | None = None) -> None: ...
