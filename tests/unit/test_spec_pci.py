"""Sizes and offsets of the PCI structures."""

from __future__ import annotations

import ctypes

import pytest

from nvme_mdev.spec import pci

SIZES = {
    pci.ConfigHeader: 64,
    pci.CapHeader: 2,
    pci.ExtCapHeader: 4,
    pci.PmCap: 8,
    pci.MsixCap: 12,
    pci.MsixTableEntry: 16,
    pci.ExpCap: 60,
}


@pytest.mark.parametrize(("structure", "size"), SIZES.items())
def test_the_size_is_the_specifications(
    structure: type[ctypes.LittleEndianStructure], size: int
) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    ("field", "offset"),
    [
        ("vendor_id", pci.ConfigOffset.VENDOR_ID),
        ("device_id", pci.ConfigOffset.DEVICE_ID),
        ("command", pci.ConfigOffset.COMMAND),
        ("status", pci.ConfigOffset.STATUS),
        ("revision_id", pci.ConfigOffset.REVISION_ID),
        ("class_code", pci.ConfigOffset.CLASS_CODE),
        ("header_type", pci.ConfigOffset.HEADER_TYPE),
        ("bar", pci.ConfigOffset.BAR0),
        ("subsystem_vendor_id", pci.ConfigOffset.SUBSYSTEM_VENDOR_ID),
        ("subsystem_id", pci.ConfigOffset.SUBSYSTEM_ID),
        ("expansion_rom", pci.ConfigOffset.EXPANSION_ROM),
        ("capabilities", pci.ConfigOffset.CAPABILITIES),
        ("interrupt_line", pci.ConfigOffset.INTERRUPT_LINE),
        ("interrupt_pin", pci.ConfigOffset.INTERRUPT_PIN),
    ],
)
def test_the_header_and_the_offsets_agree(field: str, offset: pci.ConfigOffset) -> None:
    assert getattr(pci.ConfigHeader, field).offset == offset


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        (pci.PmCap, "pmc", 2),
        (pci.PmCap, "pmcsr", 4),
        (pci.MsixCap, "mxc", 2),
        (pci.MsixCap, "mtab", 4),
        (pci.MsixCap, "mpba", 8),
        (pci.MsixTableEntry, "data", 8),
        (pci.MsixTableEntry, "vector_control", 12),
        (pci.ExpCap, "pxcap", 2),
        (pci.ExpCap, "pxdcap", 4),
        (pci.ExpCap, "pxdc", 8),
        (pci.ExpCap, "pxds", 10),
        (pci.ExpCap, "pxlcap", 12),
        (pci.ExpCap, "pxls", 18),
        (pci.ExpCap, "pxdcap2", 36),
        (pci.ExpCap, "pxlcap2", 44),
    ],
)
def test_the_field_is_where_the_specification_says(
    structure: type[ctypes.LittleEndianStructure], field: str, offset: int
) -> None:
    assert getattr(structure, field).offset == offset


def test_the_class_code_is_that_of_an_nvme_controller() -> None:
    assert pci.CLASS_NVME == 0x010802
