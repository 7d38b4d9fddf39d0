"""Sizes and offsets of the vfio-user structures, against the tables of the protocol's document."""

from __future__ import annotations

import ctypes

import pytest

from nvme_mdev.spec import vfio_user as wire

SIZES = {
    wire.Header: 16,
    wire.Version: 4,
    wire.DmaMap: 32,
    wire.DmaUnmap: 24,
    wire.DeviceInfo: 16,
    wire.RegionInfo: 32,
    wire.CapHeader: 8,
    wire.SparseMmapCap: 16,
    wire.SparseMmapArea: 16,
    wire.RegionIoFds: 16,
    wire.IrqInfo: 16,
    wire.IrqSet: 20,
    wire.RegionAccess: 16,
    wire.DmaAccess: 16,
}


@pytest.mark.parametrize(("structure", "size"), SIZES.items())
def test_the_size_is_the_documents(
    structure: type[ctypes.LittleEndianStructure], size: int
) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        (wire.Header, "command", 2),
        (wire.Header, "message_size", 4),
        (wire.Header, "flags", 8),
        (wire.Header, "error", 12),
        (wire.DmaMap, "flags", 4),
        (wire.DmaMap, "offset", 8),
        (wire.DmaMap, "address", 16),
        (wire.DmaMap, "size", 24),
        (wire.DmaUnmap, "address", 8),
        (wire.DmaUnmap, "size", 16),
        (wire.DeviceInfo, "num_regions", 8),
        (wire.RegionInfo, "index", 8),
        (wire.RegionInfo, "cap_offset", 12),
        (wire.RegionInfo, "size", 16),
        (wire.RegionInfo, "offset", 24),
        (wire.CapHeader, "next", 4),
        (wire.SparseMmapCap, "nr_areas", 8),
        (wire.IrqSet, "index", 8),
        (wire.IrqSet, "start", 12),
        (wire.IrqSet, "count", 16),
        (wire.RegionAccess, "region", 8),
        (wire.RegionAccess, "count", 12),
        (wire.DmaAccess, "count", 8),
    ],
)
def test_the_field_is_where_the_document_says(
    structure: type[ctypes.LittleEndianStructure], field: str, offset: int
) -> None:
    assert getattr(structure, field).offset == offset


def test_commands_are_numbered_as_in_the_document() -> None:
    assert [command.value for command in wire.Command] == list(range(1, 19))


def test_masks_hold_the_reserved_bits_back() -> None:
    assert 0xFFFF_FFFF & ~wire.HEADER_FLAGS_MASK == 0xFFFF_FFC0
    assert 0xFFFF_FFFF & ~wire.DMA_MAP_FLAGS_MASK == 0xFFFF_FFFC
    assert 0xFF & ~(wire.IRQ_SET_DATA_MASK | wire.IRQ_SET_ACTION_MASK) == 0xC0
