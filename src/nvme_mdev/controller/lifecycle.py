"""Carries out what :mod:`nvme_mdev.controller.transitions` decides."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nvme_mdev.controller.drain import drained
from nvme_mdev.controller.memory_map import Scratch
from nvme_mdev.controller.registers import admin_queues, why_not_enabled
from nvme_mdev.controller.transitions import TRANSITIONS, Action, Event, State
from nvme_mdev.spec.nvme_registers import CSTS_SHST_MASK, Ams, Cap, CstsBit, Register, Shst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvme_mdev.controller.registers import Registers
    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.queue_table import QueueTable
    from nvme_mdev.datapath.state import ControllerState

_log = logging.getLogger(__name__)


class LifeCycle:
    """Enable, reset and shutdown of one controller; its state is a word of shared memory."""

    def __init__(
        self,
        state: ControllerState,
        registers: Registers,
        queues: QueueTable,
        *,
        on_clear: Callable[[], None],
        on_stop: Callable[[], None],
        volatile: Callable[[], Sequence[Backend]],
    ) -> None:
        """``on_stop``: queues stop now; ``on_clear``: do what a Controller Level Reset does to the
        rest of the controller; ``volatile``: the backends that a shutdown has to flush."""
        self._state = state
        self._registers = registers
        self._queues = queues
        self._on_clear = on_clear
        self._on_stop = on_stop
        self._volatile = volatile
        self.before_start: Callable[[], None] = lambda: None
        """Called when the guest enables the controller, before its configuration is looked at."""
        self._wait: asyncio.Task[None] | None = None
        self._actions: dict[Action, Callable[[], None]] = {
            Action.NONE: lambda: None,
            Action.START: self._start,
            Action.STOP: self._stop,
            Action.CLEAR: self._clear,
            Action.RESTART: self._restart,
            Action.CLEAR_FIRST: self._clear_first,
            Action.QUIESCE: self._quiesce,
            Action.FINISH_SHUTDOWN: self._finish_shutdown,
            Action.BREAK: self._break,
        }

    @property
    def state(self) -> State:
        """Where the controller is."""
        return State(self._state.scratch[Scratch.LIFE_CYCLE])

    def fire(self, event: Event) -> None:
        """Let an event happen. What it starts and cannot finish at once goes on in a task."""
        before = self.state
        transition = TRANSITIONS.get((before, event))
        if transition is None:
            return
        after, action = transition
        _log.debug("life cycle: %s, %s -> %s", before.name, event.name, after.name)
        self._state.scratch[Scratch.LIFE_CYCLE] = after
        self._actions[action]()

    def resume(self) -> None:
        """Go on where a process was killed: do the rest of its last action, which can be all of it.

        None of its I/O is in flight any more; what has to be executed again is in the queues.
        """
        match self.state:
            case State.READY if self._registers[Register.CSTS] & CstsBit.RDY:
                self._adopt_queues()
            case State.READY:
                self._start()
            case State.SHUTTING_DOWN:
                self._adopt_queues()
                self._quiesce()
            case State.RESETTING | State.RESTARTING | State.ENDING:
                self._stop()
            case State.SHUT_DOWN:
                self._finish_shutdown()
            case State.FAILED:
                self._break()
            case State.DISABLED:
                self._clear()

    def _adopt_queues(self) -> None:
        self._queues.adopt(
            page_size=self._registers.cc.page_size,
            dstrd=Cap.unpack(self._registers[Register.CAP]).dstrd,
            weighted=self._registers.cc.ams == Ams.WRRU,
        )
        self._queues.execute_again()

    async def settled(self) -> None:
        """Return when no reset or shutdown is under way."""
        while self._wait is not None:
            await asyncio.wait([self._wait])

    # -- the actions -------------------------------------------------------------------------

    def _start(self) -> None:
        self.before_start()
        problem = why_not_enabled(self._registers, self._queues.memory)
        if problem is not None:
            _log.warning("the guest's configuration cannot be enabled: %s", problem)
            self.fire(Event.FAIL)
            return
        queues = admin_queues(self._registers)
        self._queues.enable(
            admin_sq=queues.sq,
            admin_sq_size=queues.sq_size,
            admin_cq=queues.cq,
            admin_cq_size=queues.cq_size,
            page_size=self._registers.cc.page_size,
            dstrd=Cap.unpack(self._registers[Register.CAP]).dstrd,
            weighted=self._registers.cc.ams == Ams.WRRU,
        )
        if self._state.scratch[Scratch.DMA_BLOCKED]:
            self._queues.hold()
        self._state.scratch[Scratch.USED] = self._state.scratch[Scratch.POWERED] = 1
        self._registers.change_csts(on=CstsBit.RDY)

    def _stop(self) -> None:
        self._on_stop()
        self._queues.stop()
        self._when_drained(())

    def _clear(self) -> None:
        self._queues.disable()
        self._on_clear()
        self._registers.change_csts(off=CstsBit.RDY | CstsBit.CFS | CSTS_SHST_MASK)

    def _restart(self) -> None:
        self._clear()
        self._start()

    def _clear_first(self) -> None:
        self._clear()
        self.fire(Event.CLEARED)

    def _quiesce(self) -> None:
        self._registers.set_shutdown_status(Shst.OCCURRING)
        self._queues.hold()
        self._queues.end_throttled()
        self._when_drained(self._volatile())

    def _finish_shutdown(self) -> None:
        self._on_stop()
        self._queues.stop()
        self._state.scratch[Scratch.USED] = 0
        self._registers.set_shutdown_status(Shst.COMPLETE)

    def _break(self) -> None:
        self._cancel_wait()
        self._on_stop()
        self._queues.stop()
        self._registers.change_csts(on=CstsBit.CFS)

    # -- waiting -----------------------------------------------------------------------------

    def _when_drained(self, flush: Sequence[Backend]) -> None:
        """Fire DRAINED once nothing is in flight and ``flush`` is flushed; now, if that is so."""
        self._cancel_wait()
        if not flush and self._queues.inflight() == 0:
            self.fire(Event.DRAINED)
            return
        self._wait = asyncio.get_running_loop().create_task(self._drain(flush))

    def _cancel_wait(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None

    async def _drain(self, flush: Sequence[Backend]) -> None:
        await drained(self._queues)
        for backend in flush:
            try:
                await asyncio.to_thread(backend.flush)
            except Exception:
                # The guest cannot be told: a shutdown has no status. It is told by its own Flush.
                _log.exception("%s: flush at shutdown failed", backend.name)
        self._wait = None
        try:
            self.fire(Event.DRAINED)
        except Exception:
            _log.exception("life cycle")
            self.fire(Event.FAIL)
