"""A queue pair as Python drives it: one command at a time, any bytes, any doorbell value."""

from collections.abc import Callable
from typing import TypeAlias

from nvme_mdev.host.completion import Completion

_Bytes: TypeAlias = bytes | bytearray | memoryview

class QueuePair:
    """A submission queue and its completion queue, in memory that the controller sees.

    It knows rings, phase tags and doorbells, and nothing of admin commands: the queues must have
    been created on the controller. Not safe for more than one thread at a time.
    """

    @property
    def qid(self) -> int:
        """Queue identifier, 0 for the admin queues."""
    @property
    def eventfd(self) -> int:
        """Signalled by the controller's interrupt; -1: polled."""
    @property
    def sq_head(self) -> int:
        """The submission queue's head as the last completion reported it (SQHD)."""
    @property
    def sq_entries(self) -> int: ...
    @property
    def cq_entries(self) -> int: ...
    @property
    def tail(self) -> int:
        """Where the next submission queue entry goes."""
    @property
    def head(self) -> int:
        """Where the next completion is expected."""
    @property
    def rings_by_socket(self) -> bool:
        """The doorbell registers are not mapped: each ring is a message."""

    def __init__(
        self,
        qid: int,
        *,
        sq: memoryview,
        cq: memoryview,
        sq_entries: int,
        cq_entries: int,
        write_doorbell: Callable[[bool, int], None],
        tail_register: memoryview | None = None,
        head_register: memoryview | None = None,
        tail_shadow: tuple[memoryview, memoryview] | None = None,
        head_shadow: tuple[memoryview, memoryview] | None = None,
        eventfd: int = -1,
    ) -> None:
        """Drive zeroed rings from their start.

        `write_doorbell(completion, value)` writes the CQ head or SQ tail register through the
        socket; it is used when the `*_register` (4 bytes of mapped doorbells) is None. The
        `*_shadow` are (shadow doorbell, EventIdx) of Doorbell Buffer Config, 4 bytes each.
        """

    def close(self) -> None:
        """Let go of the memory; using the queue pair afterwards is a ValueError."""

    def room(self) -> int:
        """How many entries can be posted before the submission queue is full."""

    def post(self, sqe: _Bytes, *, force: bool = False) -> None:
        """Write a 64-byte entry at the tail; does not ring.

        QueueFullError when there is no room, unless `force`.
        """

    def ring(self) -> None:
        """Tell the controller of what was posted: shadow doorbell, register or both."""

    def submit(self, sqe: _Bytes, *, force: bool = False) -> None:
        """`post` and `ring`."""

    def write_tail(self, value: int) -> None:
        """Ring the submission queue tail doorbell with any value; does not move the tail."""

    def write_head(self, value: int) -> None:
        """Ring the completion queue head doorbell with any value; does not move the head."""

    def reap(self, maximum: int = 0, *, acknowledge: bool = True) -> list[Completion]:
        """Take the completions that are there, at most `maximum` (0: all, but
        no more than the queue has entries), and ring the CQ head.

        Does not wait. With `acknowledge` False the doorbell is left to `acknowledge()`.
        """

    def acknowledge(self) -> None:
        """Ring the completion queue head doorbell: what was reaped can be used again."""

    def wait(self, timeout: float) -> bool:
        """Wait until there is a completion, at most `timeout` seconds; whether there is one.

        Polls, then naps, or sleeps on the eventfd. Does not take the completion.
        """
