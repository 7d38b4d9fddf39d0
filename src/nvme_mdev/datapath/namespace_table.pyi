"""A controller's namespaces, as IOThreads see them."""

from nvme_mdev.datapath.backends.base import Backend
from nvme_mdev.datapath.statistics import InFlight, IoCounters, Throttled

class NamespaceTable:
    """Backends by NSID. Every method is called from the control plane's thread."""

    def set(self, nsid: int, backend: Backend | None) -> None:
        """Attach or (None) detach; nothing of it may be in flight when detaching.

        ValueError: an NSID that cannot be, or one above 256 when there are 256 of those.
        """

    # The others, but for `forget_uncorrectable` and `preempt`, raise KeyError where there is none.
    def clear_uncorrectable(self, nsid: int) -> None:
        """Make every block readable that Write Uncorrectable has made unreadable, by whichever
        controller that shares it. Whoever erases the medium has to.
        """

    def forget_uncorrectable(self, nsid: int) -> None:
        """What Write Uncorrectable has left of a namespace that there is no more."""

    def retire(self, nsid: int, retired: bool = True) -> None:
        """New commands find the namespace inactive; those in flight complete normally.

        With `retired` False it is active again.
        """

    def bar(self, nsid: int, status: int) -> None:
        """Refuse new commands with this status (SCT << 8 | SC), 0: serve them again."""

    def refuse_groups(self, nsid: int, groups: int) -> None:
        """Refuse the commands of these groups (`CommandGroup`) with Reservation Conflict."""

    def format(self, nsid: int, block_size: int) -> None:
        """Blocks of another size from the next command on; nothing may be in flight."""

    def protect(self, nsid: int, read_only: bool) -> None:
        """Refuse commands that write, from the next one on, or no longer refuse them."""

    def lock(self, nsid: int, locked: bool) -> None:
        """Refuse everything that writes, or (False) only where the backend is read-only."""

    def resize(self, nsid: int, size: int) -> None:
        """The namespace has `size` bytes from the next command on, rounded down to blocks.

        What is in flight completes normally. OSError: the backend cannot have that size.
        """

    def in_use(self, nsid: int, start: int = 0, *, writing: bool = False) -> bool:
        """Whether a command of the namespace is in flight that touches byte `start` or later.

        With `start` 0 any command counts, Flush too; with `writing` those that can change it.
        """

    def preempt(self, nsid: int) -> list[InFlight]:
        """Have what is in flight of a namespace cancelled, but for reservation commands.

        What that stops ends with Command Aborted due to Preempt and Abort; the rest completes.
        """

    def counters(self, nsid: int) -> IoCounters:
        """What was moved since the namespace was attached."""

    def throttled(self, nsid: int) -> Throttled:
        """The controller's commands that wait for the namespace's limits, and that ever had to."""
