"""A PCI function behind VFIO: a drive that the user has bound to vfio-pci.

The kernel's VFIO (``<linux/vfio.h>``; Documentation/driver-api/vfio.rst). The function sees this
process' memory through its IOMMU (:mod:`.iommu`), at the IOVAs that we map and nothing else.
Nothing is bound or unbound here: what is not as it must be is said, with what to do.

`VfioTransport` is a `nvme_mdev.host.transport.Transport` without a socket.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.datapath.shared_mapping import SharedMapping
from nvme_mdev.host.errors import AttachError, TransportError
from nvme_mdev.host.iommu import SYSFS, Place, open_function
from nvme_mdev.host.transport import MOST_DOORBELLS, Transport
from nvme_mdev.spec.nvme_registers import REGISTERS_SIZE
from nvme_mdev.spec.vfio_user import IrqSetFlags, PciIrq, PciRegion, RegionInfoFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.host.memory import DmaMemory

PREFIX = "vfio:"
_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)

#: ``<linux/vfio.h>``: _IO(';', 100 + n).
_BASE = 0x3B64
_DEVICE_GET_REGION_INFO = _BASE + 8
_DEVICE_GET_IRQ_INFO, _DEVICE_SET_IRQS, _DEVICE_RESET = _BASE + 9, _BASE + 10, _BASE + 11

_REGION_INFO = struct.Struct("@IIIIQQ")
_IRQ_INFO = struct.Struct("@IIII")
_IRQ_SET = struct.Struct("@IIIII")


class VfioTransport(Transport):
    """One drive, held through VFIO until :meth:`close`. Not for several threads at once."""

    def __init__(self, address: str) -> None:
        """Open the function at a PCI address; AttachError says why not, and what to do."""
        self.path = Path(f"{PREFIX}{address}")
        place = Place(str(self.path), address, group_of(address))
        try:
            self._function = open_function(place)
            try:
                self._regions = {
                    index: self._region_info(index) for index in (PciRegion.BAR0, PciRegion.CONFIG)
                }
            except OSError:
                self._function.close()
                raise
        except OSError as error:
            raise AttachError(f"{self.path}: {os.strerror(error.errno or 0)}") from error

    def _region_info(self, index: PciRegion) -> tuple[int, int, int]:
        """Flags, size, and offset in the device's file."""
        info = bytearray(_REGION_INFO.pack(_REGION_INFO.size, 0, index, 0, 0, 0))
        fcntl.ioctl(self._function.fd, _DEVICE_GET_REGION_INFO, info)
        _, flags, _, _, size, offset = _REGION_INFO.unpack(info)
        return flags, size, offset

    def close(self) -> None:
        """Let go of it; the kernel resets the function and unmaps everything."""
        self._function.close()

    @property
    def disconnected(self) -> bool:
        """The function has gone: reads give all ones."""
        try:
            return self._read(PciRegion.CONFIG, 0, 2) == b"\xff\xff"
        except OSError:
            return True

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransportError(
                f"{self.path}: {doing}: {os.strerror(error.errno or 0)}"
            ) from error

    # -- the function --------------------------------------------------------------------------
    def _read(self, region: PciRegion, offset: int, size: int) -> bytes:
        data = os.pread(self._function.fd, size, self._regions[region][2] + offset)
        if len(data) != size:
            raise OSError(errno.EIO, "short read")
        return data

    def _write(self, region: PciRegion, offset: int, data: bytes) -> None:
        if os.pwrite(self._function.fd, data, self._regions[region][2] + offset) != len(data):
            raise OSError(errno.EIO, "short write")

    def reset(self) -> None:
        """Function-level reset, or what the function has instead."""
        with self._errors("resetting the device"):
            fcntl.ioctl(self._function.fd, _DEVICE_RESET)

    def read_bar0(self, offset: int, size: int) -> bytes:
        """Bytes of BAR0, in accesses of 4 bytes at most."""
        with self._errors(f"reading BAR0 at {offset:#x}"):
            return b"".join(
                self._read(PciRegion.BAR0, offset + at, min(4, size - at))
                for at in range(0, size, 4)
            )

    def write_bar0(self, offset: int, data: bytes) -> None:
        """Write bytes of BAR0, in accesses of 4 bytes at most."""
        with self._errors(f"writing BAR0 at {offset:#x}"):
            for at in range(0, len(data), 4):
                self._write(PciRegion.BAR0, offset + at, data[at : at + 4])

    def post_bar0(self, offset: int, data: bytes) -> None:
        """As :meth:`write_bar0`: the processor posts it."""
        self.write_bar0(offset, data)

    def map_doorbells(self) -> tuple[SharedMapping | None, int]:
        """Map BAR0 from the doorbells on; (None, 0): the kernel does not let us."""
        flags, size, offset = self._regions[PciRegion.BAR0]
        if not flags & RegionInfoFlags.MMAP or size <= REGISTERS_SIZE:
            return None, 0
        with self._errors("mapping the doorbells"):
            length = min(size - REGISTERS_SIZE, MOST_DOORBELLS)
            # Of a function that has gone, or whose memory is switched off, every access is SIGBUS.
            doorbells = SharedMapping(self._function.fd, length, offset + REGISTERS_SIZE)
        return doorbells, REGISTERS_SIZE

    # -- memory and interrupts -----------------------------------------------------------------
    def dma_map(self, window: DmaMemory) -> None:
        """Let the controller read and write a window."""
        self._map(
            ctypes.addressof(ctypes.c_char.from_buffer(window.view)), window.iova, window.size
        )

    def _map(self, address: int, iova: int, size: int, *, writable: bool = True) -> None:
        with self._errors(f"mapping {size} bytes at IOVA {iova:#x}"):
            self._function.map(address, iova, size, writable=writable)

    def dma_unmap(self, window: DmaMemory) -> None:
        """Take a window away from the controller."""
        self.unmap_file(window.iova, window.size)

    def map_file(self, iova: int, size: int, _fd: int, _offset: int, *, writable: bool) -> None:
        """Let the controller see memory of this process that is at the address ``iova``."""
        self._map(iova, iova, size, writable=writable)

    def unmap_file(self, iova: int, size: int) -> None:
        """Take it away again."""
        with self._errors(f"unmapping {size} bytes at IOVA {iova:#x}"):
            self._function.unmap(iova, size)

    def msix_vectors(self) -> int:
        """How many MSI-X vectors there are."""
        info = bytearray(_IRQ_INFO.pack(_IRQ_INFO.size, 0, PciIrq.MSIX, 0))
        with self._errors("asking for MSI-X"):
            fcntl.ioctl(self._function.fd, _DEVICE_GET_IRQ_INFO, info)
        return int(_IRQ_INFO.unpack(info)[3])

    def set_msix(self, vector: int, eventfd: int) -> None:
        """Have an MSI-X vector signal an eventfd."""
        with self._errors(f"setting up MSI-X vector {vector}"):
            self._set_irq(PciIrq.MSIX, vector, eventfd)

    def set_request(self, eventfd: int) -> None:
        """Have an eventfd signalled when the kernel waits for the function, to remove it, say."""
        with suppress(OSError):
            self._set_irq(PciIrq.REQ, 0, eventfd)

    def _set_irq(self, index: PciIrq, start: int, eventfd: int) -> None:
        flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
        request = _IRQ_SET.pack(_IRQ_SET.size + 4, flags, index, start, 1)
        fcntl.ioctl(self._function.fd, _DEVICE_SET_IRQS, request + struct.pack("@i", eventfd))


def group_of(address: str, sysfs: Path = SYSFS) -> str:
    """The function's IOMMU group; AttachError: it is not vfio-pci's, with what to do."""
    name = f"{PREFIX}{address}"
    if not _ADDRESS.fullmatch(address):
        raise AttachError(f"{name}: write a PCI address as lspci -D does (0000:44:00.0)")
    function = sysfs / "bus/pci/devices" / address
    if not function.exists():
        raise AttachError(f"{name}: there is no such PCI function: see lspci -D")
    driver = (function / "driver").resolve().name if (function / "driver").exists() else None
    if driver != "vfio-pci":
        state = f"its driver is {driver}" if driver else "it has no driver"
        raise AttachError(
            f"{name}: {state}: bind it to vfio-pci (driverctl set-override {address} vfio-pci)"
        )
    if not (function / "iommu_group").exists():
        raise AttachError(
            f"{name}: it is behind no IOMMU: enable it (intel_iommu=on, the firmware)"
        )
    return (function / "iommu_group").resolve().name
