"""`NvmeHost`: an NVMe controller behind a vfio-user socket, from attaching to shutting it down.

The sequences are those of NVMe Base 2.x, section 3.5.1 (enable), 3.6 (shutdown), 3.7 (reset), and
NVMe over PCIe Transport 1.1, section 3. Offsets and sizes are bytes, times seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AdminCommands
from nvme_mdev.host.errors import (
    AttachError,
    ControllerFatalError,
    HostError,
    NvmeStatusError,
    NvmeTimeoutError,
    TransportError,
)
from nvme_mdev.host.function import NvmeFunction
from nvme_mdev.host.io import CommandQueue, IoQueue, Rings
from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE_SIZE
from nvme_mdev.spec.nvme_features import Fid, NumberOfQueues
from nvme_mdev.spec.nvme_identify_controller import Oacs
from nvme_mdev.spec.nvme_registers import Cc, Css, Csts, Register, Shn, Shst

if TYPE_CHECKING:
    import os
    from typing import Self

    from nvme_mdev.host.memory import DmaBuffer

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
_GONE = 0xFFFF_FFFF
"""What every register of a device that is not there any more reads as."""


class QueueCounts(NamedTuple):
    """How many I/O queues the controller gave us."""

    submission: int
    completion: int


class NvmeHost(NvmeFunction, AdminCommands):
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
        self.enabled = False
        self.shadow_active = False
        """Doorbell Buffer Config is in force."""
        self.queues: dict[int, IoQueue] = {}
        """I/O queue pairs by queue identifier."""
        self._wanted_shadow = shadow_doorbells
        self._admin: CommandQueue | None = None
        self._counts: QueueCounts | None = None
        self._shadow_pages: tuple[memoryview, memoryview] | None = None
        AdminCommands.__init__(self)
        NvmeFunction.__init__(
            self,
            path,
            memory_size=memory_size,
            iova=iova,
            map_doorbells=map_doorbells,
            share_memory=share_memory,
        )
        try:
            if enable:
                self.enable()
        except BaseException:
            self._release()
            raise

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
        super()._release()

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
        self._counts = None
        self._forget_answers()
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
