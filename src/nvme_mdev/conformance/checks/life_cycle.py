"""Enable, disable, shutdown and resets (Base 3.5, 3.6, 3.7)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.conformance.subject import QUIET
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import CQE_SIZE
from nvme_mdev.spec.nvme_features import Arbitration, Fid
from nvme_mdev.spec.nvme_registers import (
    NSSR_NSSRC,
    CapBit,
    Cc,
    Csts,
    CstsBit,
    Register,
    Shn,
    Shst,
)
from nvme_mdev.spec.nvme_status import CommandStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("life_cycle")

_ADMIN_REGISTERS = (Register.AQA, Register.ASQ, Register.ACQ)


def _set_en(subject: Subject, en: bool) -> None:
    cc = subject.register(Register.CC)
    subject.host.write_register(Register.CC, cc & ~1 | int(en))
    subject.wait_ready(ready=en)


def _works(subject: Subject) -> None:
    """Enable it, and use admin and I/O queues."""
    subject.host.enable()
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 3.5.1")
def enabling_sets_ready(subject: Subject) -> None:
    """CSTS.RDY becomes 1 after CC.EN was set, without CSTS.CFS."""
    csts = subject.host.csts()
    require(csts.rdy and not csts.cfs, f"{csts}")


@GROUP.check("Base 3.1.4.5", "Base 3.7.2")
def disabling_clears_ready(subject: Subject) -> None:
    """CSTS.RDY becomes 0 after CC.EN was cleared."""
    _set_en(subject, en=False)


@GROUP.check("Base 3.7.2")
def a_controller_reset_keeps_the_admin_queue_registers(subject: Subject) -> None:
    """AQA, ASQ and ACQ keep their values through a Controller Reset by CC.EN."""
    before = [subject.register(register) for register in _ADMIN_REGISTERS]
    _set_en(subject, en=False)
    equal([subject.register(register) for register in _ADMIN_REGISTERS], before, "AQA, ASQ, ACQ")


@GROUP.check("Base 3.7.2")
def a_controller_reset_deletes_the_io_queues(subject: Subject) -> None:
    """The I/O queues are gone after a Controller Reset: their identifiers can be used again."""
    _ = subject.queue
    subject.host.enable()
    _ = subject.host.queue_counts
    page = subject.host.memory.allocate(4096)
    refused(
        subject.host.admin_queue,
        commands.create_io_sq(1, 16, page.iova, 1),
        CommandStatus.COMPLETION_QUEUE_INVALID,
    )
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 3.7.2", "Base 5.1.2")
def a_controller_reset_ends_outstanding_commands(subject: Subject) -> None:
    """Commands that were outstanding at a Controller Reset are never completed."""
    host = subject.host
    host.request_events(2)
    cq = host.admin_queue.rings.cq
    before = cq.read()
    _set_en(subject, en=False)
    time.sleep(QUIET)
    equal(cq.read(), before, "the admin CQ after the reset")


@GROUP.check("Base 3.7.2", "Base 4.2.4")
def queues_begin_anew_after_a_reset(subject: Subject) -> None:
    """After a reset the first completion is in entry 0, with phase tag 1 and SQHD 1."""
    subject.host.enable()
    queue = subject.host.admin_queue
    succeeds(queue, commands.identify(1), receive=4096)
    entry = queue.rings.cq.read(0, CQE_SIZE)
    require(entry[14] & 1, "the phase tag of entry 0 is 0")
    equal(int.from_bytes(entry[8:10], "little"), 1, "SQHD")


@GROUP.check("Base 4.4", "Base 3.7.2", needs=needs.feature(Fid.ARBITRATION))
def features_have_their_defaults_after_a_reset(subject: Subject) -> None:
    """A feature's value that was not saved is the default value after a Controller Reset."""
    host = subject.host
    default = host.get_features(Fid.ARBITRATION)
    host.set_features(Fid.ARBITRATION, Arbitration(ab=Arbitration.unpack(default).ab ^ 1).pack())
    host.enable()
    equal(host.get_features(Fid.ARBITRATION), default, "Arbitration")


@GROUP.check("Base 3.5.1")
def another_system_takes_over_without_a_shutdown(subject: Subject) -> None:
    """A host that is replaced by another (kexec, kdump) leaves a controller that can be enabled."""
    for _ in range(3):
        cids = [subject.queue.start(commands.flush(subject.nsid)) for _ in range(16)]
        require(len(cids) == 16, "commands were not submitted")
        _works(subject)


@GROUP.check("Base 3.7.2")
def a_reset_under_load_ends(subject: Subject) -> None:
    """A Controller Reset with many commands outstanding ends, and the controller works again."""
    blocks = min(8, subject.namespace.blocks)
    size = blocks * subject.block_size
    buffer = subject.host.memory.allocate(size)
    for _ in range(5):
        queue = subject.queue
        for _ in range(queue.sq_entries - 1):
            sqe = commands.read(subject.nsid, 0, blocks)
            sqe.prp1 = buffer.iova
            sqe.prp2 = buffer.iova + 4096 if size > 4096 else 0
            queue.start(sqe)
        subject.host.enable()
    succeeds(subject.queue, commands.flush(subject.nsid))


@GROUP.check("Base 3.1.4.5")
def enabling_what_is_enabled_changes_nothing(subject: Subject) -> None:
    """CC written again with EN = 1 leaves the queues as they are."""
    queue = subject.queue
    subject.host.write_register(Register.CC, subject.register(Register.CC))
    require(subject.host.csts().rdy, "CSTS.RDY fell")
    succeeds(queue, commands.flush(subject.nsid))


@GROUP.check("Base 3.6.1")
def a_normal_shutdown_completes(subject: Subject) -> None:
    """CSTS.SHST becomes 10b after CC.SHN = 01b."""
    succeeds(subject.queue, commands.flush(subject.nsid))
    subject.host.shutdown()


@GROUP.check("Base 3.6.1")
def an_abrupt_shutdown_completes(subject: Subject) -> None:
    """CSTS.SHST becomes 10b after CC.SHN = 10b."""
    succeeds(subject.queue, commands.flush(subject.nsid))
    subject.host.shutdown(abrupt=True)


@GROUP.check("Base 3.6.1", "Base 3.1.4.6")
def a_reset_ends_the_shutdown(subject: Subject) -> None:
    """A Controller Reset after a shutdown clears CSTS.SHST, and the controller works again."""
    for abrupt in (False, True):
        subject.host.shutdown(abrupt=abrupt)
        subject.host.disable()
        subject.wait(lambda: subject.host.csts().shst == Shst.NORMAL, "CSTS.SHST = 00b")
        _works(subject)


@GROUP.check("Base 3.6.1")
def nothing_is_executed_after_a_shutdown(subject: Subject) -> None:
    """Commands that are submitted after the shutdown has completed are not executed."""
    queue, sqe = subject.queue, commands.flush(subject.nsid)
    subject.host.shutdown()
    cid = queue.start(sqe)
    time.sleep(QUIET)
    require(queue.take(cid) is None, "a command was executed after the shutdown")


@GROUP.check("Base 3.6.1")
def a_shutdown_under_load_completes(subject: Subject) -> None:
    """A shutdown with commands outstanding completes, and each of them at most once."""
    queue = subject.queue
    cids = [queue.start(commands.flush(subject.nsid)) for _ in range(32)]
    subject.host.shutdown()
    queue.collect()
    found = [cid for cid in cids if queue.take(cid) is not None]
    require(len(found) <= len(cids), "more completions than commands")


@GROUP.check("Base 3.6.1", "Base 3.7.2")
def a_shutdown_during_a_reset_completes(subject: Subject) -> None:
    """CSTS.SHST becomes 10b when CC.SHN is set while a Controller Reset may be under way."""
    host, queue = subject.host, subject.queue
    cc = subject.register(Register.CC)
    for _ in range(32):
        queue.start(commands.flush(subject.nsid))
    host.write_register(Register.CC, cc & ~1)
    host.shutdown()
    _works(subject)


@GROUP.check("Base 3.7.1", "Base 3.1.4.7", needs=needs.cap(CapBit.NSSRS))
def a_subsystem_reset_resets_the_controller(subject: Subject) -> None:
    """After "NVMe" is written to NSSR, CC and CSTS.RDY are 0 and CSTS.NSSRO is 1."""
    host = subject.host
    host.write_register(Register.NSSR, NSSR_NSSRC)
    subject.wait_ready(ready=False)
    equal(host.read_register(Register.CC), 0, "CC")
    require(host.read_register(Register.CSTS) & CstsBit.NSSRO, "CSTS.NSSRO is 0")
    _works(subject)


@GROUP.check("Base 3.1.4.6", needs=needs.cap(CapBit.NSSRS))
def nssro_is_cleared_by_a_one(subject: Subject) -> None:
    """CSTS.NSSRO is cleared by writing 1 to it, and by nothing else."""
    host = subject.host
    host.write_register(Register.NSSR, NSSR_NSSRC)
    subject.wait_ready(ready=False)
    host.write_register(Register.CSTS, 0)
    require(host.read_register(Register.CSTS) & CstsBit.NSSRO, "NSSRO was cleared by a 0")
    host.enable()
    require(host.read_register(Register.CSTS) & CstsBit.NSSRO, "NSSRO was cleared by CC.EN")
    host.write_register(Register.CSTS, CstsBit.NSSRO)
    require(not host.read_register(Register.CSTS) & CstsBit.NSSRO, "NSSRO was not cleared by a 1")


@GROUP.check("Base 3.7.2", "PCIe 3.6")
def a_device_reset_gives_the_registers_their_defaults(subject: Subject) -> None:
    """After a reset of the PCI function CC, CSTS, AQA, ASQ and ACQ are 0."""
    host = subject.host
    host.device_reset()
    for register in (Register.CC, Register.CSTS, *_ADMIN_REGISTERS):
        equal(host.read_register(register), 0, register.name)
    _works(subject)


@GROUP.check("Base 3.7.2", "PCIe 3.6")
def a_device_reset_works_in_every_state(subject: Subject) -> None:
    """The PCI function can be reset disabled, enabled, under load and shut down."""
    host = subject.host
    host.disable()
    host.device_reset()
    _works(subject)
    for _ in range(16):
        subject.queue.start(commands.flush(subject.nsid))
    host.device_reset()
    _works(subject)
    host.shutdown()
    host.device_reset()
    equal(host.csts().shst, Shst.NORMAL, "CSTS.SHST")
    _works(subject)


@GROUP.check("Base 3.1.4.6", "Base 3.5.1")
def an_admin_queue_out_of_memory_does_not_hang(subject: Subject) -> None:
    """Enabled with admin queues that are not in host memory, the controller can be reset.

    What it does meanwhile is not specified.
    """
    host = subject.host
    host.disable()
    host.write_register(Register.ASQ, 0x7FFF_0000_0000)
    host.write_register(Register.ACQ, 0x7FFF_0000_1000)
    host.write_register(Register.CC, Cc(en=True, mps=host.cap.mpsmin, iosqes=6, iocqes=4).pack())
    subject.wait(lambda: host.csts() != Csts(), "CSTS.RDY or CSTS.CFS")
    _works(subject)


@GROUP.check("Base 3.6.1")
def a_shutdown_can_be_asked_for_with_the_reset(subject: Subject) -> None:
    """CC.SHN and CC.EN = 0 written at once leave a controller that can be enabled."""
    host = subject.host
    host.write_register(Register.CC, Cc(shn=Shn.NORMAL, iosqes=6, iocqes=4).pack())
    subject.wait_ready(ready=False)
    _works(subject)


@GROUP.check("Base 3.5.1")
def enabled_with_every_page_size(subject: Subject) -> None:
    """The controller can be enabled and used with each memory page size from MPSMIN to MPSMAX."""
    host = subject.host
    for mps in range(host.cap.mpsmin, host.cap.mpsmax + 1):
        size = 4096 << mps
        host.disable()
        sq = host.memory.allocate(size, align=size)
        cq = host.memory.allocate(size, align=size)
        host.write_register(Register.AQA, 0x001F_001F)
        host.write_register(Register.ASQ, sq.iova)
        host.write_register(Register.ACQ, cq.iova)
        host.write_register(Register.CC, Cc(en=True, mps=mps, iosqes=6, iocqes=4).pack())
        subject.wait_ready()
        data = host.memory.allocate(2 * size, align=size)
        sqe = commands.identify(1)
        sqe.cid, sqe.prp1 = 7, data.iova + size - 4096
        sq.write(bytes(sqe))
        host.write_doorbell(0, 1)
        subject.wait(lambda cq=cq: cq.read(14, 1) != b"\0", "a completion")  # type: ignore[misc]
        equal(cq.read(12, 4), b"\x07\0\x01\0", f"CID and status with pages of {size} bytes")
        require(any(data.read(size - 4096, 4096)), "no data came")
