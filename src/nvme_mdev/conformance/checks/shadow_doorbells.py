"""Doorbell Buffer Config (Base 5.2.5, B.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import completed, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_identify_controller import Oacs
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("shadow_doorbells")

_NEED = needs.oacs(Oacs.DBCS)


@GROUP.check("Base 5.2.5", needs=_NEED)
def shadow_doorbells_work(subject: Subject) -> None:
    """Commands rung in the shadow page, with the register as EventIdx asks, are completed."""
    for mapped in (True, False):
        host = subject.attach(map_doorbells=mapped, shadow_doorbells=True)
        queue = host.create_queue_pair(8)
        for _ in range(40):
            succeeds(queue, commands.flush(subject.nsid))
        for _ in range(10):
            cids = [queue.start(commands.flush(subject.nsid)) for _ in range(7)]
            for cid in cids:
                completed(queue.finish(cid))


@GROUP.check("Base 5.2.5", needs=_NEED)
def buffers_are_pages(subject: Subject) -> None:
    """Buffers that are not aligned to a page are refused."""
    page = subject.host.memory.allocate(4 * 4096)
    codes = GenericStatus.INVALID_FIELD, GenericStatus.INVALID_PRP_OFFSET
    for first, second in ((64, 4096), (0, 4096 + 64)):
        sqe = commands.doorbell_buffer_config(page.iova + first, page.iova + second)
        refused(subject.host.admin_queue, sqe, *codes)


@GROUP.check("Base 5.2.5", needs=_NEED)
def buffers_are_in_memory(subject: Subject) -> None:
    """Buffers where there is no host memory are refused, and the doorbells go on."""
    sqe = commands.doorbell_buffer_config(0x7FFF_FFFF_0000, 0x7FFF_FFFF_1000)
    require(not subject.host.admin(sqe, check=False).completion.ok, "the command succeeded")
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 5.2.5", "Base 3.7.2", needs=_NEED)
def a_reset_ends_the_use_of_the_buffers(subject: Subject) -> None:
    """After a Controller Reset the doorbell registers count, not the old shadow page."""
    host = subject.attach(shadow_doorbells=False)
    shadow, event_idx = (host.memory.allocate(4096) for _ in range(2))
    succeeds(host.admin_queue, commands.doorbell_buffer_config(shadow.iova, event_idx.iova))
    host.enable()
    shadow.write(b"\x07\0\0\0" * 1024)
    for _ in range(3):
        succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 5.2.5", needs=_NEED)
def the_register_works_beside_the_buffers(subject: Subject) -> None:
    """A host that always rings the register, too, is served."""
    host = subject.attach(shadow_doorbells=True)
    queue = host.create_queue_pair(8)
    for _ in range(20):
        cid = queue.start(commands.flush(subject.nsid))
        host.write_doorbell(queue.qid, queue.tail)
        completed(queue.finish(cid))


@GROUP.check("Base 5.2.5", needs=_NEED)
def a_bad_value_in_the_buffer_hurts_nobody(subject: Subject) -> None:
    """A tail beyond the queue in the shadow page stops that queue at most."""
    host = subject.attach(shadow_doorbells=True)
    bad, good = host.create_queue_pair(8), host.create_queue_pair(8)
    bad.write_tail(0xFFFF)
    for _ in range(5):
        succeeds(good, commands.flush(subject.nsid))
    host.identify(1)
