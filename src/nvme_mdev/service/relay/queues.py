"""Queues as a relay sees them: where their entries are, and how far it has come with each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvme_mdev.controller.admin.queues import listed_pages
from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE_SIZE

if TYPE_CHECKING:
    import asyncio

    from nvme_mdev.datapath.queue_table import QueueTable


@dataclass(eq=False)
class RelayedQueue:
    """What both kinds have."""

    qid: int
    size: int
    """Entries."""
    entry_size: int
    pages: list[int]
    """IOVAs of its memory pages."""
    page_size: int
    alive: bool = True
    held: list[int] = field(default_factory=list)
    """Pages of the shadow that it uses."""

    def pieces(self, index: int, count: int) -> list[tuple[int, int]]:
        """(IOVA, bytes) of ``count`` entries from ``index`` on, as far as they are together."""
        found: list[tuple[int, int]] = []
        while count:
            offset = index * self.entry_size
            inside = offset % self.page_size
            run = min(count, self.size - index, (self.page_size - inside) // self.entry_size)
            at, length = self.pages[offset // self.page_size] + inside, run * self.entry_size
            if found and found[-1][0] + found[-1][1] == at:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((at, length))
            count -= run
            index = (index + run) % self.size
        return found

    def between(self, first: int, last: int) -> int:
        """Entries from one index to another."""
        return (last - first) % self.size


@dataclass(eq=False)
class RelayedSq(RelayedQueue):
    """An SQ."""

    given: int = 0
    """The tail that the data path knows: all before it is in the shadow."""
    pulling: asyncio.Task[None] | None = None


@dataclass(eq=False)
class RelayedCq(RelayedQueue):
    """A CQ."""

    pushed: int = 0
    """The next entry to be pushed."""
    sent: int = 0
    """As `pushed`, with those that are being pushed: the guest may see them before we know."""
    head: int = 0
    """The guest's, as it was passed on."""
    unsure: bool = False
    """The guest may have some of what is to be pushed: a process before us was killed."""


def sq_of(queues: QueueTable, qid: int, page_size: int) -> RelayedSq:
    """An SQ that there is."""
    place = queues.sq_place(qid)
    assert place is not None
    pages = _pages(queues, place, SQE_SIZE, page_size, queues.is_contiguous(qid))
    return RelayedSq(qid, place[1], SQE_SIZE, pages, page_size)


def cq_of(queues: QueueTable, qid: int, page_size: int) -> RelayedCq:
    """A CQ that there is."""
    place = queues.cq_place(qid)
    assert place is not None
    pages = _pages(queues, place, CQE_SIZE, page_size, queues.is_contiguous(qid, completion=True))
    return RelayedCq(qid, place[1], CQE_SIZE, pages, page_size)


def _pages(
    queues: QueueTable, place: tuple[int, int], entry_size: int, page_size: int, contiguous: bool
) -> list[int]:
    """The pages of a queue; where a PRP list names them, it is in the shadow."""
    iova, entries = place
    size = entries * entry_size
    if contiguous:
        return list(range(iova, iova + size, page_size))
    return [page for page, _ in listed_pages(queues.memory, iova, size, page_size)]
