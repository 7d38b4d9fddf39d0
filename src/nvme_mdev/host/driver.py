"""`NvmeHost`: an NVMe controller behind a vfio-user socket, from attaching to shutting it down.

The sequences are those of NVMe Base 2.x, section 3.5.1 (enable), 3.6 (shutdown), 3.7 (reset), and
NVMe over PCIe Transport 1.1, section 3. Offsets and sizes are bytes, times seconds.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host import commands
from nvme_mdev.host.errors import (
    AttachError,
    ControllerFatalError,
    HostError,
    NvmeStatusError,
    NvmeTimeoutError,
    TransportError,
)
from nvme_mdev.host.io import CommandQueue, IoQueue, Reply, Rings
from nvme_mdev.host.memory import PAGE_SIZE, DmaMemory, round_up
from nvme_mdev.host.transport import Transport
from nvme_mdev.host.vfio import PREFIX as VFIO
from nvme_mdev.host.vfio import VfioTransport
from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE, SQE_SIZE
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid, NumberOfQueues
from nvme_mdev.spec.nvme_identify import IDENTIFY_SIZE, Cns
from nvme_mdev.spec.nvme_identify_controller import (
    IdentifyController,
    IdentifyControllerNvm,
    Oacs,
    Oaes,
)
from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_registers import REGISTER_SIZE, Cap, Cc, Css, Csts, Register, Shn, Shst
from nvme_mdev.units import MAX_SIZE

if TYPE_CHECKING:
    from typing import Self

    from nvme_mdev.datapath.shared_mapping import SharedMapping
    from nvme_mdev.host.completion import Completion
    from nvme_mdev.host.memory import DmaBuffer

__all__ = ["AsyncEvent", "Namespace", "NvmeHost", "QueueCounts"]

DEFAULT_IOVA = 0x1_0000_0000
"""Where DMA memory begins for the controller: above 4 GiB, and no address of this process."""
DEFAULT_MEMORY = 16 << 20
"""Bytes of the first DMA window: queues, admin data, and small transfers."""
DEFAULT_TIMEOUT = 30.0
"""Seconds for a command; what Linux gives one (nvme_core.io_timeout)."""
ADMIN_ENTRIES = 32
"""Entries of the admin queues; what Linux uses."""
_WANTED_IO_QUEUES = 1024
"""Queues asked for, when nobody says how many: more than doorbells fit on the page."""
_REGISTER_POLL = 0.001
"""Seconds between two looks at CSTS."""
_READY_POLL = 0.0001
"""The same, while the controller is being enabled or disabled, which takes few milliseconds."""
_MIN_READY_TIMEOUT = 5.0
"""Seconds to wait for CSTS.RDY when CAP.TO promises less: we share our processor with it."""
_SHUTDOWN_TIMEOUT = 10.0
"""Seconds for a normal shutdown; arbitrary, above what a flush of an image takes."""
_CHANGED_LIST_SIZE = 4096
_LEAST_LBADS = 9
"""Blocks have 512 bytes at least (NVM Command Set, figure *LBA Format*)."""
_MOST_NAMESPACES = 65536
"""What a list of active namespaces is believed to have; ours has 1024 at most."""
_GONE = 0xFFFF_FFFF
"""What every register of a device that is not there any more reads as."""


class QueueCounts(NamedTuple):
    """How many I/O queues the controller gave us."""

    submission: int
    completion: int


class AsyncEvent(NamedTuple):
    """What an Asynchronous Event Request completed with (Base 5.1.2)."""

    event_type: int
    info: int
    log_page: int


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace as far as moving data needs it."""

    nsid: int
    block_size: int
    """Bytes of a logical block, without metadata."""
    blocks: int
    """Capacity in logical blocks."""
    identify: IdentifyNamespace

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.blocks * self.block_size


class NvmeHost:
    """A driver attached to one controller; use it as a context manager.

    Attaching resets and enables the controller. Doorbells are rung in mapped memory when the
    server offers it, otherwise through the socket; shadow doorbells (Doorbell Buffer Config) are
    used when asked for, or by default when the doorbells are not mapped and the controller has
    them. Errors are those of `nvme_mdev.host.errors`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_size: int = DEFAULT_MEMORY,
        iova: int = DEFAULT_IOVA,
        map_doorbells: bool = True,
        shadow_doorbells: bool | None = None,
        admin_entries: int = ADMIN_ENTRIES,
        timeout: float = DEFAULT_TIMEOUT,
        enable: bool = True,
        share_memory: bool = True,
    ) -> None:
        """Attach to the socket at ``path`` (a directory stands for ``cntrl`` in it).

        ``vfio:0000:44:00.0`` is a drive bound to vfio-pci (`nvme_mdev.host.vfio`).

        ``shadow_doorbells`` None decides by itself; True is an AttachError when the controller
        does not support them. With ``enable`` False the controller is left as it is found. With
        ``share_memory`` False the server reaches our memory with messages only.
        """
        self.timeout = timeout
        self.admin_entries = admin_entries
        self.cap = Cap(mqes=0, to=0)
        """CAP as read when attaching."""
        self.page_size = 4096
        """Memory page size (CC.MPS), bytes."""
        self.enabled = False
        self.shadow_active = False
        """Doorbell Buffer Config is in force."""
        self.queues: dict[int, IoQueue] = {}
        """I/O queue pairs by queue identifier."""
        self._wanted_shadow = shadow_doorbells
        self._admin: CommandQueue | None = None
        self._identify: IdentifyController | None = None
        self._counts: QueueCounts | None = None
        self._block_sizes: dict[int, int] = {}
        self._shadow_pages: tuple[memoryview, memoryview] | None = None
        self._event_cids: list[int] = []
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
            if enable:
                self.enable()
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

    # -- life cycle ----------------------------------------------------------------------------
    def enable(self, css: int = Css.NVM, *, within: float | None = None) -> None:
        """Reset the controller if it runs, give it admin queues, and enable it.

        ``css``: I/O Command Set Selected. ``within``: seconds for each of both, in place of those
        that the controller asks for (CAP.TO), which can be two minutes.
        """
        self.disable(within=within)
        sq = self.memory.allocate(self.admin_entries * SQE_SIZE, align=self.page_size)
        cq = self.memory.allocate(self.admin_entries * CQE_SIZE, align=self.page_size)
        size = self.admin_entries - 1
        self.write_register(Register.AQA, size | size << 16)
        self.write_register(Register.ASQ, sq.iova)
        self.write_register(Register.ACQ, cq.iova)
        cc = Cc(en=True, css=css, mps=self.cap.mpsmin, iosqes=6, iocqes=4)
        self.write_register(Register.CC, cc.pack())
        self._wait_ready(ready=True, within=within)
        self._admin = self._command_queue(0, sq, cq)
        self.enabled = True
        self._set_up_shadow()

    def disable(self, *, within: float | None = None) -> None:
        """Clear CC.EN and wait: every queue and every outstanding command is gone."""
        cc = Cc.unpack(self.read_register(Register.CC))
        if cc.en:
            self.write_register(Register.CC, 0)
        self._wait_ready(ready=False, within=within)
        self._forget_queues()

    def reset(self) -> None:
        """Controller reset (CC.EN 1 to 0) and enable it again."""
        self.enable()

    def device_reset(self) -> None:
        """Reset the PCI function (VFIO_USER_DEVICE_RESET); DMA windows stay."""
        with self._lock:
            self.transport.reset()
        self._forget_queues()
        with self._lock:
            self.transport.enable_pci()
            if self._vectors:
                self.transport.enable_msix()

    def shutdown(self, *, abrupt: bool = False, timeout: float = _SHUTDOWN_TIMEOUT) -> None:
        """Shut the controller down and wait until it says that it is done (Base 3.6)."""
        cc = Cc.unpack(self.read_register(Register.CC))
        shn = Shn.ABRUPT if abrupt else Shn.NORMAL
        self.write_register(Register.CC, cc.pack() & ~Cc(shn=3).pack() | Cc(shn=shn).pack())
        deadline = time.monotonic() + timeout
        while self.csts().shst != Shst.COMPLETE:
            if time.monotonic() > deadline:
                raise NvmeTimeoutError(f"the controller did not shut down within {timeout:g} s")
            time.sleep(_REGISTER_POLL)

    def csts(self) -> Csts:
        """Controller Status. TransportError: the device is not there any more."""
        value = self.read_register(Register.CSTS)
        if value == _GONE:
            raise TransportError(f"{self.transport.path}: it has gone (registers read all ones)")
        return Csts.unpack(value)

    def _wait_ready(self, *, ready: bool, within: float | None = None) -> None:
        seconds = max(self.cap.to * 0.5, _MIN_READY_TIMEOUT) if within is None else within
        deadline = time.monotonic() + seconds
        while (csts := self.csts()).rdy != ready:
            if csts.cfs and ready:
                raise ControllerFatalError("the controller refused to be enabled (CSTS.CFS is set)")
            if time.monotonic() > deadline:
                raise NvmeTimeoutError(f"CSTS.RDY did not become {int(ready)} within {seconds:g} s")
            time.sleep(_READY_POLL)

    def check_alive(self) -> None:
        """Raise TransportError or ControllerFatalError when nothing will complete any more."""
        self.check_doorbells()
        if self.csts().cfs:
            raise ControllerFatalError("the controller reports a fatal error (CSTS.CFS): reset it")

    def check_doorbells(self) -> None:
        """Raise TransportError when the mapped doorbells ring nothing any more."""
        if self._doorbells is not None and self._doorbells.lost:
            raise TransportError(f"{self.transport.path}: its doorbells are not there any more")

    def close(self) -> None:
        """Shut the controller down, as far as it still answers, and detach."""
        if self.enabled:
            with suppress(HostError):
                self.shutdown()
        self._release()

    def abandon(self) -> None:
        """Detach from a controller that does not answer, without a word to it."""
        self._release()

    def _release(self) -> None:
        self._forget_queues(free=False)
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

    def _forget_queues(self, *, free: bool = True) -> None:
        """The controller no longer knows any queue; neither do we."""
        self.enabled = False
        pairs: list[CommandQueue] = [*self.queues.values()]
        if self._admin is not None:
            pairs.append(self._admin)
        for pair in pairs:
            pair.close()
            if free:
                pair.rings.sq.free()
                pair.rings.cq.free()
        self.queues.clear()
        self._admin = None
        self._identify = None
        self._counts = None
        self._block_sizes.clear()
        self._event_cids.clear()
        self.shadow_active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- queues --------------------------------------------------------------------------------
    @property
    def admin_queue(self) -> CommandQueue:
        """The admin queue pair."""
        if self._admin is None:
            raise HostError("the controller is not enabled")
        return self._admin

    def _command_queue(
        self, qid: int, sq: DmaBuffer, cq: DmaBuffer, *, eventfd: int = -1
    ) -> IoQueue:
        rings = Rings(
            sq,
            cq,
            sq.size // SQE_SIZE,
            cq.size // CQE_SIZE,
            lambda completion, value: self._ring(qid, value, completion=completion),
            (self._doorbell_view(qid, completion=False), self._doorbell_view(qid, completion=True)),
            (self._shadow_views(qid, completion=False), self._shadow_views(qid, completion=True)),
            eventfd,
        )
        queue = IoQueue(
            qid,
            rings,
            memory=self.memory,
            page_size=self.page_size,
            timeout=self.timeout,
            check_alive=self.check_alive,
        )
        queue.block_size_of = self.block_size
        return queue

    @property
    def queue_counts(self) -> QueueCounts:
        """How many I/O queues there may be; asks for as many as there are the first time."""
        if self._counts is None:
            self._counts = self.request_queues(_WANTED_IO_QUEUES)
        return self._counts

    def request_queues(self, pairs: int) -> QueueCounts:
        """Set Features, Number of Queues: ask for I/O queue pairs; before any is created."""
        wanted = NumberOfQueues(nsq=pairs - 1, ncq=pairs - 1).pack()
        given = NumberOfQueues.unpack(self.set_features(Fid.NUMBER_OF_QUEUES, wanted))
        self._counts = QueueCounts(given.nsq + 1, given.ncq + 1)
        return self._counts

    @property
    def max_entries(self) -> int:
        """Most entries of an I/O queue (CAP.MQES)."""
        return self.cap.mqes + 1

    def create_queue_pair(
        self,
        entries: int = 128,
        *,
        qid: int | None = None,
        cq_entries: int | None = None,
        interrupts: bool = False,
        vector: int | None = None,
    ) -> IoQueue:
        """An I/O submission queue and the completion queue of the same identifier.

        ``interrupts`` uses MSI-X ``vector`` (default: the queue's identifier) and its eventfd.
        NvmeStatusError when the controller refuses.
        """
        _ = self.queue_counts
        number = qid if qid is not None else self._free_qid()
        depth = cq_entries if cq_entries is not None else entries
        sq = self.memory.allocate(entries * SQE_SIZE, align=self.page_size)
        cq = self.memory.allocate(depth * CQE_SIZE, align=self.page_size)
        try:
            if not interrupts:
                return self._create(number, sq, cq, None)
            return self._create(number, sq, cq, number if vector is None else vector)
        except BaseException:
            sq.free()
            cq.free()
            raise

    def _create(self, qid: int, sq: DmaBuffer, cq: DmaBuffer, vector: int | None) -> IoQueue:
        eventfd = -1 if vector is None else self.interrupt(vector)
        queue = self._command_queue(qid, sq, cq, eventfd=eventfd)
        self.admin(
            commands.create_io_cq(
                qid, queue.cq_entries, cq.iova, vector=vector or 0, interrupts=vector is not None
            )
        )
        try:
            self.admin(commands.create_io_sq(qid, queue.sq_entries, sq.iova, qid))
        except HostError:
            with suppress(HostError):
                self.admin(commands.delete_io_cq(qid))
            raise
        self.queues[qid] = queue
        return queue

    def delete_queue_pair(self, queue: IoQueue) -> None:
        """Delete the submission queue, then the completion queue, and free their memory."""
        self.admin(commands.delete_io_sq(queue.qid))
        self.admin(commands.delete_io_cq(queue.qid))
        self.queues.pop(queue.qid, None)
        queue.close()
        queue.rings.sq.free()
        queue.rings.cq.free()

    def _free_qid(self) -> int:
        most = min(self.queue_counts)
        for qid in range(1, most + 1):
            if qid not in self.queues:
                return qid
        raise HostError(f"all {most} I/O queues of the controller are in use")

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

    # -- shadow doorbells ----------------------------------------------------------------------
    def _set_up_shadow(self) -> None:
        wanted = self._wanted_shadow
        if wanted is False or (wanted is None and self.doorbells_mapped):
            return
        if not self.identify_controller().oacs & Oacs.DBCS:
            if wanted:
                raise AttachError("the controller has no shadow doorbells (OACS): do without them")
            return
        try:
            self.configure_doorbell_buffers()
        except NvmeStatusError:
            # While a sanitize operation is in progress, for one: do without, as Linux does.
            if wanted:
                raise

    def configure_doorbell_buffers(self) -> None:
        """Doorbell Buffer Config (Base 5.2.5); before any I/O queue is created."""
        shadow = self.memory.allocate(self.page_size, align=self.page_size)
        event_idx = self.memory.allocate(self.page_size, align=self.page_size)
        try:
            self.admin(commands.doorbell_buffer_config(shadow.iova, event_idx.iova))
        except NvmeStatusError:
            shadow.free()
            event_idx.free()
            raise
        self._shadow_pages = (shadow.view, event_idx.view)
        self.shadow_active = True

    def _shadow_views(self, qid: int, *, completion: bool) -> tuple[memoryview, memoryview] | None:
        """A queue's shadow doorbell and EventIdx; the admin queue has none, as in Linux."""
        if not self.shadow_active or self._shadow_pages is None or qid == 0:
            return None
        start = self.doorbell_offset(qid, completion=completion) - 0x1000
        if start + 4 > self.page_size:
            return None
        shadow, event_idx = (page[start : start + 4] for page in self._shadow_pages)
        shadow[:] = event_idx[:] = bytes(4)
        return shadow, event_idx

    # -- admin commands ------------------------------------------------------------------------
    def admin(
        self,
        sqe: SQE,
        *,
        send: bytes = b"",
        receive: int = 0,
        timeout: float | None = None,
        check: bool = True,
    ) -> Reply:
        """Execute any admin command; see `CommandQueue.execute`."""
        return self.admin_queue.execute(
            sqe, send=send, receive=receive, timeout=timeout, check=check
        )

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
        """Identify: 4096 bytes."""
        return self.admin(
            commands.identify(cns, nsid, cntid=cntid, csi=csi), receive=IDENTIFY_SIZE
        ).data

    def identify_controller(self) -> IdentifyController:
        """Identify Controller; read once an enabling."""
        if self._identify is None:
            data = self.identify(Cns.CONTROLLER)
            self._identify = IdentifyController.from_buffer_copy(data)
        return self._identify

    def identify_controller_nvm(self) -> IdentifyControllerNvm | None:
        """Identify Controller of the NVM command set; None: the controller is older than that."""
        try:
            data = self.identify(Cns.IOCS_CONTROLLER)
        except NvmeStatusError:
            return None
        return IdentifyControllerNvm.from_buffer_copy(data)

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace; all zero for one that is not active."""
        return IdentifyNamespace.from_buffer_copy(self.identify(Cns.NAMESPACE, nsid))

    def active_namespaces(self) -> list[int]:
        """The active namespaces' identifiers, ascending; HostError: a list without an end."""
        found: list[int] = []
        while True:
            data = self.identify(Cns.ACTIVE_NSID_LIST, found[-1] if found else 0)
            nsids = [
                int.from_bytes(data[at : at + 4], "little") for at in range(0, IDENTIFY_SIZE, 4)
            ]
            # All of them come after those before, or the controller could go on for ever.
            if any(nsid and nsid <= after for after, nsid in pairwise([*found[-1:], *nsids])):
                raise HostError("the list of active namespaces is not ascending")
            found += [nsid for nsid in nsids if nsid]
            if nsids[-1] == 0:
                return found
            if len(found) > _MOST_NAMESPACES:
                raise HostError(f"the controller has more than {_MOST_NAMESPACES} namespaces")

    def namespace_descriptors(self, nsid: int) -> dict[int, bytes]:
        """Namespace Identification Descriptors: identifier by type (Base 5.1.13.2.4)."""
        data = self.identify(Cns.NS_ID_DESCRIPTORS, nsid)
        found: dict[int, bytes] = {}
        at = 0
        while at + 4 <= IDENTIFY_SIZE and data[at + 1]:
            found[data[at]] = data[at + 4 : at + 4 + data[at + 1]]
            at += 4 + data[at + 1]
        return found

    def namespace(self, nsid: int) -> Namespace:
        """A namespace's block size and capacity; HostError when it is not active."""
        active = self.active_namespaces()
        if nsid not in active:
            there = ", ".join(str(one) for one in active) or "none"
            raise HostError(f"there is no namespace {nsid}: the controller has {there}")
        return self._active_namespace(nsid)

    def find_namespace(self, nsid: int) -> Namespace | None:
        """As of :meth:`namespace`; None when it is not active."""
        return self._active_namespace(nsid) if nsid in self.active_namespaces() else None

    def _active_namespace(self, nsid: int) -> Namespace:
        identify = self.identify_namespace(nsid)
        lbads = identify.lbaf[identify.format_index].lbads
        if not _LEAST_LBADS <= lbads < 32 or identify.nsze << lbads > MAX_SIZE:
            raise HostError(
                f"namespace {nsid} makes no sense: {identify.nsze} blocks of 2^{lbads} bytes"
            )
        return Namespace(nsid, 1 << lbads, identify.nsze, identify)

    def block_size(self, nsid: int) -> int:
        """Bytes of a logical block of a namespace; asked for once an enabling."""
        if nsid not in self._block_sizes:
            self._block_sizes[nsid] = self.namespace(nsid).block_size
        return self._block_sizes[nsid]

    @property
    def max_transfer(self) -> int:
        """Most bytes of one command (MDTS); 0: no limit."""
        mdts = self.identify_controller().mdts
        return self.page_size << mdts if mdts else 0

    @property
    def model(self) -> str:
        """Model number, without padding."""
        return self.identify_controller().mn.decode("ascii", "replace").strip()

    def get_features(self, fid: int, *, select: int = 0, nsid: int = 0, value: int = 0) -> int:
        """Get Features: dword 0 of the completion."""
        sqe = commands.get_features(fid, select=select, nsid=nsid, value=value)
        return self.admin(sqe).completion.result

    def set_features(self, fid: int, value: int, *, nsid: int = 0, save: bool = False) -> int:
        """Set Features: dword 0 of the completion."""
        return self.admin(commands.set_features(fid, value, nsid=nsid, save=save)).completion.result

    def get_log_page(
        self,
        lid: int,
        size: int,
        *,
        offset: int = 0,
        nsid: int = 0xFFFF_FFFF,
        rae: bool = False,
    ) -> bytes:
        """Get Log Page: ``size`` bytes (a multiple of 4) from byte ``offset`` on."""
        sqe = commands.get_log_page(lid, size, offset=offset, nsid=nsid, rae=rae)
        return self.admin(sqe, receive=size).data

    def abort(self, sqid: int, cid: int) -> bool:
        """Abort: whether the controller says that the command was aborted."""
        return not self.admin(commands.abort(sqid, cid)).completion.result & 1

    # -- asynchronous events -------------------------------------------------------------------
    def request_events(self, count: int = 1) -> None:
        """Send Asynchronous Event Requests."""
        for _ in range(count):
            self._event_cids.append(self.admin_queue.start(commands.async_event_request()))

    def events(self, timeout: float = 0.0) -> list[AsyncEvent]:
        """Events that have arrived; waits up to ``timeout`` for the first one."""
        deadline = time.monotonic() + timeout
        while True:
            found: list[AsyncEvent] = []
            for cid in list(self._event_cids):
                completion = self.admin_queue.take(cid)
                if completion is not None:
                    self._event_cids.remove(cid)
                    found.append(_event(completion))
            if found or time.monotonic() >= deadline:
                return found
            time.sleep(_REGISTER_POLL)

    def watch_namespaces(self) -> None:
        """From now on until the controller is disabled :meth:`namespaces_changed` tells.

        Of a controller that does not tell it is always False (Base 5.1.13.2.1, OAES).
        """
        if self.identify_controller().oaes & Oaes.NSAN:
            self.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.NSAN)
            self.request_events()

    def namespaces_changed(self) -> bool:
        """Whether a namespace may have come, gone or changed since the last call."""
        if not self.events():
            return False
        # Read, or the next change is no event.
        self.get_log_page(LogPage.CHANGED_NAMESPACES, _CHANGED_LIST_SIZE)
        self.request_events()
        return True


def _open_transport(path: str | os.PathLike[str], *, share_memory: bool) -> Transport:
    name = os.fspath(path)
    if not name.startswith(VFIO):
        return Transport(path, share_memory=share_memory)
    return VfioTransport(name.removeprefix(VFIO))


def _event(completion: Completion) -> AsyncEvent:
    if not completion.ok:
        raise NvmeStatusError("ASYNC_EVENT_REQUEST", completion)
    result = completion.result
    return AsyncEvent(result & 0x7, result >> 8 & 0xFF, result >> 16 & 0xFF)
