"""Configuration space: 4096 bytes in the controller's state, and which of their bits change how.

The masks are data: a write takes the writable bits, clears the write-1-to-clear bits, and leaves
the rest alone. What a changed bit *means* is the function's business.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.controller.settings import PCI_VENDOR_ID
from nvme_mdev.pci import capabilities
from nvme_mdev.pci.bars import BARS
from nvme_mdev.spec.pci import (
    BAR_MEM_MASK,
    CLASS_NVME,
    CONFIG_SIZE,
    MSI_MME_MASK,
    MSI_MME_SHIFT,
    PM_STATE_D0,
    PM_STATE_D3HOT,
    PMCSR_STATE_MASK,
    STATUS_RW1C,
    BarFlags,
    Command,
    ConfigHeader,
    ConfigOffset,
    ExpCap,
    InterruptPin,
    MsiCap,
    MsiControl,
    MsixCap,
    MsixControl,
    PmCap,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.pci.bars import Bar

PCI_DEVICE_ID = 0x0001
"""The first device of a vendor that has no others."""

COMMAND_MASK = (
    Command.MEMORY | Command.BUS_MASTER | Command.PARITY | Command.SERR | Command.INTX_DISABLE
)
"""What a PCI Express function without I/O BARs lets one write of its command register."""


def _offset(structure: type[ctypes.Structure], field: str) -> int:
    """Bytes from the structure's start to a field."""
    offset: int = getattr(structure, field).offset
    return offset


COMMAND_OFFSET = int(ConfigOffset.COMMAND)
PMCSR_OFFSET = capabilities.PM_OFFSET + _offset(PmCap, "pmcsr")
DEVICE_CONTROL_OFFSET = capabilities.EXP_OFFSET + _offset(ExpCap, "pxdc")
MSI_CONTROL_OFFSET = capabilities.MSI_OFFSET + _offset(MsiCap, "mc")
MSIX_CONTROL_OFFSET = capabilities.MSIX_OFFSET + _offset(MsixCap, "mxc")


@dataclass(frozen=True, slots=True)
class Identity:
    """What the guest's PCI core sees of who we are."""

    vendor_id: int = PCI_VENDOR_ID
    """Also the subsystem's vendor; see where the default is defined for its reason."""
    device_id: int = PCI_DEVICE_ID
    revision_id: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """A configuration space as it is after a reset, and how its bits can be changed."""

    default: bytes
    writable: bytes
    clearable: bytes


def make_layout(identity: Identity, vectors: int) -> Layout:
    """Header, BARs and capabilities put together; ``vectors``: MSI-X vectors."""
    caps = [
        capabilities.power_management(),
        capabilities.msix(vectors),
        capabilities.pci_express(),
        capabilities.msi(vectors),
    ]
    default, writable, clearable = (bytearray(CONFIG_SIZE) for _ in range(3))
    _place(default, 0, _header(identity, caps[0].offset))
    _place(writable, 0, _writable_header())
    _place(clearable, 0, ConfigHeader(status=STATUS_RW1C))
    following = [cap.offset for cap in caps[1:]] + [0]
    for cap, next_offset in zip(caps, following, strict=True):
        _place(default, cap.offset, cap.default)
        default[cap.offset + 1] = next_offset
        _place(writable, cap.offset, cap.writable)
        _place(clearable, cap.offset, cap.clearable)
    return Layout(bytes(default), bytes(writable), bytes(clearable))


def _place(space: bytearray, offset: int, structure: ctypes.Structure) -> None:
    space[offset : offset + ctypes.sizeof(structure)] = bytes(structure)


def _header(identity: Identity, first_capability: int) -> ConfigHeader:
    header = ConfigHeader(
        vendor_id=identity.vendor_id,
        device_id=identity.device_id,
        status=Status.CAP_LIST,
        revision_id=identity.revision_id,
        subsystem_vendor_id=identity.vendor_id,
        subsystem_id=identity.device_id,
        capabilities=first_capability,
        interrupt_pin=InterruptPin.INTA,
    )
    header.class_code[:] = list(CLASS_NVME.to_bytes(3, "little"))
    for bar in BARS:
        header.bar[bar.number] = bar.flags
    return header


def _writable_header() -> ConfigHeader:
    header = ConfigHeader(command=COMMAND_MASK, cache_line_size=0xFF, interrupt_line=0xFF)
    for number, mask in enumerate(_bar_masks(BARS)):
        header.bar[number] = mask
    return header


def _bar_masks(bars: Sequence[Bar]) -> list[int]:
    """The address bits of each BAR register: what sizing reads back."""
    masks = [0] * 6
    for bar in bars:
        masks[bar.number] = -bar.size & BAR_MEM_MASK
        if bar.flags & BarFlags.MEM_64:
            masks[bar.number + 1] = 0xFFFF_FFFF
    return masks


class ConfigSpace:
    """A view on the configuration space in a controller's state."""

    def __init__(self, memory: memoryview, layout: Layout) -> None:
        self._memory = memory
        self._layout = layout

    def reset(self) -> None:
        """Everything back to its default."""
        self._memory[:] = self._layout.default

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``."""
        return bytes(self._memory[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Change the bits that can be changed; all others keep their values."""
        power_state = self.power_state
        for index, byte in enumerate(data[: CONFIG_SIZE - offset], offset):
            writable = self._layout.writable[index]
            cleared = byte & self._layout.clearable[index]
            self._memory[index] = self._memory[index] & ~writable & ~cleared | byte & writable
        if self.power_state not in (PM_STATE_D0, PM_STATE_D3HOT):
            # A write of a state that is not supported changes nothing (7.5.2.2).
            self._memory[PMCSR_OFFSET] = (
                self._memory[PMCSR_OFFSET] & ~PMCSR_STATE_MASK | power_state
            )

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self._word(COMMAND_OFFSET))

    @property
    def power_state(self) -> int:
        """``PM_STATE_D0`` or ``PM_STATE_D3HOT``."""
        return self._memory[PMCSR_OFFSET] & PMCSR_STATE_MASK

    @property
    def msi_messages(self) -> int:
        """Messages of MSI that the guest has enabled; 0: MSI is off."""
        control = self._word(MSI_CONTROL_OFFSET)
        if not control & MsiControl.ENABLE:
            return 0
        return 1 << ((control & MSI_MME_MASK) >> MSI_MME_SHIFT)

    @property
    def msix_function_mask(self) -> bool:
        """All vectors of MSI-X are masked."""
        return bool(self._word(MSIX_CONTROL_OFFSET) & MsixControl.FUNCTION_MASK)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._memory[offset : offset + 2], "little")
