"""I/O commands that the control plane executes: those of reservations."""

from nvme_mdev.datapath.statistics import DeferredCommand

class DeferredCommands:
    """A controller's deferred commands, from when they were handed over to their completions."""

    def take(self) -> list[DeferredCommand]:
        """The reservation commands that came since the last call; `notify_fd` tells of them.

        Each is in flight until `complete`. The other methods raise KeyError for one that
        is not, since its queue is gone.
        """

    def decided(self, command: DeferredCommand) -> int | None:
        """The number that `decide` was given by a process before us, None: it was not."""

    def decide(self, command: DeferredCommand, number: int) -> None:
        """What the command does is about to happen; then `number` (16 bits of it) has been used."""

    def settle(self, command: DeferredCommand, status: int, location: int = 0xFFFF) -> None:
        """What the command does is done, and this is its status, for the next process, too."""

    def complete(self, command: DeferredCommand, data: bytes = b"") -> None:
        """Return data, zeroes behind it, and post the completion of a command that is settled."""
