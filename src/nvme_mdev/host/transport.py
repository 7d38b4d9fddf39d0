"""The PCI function behind a vfio-user socket, as an NVMe driver needs it.

Turns what can go wrong on the socket into this package's errors, with what to do about it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.datapath.shared_mapping import SharedMapping
from nvme_mdev.host.errors import AttachError, TransportError
from nvme_mdev.spec import pci
from nvme_mdev.spec.nvme_registers import REGISTERS_SIZE
from nvme_mdev.spec.vfio_user import DmaMapFlags, PciIrq, PciRegion, RegionInfoFlags
from nvme_mdev.vfio_user.client import Client
from nvme_mdev.vfio_user.device import DmaMap
from nvme_mdev.vfio_user.framing import ProtocolError
from nvme_mdev.vfio_user.peer_files import check_memory
from nvme_mdev.vfio_user.serving_client import ServingClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.host.memory import DmaMemory

SOCKET_NAME = "cntrl"
"""The socket in a directory that stands for it, as SPDK's driver has it (``traddr:DIR``)."""

_MOST_CAPABILITIES = 48
"""As many as fit behind the header of configuration space."""

_WHY_NO_CONNECTION = {
    errno.ENOENT: "there is no such socket: start the server, or check the path",
    errno.ECONNREFUSED: "nobody serves this socket: start the server again",
    errno.ENOTSOCK: "this is not a socket: give the path that the server was started with",
    errno.EACCES: "not allowed: run as a user who may open the socket",
    errno.EPROTOTYPE: "this is not a stream socket, so no vfio-user server's",
    errno.ECONNRESET: "the server closed the connection: it serves another client, or is not a"
    " vfio-user server",
    errno.EPIPE: "the server closed the connection: it serves another client, or is not a"
    " vfio-user server",
    errno.EBUSY: "the server has another client: disconnect that one first",
    errno.ETIMEDOUT: "no answer: this is not a vfio-user server, or it hangs",
}


MOST_DOORBELLS = 1 << 30
"""Bytes of doorbells that are mapped: all that 65536 queue pairs have with a stride of 8 KiB."""


def resolve(path: str | os.PathLike[str]) -> Path:
    """The socket's path: a directory stands for the socket ``cntrl`` in it."""
    found = Path(path)
    return found / SOCKET_NAME if found.is_dir() else found


class PrivateMemory:
    """Windows that only messages reach (`nvme_mdev.vfio_user.serving_client.Memory`).

    Messages are answered by a thread of their own: what it writes has arrived in a window that is
    taken away, or never does.
    """

    def __init__(self) -> None:
        self._windows: list[DmaMemory] = []
        self._lock = threading.Lock()

    def add(self, window: DmaMemory) -> None:
        """One more."""
        with self._lock:
            self._windows.append(window)

    def remove(self, window: DmaMemory) -> None:
        """One less; nothing is written to it any more."""
        with self._lock:
            self._windows.remove(window)

    def read(self, address: int, size: int) -> bytes:
        """Bytes of a range; OSError: it is in no window."""
        with self._lock:
            return bytes(self._view(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Bytes into a range; OSError: it is in no window."""
        with self._lock:
            self._view(address, len(data))[:] = data

    def _view(self, address: int, size: int) -> memoryview:
        for window in self._windows:
            if window.holds(address, size):
                start = address - window.iova
                return window.view[start : start + size]
        raise OSError(errno.EFAULT, f"{size} bytes at {address:#x} are in no window")


class Transport:
    """One vfio-user client session with a PCI function. Not for several threads at once."""

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = 10.0, share_memory: bool = True
    ) -> None:
        """Connect; AttachError says why not. ``timeout`` is for each reply, in seconds.

        ``share_memory`` False: no file descriptors go with DMA_MAP, we answer DMA_READ and _WRITE.
        """
        self.path = resolve(path)
        self.private_memory = None if share_memory else PrivateMemory()
        """What only messages reach; None: all windows are shared."""
        try:
            if self.private_memory is None:
                self.client = Client(self.path, timeout=timeout)
            else:
                self.client = ServingClient(self.path, self.private_memory, timeout=timeout)
        except ProtocolError as error:
            raise AttachError(f"{self.path}: this is not a vfio-user server ({error})") from error
        except OSError as error:
            raise AttachError(f"{self.path}: {_why(error)}") from error

    def close(self) -> None:
        """Disconnect."""
        self.client.close()

    @property
    def disconnected(self) -> bool:
        """The server has closed its end."""
        if self.client.fileno() < 0:
            return True
        poller = select.poll()
        poller.register(self.client.fileno(), select.POLLRDHUP)
        return bool(poller.poll(0))

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ConnectionError as error:
            raise TransportError(f"{self.path}: the server has gone away") from error
        except (OSError, ProtocolError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise TransportError(f"{self.path}: {doing}: {why}") from error

    # -- the function --------------------------------------------------------------------------
    def _read(self, region: PciRegion, offset: int, size: int) -> bytes:
        """Bytes of a region; OSError or the client's error."""
        return self.client.region_read(region, offset, size)

    def _write(self, region: PciRegion, offset: int, data: bytes) -> None:
        """As :meth:`_read`."""
        self.client.region_write(region, offset, data)

    def check_nvme(self) -> None:
        """AttachError unless this is an NVMe controller (PCI class 01 08 02)."""
        found = self.read_config(pci.ConfigOffset.CLASS_CODE, 3)
        if found != pci.CLASS_NVME:
            raise AttachError(
                f"{self.path}: this is not an NVMe controller but a device of PCI class"
                f" {found:06x}: give an NVMe controller's"
            )

    def enable_pci(self) -> None:
        """Memory space and bus mastering on, INTx off."""
        wanted = pci.Command.MEMORY | pci.Command.BUS_MASTER | pci.Command.INTX_DISABLE
        self.write_config(pci.ConfigOffset.COMMAND, wanted, 2)

    def read_config(self, offset: int, size: int) -> int:
        """A value of configuration space, little-endian."""
        with self._errors(f"reading configuration space at {offset:#x}"):
            data = self._read(PciRegion.CONFIG, offset, size)
        return int.from_bytes(data, "little")

    def write_config(self, offset: int, value: int, size: int) -> None:
        """Write a value of configuration space."""
        with self._errors(f"writing configuration space at {offset:#x}"):
            self._write(PciRegion.CONFIG, offset, value.to_bytes(size, "little"))

    def capabilities(self) -> dict[int, int]:
        """Capability identifier to its offset in configuration space; TransportError: no end."""
        found: dict[int, int] = {}
        at = self.read_config(pci.ConfigOffset.CAPABILITIES, 1)
        while at:
            if len(found) == _MOST_CAPABILITIES or at in found.values():
                raise TransportError(f"{self.path}: the list of PCI capabilities has no end")
            found[self.read_config(at, 1)] = at
            at = self.read_config(at + 1, 1)
        return found

    def reset(self) -> None:
        """Function-level reset."""
        with self._errors("resetting the device"):
            self.client.reset()

    def read_bar0(self, offset: int, size: int) -> bytes:
        """Bytes of BAR0."""
        with self._errors(f"reading BAR0 at {offset:#x}"):
            return self._read(PciRegion.BAR0, offset, size)

    def write_bar0(self, offset: int, data: bytes) -> None:
        """Write bytes of BAR0."""
        with self._errors(f"writing BAR0 at {offset:#x}"):
            self._write(PciRegion.BAR0, offset, data)

    def post_bar0(self, offset: int, data: bytes) -> None:
        """Write bytes of BAR0 and do not wait until they are there; later accesses come later."""
        with self._errors(f"writing BAR0 at {offset:#x}"):
            self.client.region_post(PciRegion.BAR0, offset, data)

    def map_doorbells(self) -> tuple[SharedMapping | None, int]:
        """Map the part of BAR0 that has the doorbells; its start in BAR0. (None, 0): not offered.

        Without sparse areas all of the region may be mapped; what lies before the doorbells is
        left out, since registers have side effects that memory has not. AttachError: the server's
        file is none that can be mapped, or would keep us waiting.
        """
        with self._errors("asking for BAR0"):
            info = self.client.region_info(PciRegion.BAR0)
        if info.fd is None:
            return None, 0
        try:
            if not info.flags & RegionInfoFlags.MMAP:
                return None, 0
            areas = [(area.offset, area.size) for area in info.areas] or [(0, info.size)]
            for offset, size in areas:
                start, end = REGISTERS_SIZE, offset + size
                if offset <= start < end:
                    check_memory(info.fd, "the memory of its doorbells")
                    length = min(end - start, MOST_DOORBELLS)
                    return SharedMapping(info.fd, length, info.fd_offset + start), start
        except OSError as error:
            raise AttachError(
                f"{self.path}: the doorbells cannot be mapped: {error.strerror}"
            ) from error
        finally:
            os.close(info.fd)
        return None, 0

    # -- memory and interrupts -----------------------------------------------------------------
    def dma_map(self, window: DmaMemory) -> None:
        """Let the controller read and write a window."""
        flags = DmaMapFlags.READ | DmaMapFlags.WRITE
        with self._errors(f"DMA_MAP of {window.size} bytes at {window.iova:#x}"):
            if self.private_memory is not None:
                self.private_memory.add(window)
            fd = window.fd if self.private_memory is None else None
            self.client.dma_map(DmaMap(window.iova, window.size, 0, flags), fd)

    def dma_unmap(self, window: DmaMemory) -> None:
        """Take a window away from the controller."""
        with self._errors(f"DMA_UNMAP of {window.size} bytes at {window.iova:#x}"):
            self.client.dma_unmap(window.iova, window.size)
            if self.private_memory is not None:
                self.private_memory.remove(window)

    def map_file(self, iova: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Let the controller see ``size`` bytes of a file from ``offset`` on."""
        flags = DmaMapFlags.READ | (DmaMapFlags.WRITE if writable else DmaMapFlags(0))
        with self._errors(f"DMA_MAP of {size} bytes at {iova:#x}"):
            self.client.dma_map(DmaMap(iova, size, offset, flags), fd)

    def unmap_file(self, iova: int, size: int) -> None:
        """Take it away again."""
        with self._errors(f"DMA_UNMAP of {size} bytes at {iova:#x}"):
            self.client.dma_unmap(iova, size)

    def msix_vectors(self) -> int:
        """How many MSI-X vectors there are."""
        with self._errors("asking for MSI-X"):
            return self.client.irq_info(PciIrq.MSIX).count

    def set_request(self, eventfd: int) -> None:
        """Have an eventfd signalled when the device is asked for back; not all can be."""
        with suppress(OSError, ProtocolError):
            self.client.enable_irqs(PciIrq.REQ, [eventfd])

    def enable_msix(self) -> None:
        """MSI-X Enable, where there is MSI-X: a device sends no message without it."""
        at = self.capabilities().get(pci.CapId.MSIX)
        if at is not None:
            control = at + ctypes.sizeof(pci.CapHeader)
            value = self.read_config(control, 2) | pci.MsixControl.ENABLE
            self.write_config(control, value & ~pci.MsixControl.FUNCTION_MASK, 2)

    def set_msix(self, vector: int, eventfd: int) -> None:
        """Have an MSI-X vector signal an eventfd."""
        with self._errors(f"setting up MSI-X vector {vector}"):
            self.client.enable_irqs(PciIrq.MSIX, [eventfd], vector)


def _why(error: OSError) -> str:
    number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno
    if number in _WHY_NO_CONNECTION:
        return _WHY_NO_CONNECTION[number]
    return os.strerror(number) if number else str(error)
