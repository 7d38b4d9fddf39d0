"""The virtual NVMe controller, as the layer above drives it.

Register and doorbell accesses come in, interrupts and completions go out through the queue table.
Nothing that a guest does raises an exception out of here: what is unexpected is logged and becomes
CSTS.CFS (Controller Fatal Status), which is the guest's to reset.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

from nvme_mdev.controller.admin.queues import being_deleted
from nvme_mdev.controller.admin_queue import AdminQueue
from nvme_mdev.controller.erasing import Erasing
from nvme_mdev.controller.events import Events
from nvme_mdev.controller.features import Features
from nvme_mdev.controller.health import Health
from nvme_mdev.controller.keep_alive import KeepAlive
from nvme_mdev.controller.lifecycle import LifeCycle
from nvme_mdev.controller.memory_map import SCRATCH_END, STATE_MAGIC, Lifetime, Scratch
from nvme_mdev.controller.namespace_changes import NamespaceChanges
from nvme_mdev.controller.namespaces import Namespaces
from nvme_mdev.controller.overdue import OverdueCommands
from nvme_mdev.controller.places import Places
from nvme_mdev.controller.registers import Registers
from nvme_mdev.controller.reservation_commands import ReservationCommands
from nvme_mdev.controller.reservation_notices import ReservationNotices
from nvme_mdev.controller.self_test import SelfTest
from nvme_mdev.controller.subsystem import Subsystem
from nvme_mdev.controller.transitions import Event, State
from nvme_mdev.controller.write_protection import WriteProtection
from nvme_mdev.datapath.queue_table import (
    DOORBELL_INVALID_REGISTER,
    DOORBELL_INVALID_VALUE,
    DOORBELL_OK,
)
from nvme_mdev.spec.nvme_commands import ErrorEventInfo
from nvme_mdev.spec.nvme_registers import (
    DOORBELL_BASE,
    NSSR_NSSRC,
    Cap,
    CapBit,
    Cc,
    CstsBit,
    Register,
    Shn,
    doorbell_at,
)
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, status_field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nvme_mdev.controller.reservations import CommandGroup
    from nvme_mdev.controller.settings import ControllerSettings
    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.queue_table import QueueTable
    from nvme_mdev.datapath.state import ControllerState
    from nvme_mdev.spec.nvme_status import StatusCode

_log = logging.getLogger(__name__)

BAR0_SIZE = 0x4000
"""Bytes of BAR0: a page of registers, a page of doorbells, rounded up as drives do."""
DOORBELL_END = 0x2000
"""Where the doorbell page ends."""

_DOORBELL_SIZE = 4
_DRAIN_POLL_S = 0.001
"""How often a pause looks whether I/O is still in flight."""
_TICK_S = 1.0
"""How often to look for I/O that takes too long and for media that have another size."""

_DOORBELL_ERRORS: dict[int, tuple[ErrorEventInfo, StatusCode]] = {
    DOORBELL_INVALID_REGISTER: (
        ErrorEventInfo.INVALID_DOORBELL_REGISTER,
        CommandStatus.INVALID_QUEUE_ID,
    ),
    DOORBELL_INVALID_VALUE: (ErrorEventInfo.INVALID_DOORBELL_VALUE, GenericStatus.INVALID_FIELD),
}
"""What the guest is told of an invalid doorbell write, by event and in the error log.

No command is at fault, so the log has the most applicable status (Base 5.1.12.1.2): there is no
such queue, or a field, SQT or CQH, has a value that it cannot have.
"""


class Controller:
    """One virtual NVMe controller.

    Made from a fresh state it is powered on; a state that was a controller's is left as it is.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        state: ControllerState,
        queues: QueueTable,
        backends: Mapping[int, Backend],
        subsystem: Subsystem | None = None,
    ) -> None:
        """``backends``: NSID to backend; ValueError: an NSID that cannot be.

        ``subsystem``: what it belongs to from :meth:`start` to :meth:`stop`; None: one of its own.
        """
        self.settings = settings
        self.subsystem = subsystem if subsystem is not None else Subsystem()
        self.state = state
        self.queues = queues
        self.registers = Registers(state.registers)
        self.places = Places(state.lifetime, Lifetime.HIGH_NSIDS)
        self.features = Features(state, settings, self.places)
        self.namespaces = Namespaces(settings.max_nsid)
        self._shadow_doorbell = settings.shadow_doorbell
        self.usable_vectors = settings.vectors
        """Interrupt vectors that completion queues can have: fewer with MSI than with MSI-X."""
        if state.scratch[Scratch.MAGIC] == STATE_MAGIC:
            # What the guest was told, which may not be what it will be told after a reset.
            offered = bool(state.scratch[Scratch.SHADOW_DOORBELL])
            self.settings = dataclasses.replace(settings, shadow_doorbell=offered)
        self.admin_queue = AdminQueue(self)
        self.events = Events(state, self.features, self.admin_queue.report_event)
        self.notices = ReservationNotices(state, self.places, self.events.reservation)
        self.reservation_commands = ReservationCommands(self)
        self.life_cycle = LifeCycle(
            state,
            self.registers,
            queues,
            on_stop=self.admin_queue.cancel,
            on_clear=self._controller_level_reset,
            volatile=self.namespaces.volatile,
        )
        self.health = Health(
            state,
            queues,
            self.namespaces,
            on_temperature=self.events.temperature,
            on_warning=self.events.critical_warning,
        )
        self.keep_alive = KeepAlive(self)
        self.write_protection = WriteProtection(self.subsystem, queues, self.namespaces)
        self.erasing = Erasing(self)
        self.self_test = SelfTest(self)
        self.namespace_changes = NamespaceChanges(self)
        self._overdue = OverdueCommands(queues, self._after_standstill)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._writers: dict[Register, Callable[[int], None]] = {
            Register.INTMS: lambda mask: self._set_intms(self.registers[Register.INTMS] | mask),
            Register.INTMC: lambda mask: self._set_intms(self.registers[Register.INTMS] & ~mask),
            Register.CC: self._write_cc,
            Register.CSTS: lambda ones: self.registers.change_csts(off=ones),
            Register.NSSR: self._write_nssr,
        }
        for nsid, backend in backends.items():
            self.namespace_changes.attach(nsid, backend)
        if state.scratch[Scratch.MAGIC] != STATE_MAGIC:
            self._power_on()
        queues.paused = bool(state.scratch[Scratch.PAUSED])
        queues.io_timeout_ms = settings.io_timeout_ms

    # -- the life of the object --------------------------------------------------------------

    def start(self) -> None:
        """Serve the queue table's notifications from the running event loop."""
        self.subsystem.add(self)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.queues.notify_fd, self.on_notify)
        self._tick = self._loop.call_later(_TICK_S, self._on_tick)

    def carry_on(self) -> None:
        """Go on with the state of a process that was killed at any moment; after :meth:`start`.

        Guest memory and eventfds are as they were. Commands that were in flight are executed again,
        asynchronous event requests stay outstanding.
        """
        self.queues.set_arbitration(self.features.burst, *self.features.weights)
        self.queues.interrupts.set_intms(self.registers[Register.INTMS])
        try:
            self.erasing.resume()
            self.self_test.resume()
            self.life_cycle.resume()
            if self.life_cycle.state is State.READY:
                if self.state.scratch[Scratch.DMA_BLOCKED]:
                    self.queues.hold()
                self.admin_queue.resume()
                self.keep_alive.restart()
                self.events.deliver()
                self.on_notify()
        except Exception:
            _log.exception("cannot go on where the process before this one was killed")
            self.fail()

    def stop(self) -> None:
        """Undo :meth:`start`; the state stays as it is."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        self.health.stop()
        self.keep_alive.stop()
        self.erasing.stop()
        self.self_test.stop()
        self.reservation_commands.stop()
        if self._loop is not None:
            self._loop.remove_reader(self.queues.notify_fd)
            self._loop = None
            self.subsystem.remove(self)

    # -- accesses to BAR0 --------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes at ``offset`` of BAR0; never raises, what is not there is 0."""
        if offset >= DOORBELL_BASE:
            start = offset - DOORBELL_BASE
            return bytes(self.state.doorbells[start : start + size]).ljust(size, b"\0")
        head = self.registers.read(offset, min(size, DOORBELL_BASE - offset))
        rest = size - len(head)
        return head + (self.read(DOORBELL_BASE, rest) if rest else b"")

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at ``offset`` of BAR0; what it means has happened when this returns, but
        for resets and shutdowns that wait for I/O. Never raises."""
        try:
            for register, value in self.registers.writes(offset, data):
                self._write_register(register, value)
            if offset + len(data) > DOORBELL_BASE:
                self._write_doorbells(offset, data)
        except Exception:
            _log.exception("write of %d bytes at %#x of BAR0", len(data), offset)
            self.fail()

    def on_notify(self) -> None:
        """The queue table has something: an admin command, or a doorbell error. Never raises."""
        try:
            self.queues.clear_notify()
            for error in self.queues.take_errors():
                self._doorbell_error(DOORBELL_INVALID_VALUE, error.qid)
            self.reservation_commands.process()
            if self.life_cycle.state is State.READY:
                self.admin_queue.process()
                self.events.deliver()
        except Exception:
            _log.exception("admin queue")
            self.fail()

    # -- resets and power --------------------------------------------------------------------

    def reset(self, *, subsystem: bool = False) -> None:
        """Reset as NSSR (``subsystem``), PCI function-level reset and a client's reset do.

        The registers have their defaults at once; :meth:`settled` says when no I/O is left.
        """
        self.life_cycle.fire(Event.RESET)
        self._reset_registers()
        self.state.scratch[Scratch.CC_SEEN] = 0
        self.queues.interrupts.set_intms(0)
        if subsystem:
            self.registers.change_csts(on=CstsBit.NSSRO)

    async def settled(self) -> None:
        """Return when no reset or shutdown is under way."""
        await self.life_cycle.settled()

    def fail(self) -> None:
        """Give up until the guest resets: CSTS.CFS."""
        try:
            self.life_cycle.fire(Event.FAIL)
        except Exception:
            _log.exception("cannot even fail")
            self.registers.change_csts(on=CstsBit.CFS)

    def power_cycle(self) -> None:
        """Forget everything a guest could have left, for the next client; nothing is in flight."""
        self._power_on()

    def allow_dma(self, allowed: bool) -> None:
        """PCI grants (bus master on, D0) or takes away the right to access guest memory.

        Only taking it away has an effect: a client that never grants it is served all the same.
        """
        blocked = not allowed
        if blocked == bool(self.state.scratch[Scratch.DMA_BLOCKED]):
            return
        self.state.scratch[Scratch.DMA_BLOCKED] = blocked
        if self.life_cycle.state is not State.READY:
            return
        if blocked:
            self.queues.hold()
            return
        self.queues.release()
        for qid in being_deleted(self):
            self.queues.hold(qid)
        self.on_notify()

    # -- namespaces --------------------------------------------------------------------------

    def add_namespace(self, nsid: int, backend: Backend) -> None:
        """Attach a namespace while the guest runs; ValueError: the NSID cannot be had."""
        self.namespace_changes.add(nsid, backend)

    async def remove_namespace(self, nsid: int) -> Backend:
        """Detach a namespace when its I/O is done; KeyError: there is none of this NSID."""
        return await self.namespace_changes.remove(nsid)

    async def resize_namespace(self, nsid: int, size: int) -> None:
        """Give a namespace, and its medium, another size (bytes); KeyError, OSError: it cannot."""
        await self.namespace_changes.resize(nsid, size)

    @property
    def host(self) -> bytes:
        """The Host Identifier, 16 bytes; empty: the guest has not told who it is."""
        identifier = self.features.data.host_identifier
        return identifier if any(identifier) else b""

    def host_changed(self) -> None:
        """The guest is another host than before, for every reservation."""
        for nsid in self.subsystem.shared:
            if self.subsystem.shared[nsid].reservations.keys:
                self.enforce(nsid)

    def refused(self, nsid: int) -> CommandGroup:
        """The commands that conflict with the reservation of a namespace."""
        return self.subsystem.shared[nsid].reservations.refused(self.host)

    def enforce(self, nsid: int) -> None:
        """Let the data path know what holds for a namespace on each controller."""
        self.write_protection.enforce(nsid)
        if self.namespaces.get(nsid) is not None or nsid in self.namespaces.lost:
            self.queues.namespaces.refuse_groups(nsid, self.refused(nsid))

    # -- what the host decides while the guest runs ------------------------------------------

    @property
    def paused(self) -> bool:
        """The host holds the I/O queues. Outlives resets, the client and the process."""
        return bool(self.state.scratch[Scratch.PAUSED])

    async def pause(self) -> None:
        """Hold all I/O queues; returns when nothing is in flight, or they have been resumed.

        Admin commands go on. A guest that gives up on its I/O resets the controller, which stays
        paused.
        """
        self.state.scratch[Scratch.PAUSED] = 1
        self.queues.paused = True
        while self.paused and self.queues.inflight():  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_POLL_S)

    def resume(self) -> None:
        """Serve the I/O queues again."""
        self.state.scratch[Scratch.PAUSED] = 0
        self.queues.paused = False

    def set_io_timeout(self, milliseconds: int) -> None:
        """Cancel I/O that takes longer, from now on; CAP.TO follows at the next reset."""
        self.settings = dataclasses.replace(self.settings, io_timeout_ms=milliseconds)
        self.queues.io_timeout_ms = milliseconds

    @property
    def shadow_doorbell(self) -> bool:
        """Whether Doorbell Buffer Config is offered, or will be from the next reset on."""
        return self._shadow_doorbell

    @shadow_doorbell.setter
    def shadow_doorbell(self, offered: bool) -> None:
        # A driver that has identified the controller may use what it was told.
        self._shadow_doorbell = offered
        if self.life_cycle.state is State.DISABLED:
            self._take_over_settings()

    def withhold_shadow_doorbell(self) -> None:
        """Do not offer Doorbell Buffer Config until the next reset, whatever the setting says."""
        self.state.scratch[Scratch.SHADOW_DOORBELL] = 0
        self.settings = dataclasses.replace(self.settings, shadow_doorbell=False)

    def _take_over_settings(self) -> None:
        self.state.scratch[Scratch.SHADOW_DOORBELL] = self._shadow_doorbell
        self.settings = dataclasses.replace(self.settings, shadow_doorbell=self._shadow_doorbell)

    # -- registers ---------------------------------------------------------------------------

    def _write_register(self, register: Register, value: int) -> None:
        writer = self._writers.get(register)
        if writer is not None:
            writer(value)
        elif not self.registers.cc.en:
            # AQA, ASQ, ACQ: the admin queue does not move while it is in use.
            self.registers[register] = value
        elif self.life_cycle.state is State.FAILED and not self._is_ready:
            # Too late, by the specification (Base 3.5.1). But drives take so long to get ready that
            # it works, and QEMU's own driver (11.1, as Debian compiles it) sets ACQ after CC.EN.
            self.registers[register] = value
            self.life_cycle.fire(Event.ENABLE)

    @property
    def _is_ready(self) -> bool:
        return bool(self.registers[Register.CSTS] & CstsBit.RDY)

    def _write_cc(self, value: int) -> None:
        before = Cc.unpack(self.state.scratch[Scratch.CC_SEEN])
        after = Cc.unpack(value)
        self.registers[Register.CC] = value
        if after.en != before.en:
            self.life_cycle.fire(Event.ENABLE if after.en else Event.DISABLE)
        if before.shn == Shn.NONE and after.shn != Shn.NONE:
            self.life_cycle.fire(Event.SHUTDOWN)
        self.state.scratch[Scratch.CC_SEEN] = value

    def _write_nssr(self, value: int) -> None:
        """Where CAP.NSSRS is 0 the register is reserved."""
        cap = Cap.unpack(self.registers[Register.CAP])
        if value == NSSR_NSSRC and cap.bits & CapBit.NSSRS:
            self.reset(subsystem=True)

    def _set_intms(self, mask: int) -> None:
        self.registers[Register.INTMS] = self.registers[Register.INTMC] = mask
        self.queues.interrupts.set_intms(mask)

    # -- doorbells ---------------------------------------------------------------------------

    def _write_doorbells(self, offset: int, data: bytes) -> None:
        """A doorbell is written as a whole: 4 bytes, or the low ones of them (Base 3.1.2)."""
        if self.life_cycle.state is not State.READY:
            return
        start = max(offset, DOORBELL_BASE)
        for position in range(start, offset + len(data), _DOORBELL_SIZE):
            value = data[position - offset : position - offset + _DOORBELL_SIZE]
            self._ring(position, int.from_bytes(value, "little"))

    def _ring(self, offset: int, value: int) -> None:
        dstrd = Cap.unpack(self.registers[Register.CAP]).dstrd
        doorbell = doorbell_at(offset, dstrd) if offset < DOORBELL_END else None
        if doorbell is None:
            before = doorbell_at(offset - _DOORBELL_SIZE, dstrd) if offset < DOORBELL_END else None
            if before is not None and not before[1]:
                self.queues.ring_behind_tail(before[0], value)
            self._doorbell_error(DOORBELL_INVALID_REGISTER, 0)
            return
        qid, completion = doorbell
        answer = self.queues.ring_doorbell(qid, value, completion=completion)
        if answer != DOORBELL_OK:
            self._doorbell_error(answer, qid)
        elif qid == 0:
            self.on_notify()

    def _doorbell_error(self, kind: int, qid: int) -> None:
        _log.debug("invalid doorbell write, queue %d", qid)
        info, status = _DOORBELL_ERRORS[kind]
        self.queues.log_controller_error(status_field(status))
        self.events.doorbell_error(info)

    # -- the rest ----------------------------------------------------------------------------

    def _power_on(self) -> None:
        scratch = self.state.scratch
        self.health.power_on()
        for word in range(SCRATCH_END):
            if word != Scratch.PAUSED:
                scratch[word] = 0
        scratch[Scratch.LIFE_CYCLE] = State.DISABLED
        self._reset_registers()
        self.subsystem.power_cycle(self)
        # The Error Count goes on: it is retained across power off (Base 5.1.12.1.2).
        self.state.error_log[:] = bytes(len(self.state.error_log))
        self.events.clear_changed_namespaces()
        self._controller_level_reset()
        scratch[Scratch.MAGIC] = STATE_MAGIC

    def _reset_registers(self) -> None:
        alone = all(one is self for one in self.subsystem)
        self.registers.reset(self.settings, alone=alone)

    def _controller_level_reset(self) -> None:
        """What every reset resets besides the queues (Base 3.7.2)."""
        self.admin_queue.cancel()
        self._take_over_settings()
        self.features.reset()
        self.notices.reset()
        self.host_changed()
        self.keep_alive.stop()
        self.self_test.reset()
        self.queues.set_arbitration(self.features.burst, *self.features.weights)
        self.events.reset()

    def _on_tick(self) -> None:
        self._tick = asyncio.get_running_loop().call_later(_TICK_S, self._on_tick)
        self.health.tick()
        self.namespace_changes.follow()
        self._overdue.cancel(self.settings.io_timeout_ms)

    def _after_standstill(self) -> None:
        for namespace in self.namespaces:
            if namespace.backend.limits:
                # Its buckets know when they will be full, on a clock that may have begun anew.
                namespace.backend.set_limits(namespace.backend.limits)
