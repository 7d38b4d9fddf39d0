"""`NvmeFunction`: the PCI function of an NVMe controller, with which no command is exchanged yet.

It has the controller's registers and doorbells (NVMe over PCIe Transport 1.1, section 3), the
memory that the controller reaches, and its interrupts. Offsets and sizes are bytes.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from nvme_mdev.host.errors import AttachError, HostError, TransportError
from nvme_mdev.host.memory import PAGE_SIZE, DmaMemory, round_up
from nvme_mdev.host.transport import Transport
from nvme_mdev.host.vfio import PREFIX as VFIO
from nvme_mdev.host.vfio import VfioTransport
from nvme_mdev.spec.nvme_registers import REGISTER_SIZE, Cap, Register

if TYPE_CHECKING:
    from nvme_mdev.datapath.shared_mapping import SharedMapping


class NvmeFunction:
    """The function behind a socket, or a drive's; methods can be called from several threads.

    Errors are those of `nvme_mdev.host.errors`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_size: int,
        iova: int,
        map_doorbells: bool,
        share_memory: bool,
    ) -> None:
        """Attach to it, with a first DMA window of ``memory_size`` bytes at ``iova``."""
        self.cap = Cap(mqes=0, to=0)
        """CAP as read when attaching."""
        self.page_size = 4096
        """Memory page size (CC.MPS), bytes."""
        self._vectors: list[int] = []
        self._request = -1
        self._windows: list[DmaMemory] = []
        self._next_iova = iova
        self._lock = threading.Lock()
        self._doorbells: SharedMapping | None = None
        self._doorbell_base = 0
        self.transport = _open_transport(path, share_memory=share_memory)
        try:
            self._attach(map_doorbells, memory_size)
        except BaseException:
            self._release()
            raise

    def _attach(self, map_doorbells: bool, memory_size: int) -> None:
        self.transport.check_nvme()
        self.transport.enable_pci()
        if map_doorbells:
            self._doorbells, self._doorbell_base = self.transport.map_doorbells()
        self.cap = Cap.unpack(self.read_register(Register.CAP))
        if not self.cap.mqes:
            raise AttachError(f"{self.transport.path}: its queues hold no command (CAP.MQES is 0)")
        self.page_size = 4096 << self.cap.mpsmin
        self.memory = self.map_memory(memory_size)

    def _release(self) -> None:
        self.transport.close()
        for window in self._windows:
            window.close()
        self._windows.clear()
        for vector in self._vectors:
            os.close(vector)
        self._vectors.clear()
        if self._request >= 0:
            os.close(self._request)
            self._request = -1
        # Unmapped when no queue has a view of it any more.
        self._doorbells = None

    # -- memory --------------------------------------------------------------------------------
    def map_memory(self, size: int, *, iova: int | None = None) -> DmaMemory:
        """A new DMA window of ``size`` bytes, after the others unless ``iova`` says where."""
        where = self._next_iova if iova is None else iova
        window = DmaMemory(size, where)
        try:
            with self._lock:
                self.transport.dma_map(window)
        except BaseException:
            window.close()
            raise
        self._windows.append(window)
        self._next_iova = max(self._next_iova, round_up(where + window.size, 1 << 21))
        return window

    def unmap_memory(self, window: DmaMemory) -> None:
        """Take a window away from the controller and free it."""
        with self._lock:
            self.transport.dma_unmap(window)
        self._windows.remove(window)
        window.close()

    def map_file(self, iova: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Let the controller see memory that is not ours at ``iova``; see `Transport.map_file`."""
        with self._lock:
            self.transport.map_file(iova, size, fd, offset, writable=writable)

    def unmap_file(self, iova: int, size: int) -> None:
        """Take it away again."""
        with self._lock:
            self.transport.unmap_file(iova, size)

    # -- registers and doorbells ---------------------------------------------------------------
    def read_register(self, register: Register) -> int:
        """A controller register, through the socket."""
        return int.from_bytes(self.read_bar0(register, REGISTER_SIZE[register]), "little")

    def write_register(self, register: Register, value: int) -> None:
        """Write a controller register, through the socket."""
        self.write_bar0(register, value.to_bytes(REGISTER_SIZE[register], "little"))

    def read_bar0(self, offset: int, size: int) -> bytes:
        """Any bytes of BAR0, through the socket."""
        with self._lock:
            return self.transport.read_bar0(offset, size)

    def write_bar0(self, offset: int, data: bytes) -> None:
        """Any bytes of BAR0, through the socket."""
        with self._lock:
            self.transport.write_bar0(offset, data)

    def doorbell_offset(self, qid: int, *, completion: bool) -> int:
        """Where in BAR0 a doorbell is (PCIe Transport 3.1.2)."""
        return 0x1000 + (2 * qid + int(completion)) * (4 << self.cap.dstrd)

    def write_doorbell(self, qid: int, value: int, *, completion: bool = False) -> None:
        """Write any value to any doorbell register, through the socket."""
        self.write_bar0(
            self.doorbell_offset(qid, completion=completion), value.to_bytes(4, "little")
        )

    def _ring(self, qid: int, value: int, *, completion: bool) -> None:
        """As `write_doorbell`, but do not wait for it: a drive's register is posted, too.

        Unless others are rung in memory: they must not come before this one.
        """
        if self.doorbells_mapped:
            self.write_doorbell(qid, value, completion=completion)
            return
        with self._lock:
            self.transport.post_bar0(
                self.doorbell_offset(qid, completion=completion), value.to_bytes(4, "little")
            )

    @property
    def doorbells_mapped(self) -> bool:
        """The server offers the doorbells as memory, and we use it."""
        return self._doorbells is not None

    def check_native(self) -> None:
        """AttachError: queues of it cannot be driven by threads without Python.

        Those ring doorbells in mapped memory, and describe data by pages of 4 KiB.
        """
        if self.page_size != PAGE_SIZE:
            raise AttachError(
                f"{self.transport.path}: its pages have {self.page_size} bytes at least"
                f" (CAP.MPSMIN): {PAGE_SIZE} are needed"
            )
        if not self.doorbells_mapped:
            raise AttachError(
                f"{self.transport.path}: its doorbells cannot be mapped: serve it with"
                " --mapped-doorbells"
            )

    def _doorbell_view(self, qid: int, *, completion: bool) -> memoryview | None:
        """A doorbell in mapped memory, or None when the mapping does not reach it."""
        if self._doorbells is None:
            return None
        start = self.doorbell_offset(qid, completion=completion) - self._doorbell_base
        if not 0 <= start <= len(self._doorbells) - 4:
            return None
        return memoryview(self._doorbells)[start : start + 4]

    def check_doorbells(self) -> None:
        """Raise TransportError when the mapped doorbells ring nothing any more."""
        if self._doorbells is not None and self._doorbells.lost:
            raise TransportError(f"{self.transport.path}: its doorbells are not there any more")

    # -- interrupts ----------------------------------------------------------------------------
    def interrupt(self, vector: int) -> int:
        """The eventfd of an MSI-X vector; all vectors up to it are set up when they are not."""
        with self._lock:
            available = self.transport.msix_vectors()
            if vector >= available:
                raise HostError(f"MSI-X vector {vector} is not there: the device has {available}")
            if not self._vectors:
                self.transport.enable_msix()
            while len(self._vectors) <= vector:
                eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._vectors.append(eventfd)
                self.transport.set_msix(len(self._vectors) - 1, eventfd)
        return self._vectors[vector]

    def listen_for_request(self) -> None:
        """From now on know when the device is asked for back (`is_wanted_back`)."""
        if self._request >= 0:
            return
        self._request = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with self._lock:
            self.transport.set_request(self._request)

    @property
    def is_wanted_back(self) -> bool:
        """Somebody has asked since the last time: unplug it, unbind it, remove it."""
        try:
            return self._request >= 0 and os.eventfd_read(self._request) > 0
        except BlockingIOError:
            return False


def _open_transport(path: str | os.PathLike[str], *, share_memory: bool) -> Transport:
    name = os.fspath(path)
    if not name.startswith(VFIO):
        return Transport(path, share_memory=share_memory)
    return VfioTransport(name.removeprefix(VFIO))
