"""Moves commands to the queues and completions to the guest.

A task for each SQ pulls: entries, then what the commands need, then the queue's doorbell is moved.
One task pushes: data, then the completions of it, then the interrupt, the admin queue's after all
others', since what it says (a queue is deleted) is about what they have said. A guest that rings or
completions that are posted make ``event_fd`` readable.

After a death the next process pulls again what no doorbell had been moved for, and compares the
first completions that it has to push with what the guest has: of those that it has, the data was
pushed, too, and may be something else's by now.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import Scratch
from nvme_mdev.controller.transitions import State
from nvme_mdev.service.relay.commands import RelayedCommand, RelayedCommands
from nvme_mdev.service.relay.mover import Mover, together
from nvme_mdev.service.relay.queues import RelayedCq, RelayedQueue, RelayedSq, cq_of, sq_of
from nvme_mdev.service.relay.transfers import length_of
from nvme_mdev.spec.nvme_commands import CQE, CQE_SIZE, SQE, SQE_SIZE, Fuse
from nvme_mdev.spec.nvme_status import GenericStatus, status_field

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.service.relay.files import RelayFiles
    from nvme_mdev.service.relay.guest import Guest
    from nvme_mdev.service.relay.shadow import Shadow

_log = logging.getLogger(__name__)

_BATCH = 64
"""Entries of a queue that are moved at a time."""
_BUSY_POLL_S = 0.0005
_IDLE_POLL_S = 0.002
"""How often doorbells in memory that the client has mapped are looked at."""
_BLOCKED_POLL_S = 0.01
"""How often to look whether the guest allows DMA again (bus master)."""
_FUSE_MASK = 3
_PSDT_MASK = 0xC0
_PRP1_AT = 24
_NOWHERE = 0xFFFF_FFFF_FFFF_F000
"""An address at which no guest has memory."""
_INVALID_DOORBELL = 0xFFFF_FFFF
_MOVING = (State.READY, State.SHUTTING_DOWN)


class Pump:
    """Of one controller, from the first queue to the last."""

    def __init__(
        self, controller: Controller, guest: Guest, files: RelayFiles, shadow: Shadow, event_fd: int
    ) -> None:
        self._controller = controller
        self._queues = controller.queues
        self._guest = guest
        self._files = files
        self._shadow = shadow
        self._event_fd = event_fd
        self._commands = RelayedCommands(files, shadow)
        self._sqs: dict[int, RelayedSq] = {}
        self._cqs: dict[int, RelayedCq] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pushing: asyncio.Task[None] | None = None
        self._recalling: asyncio.Task[None] | None = None
        self._polling: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._last_work = 0.0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(event_fd, self._on_event)

    @property
    def _mover(self) -> Mover:
        return Mover(
            self._guest,
            self._shadow,
            self._queues.memory,
            self._controller.registers.cc.page_size,
            self._controller.settings.max_transfer,
        )

    def start(self) -> None:
        """There is a client."""
        if self._files.polls:
            self._polling = self._loop.call_later(_IDLE_POLL_S, self._poll)
        self.look()

    def stop(self) -> list[asyncio.Task[None]]:
        """Leave everything as it is; what is about to end."""
        self._loop.remove_reader(self._event_fd)
        for timer in (self._polling, self._later):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        return list(self._tasks)

    def adopt(self) -> None:
        """Go on with the queues of a process before us."""
        new = [qid for qid in range(1 << 8) if self._queues.has_cq(qid) and qid not in self._cqs]
        for cqid in new:
            cq = self._add_cq(cqid)
            cq.pushed = self._files.pushed(cqid)
            cq.head = self._queues.relayed.doorbell(cqid, completion=True)
            cq.unsure = True
            cq.sent = self._queues.cq_tail(cqid)
        new = [qid for qid in range(1 << 8) if self._queues.has_sq(qid) and qid not in self._sqs]
        for sqid in new:
            self._add_sq(sqid).given = self._queues.relayed.doorbell(sqid)
        adopted = self._commands.adopt(self._length_of)
        self._recalling = self._start(self._recall(adopted))

    async def _recall(self, commands: list[RelayedCommand]) -> None:
        for command in commands:
            if command.sqid in self._sqs:
                await self._mover.recall(command)
            else:
                self._commands.drop(command)

    # -- queues ------------------------------------------------------------------------------

    def queue_changed(self, qid: int, completion: bool, created: bool) -> None:
        """A queue has come or is about to go (`RelayedQueues.on_queue`)."""
        if completion and created:
            self._add_cq(qid)
            self._files.set_pushed(qid, 0)
        elif completion:
            self._let_go(self._cqs.pop(qid, None))
        elif created:
            self._add_sq(qid)
        else:
            self._remove_sq(qid)

    def _add_cq(self, qid: int) -> RelayedCq:
        cq = self._cqs[qid] = cq_of(self._queues, qid, self._controller.registers.cc.page_size)
        cq.held = self._shadow.hold((page, cq.page_size) for page in cq.pages)
        return cq

    def _add_sq(self, qid: int) -> RelayedSq:
        sq = self._sqs[qid] = sq_of(self._queues, qid, self._controller.registers.cc.page_size)
        sq.held = self._shadow.hold((page, sq.page_size) for page in sq.pages)
        return sq

    def _let_go(self, queue: RelayedQueue | None) -> None:
        if queue is None:
            return
        queue.alive = False
        self._shadow.release(queue.held)
        queue.held = []

    def _remove_sq(self, qid: int) -> None:
        """Its commands are gone, but for those whose completions wait to be pushed."""
        self._let_go(self._sqs.pop(qid, None))
        cq = self._cqs.get(self._queues.cq_of_sq(qid))
        waiting = set()
        if cq is not None:
            waiting = {entry.cid for entry in self._posted(cq) if entry.sqid == qid}
        for command in self._commands.of(qid):
            if command.key[1] not in waiting or qid == 0:
                self._commands.drop(command)

    def _posted(self, cq: RelayedCq) -> list[CQE]:
        """Completions that are not pushed yet."""
        count = cq.between(cq.pushed, self._queues.cq_tail(cq.qid))
        data = self._entries(cq, cq.pushed, count)
        return [CQE.from_buffer_copy(data, i) for i in range(0, len(data), CQE_SIZE)]

    def _entries(self, queue: RelayedQueue, index: int, count: int) -> bytes:
        """Entries of a queue in the shadow."""
        return b"".join(self._shadow.read(iova, size) for iova, size in queue.pieces(index, count))

    # -- what there is to do -----------------------------------------------------------------

    def _on_event(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        self.look()

    def _poll(self) -> None:
        self.look()
        busy = self._loop.time() < self._last_work + 0.1
        self._polling = self._loop.call_later(_BUSY_POLL_S if busy else _IDLE_POLL_S, self._poll)

    def look(self) -> None:
        """Begin whatever there is to do."""
        if self._guest.client is None or not self._may_move():
            return
        if self._is_blocked():
            if self._later is None:
                self._later = self._loop.call_later(_BLOCKED_POLL_S, self._look_again)
            return
        for sq in list(self._sqs.values()):
            idle = sq.pulling is None or sq.pulling.done()
            if idle and self._queues.relayed.guest_doorbell(sq.qid) != sq.given:
                sq.pulling = self._start(self._pull(sq))
        for cq in list(self._cqs.values()):
            self._pass_head_on(cq)
        if self._next_cq() is not None and (self._pushing is None or self._pushing.done()):
            self._pushing = self._start(self._push_all())

    def _look_again(self) -> None:
        self._later = None
        self.look()

    def _may_move(self) -> bool:
        """Whether anything may be begun: after a reset nothing of before is moved."""
        return self._controller.life_cycle.state in _MOVING

    def _is_blocked(self) -> bool:
        """Whether PCI has taken the right to access guest memory away."""
        return bool(self._controller.state.scratch[Scratch.DMA_BLOCKED])

    def work(self, qid: int | None) -> int:
        """How much is not over yet, of all queues or of an SQ (`RelayedQueues.work`)."""
        if qid is None:
            waiting = self._next_cq() is not None and self._may_move() and not self._is_blocked()
            return len(self._tasks) + waiting
        sq = self._sqs.get(qid)
        pulls = sq is not None and sq.pulling is not None and not sq.pulling.done()
        cq = self._cqs.get(self._queues.cq_of_sq(qid))
        return pulls + (cq is not None and self._queues.cq_tail(cq.qid) != cq.pushed)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self._last_work = self._loop.time()
        task = self._loop.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """Without its queues' memory a controller cannot go on (CSTS.CFS).

        It can wait for it to be mapped; :meth:`look` begins again then.
        """
        try:
            await work
        except ConnectionError:
            return
        except OSError as error:
            if error.errno == errno.EFAULT:
                _log.debug("waiting for memory to be mapped: %s", error)
                return
            _log.warning("the client's memory cannot be reached: %s", error or "no answer")
            self._controller.fail()
        except Exception:
            _log.exception("relay")
            self._controller.fail()

    def _pass_head_on(self, cq: RelayedCq) -> None:
        """The guest has consumed completions: only such as it was given."""
        head = self._queues.relayed.guest_doorbell(cq.qid, completion=True)
        if head == cq.head:
            return
        cq.head, before = head, cq.head
        valid = head < cq.size and cq.between(before, head) <= cq.between(before, cq.sent)
        self._queues.relayed.ring(cq.qid, head if valid else _INVALID_DOORBELL, completion=True)

    # -- pulling -----------------------------------------------------------------------------

    async def _pull(self, sq: RelayedSq) -> None:
        while self._may_pull(sq):
            tail = self._queues.relayed.guest_doorbell(sq.qid)
            if tail == sq.given:
                return
            if tail >= sq.size:
                sq.given = tail
                self._queues.relayed.ring(sq.qid, tail)  # which is refused there
                return
            count = min(sq.between(sq.given, tail), _BATCH)
            data = b""
            pieces = sq.pieces(sq.given, count)
            for iova, size in pieces:
                data += await self._guest.read(iova, size)
            if not sq.alive:
                return
            at = 0
            for iova, size in pieces:
                self._shadow.write(iova, data[at : at + size])
                at += size
            await self._give(sq, [data[i : i + SQE_SIZE] for i in range(0, at, SQE_SIZE)])

    def _may_pull(self, sq: RelayedSq) -> bool:
        return sq.alive and self._may_move()

    async def _give(self, sq: RelayedSq, entries: list[bytes]) -> None:
        """Give commands to their queue, as many at a time as there is room for."""
        group: list[RelayedCommand] = []
        together_with_next = False
        for raw in entries:
            sqe = SQE.from_buffer_copy(raw)
            length = self._length_of(sqe, sq.qid == 0)
            if not self._commands.fits(sq.qid, length) and not together_with_next:
                await self._give_group(sq, group)
                group = []
                await self._commands.room(sq.qid, length)
            if not sq.alive:
                break
            group.append(self._commands.add(sq.qid, raw, length))
            together_with_next = sqe.flags & _FUSE_MASK == Fuse.FIRST
        await self._give_group(sq, group)

    async def _give_group(self, sq: RelayedSq, group: list[RelayedCommand]) -> None:
        mover = self._mover
        index = sq.given
        try:
            await together(
                [
                    self._prepare(mover, sq, (index + i) % sq.size, command)
                    for i, command in enumerate(group)
                ]
            )
        except BaseException:
            for command in group:
                self._commands.drop(command)
            raise
        if not sq.alive:
            for command in group:
                self._commands.drop(command)
            return
        for command in group:
            self._commands.note(command)
        if group:
            sq.given = (index + len(group)) % sq.size
            self._queues.relayed.ring(sq.qid, sq.given)

    async def _prepare(
        self, mover: Mover, sq: RelayedSq, index: int, command: RelayedCommand
    ) -> None:
        """Pull a command's data. If that fails, the data path shall find none: it knows what to
        say to the guest (Data Transfer Error), and to its error log."""
        try:
            await mover.pull(command)
        except ConnectionError:
            raise
        except OSError as error:
            _log.warning("data of a command cannot be read: %s", error or "no answer")
            if not sq.alive:
                return
            spoilt = bytearray(command.raw)
            spoilt[1] &= ~_PSDT_MASK
            spoilt[_PRP1_AT : _PRP1_AT + 8] = _NOWHERE.to_bytes(8, "little")
            ((iova, _),) = sq.pieces(index, 1)
            self._shadow.write(iova, bytes(spoilt))

    def _length_of(self, sqe: SQE, admin: bool) -> int:
        namespace = None if admin else self._controller.namespaces.get(sqe.nsid)
        block_size = namespace.backend.block_size if namespace is not None else 0
        length = length_of(sqe, admin=admin, block_size=block_size)
        return length if length <= self._controller.settings.max_transfer or admin else 0

    # -- pushing -----------------------------------------------------------------------------

    def _next_cq(self) -> RelayedCq | None:
        """A CQ with completions to push, the admin queue last."""
        for cq in sorted(self._cqs.values(), key=lambda cq: cq.qid == 0):
            if self._queues.cq_tail(cq.qid) != cq.pushed:
                return cq
        return None

    async def _push_all(self) -> None:
        if self._recalling is not None:
            await self._recalling
            self._recalling = None
        while self._may_move() and (cq := self._next_cq()) is not None:
            await self._push(cq)

    async def _push(self, cq: RelayedCq) -> None:
        """Push completions of a CQ, and the data before them."""
        posted = self._posted(cq)[:_BATCH]
        if cq.unsure:
            posted = await self._not_pushed(cq, posted)
            if not cq.alive or not posted:
                return
        commands = [self._commands.find(entry.sqid, entry.cid) for entry in posted]
        mover = self._mover
        await together(
            [
                self._deliver(mover, entry, command)
                for entry, command in zip(posted, commands, strict=True)
            ]
        )
        data = b"".join(bytes(entry) for entry in posted)
        cq.sent = (cq.pushed + len(posted)) % cq.size
        at = 0
        for iova, size in cq.pieces(cq.pushed, len(posted)):
            if not cq.alive:
                return
            await self._guest.write(iova, data[at : at + size])
            at += size
        if cq.alive:
            self._pushed(cq, commands)
            self._queues.interrupts.raise_for(cq.qid)

    def _pushed(self, cq: RelayedCq, commands: list[RelayedCommand | None]) -> None:
        """The guest has these completions."""
        cq.pushed = (cq.pushed + len(commands)) % cq.size
        self._files.set_pushed(cq.qid, cq.pushed)
        for command in commands:
            if command is not None:
                self._commands.drop(command)

    async def _not_pushed(self, cq: RelayedCq, posted: list[CQE]) -> list[CQE]:
        """Those that the guest does not have yet."""
        pieces = cq.pieces(cq.pushed, len(posted))
        data = b"".join([await self._guest.read(iova, size) for iova, size in pieces])
        known = 0
        while known < len(posted) and data[known * CQE_SIZE :][:CQE_SIZE] == bytes(posted[known]):
            known += 1
        if cq.alive:
            cq.unsure = known == len(posted)
            self._pushed(cq, [self._commands.find(e.sqid, e.cid) for e in posted[:known]])
            self._queues.interrupts.raise_for(cq.qid)
        return posted[known:]

    async def _deliver(self, mover: Mover, entry: CQE, command: RelayedCommand | None) -> None:
        """Push the data of a command that has succeeded; if that fails, it has not."""
        if command is None or entry.status >> 1:
            return
        try:
            await mover.push(command.transfer)
        except ConnectionError:
            raise
        except OSError as error:
            _log.warning("data of a command cannot be written: %s", error or "no answer")
            status = status_field(GenericStatus.DATA_TRANSFER_ERROR)
            self._queues.log_transfer_error(entry.sqid, entry.cid, status, command.sqe.nsid)
            entry.status = status << 1 | entry.status & 1
