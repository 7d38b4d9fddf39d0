"""The PCI function: configuration space and BARs around a controller."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nvme_mdev.pci.bars import MsixTable
from nvme_mdev.pci.config_space import (
    DEVICE_CONTROL_OFFSET,
    ConfigSpace,
    Identity,
    make_layout,
)
from nvme_mdev.spec.pci import PM_STATE_D0, Command, ConfigOffset, ExpDeviceControl, Status

if TYPE_CHECKING:
    from nvme_mdev.controller.controller import Controller

_log = logging.getLogger(__name__)

STATUS_OFFSET = int(ConfigOffset.STATUS)
_STATE_IS_FRESH = b"\0\0"
"""The vendor identifier in memory that nobody has used."""


class PciFunction:
    """A PCI Express endpoint with an NVMe controller in it."""

    def __init__(self, controller: Controller, identity: Identity | None = None) -> None:
        """``identity`` None: the default one, with the vendor of the controller's settings."""
        self.controller = controller
        vectors = controller.settings.vectors
        self._vectors = vectors
        self._function_mask = False
        identity = identity or Identity(vendor_id=controller.settings.vendor_id)
        self.config = ConfigSpace(controller.state.config_space, make_layout(identity, vectors))
        self.msix = MsixTable(controller.state.msix, controller.queues, vectors)
        if self.config.read(0, 2) == _STATE_IS_FRESH:
            self._reset_pci()
        self._follow_interrupt_control()

    def read_config(self, offset: int, size: int) -> bytes:
        """``size`` bytes of configuration space; Status.INTx is the pin's level as it is now."""
        data = bytearray(self.config.read(offset, size))
        if offset <= STATUS_OFFSET < offset + size and self.controller.queues.interrupts.pin_level:
            data[STATUS_OFFSET - offset] |= Status.INTERRUPT
        return bytes(data)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to configuration space, and do what it means; never raises."""
        before = self._bus_master
        self.config.write(offset, data)
        try:
            self._follow_interrupt_control()
            if self._bus_master != before:
                self.controller.allow_dma(self._bus_master)
            if _byte_written(offset, data, DEVICE_CONTROL_OFFSET + 1) & _FLR_BYTE:
                _log.debug("function-level reset")
                self.reset()
        except Exception:
            _log.exception("write of %d bytes at %#x of configuration space", len(data), offset)
            self.controller.fail()

    def reset(self) -> None:
        """Function-level reset: what a client's device reset does, too.

        Registers and configuration have their defaults when this returns; I/O in flight is waited
        for by ``controller.settled()``.
        """
        self.controller.reset()
        self._reset_pci()

    def power_cycle(self) -> None:
        """Be as new, for the next client; the controller has settled."""
        self.controller.power_cycle()
        self._reset_pci()

    def _follow_interrupt_control(self) -> None:
        """The function mask of MSI-X, and how many vectors there are with MSI."""
        mask = self.config.msix_function_mask
        if mask != self._function_mask:
            self._function_mask = mask
            self.controller.queues.interrupts.mask_function(mask)
        self.controller.usable_vectors = self.config.msi_messages or self._vectors

    @property
    def _bus_master(self) -> bool:
        return bool(
            self.config.command & Command.BUS_MASTER and self.config.power_state == PM_STATE_D0
        )

    def _reset_pci(self) -> None:
        self.config.reset()
        self.msix.reset()
        self.controller.queues.interrupts.forget_masks()
        self._function_mask = False
        # A client that never sets Bus Master is served all the same, see `allow_dma`.
        self.controller.allow_dma(True)


_FLR_BYTE = ExpDeviceControl.INITIATE_FLR >> 8
"""Initiate Function Level Reset, in the upper byte of Device Control."""


def _byte_written(offset: int, data: bytes, at: int) -> int:
    """The byte that a write puts at an offset, 0 when it does not reach there."""
    return data[at - offset] if offset <= at < offset + len(data) else 0
