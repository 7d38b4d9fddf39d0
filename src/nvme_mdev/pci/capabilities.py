"""The capability list: power management, MSI-X, PCI Express, MSI (PCI Express Base 7.5, 7.7).

A capability is its bytes and a mask of the bits that can be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.pci.bars import MSIX_BAR, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET
from nvme_mdev.spec.pci import (
    EXP_CAP_VERSION,
    EXP_LINK_WIDTH_SHIFT,
    EXP_MAX_PAYLOAD_SHIFT,
    EXP_MAX_READ_REQUEST_SHIFT,
    EXP_TYPE_SHIFT,
    MSI_MAX_VECTORS,
    MSI_MMC_SHIFT,
    MSI_MME_MASK,
    PMC_VERSION,
    PMCSR_STATE_MASK,
    CapHeader,
    CapId,
    ExpCap,
    ExpDeviceCap,
    ExpDeviceControl,
    ExpDeviceStatus,
    ExpLinkSpeed,
    ExpType,
    MsiCap,
    MsiControl,
    MsixCap,
    MsixControl,
    PmCap,
    PmcsrFlags,
)

if TYPE_CHECKING:
    import ctypes

PM_OFFSET = 0x40
MSIX_OFFSET = 0x50
EXP_OFFSET = 0x60
MSI_OFFSET = 0xA0

_LINK_LANES = 4
"""A drive's usual link, x4 at 8 GT/s. Nothing is slower for it: there is no link."""
_LINK = ExpLinkSpeed.GT_8 | _LINK_LANES << EXP_LINK_WIDTH_SHIFT
_LINK_SPEEDS_VECTOR = 0b0111 << 1
"""Link Capabilities 2: 2.5, 5 and 8 GT/s, in bits 7:1."""
_READ_REQUEST_512 = 2
_PAYLOAD_MASK = 0x7 << EXP_MAX_PAYLOAD_SHIFT
_READ_REQUEST_MASK = 0x7 << EXP_MAX_READ_REQUEST_SHIFT
_LINK_CONTROL_MASK = 0x01CB
"""ASPM, RCB, common clock, extended synch, clock power management: kept, without effect."""
_DEVICE_CONTROL2_MASK = 0x001F
"""Completion timeout value and disable."""
_LINK_CONTROL2_MASK = 0x000F
"""Target link speed."""

DEVICE_CONTROL_MASK = (
    ExpDeviceControl.CORRECTABLE_ERROR
    | ExpDeviceControl.NON_FATAL_ERROR
    | ExpDeviceControl.FATAL_ERROR
    | ExpDeviceControl.UNSUPPORTED_REQUEST
    | ExpDeviceControl.RELAXED_ORDERING
    | _PAYLOAD_MASK
    | ExpDeviceControl.NO_SNOOP
    | _READ_REQUEST_MASK
)
DEVICE_STATUS_RW1C = (
    ExpDeviceStatus.CORRECTABLE_ERROR
    | ExpDeviceStatus.NON_FATAL_ERROR
    | ExpDeviceStatus.FATAL_ERROR
    | ExpDeviceStatus.UNSUPPORTED_REQUEST
)


class Capability(NamedTuple):
    """A capability without its place in the list."""

    offset: int
    default: ctypes.LittleEndianStructure
    writable: ctypes.LittleEndianStructure
    """Bits that take what is written."""
    clearable: ctypes.LittleEndianStructure
    """Bits that writing 1 clears."""


def power_management() -> Capability:
    """D0 and D3hot, nothing lost between them."""
    return Capability(
        PM_OFFSET,
        PmCap(header=CapHeader(id=CapId.PM), pmc=PMC_VERSION, pmcsr=int(PmcsrFlags.NO_SOFT_RESET)),
        PmCap(pmcsr=PMCSR_STATE_MASK),
        PmCap(),
    )


def msi_vectors(vectors: int) -> int:
    """How many of so many vectors MSI can have: a power of two, at most 32."""
    return min(1 << (vectors.bit_length() - 1), MSI_MAX_VECTORS)


def msi(vectors: int) -> Capability:
    """MSI with as many messages as the vectors of MSI-X allow; INTMS masks them."""
    messages = msi_vectors(vectors).bit_length() - 1
    return Capability(
        MSI_OFFSET,
        MsiCap(
            header=CapHeader(id=CapId.MSI),
            mc=int(MsiControl.ADDRESS_64) | messages << MSI_MMC_SHIFT,
        ),
        MsiCap(
            mc=int(MsiControl.ENABLE) | MSI_MME_MASK,
            address_low=0xFFFF_FFFC,
            address_high=0xFFFF_FFFF,
            data=0xFFFF,
        ),
        MsiCap(),
    )


def msix(vectors: int) -> Capability:
    """MSI-X with the table and the pending bits in their own BAR."""
    return Capability(
        MSIX_OFFSET,
        MsixCap(
            header=CapHeader(id=CapId.MSIX),
            mxc=vectors - 1,
            mtab=MSIX_TABLE_OFFSET | MSIX_BAR,
            mpba=MSIX_PBA_OFFSET | MSIX_BAR,
        ),
        MsixCap(mxc=MsixControl.FUNCTION_MASK | MsixControl.ENABLE),
        MsixCap(),
    )


def pci_express() -> Capability:
    """An endpoint that can be reset by itself (FLR)."""
    return Capability(
        EXP_OFFSET,
        ExpCap(
            header=CapHeader(id=CapId.EXP),
            pxcap=EXP_CAP_VERSION | ExpType.ENDPOINT << EXP_TYPE_SHIFT,
            pxdcap=ExpDeviceCap.ROLE_BASED_ERROR | ExpDeviceCap.FLR,
            pxdc=int(ExpDeviceControl.RELAXED_ORDERING | ExpDeviceControl.NO_SNOOP)
            | _READ_REQUEST_512 << EXP_MAX_READ_REQUEST_SHIFT,
            pxlcap=_LINK,
            pxls=_LINK,
            pxlcap2=_LINK_SPEEDS_VECTOR,
            pxlc2=ExpLinkSpeed.GT_8,
        ),
        ExpCap(
            pxdc=DEVICE_CONTROL_MASK,
            pxlc=_LINK_CONTROL_MASK,
            pxdc2=_DEVICE_CONTROL2_MASK,
            pxlc2=_LINK_CONTROL2_MASK,
        ),
        ExpCap(pxds=DEVICE_STATUS_RW1C),
    )
