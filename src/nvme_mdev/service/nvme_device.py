"""The NVMe controller as a vfio-user device: regions, interrupts and DMA, and nothing else.

Thin glue between the protocol (:mod:`nvme_mdev.vfio_user`) and the PCI function, the controller and
the queue table, which do the work.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nvme_mdev.controller.controller import BAR0_SIZE, DOORBELL_END
from nvme_mdev.controller.transitions import State
from nvme_mdev.datapath.signalling import signal_eventfd
from nvme_mdev.pci.bars import MSIX_BAR_SIZE
from nvme_mdev.pci.capabilities import msi_vectors
from nvme_mdev.service.client_tables import MASK, UNMASK
from nvme_mdev.service.relay.relay import Relay
from nvme_mdev.spec.nvme_registers import DOORBELL_BASE
from nvme_mdev.spec.pci import CONFIG_SIZE
from nvme_mdev.spec.vfio_user import (
    NUM_PCI_IRQS,
    NUM_PCI_REGIONS,
    DeviceFlags,
    DmaMapFlags,
    IrqInfoFlags,
    IrqSetFlags,
    PciIrq,
    PciRegion,
    RegionInfoFlags,
)
from nvme_mdev.vfio_user.device import DeviceError, DeviceInfo, IrqInfo, RegionInfo, SparseArea
from nvme_mdev.vfio_user.peer_files import check_eventfd, check_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nvme_mdev.pci.function import PciFunction
    from nvme_mdev.service.client_tables import ClientTables
    from nvme_mdev.service.kept_fds import KeptFds
    from nvme_mdev.service.relay.files import Keeper
    from nvme_mdev.vfio_user.client_memory import ClientMemory
    from nvme_mdev.vfio_user.device import DmaMap, SetIrqs

_log = logging.getLogger(__name__)

REPLY_DEADLINE_S = 4.0
"""Longest wait for I/O before a request is answered: QEMU gives up on a reply after 5 s."""
_RETRY_S = 0.0005
"""How often a busy DMA window is tried again."""
_WARN_S = 5.0
"""How often to say that a client that has gone still has I/O in flight."""

_READ_WRITE = RegionInfoFlags.READ | RegionInfoFlags.WRITE
_NO_REGION = RegionInfo(0, RegionInfoFlags(0))
_VECTORED = (PciIrq.MSI, PciIrq.MSIX)
"""The interrupt types that share the vectors; a guest uses one of them."""
_NO_IRQ = IrqInfo(0, IrqInfoFlags(0))
_INTX_TRIGGER = -1
"""The pin, as `Interrupts.trigger` knows it."""
_EVENTFD_SIZE = 8
_EVERYTHING = 1 << 64
"""Bytes that a client can map at most."""


class NvmeDevice:
    """Implements :class:`nvme_mdev.vfio_user.device.Device` for one controller."""

    def __init__(
        self,
        function: PciFunction,
        *,
        mapped_doorbells: bool = True,
        tables: ClientTables | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        """``mapped_doorbells``: offer the doorbell page to be mapped by the client.

        ``tables``: where to note for the next process what the client tells; None if there is
        none. ``keeper``: who keeps what a relay needs, likewise.
        """
        self._function = function
        self._tables = tables
        self._queues = function.controller.queues
        self._controller = function.controller
        self._relay = Relay(self._controller, keeper)
        self.offer_doorbells(mapped=mapped_doorbells)
        self._irqs = {
            PciIrq.INTX: IrqInfo(
                1, IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED
            ),
            # Vectors can be added one by one (no NORESIZE): QEMU does.
            PciIrq.MSI: IrqInfo(
                msi_vectors(self._controller.settings.vectors), IrqInfoFlags.EVENTFD
            ),
            PciIrq.MSIX: IrqInfo(self._controller.settings.vectors, IrqInfoFlags.EVENTFD),
            PciIrq.ERR: IrqInfo(1, IrqInfoFlags.EVENTFD),
            PciIrq.REQ: IrqInfo(1, IrqInfoFlags.EVENTFD),
        }
        #: MSI or MSI-X: whose vectors the eventfds are.
        self._vectored = PciIrq.MSIX
        #: Eventfds of ERR and REQ, which are ours to signal.
        self._signals: dict[int, int] = {}
        #: Eventfds of the client's that mask (True) or unmask the pin.
        self._maskers: dict[bool, int] = {}

    @property
    def mapped_doorbells(self) -> bool:
        """Whether the doorbell page is offered to be mapped."""
        return self._queues.doorbells_mapped

    def offer_doorbells(self, *, mapped: bool) -> None:
        """Offer the doorbell page to be mapped, or not; only while there is no client."""
        self._queues.doorbells_mapped = mapped
        self._regions = self._make_regions(mapped)

    def _make_regions(self, mapped_doorbells: bool) -> dict[int, RegionInfo]:
        bar0 = RegionInfo(BAR0_SIZE, _READ_WRITE)
        if mapped_doorbells:
            area = SparseArea(DOORBELL_BASE, DOORBELL_END - DOORBELL_BASE)
            bar0 = RegionInfo(
                BAR0_SIZE,
                _READ_WRITE | RegionInfoFlags.MMAP,
                (area,),
                self._controller.state.offered_doorbell_fd,
            )
        return {
            PciRegion.BAR0: bar0,
            PciRegion.BAR4: RegionInfo(MSIX_BAR_SIZE, _READ_WRITE),
            PciRegion.CONFIG: RegionInfo(CONFIG_SIZE, _READ_WRITE),
        }

    def restore(self, tables: ClientTables, files: KeptFds) -> None:
        """Take up what the client told the process before us.

        What the client has spoilt since (it may truncate a file) is its guest's loss alone.
        OSError: there is no room for a relay.
        """
        for window in tables.windows():
            try:
                self._relay.map(
                    window.iova,
                    window.size,
                    files[window.file] if window.file else None,
                    window.offset,
                    readable=bool(window.flags & DmaMapFlags.READ),
                    writable=bool(window.flags & DmaMapFlags.WRITE),
                )
            except (OSError, ValueError) as error:
                _log.warning("memory that the client had mapped is lost: %s", error)
                tables.remove_windows(window.iova, window.size)
        for index in self._irqs:
            for number, file in tables.eventfds(index):
                with _spoilt(tables, index, number):
                    self._use_eventfd(index, number, files[file])
        for masker in (MASK, UNMASK):
            for number, file in tables.eventfds(masker):
                with _spoilt(tables, masker, number):
                    self._set_masker(masker == MASK, files[file])
        self._relay.resume()

    def carry_on(self) -> None:
        """After :meth:`restore`: the controller goes on."""
        self._controller.carry_on()
        self._relay.resumed()

    # -- what there is -----------------------------------------------------------------------

    def info(self) -> DeviceInfo:
        """A PCI device that can be reset."""
        return DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, NUM_PCI_REGIONS, NUM_PCI_IRQS)

    def region_info(self, index: int) -> RegionInfo:
        """BAR0, BAR4 and configuration space; the others are empty.

        Mapped doorbells are of no use to a client whose memory only messages reach.
        """
        if index == PciRegion.BAR0 and self._regions[index].fd is not None:
            if not self._relay.shares_memory:
                return RegionInfo(BAR0_SIZE, _READ_WRITE)
            self._relay.doorbells_given()
        return self._regions.get(index, _NO_REGION)

    def irq_info(self, index: int) -> IrqInfo:
        """The pin, MSI, MSI-X, error and request."""
        return self._irqs.get(PciIrq(index), _NO_IRQ)

    # -- regions -----------------------------------------------------------------------------

    def region_read(self, index: int, offset: int, size: int) -> bytes:
        """Read registers, the MSI-X table, or configuration space."""
        match index:
            case PciRegion.BAR0:
                return self._controller.read(offset, size)
            case PciRegion.BAR4:
                return self._function.msix.read(offset, size)
            case PciRegion.CONFIG:
                return self._function.read_config(offset, size)
            case _:
                raise DeviceError(errno.EINVAL)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Write registers, doorbells, the MSI-X table, or configuration space."""
        match index:
            case PciRegion.BAR0:
                self._controller.write(offset, data)
            case PciRegion.BAR4:
                self._function.msix.write(offset, data)
            case PciRegion.CONFIG:
                self._function.write_config(offset, data)
            case _:
                raise DeviceError(errno.EINVAL)

    # -- interrupts --------------------------------------------------------------------------

    async def set_irqs(self, request: SetIrqs, fds: Sequence[int]) -> None:
        """See :class:`nvme_mdev.vfio_user.device.SetIrqs` for what each combination means."""
        if request.data == IrqSetFlags.DATA_EVENTFD:
            for given in fds:
                check_eventfd(given)
            for position in range(request.count):
                fd = fds[position] if fds else None
                self._set_eventfd(request.index, request.start + position, request.action, fd)
        elif request.count == 0:
            self._disable(request.index)
        else:
            for position in range(request.count):
                if request.data == IrqSetFlags.DATA_NONE or request.bools[position]:
                    self._act(request.index, request.start + position, request.action)

    def _set_eventfd(self, index: int, number: int, action: IrqSetFlags, fd: int | None) -> None:
        if action != IrqSetFlags.ACTION_TRIGGER:
            if index != PciIrq.INTX:
                raise DeviceError(errno.EINVAL)
            masks = action == IrqSetFlags.ACTION_MASK
            self._set_masker(masks, fd)
            self._note_eventfd(MASK if masks else UNMASK, 0, fd)
            return
        # Noted once it is of use: the process after us must be able to use it, too.
        self._use_eventfd(index, number, fd)
        self._note_eventfd(index, number, fd)

    def _note_eventfd(self, index: int, number: int, fd: int | None) -> None:
        if self._tables is not None:
            self._tables.set_eventfd(index, number, fd)

    def _use_eventfd(self, index: int, number: int, fd: int | None) -> None:
        if index == PciIrq.INTX:
            self._queues.interrupts.set_intx(_keep(fd))
        elif index in _VECTORED:
            if self._vectored != index:
                self._disable(self._vectored)
                self._vectored = PciIrq(index)
            self._queues.interrupts.set_vector(number, _keep(fd), msi=index == PciIrq.MSI)
        else:
            self._forget_signal(index)
            kept = _keep(fd)
            if kept is not None:
                self._signals[index] = kept

    def _act(self, index: int, number: int, action: IrqSetFlags) -> None:
        """Trigger, mask or unmask one interrupt."""
        masked = action == IrqSetFlags.ACTION_MASK
        if action == IrqSetFlags.ACTION_TRIGGER:
            if index in (PciIrq.INTX, self._vectored):
                self._queues.interrupts.trigger(_INTX_TRIGGER if index == PciIrq.INTX else number)
            elif index not in _VECTORED:
                self.signal(PciIrq(index))
        elif index == PciIrq.INTX:
            self._queues.interrupts.mask_intx(masked)
        elif index in _VECTORED:
            self._queues.interrupts.mask_vector(number, masked)
        else:
            raise DeviceError(errno.EINVAL)

    def _disable(self, index: int) -> None:
        """Forget every eventfd of a type."""
        if self._tables is not None:
            for noted in (index, MASK, UNMASK) if index == PciIrq.INTX else (index,):
                self._tables.clear_eventfds(noted)
        if index == PciIrq.INTX:
            self._queues.interrupts.set_intx(None)
            for masks in (False, True):
                self._set_masker(masks, None)
        elif index == self._vectored:
            for vector in range(self._irqs[self._vectored].count):
                self._queues.interrupts.set_vector(vector, None)
        elif index not in _VECTORED:
            self._forget_signal(index)

    def signal(self, irq: PciIrq) -> bool:
        """Signal ERR or REQ to the client; False when it does not listen."""
        fd = self._signals.get(irq)
        return fd is not None and signal_eventfd(fd)

    def _forget_signal(self, index: int) -> None:
        fd = self._signals.pop(index, None)
        if fd is not None:
            os.close(fd)

    def _set_masker(self, masks: bool, fd: int | None) -> None:
        """Mask or unmask the pin whenever the client signals ``fd``; None: no longer."""
        loop = asyncio.get_running_loop()
        old = self._maskers.pop(masks, None)
        if old is not None:
            loop.remove_reader(old)
            os.close(old)
        kept = _keep(fd)
        if kept is None:
            return
        try:
            loop.add_reader(kept, self._on_masker, kept, masks)
        except OSError:
            os.close(kept)
            raise
        self._maskers[masks] = kept

    def _on_masker(self, fd: int, masks: bool) -> None:
        try:
            # Not os.read: the client may have made the descriptor blocking, and emptied it.
            if os.preadv(fd, [bytearray(_EVENTFD_SIZE)], -1, os.RWF_NOWAIT) == 0:
                raise OSError(errno.EPIPE, "end of file")
        except BlockingIOError:
            return
        except OSError as error:
            _log.warning("the client's INTx eventfd cannot be read: %s", error)
            self._set_masker(masks, None)
            return
        self._queues.interrupts.mask_intx(masks)

    # -- DMA ---------------------------------------------------------------------------------

    async def dma_map(self, mapping: DmaMap, fd: int | None) -> None:
        """Map a window of client memory."""
        if fd is not None:
            check_memory(fd)
        try:
            self._relay.map(
                mapping.iova,
                mapping.size,
                fd,
                mapping.offset,
                readable=bool(mapping.flags & DmaMapFlags.READ),
                writable=bool(mapping.flags & DmaMapFlags.WRITE),
            )
        except ValueError as error:
            overlaps = self._queues.memory.overlaps(mapping.iova, mapping.size)
            code = errno.EEXIST if overlaps else errno.EINVAL
            raise DeviceError(code, str(error)) from error
        if self._tables is not None:
            self._tables.add_window(
                mapping.iova, mapping.size, mapping.offset, int(mapping.flags), fd
            )

    async def dma_unmap(self, iova: int, size: int) -> int:
        """Unmap windows, when the I/O that uses them is done."""
        removed = await self._unmap(lambda: self._relay.try_unmap(iova, size))
        self._forget_windows(iova, size)
        return removed

    def _forget_windows(self, iova: int, size: int) -> None:
        if self._tables is not None:
            self._tables.remove_windows(iova, size)

    async def dma_unmap_all(self) -> int:
        """Unmap everything."""
        removed = await self._unmap(self._relay.try_unmap_all)
        self._forget_windows(0, _EVERYTHING)
        return removed

    async def _unmap(self, attempt: Callable[[], int | None]) -> int:
        deadline = asyncio.get_running_loop().time() + REPLY_DEADLINE_S
        while True:
            try:
                removed = attempt()
            except ValueError as error:
                raise DeviceError(errno.EINVAL, str(error)) from error
            if removed is not None:
                return removed
            if asyncio.get_running_loop().time() > deadline:
                self._queues.dma.give_up_unmap()
                _log.error("I/O still uses the memory that the client unmaps")
                raise DeviceError(errno.EBUSY)
            await asyncio.sleep(_RETRY_S)

    # -- life cycle --------------------------------------------------------------------------

    async def reset(self) -> None:
        """Function-level reset."""
        self._function.reset()
        if self._relay.busy:
            # Its messages are answered after this one is; see below.
            return
        try:
            await asyncio.wait_for(self._controller.settled(), REPLY_DEADLINE_S)
        except TimeoutError:
            # It goes on; the guest cannot enable the controller before it is through.
            _log.warning("reset: there is still I/O in flight")

    def use_client_memory(self, memory: ClientMemory) -> None:
        """For the relay."""
        self._relay.use_client_memory(memory)

    def listen(self, fd: int) -> None:
        """A parked IOThread finds a ring in a shadow doorbell when the message comes."""
        try:
            for iothread in self._queues.iothreads:
                iothread.listen(fd)
        except OSError as error:
            _log.debug("a parked IOThread is woken when a message has been read: %s", error)

    def ignore(self, fd: int) -> None:
        """No longer."""
        for iothread in self._queues.iothreads:
            iothread.ignore(fd)

    async def attached(self) -> None:
        """Nothing to do: the device is as new since the last client has left."""

    async def detached(self) -> None:
        """Reset, wait for all I/O, forget the client's memory and eventfds."""
        self._function.reset()
        await self._wait_patiently(self._settled)
        self._queues.interrupts.clear()
        for index in list(self._irqs):
            self._disable(index)
        await self._wait_patiently(lambda: self._relay.try_unmap_all() is not None)
        self._forget_windows(0, _EVERYTHING)
        await self._relay.detached()
        self._function.power_cycle()

    def _settled(self) -> bool:
        return self._controller.life_cycle.state is State.DISABLED

    async def _wait_patiently(self, done: Callable[[], bool]) -> None:
        """Wait for I/O as long as it takes; the next client cannot come before."""
        loop = asyncio.get_running_loop()
        warn_at = loop.time() + _WARN_S
        while not done():
            if loop.time() > warn_at:
                _log.warning("the client has gone; still waiting for its I/O")
                warn_at += _WARN_S
            await asyncio.sleep(_RETRY_S)


@contextmanager
def _spoilt(tables: ClientTables, index: int, number: int) -> Iterator[None]:
    """An eventfd that is of no use any more is forgotten."""
    try:
        yield
    except OSError as error:
        _log.warning("an eventfd of the client's is lost: %s", error)
        tables.set_eventfd(index, number, None)


def _keep(fd: int | None) -> int | None:
    """A duplicate of a descriptor that the server will close, such that writing does not block."""
    if fd is None:
        return None
    kept = os.dup(fd)
    try:
        os.set_blocking(kept, False)
    except OSError:
        os.close(kept)
        raise
    return kept
