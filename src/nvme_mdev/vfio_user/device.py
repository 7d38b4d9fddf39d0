"""What the vfio-user server drives: the interface of an emulated device.

The server knows the protocol and nothing of the device; the device knows PCI and what stands
behind it and nothing of sockets. Between them are only the values in this module. They mirror
``<linux/vfio.h>``, which the vfio-user specification (QEMU ``docs/interop/vfio-user.rst``) takes
over, without what belongs to the wire alone (``argsz``, capability chains, message ids).

What the server guarantees to every method:

* all calls come from the event loop's thread, one at a time, in the order of the messages;
  the next message is not looked at before the call has returned;
* indexes are below ``DeviceInfo.num_regions`` and ``num_irqs``; ranges lie inside the region or
  the interrupt type and do not wrap; reads go to readable regions, writes to writable ones;
* a method that waits for the client's memory waits for ever: the reply is the next message, so
  whoever reads or writes it is a task of its own;
* between :meth:`Device.attached` and :meth:`Device.detached` there is exactly one client.

What a device may raise: :class:`DeviceError` or any :class:`OSError` with an ``errno``; the client
gets it in an error reply and the session goes on. Anything else is a bug: it is logged with its
traceback, the client gets ``EIO``, and the session goes on.

File descriptors handed to a method stay the server's: it closes them as soon as the call returns
or raises. A device that keeps one duplicates it (``os.dup``); ``mmap`` needs no duplicate.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.spec.vfio_user import (
        DeviceFlags,
        DmaMapFlags,
        IrqInfoFlags,
        IrqSetFlags,
        RegionInfoFlags,
    )

    from .client_memory import ClientMemory

__all__ = [
    "Device",
    "DeviceError",
    "DeviceInfo",
    "DmaMap",
    "IrqInfo",
    "RegionInfo",
    "SetIrqs",
    "SparseArea",
]


class DeviceError(OSError):
    """A request that the device refuses; ``errno`` goes into the error reply."""

    def __init__(self, errno: int, message: str | None = None) -> None:
        super().__init__(errno, message if message is not None else os.strerror(errno))


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Answer to VFIO_USER_DEVICE_GET_INFO (``struct vfio_device_info``)."""

    flags: DeviceFlags
    """RESET if :meth:`Device.reset` works, PCI for a PCI device."""
    num_regions: int
    """How many regions there are; PCI has ``NUM_PCI_REGIONS`` (9), some of size 0."""
    num_irqs: int
    """How many interrupt types there are; PCI has ``NUM_PCI_IRQS`` (5), some of count 0."""


@dataclass(frozen=True, slots=True)
class SparseArea:
    """A part of a region that the client may map (``struct vfio_region_sparse_mmap_area``)."""

    offset: int
    """Bytes from the start of the region."""
    size: int
    """Bytes; a multiple of the page size."""


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """Answer to VFIO_USER_DEVICE_GET_REGION_INFO (``struct vfio_region_info``).

    A region that is not there has size 0, no flags and no fd. The server adds the CAPS flag and
    the sparse-mmap capability when ``areas`` is not empty.
    """

    size: int
    """Bytes."""
    flags: RegionInfoFlags
    """READ and WRITE as the region allows; MMAP if and only if there is an fd."""
    areas: tuple[SparseArea, ...] = ()
    """What may be mapped of a MMAP region; empty means all of it."""
    fd: int | None = None
    """What the client maps. It stays the device's: the server sends it and does not close it."""
    fd_offset: int = 0
    """Where in ``fd`` the region's byte 0 is; an area is at ``fd_offset + area.offset``."""


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """Answer to VFIO_USER_DEVICE_GET_IRQ_INFO (``struct vfio_irq_info``)."""

    count: int
    """How many interrupts the type has; 0 when the type is not there."""
    flags: IrqInfoFlags
    """EVENTFD, MASKABLE, AUTOMASKED, NORESIZE."""


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """VFIO_USER_DEVICE_SET_IRQS (``struct vfio_irq_set``), already validated.

    Exactly one data type and one action is set. What it means:

    ========= ======================== ========================================================
    data      action                   meaning
    ========= ======================== ========================================================
    NONE      MASK / UNMASK / TRIGGER  do it to ``start`` … ``start + count - 1``
    NONE      TRIGGER, ``count`` 0     disable the whole type (``start`` is 0)
    BOOL      MASK / UNMASK / TRIGGER  do it where ``bools`` is true
    EVENTFD   TRIGGER, with fds        signal these eventfds from now on, one an interrupt
    EVENTFD   MASK / UNMASK, with fds  do it whenever these eventfds are signalled (rarely used)
    EVENTFD   any, without fds         forget the eventfds of these interrupts
    ========= ======================== ========================================================
    """

    index: int
    """The interrupt type, e.g. ``PciIrq.MSIX``."""
    start: int
    """The first interrupt of the type."""
    count: int
    """How many interrupts."""
    data: IrqSetFlags
    """``DATA_NONE``, ``DATA_BOOL`` or ``DATA_EVENTFD``."""
    action: IrqSetFlags
    """``ACTION_MASK``, ``ACTION_UNMASK`` or ``ACTION_TRIGGER``."""
    bools: tuple[bool, ...] = ()
    """With DATA_BOOL ``count`` values, otherwise empty."""


@dataclass(frozen=True, slots=True)
class DmaMap:
    """VFIO_USER_DMA_MAP: a window of the client's memory."""

    iova: int
    """Address as the device sees it (bytes)."""
    size: int
    """Bytes, at least 1; ``iova + size`` does not exceed 2**64."""
    offset: int
    """Where in the fd the window begins (bytes); meaningless without fd."""
    flags: DmaMapFlags
    """READ: the device may read it (RAM, ROM). WRITE: it may write it."""


class Device(Protocol):
    """A device that :class:`nvme_mdev.vfio_user.server.Server` can serve."""

    def info(self) -> DeviceInfo:
        """What the device is; the same for the lifetime of a session."""

    def region_info(self, index: int) -> RegionInfo:
        """Describe region ``index``; called often, so it should only look something up."""

    def irq_info(self, index: int) -> IrqInfo:
        """Describe interrupt type ``index``; called often, too."""

    def region_read(self, index: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes (1 … 1 MiB) at byte ``offset`` of a region; must return as many.

        A client's memory transaction waits for it, so it must not block.
        """

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Write ``data`` (1 byte … 1 MiB) at byte ``offset`` of a region; must not block.

        The reply is sent when the call returns: what the write means has then happened.
        """

    async def set_irqs(self, request: SetIrqs, fds: Sequence[int]) -> None:
        """Change how interrupts are signalled or masked; ``fds`` are none or ``request.count``.

        The fds are closed after the call; duplicate those that are kept. They are whatever the
        client sent and need not be eventfds: write to them without blocking, ignore errors.
        """

    async def dma_map(self, mapping: DmaMap, fd: int | None) -> None:
        """Learn of a window of client memory; ``fd`` is None when the client does not share it.

        A window without fd is not an error (ROMs, other devices' BARs, private RAM): only messages
        reach it (:meth:`use_client_memory`).
        ``EEXIST`` is the error for a window that overlaps one already there, ``ENOSPC`` for more
        than ``MAX_DMA_MAPS`` windows; the client is told of as many as QEMU believes.
        """

    async def dma_unmap(self, iova: int, size: int) -> int:
        """Forget the windows that lie inside ``iova`` … ``iova + size - 1``.

        Returns the bytes removed, 0 when there was nothing, which is no error. When it returns,
        nothing touches that memory any more, I/O in flight included.
        """

    async def dma_unmap_all(self) -> int:
        """Forget every window; returns the bytes removed. Otherwise as :meth:`dma_unmap`."""

    async def reset(self) -> None:
        """Reset the device as a PCI function-level reset does; memory and eventfds stay."""

    def use_client_memory(self, memory: ClientMemory) -> None:
        """How to reach the memory of the client that is there, until :meth:`detached`.

        Comes before :meth:`attached`, and without it in a process that goes on with a client.
        """

    def listen(self, fd: int) -> None:
        """The socket of a client that has come; until :meth:`ignore` it may be polled, never read.

        So a device that looks at the client's memory by itself learns that there is something new
        before the message is read here.
        """

    def ignore(self, fd: int) -> None:
        """The socket is about to be closed; it comes after :meth:`detached`."""

    async def attached(self) -> None:
        """A client has agreed on a protocol version; comes before any other call for that client.

        :class:`OSError` refuses the client; :meth:`detached` does not follow then.
        """

    async def detached(self) -> None:
        """The client of :meth:`attached` has gone, in whatever way.

        Drop every DMA window and every eventfd and be ready for the next client. Must not raise.
        """
