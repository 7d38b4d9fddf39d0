"""Fused Compare and Write (Base 3.4.2; NVM 2.1.4)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import completed, equal, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import Fuse
from nvme_mdev.spec.nvme_status import GenericStatus, MediaStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject
    from nvme_mdev.host.completion import Completion
    from nvme_mdev.host.memory import DmaBuffer
    from nvme_mdev.spec.nvme_commands import SQE

GROUP = Group("fused")

_NEED = (needs.fused, needs.writable)


def _block(subject: Subject, seed: int) -> bytes:
    return random.Random(seed).randbytes(subject.block_size)  # noqa: S311 (test data)


def _buffer(subject: Subject, data: bytes) -> DmaBuffer:
    buffer = subject.host.memory.allocate(max(4096, len(data)))
    buffer.write(data)
    return buffer


def _compare(subject: Subject, data: bytes, slba: int = 0) -> SQE:
    sqe = commands.compare(subject.nsid, slba, 1)
    sqe.flags = Fuse.FIRST
    sqe.prp1 = _buffer(subject, data).iova
    return sqe


def _write(subject: Subject, data: bytes, slba: int = 0) -> SQE:
    sqe = commands.write(subject.nsid, slba, 1)
    sqe.flags = Fuse.SECOND
    sqe.prp1 = _buffer(subject, data).iova
    return sqe


def _both(subject: Subject, first: SQE, second: SQE) -> tuple[Completion, Completion]:
    """Two commands, rung together."""
    queue = subject.queue
    for cid, sqe in ((1, first), (2, second)):
        sqe.cid = cid
        queue.post(bytes(sqe))
    queue.ring()
    found: dict[int, Completion] = {}

    def complete() -> bool:
        found.update({completion.cid: completion for completion in queue.reap()})
        return len(found) == 2

    subject.wait(complete, "both completions")
    return found[1], found[2]


@GROUP.check("Base 3.4.2", needs=_NEED, destructive=True)
def the_write_follows_an_equal_compare(subject: Subject) -> None:
    """When the Compare finds its data, the Write is done."""
    old, new = _block(subject, 1), _block(subject, 2)
    subject.queue.write(subject.nsid, 0, old)
    for completion in _both(subject, _compare(subject, old), _write(subject, new)):
        completed(completion)
    equal(subject.queue.read(subject.nsid, 0, 1), new, "the block")


@GROUP.check("Base 3.4.2", needs=_NEED, destructive=True)
def no_write_follows_another_compare(subject: Subject) -> None:
    """When the Compare fails, the Write is Command Aborted due to Failed Fused Command."""
    old, new = _block(subject, 1), _block(subject, 2)
    subject.queue.write(subject.nsid, 0, old)
    first, second = _both(subject, _compare(subject, new), _write(subject, new))
    completed(first, MediaStatus.COMPARE_FAILURE)
    completed(second, GenericStatus.ABORT_FAILED_FUSED)
    equal(subject.queue.read(subject.nsid, 0, 1), old, "the block")


@GROUP.check("Base 3.4.2", needs=_NEED, destructive=True)
def a_first_without_a_second_is_refused(subject: Subject) -> None:
    """A first fused command followed by another one is Missing Fused Command."""
    block = _block(subject, 1)
    subject.queue.write(subject.nsid, 0, block)
    first, second = _both(subject, _compare(subject, block), commands.flush(subject.nsid))
    completed(first, GenericStatus.ABORT_MISSING_FUSED)
    completed(second)


@GROUP.check("Base 3.4.2", needs=_NEED, destructive=True)
def a_second_without_a_first_is_refused(subject: Subject) -> None:
    """A second fused command without a first is Missing Fused Command, and writes nothing."""
    old, new = _block(subject, 1), _block(subject, 2)
    subject.queue.write(subject.nsid, 0, old)
    first, second = _both(subject, commands.flush(subject.nsid), _write(subject, new))
    completed(first)
    completed(second, GenericStatus.ABORT_MISSING_FUSED)
    equal(subject.queue.read(subject.nsid, 0, 1), old, "the block")


@GROUP.check("Base 3.4.2", "NVM 2.1.4", needs=_NEED, destructive=True)
def the_ranges_are_the_same(subject: Subject) -> None:
    """Compare and Write of different ranges are Invalid Field in Command."""
    block = _block(subject, 1)
    subject.queue.write(subject.nsid, 0, block)
    first, second = _both(subject, _compare(subject, block, 0), _write(subject, block, 1))
    require(not second.ok, "the Write succeeded")
    allowed = GenericStatus.INVALID_FIELD, GenericStatus.ABORT_FAILED_FUSED
    for completion in (first, second):
        if not completion.ok:
            completed(completion, *allowed)


@GROUP.check("Base 3.4.2", needs=_NEED, destructive=True)
def pairs_may_wrap_around(subject: Subject) -> None:
    """A pair whose first command is in the queue's last entry is one pair."""
    block = _block(subject, 3)
    subject.queue.write(subject.nsid, 0, block)
    queue = subject.queue
    while queue.tail != queue.sq_entries - 1:
        succeeds(queue, commands.flush(subject.nsid))
    for completion in _both(subject, _compare(subject, block), _write(subject, block)):
        completed(completion)
