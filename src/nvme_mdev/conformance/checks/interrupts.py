"""MSI-X and coalescing (PCIe 3.5; Base 5.1.25.2)."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import completed, equal
from nvme_mdev.conformance.subject import QUIET
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_features import Fid, InterruptCoalescing, InterruptVectorConfiguration
from nvme_mdev.spec.vfio_user import IrqSetFlags, PciIrq
from nvme_mdev.vfio_user.device import SetIrqs

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("interrupts")

_WITHOUT_HANDLER = SetIrqs(
    PciIrq.MSIX, 1, 1, IrqSetFlags.DATA_EVENTFD, IrqSetFlags.ACTION_TRIGGER, ()
)
"""Vector 1 gets no eventfd instead of the one that it has."""


def _signals(eventfd: int) -> int:
    """Interrupts since the last look."""
    with suppress(BlockingIOError):
        return os.eventfd_read(eventfd)
    return 0


def _wait_signal(subject: Subject, eventfd: int) -> None:
    subject.wait(lambda: _signals(eventfd) > 0, "an interrupt")


@GROUP.check("PCIe 3.5", needs=needs.msix)
def a_completion_is_an_interrupt(subject: Subject) -> None:
    """A completion in a CQ with interrupts enabled signals the CQ's vector."""
    queue = subject.host.create_queue_pair(16, interrupts=True, vector=1)
    for _ in range(5):
        _signals(queue.eventfd)
        queue.start(commands.flush(subject.nsid))
        _wait_signal(subject, queue.eventfd)
        queue.collect()


@GROUP.check("PCIe 3.5", "Base 5.2.1", needs=needs.msix)
def without_ien_there_is_no_interrupt(subject: Subject) -> None:
    """A CQ that was created with IEN = 0 signals nothing."""
    eventfds = [subject.host.interrupt(vector) for vector in (0, 1)]
    queue = subject.host.create_queue_pair(16, qid=1)
    time.sleep(QUIET / 5)
    for eventfd in eventfds:
        _signals(eventfd)
    completed(queue.finish(queue.start(commands.flush(subject.nsid))))
    time.sleep(QUIET)
    equal(_signals(eventfds[1]), 0, "interrupts of vector 1")


@GROUP.check("PCIe 3.5", needs=needs.msix)
def the_admin_queue_uses_vector_0(subject: Subject) -> None:
    """A completion in the admin CQ signals vector 0."""
    eventfd = subject.host.interrupt(0)
    _signals(eventfd)
    subject.host.identify(1)
    _wait_signal(subject, eventfd)


@GROUP.check("PCIe 3.5", needs=needs.msix)
def queues_can_share_a_vector(subject: Subject) -> None:
    """Several CQs can have the same vector, and each signals it."""
    if min(subject.host.queue_counts) < 2:
        raise NotApplicable("only one queue pair")
    queues = [
        subject.host.create_queue_pair(16, qid=qid, interrupts=True, vector=1) for qid in (1, 2)
    ]
    for queue in queues:
        _signals(queue.eventfd)
        queue.start(commands.flush(subject.nsid))
        _wait_signal(subject, queue.eventfd)


@GROUP.check("PCIe 3.5", "Base 5.1.25.2.2", needs=needs.msix)
def coalescing_loses_no_interrupt(subject: Subject) -> None:
    """With coalescing on, completions below the threshold are signalled when the time is over."""
    queue = subject.host.create_queue_pair(16, interrupts=True, vector=1)
    subject.host.set_features(Fid.INTERRUPT_COALESCING, InterruptCoalescing(thr=7, time=20).pack())
    for count in (1, 3, 8, 15):
        _signals(queue.eventfd)
        outstanding = count
        for _ in range(count):
            queue.submit(bytes(commands.flush(subject.nsid)))
        while outstanding:
            _wait_signal(subject, queue.eventfd)
            outstanding -= len(queue.reap())


@GROUP.check("PCIe 3.5", "Base 5.1.25.2.3", needs=needs.msix)
def coalescing_can_be_off_for_a_vector(subject: Subject) -> None:
    """A vector with Coalescing Disable signals its completions at once."""
    queue = subject.host.create_queue_pair(16, interrupts=True, vector=1)
    value = InterruptVectorConfiguration(iv=1, cd=True).pack()
    subject.host.set_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, value)
    subject.host.set_features(
        Fid.INTERRUPT_COALESCING, InterruptCoalescing(thr=255, time=255).pack()
    )
    for _ in range(3):
        _signals(queue.eventfd)
        queue.start(commands.flush(subject.nsid))
        _wait_signal(subject, queue.eventfd)
        queue.collect()


@GROUP.check("PCIe 3.5", needs=needs.msix)
def a_vector_that_is_taken_away_hurts_nobody(subject: Subject) -> None:
    """A CQ whose vector has no handler goes on without interrupts."""
    queue = subject.host.create_queue_pair(16, interrupts=True, vector=1)
    other = subject.host.create_queue_pair(16)
    subject.host.transport.client.set_irqs(_WITHOUT_HANDLER)
    sqe = bytes(commands.flush(subject.nsid))
    queue.submit(sqe)
    subject.wait(lambda: bool(queue.reap()), "the completion")
    completed(other.finish(other.start(commands.flush(subject.nsid))))
