"""Queue pairs that execute commands: one at a time and synchronously, for people and tests.

`CommandQueue` gives command identifiers, moves the data through DMA memory and waits; the admin
queue is one as it is, `IoQueue` has the NVM command set as methods.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host import commands
from nvme_mdev.host.errors import NvmeStatusError, NvmeTimeoutError, QueueFullError
from nvme_mdev.host.memory import prps_for
from nvme_mdev.host.queues import QueuePair
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode, DsmAttribute, Fuse, NvmOpcode
from nvme_mdev.spec.nvme_status import MediaStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvme_mdev.host.completion import Completion
    from nvme_mdev.host.memory import DmaBuffer, DmaMemory

__all__ = ["CommandQueue", "IoQueue", "Reply", "Rings"]

_CIDS = 0xFFFF
"""Command identifiers are used below this one: FFFFh stands for *no command* in the error log."""
_LIVENESS_INTERVAL = 0.5
"""Seconds between two looks whether the controller is still there while a command is out."""


_PAIR = 2
"""Entries that a fused pair takes."""


class Reply(NamedTuple):
    """What came back for a command."""

    completion: Completion
    data: bytes
    """What the controller wrote, as much as was asked for."""


class Rings(NamedTuple):
    """A queue pair's place in DMA memory and its doorbells; see `QueuePair`."""

    sq: DmaBuffer
    cq: DmaBuffer
    sq_entries: int
    cq_entries: int
    write_doorbell: Callable[[bool, int], None]
    registers: tuple[memoryview | None, memoryview | None]
    shadows: tuple[tuple[memoryview, memoryview] | None, tuple[memoryview, memoryview] | None]
    eventfd: int


class CommandQueue(QueuePair):
    """A queue pair that gives out command identifiers and waits for completions."""

    def __init__(
        self,
        qid: int,
        rings: Rings,
        *,
        memory: DmaMemory,
        page_size: int,
        timeout: float,
        check_alive: Callable[[], None],
    ) -> None:
        super().__init__(
            qid,
            sq=rings.sq.view,
            cq=rings.cq.view,
            sq_entries=rings.sq_entries,
            cq_entries=rings.cq_entries,
            write_doorbell=rings.write_doorbell,
            tail_register=rings.registers[0],
            head_register=rings.registers[1],
            tail_shadow=rings.shadows[0],
            head_shadow=rings.shadows[1],
            eventfd=rings.eventfd,
        )
        self.rings = rings
        self.memory = memory
        """Where `execute` puts data and PRP lists."""
        self.page_size = page_size
        """Memory page size of the controller (CC.MPS), bytes."""
        self.timeout = timeout
        """Seconds a command may take unless told otherwise."""
        self._check_alive = check_alive
        self._next_cid = 0
        self._outstanding: set[int] = set()
        self.strays = 0
        """Completions that named no command of `start`'s that is out."""
        self._completed: dict[int, Completion] = {}

    def close(self) -> None:
        """No more commands.

        Whoever still refers to the pair must not keep the doorbells mapped: a drive behind VFIO is
        not let go of before they are unmapped.
        """
        super().close()
        self.rings = self.rings._replace(registers=(None, None), shadows=(None, None))

    def start(self, sqe: SQE) -> int:
        """Submit a command under a new identifier, which is returned; `sqe.cid` is set."""
        cid = self._post(sqe)
        self.ring()
        return cid

    def start_pair(self, first: SQE, second: SQE) -> tuple[int, int]:
        """Submit a fused pair with one ring of the doorbell (Base 3.4.2); both identifiers."""
        if self.room() < _PAIR:
            self.collect()
        cids = self._post(first), self._post(second)
        self.ring()
        return cids

    def _post(self, sqe: SQE) -> int:
        if len(self._outstanding) + len(self._completed) >= _CIDS:
            raise QueueFullError(f"queue {self.qid} has no command identifier left")
        while self._next_cid in self._outstanding or self._next_cid in self._completed:
            self._next_cid = (self._next_cid + 1) % _CIDS
        sqe.cid = self._next_cid
        self._next_cid = (self._next_cid + 1) % _CIDS
        if self.room() == 0:
            self.collect()
        self.post(bytes(sqe))
        self._outstanding.add(sqe.cid)
        return sqe.cid

    def collect(self) -> None:
        """Reap; completions wait under their identifiers for `finish`.

        Those of no command would use up the identifiers, which `start` looks for a free one of.
        """
        for completion in self.reap():
            if completion.cid not in self._outstanding:
                self.strays += 1
                continue
            self._outstanding.discard(completion.cid)
            self._completed[completion.cid] = completion

    def take(self, cid: int) -> Completion | None:
        """The completion of a command if it is there."""
        self.collect()
        return self._completed.pop(cid, None)

    def finish(self, cid: int, timeout: float | None = None) -> Completion:
        """Wait for a command's completion; NvmeTimeoutError after ``timeout`` seconds.

        TransportError or ControllerFatalError when the controller is gone.
        """
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while (completion := self.take(cid)) is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise NvmeTimeoutError(
                    f"command {cid} on queue {self.qid} was not completed within {seconds:g} s"
                )
            if not self.wait(min(remaining, _LIVENESS_INTERVAL)):
                self._check_alive()
        return completion

    def execute(
        self,
        sqe: SQE,
        *,
        send: bytes | bytearray | memoryview = b"",
        receive: int = 0,
        timeout: float | None = None,
        check: bool = True,
    ) -> Reply:
        """Execute one command and wait: ``send`` goes to the controller, or ``receive`` bytes come.

        PRP1 and PRP2 are filled in when there is data. With ``check`` a status other than success
        is an NvmeStatusError.
        """
        length = len(send) or receive
        if length == 0:
            completion = self.finish(self.start(sqe), timeout)
            return self._reply(sqe, completion, b"", check=check)
        buffer = self.memory.allocate(length)
        prps = prps_for(self.memory, buffer.iova, length, page_size=self.page_size)
        sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
        buffer.write(send)
        # Not in a `finally`: after a time-out the controller may still write there.
        completion = self.finish(self.start(sqe), timeout)
        data = buffer.read(0, receive)
        prps.free()
        buffer.free()
        return self._reply(sqe, completion, data, check=check)

    def _reply(self, sqe: SQE, completion: Completion, data: bytes, *, check: bool) -> Reply:
        if check and not completion.ok:
            raise NvmeStatusError(self._name(sqe), completion)
        return Reply(completion, data)

    def _name(self, sqe: SQE) -> str:
        names: type[AdminOpcode | NvmOpcode] = NvmOpcode if self.qid else AdminOpcode
        try:
            return names(sqe.opc).name
        except ValueError:
            return f"opcode {sqe.opc:02X}h"


class IoQueue(CommandQueue):
    """An I/O queue pair; every method waits for its command and raises NvmeStatusError.

    Data is whole logical blocks of ``block_size`` bytes; None asks the controller, once a
    namespace.
    """

    block_size_of: Callable[[int], int]
    """Bytes of a logical block of a namespace."""

    def read(
        self, nsid: int, slba: int, blocks: int, *, block_size: int | None = None, fua: bool = False
    ) -> bytes:
        """Read ``blocks`` logical blocks."""
        size = blocks * (block_size or self.block_size_of(nsid))
        return self.execute(commands.read(nsid, slba, blocks, fua=fua), receive=size).data

    def write(
        self,
        nsid: int,
        slba: int,
        data: bytes | bytearray | memoryview,
        *,
        block_size: int | None = None,
        fua: bool = False,
    ) -> None:
        """Write ``data`` from block ``slba`` on."""
        blocks = len(data) // (block_size or self.block_size_of(nsid))
        self.execute(commands.write(nsid, slba, blocks, fua=fua), send=data)

    def compare(
        self,
        nsid: int,
        slba: int,
        data: bytes | bytearray | memoryview,
        *,
        block_size: int | None = None,
    ) -> bool:
        """Whether the blocks hold ``data``."""
        blocks = len(data) // (block_size or self.block_size_of(nsid))
        reply = self.execute(commands.compare(nsid, slba, blocks), send=data, check=False)
        if reply.completion.ok:
            return True
        if reply.completion.status.code == MediaStatus.COMPARE_FAILURE:
            return False
        raise NvmeStatusError("COMPARE", reply.completion)

    def compare_and_write(
        self,
        nsid: int,
        slba: int,
        old: bytes | bytearray | memoryview,
        new: bytes | bytearray | memoryview,
        *,
        block_size: int | None = None,
    ) -> bool:
        """Write ``new`` if the blocks hold ``old``, and nothing in between; whether they did."""
        blocks = len(old) // (block_size or self.block_size_of(nsid))
        first = commands.compare(nsid, slba, blocks)
        second = commands.write(nsid, slba, blocks)
        first.flags, second.flags = Fuse.FIRST, Fuse.SECOND
        buffers = [self.memory.allocate(len(data)) for data in (old, new)]
        pointers = [
            prps_for(self.memory, buffer.iova, buffer.size, page_size=self.page_size)
            for buffer in buffers
        ]
        for sqe, data, buffer, prps in zip(
            (first, second), (old, new), buffers, pointers, strict=True
        ):
            buffer.write(data)
            sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
        compared, written = (self.finish(cid) for cid in self.start_pair(first, second))
        for prps, buffer in zip(pointers, buffers, strict=True):
            prps.free()
            buffer.free()
        if compared.status.code == MediaStatus.COMPARE_FAILURE:
            return False
        for name, completion in (("COMPARE", compared), ("WRITE", written)):
            if not completion.ok:
                raise NvmeStatusError(name, completion)
        return True

    def verify(self, nsid: int, slba: int, blocks: int, *, fua: bool = False) -> None:
        """Read blocks without moving them; NvmeStatusError when they cannot be read."""
        self.execute(commands.verify(nsid, slba, blocks, fua=fua))

    def write_uncorrectable(self, nsid: int, slba: int, blocks: int) -> None:
        """Make blocks unreadable until they are written."""
        self.execute(commands.write_uncorrectable(nsid, slba, blocks))

    def copy(
        self, nsid: int, slba: int, ranges: Sequence[tuple[int, int]], *, fua: bool = False
    ) -> None:
        """Copy (first block, blocks) ranges to block ``slba`` and on, one behind the other."""
        self.execute(
            commands.copy(nsid, slba, len(ranges), fua=fua),
            send=commands.pack_copy_ranges(ranges),
        )

    def flush(self, nsid: int) -> None:
        """Flush: everything completed so far is on the medium."""
        self.execute(commands.flush(nsid))

    def write_zeroes(
        self, nsid: int, slba: int, blocks: int, *, deallocate: bool = False, fua: bool = False
    ) -> None:
        """Write zeroes; with ``deallocate`` the blocks may be freed."""
        self.execute(commands.write_zeroes(nsid, slba, blocks, deallocate=deallocate, fua=fua))

    def deallocate(self, nsid: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Dataset Management, Deallocate, of (first block, blocks) ranges."""
        self.dataset_management(nsid, ranges, DsmAttribute.AD)

    def dataset_management(
        self, nsid: int, ranges: Sequence[tuple[int, int]], attributes: DsmAttribute | int
    ) -> None:
        """Dataset Management of (first block, blocks) ranges."""
        self.execute(
            commands.dataset_management(nsid, len(ranges), attributes),
            send=commands.pack_ranges(ranges),
        )
