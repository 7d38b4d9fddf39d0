"""The PCI function: configuration space, capabilities, bus mastering (PCIe 3.8; PCI)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import Group, NotApplicable
from nvme_mdev.conformance.expect import equal, require
from nvme_mdev.conformance.subject import QUIET
from nvme_mdev.host import commands
from nvme_mdev.spec import pci
from nvme_mdev.spec.nvme_registers import Register
from nvme_mdev.spec.vfio_user import PciRegion

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("pci")

_CAPABILITY_LIST = 0x10
"""Status register: there is a list of capabilities."""


def _read(subject: Subject, offset: int, size: int) -> int:
    data = subject.host.transport.client.region_read(PciRegion.CONFIG, offset, size)
    return int.from_bytes(data, "little")


def _write(subject: Subject, offset: int, value: int, size: int) -> None:
    subject.host.transport.client.region_write(
        PciRegion.CONFIG, offset, value.to_bytes(size, "little")
    )


def _capabilities(subject: Subject) -> dict[int, int]:
    """Capability identifier to offset."""
    found: dict[int, int] = {}
    at = _read(subject, pci.ConfigOffset.CAPABILITIES, 1)
    for _ in range(48):
        if at == 0:
            return found
        require(at >= 0x40 and at % 4 == 0, f"a capability at {at:#x}")
        found[_read(subject, at, 1)] = at
        at = _read(subject, at + 1, 1)
    require(False, "the capability list has no end")
    return found


@GROUP.check("PCIe 3.8")
def the_class_code_is_nvme(subject: Subject) -> None:
    """The class code is 01h, 08h, 02h."""
    equal(_read(subject, pci.ConfigOffset.CLASS_CODE, 3), pci.CLASS_NVME, "class code")


@GROUP.check("PCIe 3.8")
def identify_repeats_the_vendor(subject: Subject) -> None:
    """Identify Controller's VID and SSVID are those of the configuration space."""
    controller = subject.controller
    equal(controller.vid, _read(subject, pci.ConfigOffset.VENDOR_ID, 2), "VID")
    equal(controller.ssvid, _read(subject, pci.ConfigOffset.SUBSYSTEM_VENDOR_ID, 2), "SSVID")


@GROUP.check("PCIe 3.8")
def identifiers_are_read_only(subject: Subject) -> None:
    """Vendor, device, class code and revision cannot be written."""
    for offset in (pci.ConfigOffset.VENDOR_ID, pci.ConfigOffset.REVISION_ID):
        before = _read(subject, offset, 4)
        _write(subject, offset, ~before & 0xFFFF_FFFF, 4)
        equal(_read(subject, offset, 4), before, f"configuration space at {int(offset):#x}")


@GROUP.check("PCIe 3.8")
def bar0_is_memory_that_holds_the_doorbells(subject: Subject) -> None:
    """BAR 0 is 64-bit memory of a power of two bytes, large enough for every doorbell."""
    bar = pci.ConfigOffset.BAR0
    before = _read(subject, bar, 8)
    equal(before & 0xF, 0x4, "type of BAR 0")
    try:
        _write(subject, bar, 0xFFFF_FFFF, 4)
        _write(subject, bar + 4, 0xFFFF_FFFF, 4)
        mask = _read(subject, bar, 8) & ~0xF
    finally:
        _write(subject, bar, before & 0xFFFF_FFFF, 4)
        _write(subject, bar + 4, before >> 32, 4)
    size = ~mask + 1 & 0xFFFF_FFFF_FFFF_FFFF
    require(size and size & (size - 1) == 0, f"{size:#x} bytes")
    last = subject.host.doorbell_offset(min(subject.host.queue_counts), completion=True)
    require(last + 4 <= size, f"the last doorbell is at {last:#x} of {size:#x} bytes")


@GROUP.check("PCI 7.5")
def capabilities_are_a_list_with_an_end(subject: Subject) -> None:
    """The capability list is well formed, and has PCI Express and power management."""
    require(_read(subject, pci.ConfigOffset.STATUS, 2) & _CAPABILITY_LIST, "no capability list")
    found = _capabilities(subject)
    require(0x10 in found, "no PCI Express capability")
    require(0x01 in found, "no power management capability")


@GROUP.check("PCIe 3.5", "PCI 7.7.2")
def msix_tables_lie_in_a_bar(subject: Subject) -> None:
    """The MSI-X table and pending bits lie within memory BARs and do not overlap."""
    at = _capabilities(subject).get(0x11)
    if at is None:
        raise NotApplicable("no MSI-X capability")
    entries = (_read(subject, at + 2, 2) & 0x7FF) + 1
    places = []
    for register, size in ((at + 4, entries * 16), (at + 8, (entries + 63) // 64 * 8)):
        value = _read(subject, register, 4)
        bar, offset = value & 7, value & ~7
        info = subject.host.transport.client.region_info(PciRegion(bar))
        require(offset + size <= info.size, f"{size} bytes at {offset:#x} of BAR {bar}")
        places.append((bar, offset, offset + size))
    (table_bar, table, table_end), (pba_bar, pba, pba_end) = places
    require(table_bar != pba_bar or table_end <= pba or pba_end <= table, "they overlap")


@GROUP.check("PCI 7.5.1.1.3")
def without_bus_mastering_no_command_is_fetched(subject: Subject) -> None:
    """While Bus Master Enable is 0 nothing is read from or written to host memory."""
    queue = subject.host.admin_queue
    command = _read(subject, pci.ConfigOffset.COMMAND, 2)
    _write(subject, pci.ConfigOffset.COMMAND, command & ~pci.Command.BUS_MASTER, 2)
    buffer = subject.host.memory.allocate(4096)
    sqe = commands.identify(1)
    sqe.prp1 = buffer.iova
    cid = queue.start(sqe)
    time.sleep(QUIET)
    require(queue.take(cid) is None, "a command was executed without bus mastering")
    _write(subject, pci.ConfigOffset.COMMAND, command, 2)
    subject.host.write_doorbell(0, queue.tail)
    require(queue.finish(cid).ok, "the command failed afterwards")


@GROUP.check("PCI 6.6.2", "Base 3.7.2")
def a_function_level_reset_resets_the_controller(subject: Subject) -> None:
    """Initiate Function Level Reset in Device Control leaves CC, CSTS and AQA 0."""
    at = _capabilities(subject).get(0x10)
    if at is None or not _read(subject, at + 4, 4) >> 28 & 1:
        raise NotApplicable("the device has no function-level reset")
    host = subject.host
    _write(subject, at + 8, _read(subject, at + 8, 2) | 1 << 15, 2)
    for register in (Register.CC, Register.CSTS, Register.AQA):
        subject.wait(lambda register=register: host.read_register(register) == 0, register.name)  # type: ignore[misc]
    equal(_read(subject, at + 8, 2) >> 15, 0, "Initiate Function Level Reset")
    _write(subject, pci.ConfigOffset.COMMAND, 0x406, 2)
    host.enable()
    host.identify(1)
