"""Controller registers (Base 3.1.4; PCIe 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import Group
from nvme_mdev.conformance.expect import equal, require
from nvme_mdev.spec.nvme_registers import (
    REGISTER_SIZE,
    Cap,
    CapBit,
    Crto,
    CstsBit,
    Register,
    version,
)

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("registers")

_ONES = b"\xff" * 8


def _unchanged_by_ones(subject: Subject, register: Register) -> None:
    before = subject.register(register)
    subject.host.write_bar0(register, _ONES[: REGISTER_SIZE[register]])
    equal(subject.register(register), before, f"{register.name} after a write of ones")


@GROUP.check("Base 3.1.4.1")
def cap_is_read_only(subject: Subject) -> None:
    """A write to CAP changes nothing."""
    _unchanged_by_ones(subject, Register.CAP)


@GROUP.check("Base 3.1.4.1")
def cap_allows_two_entries(subject: Subject) -> None:
    """CAP.MQES is at least 1: a queue has two entries or more."""
    require(subject.host.cap.mqes >= 1, "CAP.MQES is 0")


@GROUP.check("Base 3.1.4.1")
def cap_page_sizes_are_a_range(subject: Subject) -> None:
    """CAP.MPSMAX is not below CAP.MPSMIN."""
    cap = subject.host.cap
    require(cap.mpsmin <= cap.mpsmax, f"MPSMIN {cap.mpsmin}, MPSMAX {cap.mpsmax}")


@GROUP.check("Base 3.1.4.1")
def cap_has_the_nvm_command_set(subject: Subject) -> None:
    """CAP.CSS says that there is the NVM command set, or that I/O command sets are selectable."""
    wanted = CapBit.CSS_NCSS | CapBit.CSS_IOCSS
    require(subject.host.cap.bits & wanted, "neither CSS bit 0 nor bit 6 is set")


@GROUP.check("Base 3.1.4.1", needs=needs.version(2, 0))
def cap_crwms_is_set(subject: Subject) -> None:
    """A controller of revision 2.0 or later sets CAP.CRMS.CRWMS."""
    require(subject.host.cap.bits & CapBit.CRWMS, "CAP.CRWMS is 0")


@GROUP.check("Base 3.1.4.1", "Base 3.1.4.21", needs=needs.cap(CapBit.CRWMS))
def cap_to_agrees_with_crto(subject: Subject) -> None:
    """CRTO.CRWMT is not 0, and CAP.TO is what fits of it into 8 bits."""
    crto = Crto.unpack(subject.register(Register.CRTO))
    require(crto.crwmt, "CRTO.CRWMT is 0")
    equal(subject.host.cap.to, min(crto.crwmt, 0xFF), "CAP.TO")


@GROUP.check("Base 3.1.4.1", needs=needs.cap_lacks(CapBit.CMBS))
def no_controller_memory_buffer(subject: Subject) -> None:
    """Without CAP.CMBS, CMBLOC and CMBSZ are 0."""
    equal(subject.register(Register.CMBLOC), 0, "CMBLOC")
    equal(subject.register(Register.CMBSZ), 0, "CMBSZ")


@GROUP.check("Base 3.1.4.1", needs=needs.cap_lacks(CapBit.BPS))
def no_boot_partition(subject: Subject) -> None:
    """Without CAP.BPS, BPINFO is 0."""
    equal(subject.register(Register.BPINFO), 0, "BPINFO")


@GROUP.check("Base 3.1.4.1", needs=needs.cap_lacks(CapBit.PMRS))
def no_persistent_memory_region(subject: Subject) -> None:
    """Without CAP.PMRS, PMRCAP is 0."""
    equal(subject.register(Register.PMRCAP), 0, "PMRCAP")


@GROUP.check("Base 3.1.4.2")
def vs_is_a_published_revision(subject: Subject) -> None:
    """VS is a revision of the specification that there is."""
    published = {version(1, minor) for minor in range(5)} | {version(1, 2, 1)}
    published |= {version(2, minor) for minor in range(4)}
    require(subject.register(Register.VS) in published, f"{subject.register(Register.VS):#x}")


@GROUP.check("Base 3.1.4.2")
def vs_is_read_only(subject: Subject) -> None:
    """A write to VS changes nothing."""
    _unchanged_by_ones(subject, Register.VS)


@GROUP.check("Base 3.1.4.3", "Base 3.1.4.4")
def intms_sets_and_intmc_clears_mask_bits(subject: Subject) -> None:
    """Ones written to INTMS mask, ones written to INTMC unmask, and both read as the mask."""
    host = subject.host
    host.write_register(Register.INTMS, 0b0101)
    host.write_register(Register.INTMS, 0b0010)
    for register in (Register.INTMS, Register.INTMC):
        equal(host.read_register(register), 0b0111, register.name)
    host.write_register(Register.INTMC, 0b0011)
    for register in (Register.INTMS, Register.INTMC):
        equal(host.read_register(register), 0b0100, f"{register.name} after INTMC")


@GROUP.check("Base 3.1.4.5")
def cc_reads_as_written(subject: Subject) -> None:
    """CC reads as what was written to it."""
    host = subject.attach(enable=False)
    host.disable()
    value = host.cap.mpsmin << 7 | 6 << 16 | 4 << 20
    host.write_register(Register.CC, value)
    equal(host.read_register(Register.CC), value, "CC")


@GROUP.check("Base 3.1.4.6")
def csts_status_bits_are_read_only(subject: Subject) -> None:
    """Ones and zeroes written to CSTS.RDY, CFS and SHST change nothing."""
    host = subject.host
    for value in (0, 0xF):
        host.write_register(Register.CSTS, value)
        csts = host.csts()
        require(csts.rdy and not csts.cfs and csts.shst == 0, f"CSTS is {csts} after {value:#x}")


@GROUP.check("Base 3.1.4.7", needs=needs.cap(CapBit.NSSRS))
def nssr_reads_as_zero(subject: Subject) -> None:
    """NSSR reads as 0."""
    equal(subject.register(Register.NSSR), 0, "NSSR")


@GROUP.check("Base 3.1.4.7", needs=needs.cap(CapBit.NSSRS))
def nssr_ignores_other_values(subject: Subject) -> None:
    """A value other than "NVMe" written to NSSR has no effect."""
    host = subject.host
    for value in (0, 1, 0x4E564D64, 0x654D564E):
        host.write_register(Register.NSSR, value)
        require(host.csts().rdy, f"CSTS.RDY fell after NSSR = {value:#x}")
    require(not host.read_register(Register.CSTS) & CstsBit.NSSRO, "CSTS.NSSRO is set")


@GROUP.check("Base 3.1.4.8", "Base 3.1.4.9", "Base 3.1.4.10")
def admin_queue_registers_read_as_written(subject: Subject) -> None:
    """AQA, ASQ and ACQ read as what was written to them while the controller is disabled."""
    host = subject.attach(enable=False)
    host.disable()
    values = {
        Register.AQA: 0x01FF_0FFF,
        Register.ASQ: 0x0123_4567_89AB_C000,
        Register.ACQ: 0xFEDC_BA98_7654_3000,
    }
    for register, value in values.items():
        host.write_register(register, value)
    for register, value in values.items():
        equal(host.read_register(register), value, register.name)


@GROUP.check("PCIe 3.1")
def registers_of_64_bits_are_two_of_32(subject: Subject) -> None:
    """A 64-bit register can be read and written as two 32-bit halves."""
    host = subject.attach(enable=False)
    host.disable()
    host.write_bar0(Register.ASQ, (0x89AB_C000).to_bytes(4, "little"))
    host.write_bar0(Register.ASQ + 4, (0x0000_4567).to_bytes(4, "little"))
    equal(host.read_register(Register.ASQ), 0x4567_89AB_C000, "ASQ, written in halves")
    low, high = (host.read_bar0(Register.CAP + at, 4) for at in (0, 4))
    equal(Cap.unpack(int.from_bytes(low + high, "little")), host.cap, "CAP, read in halves")


@GROUP.check("Base 3.1.4")
def reserved_registers_read_as_zero(subject: Subject) -> None:
    """What lies between the registers reads as 0, and ignores what is written."""
    host = subject.host
    for offset in (0x18, 0x70, 0x400, 0xDFC, 0xE20, 0xFFC):
        host.write_bar0(offset, _ONES[:4])
        equal(host.read_bar0(offset, 4), bytes(4), f"BAR0 at {offset:#x}")


@GROUP.check("PCIe 3.1")
def odd_accesses_do_no_harm(subject: Subject) -> None:
    """Reads and writes of odd sizes at odd offsets, which no host may do, break nothing."""
    host = subject.host
    cap = host.read_bar0(Register.CAP, 8)
    equal(host.read_bar0(Register.CAP + 1, 3), cap[1:4], "3 bytes of CAP from byte 1 on")
    for offset, size in ((1, 1), (2, 2), (6, 4), (7, 8), (0x1B, 2), (0xFFE, 2)):
        host.read_bar0(offset, size)
    for offset, size in ((1, 1), (2, 4), (0x1D, 2), (0x21, 2), (0xFFD, 3)):
        host.write_bar0(offset, bytes(size))
    require(host.csts().rdy, "CSTS.RDY fell")
    host.identify(1)
