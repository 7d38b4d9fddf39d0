"""Enable, reset and shutdown against queues whose I/O takes as long as the test wants."""

from __future__ import annotations

import asyncio
import functools
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.controller.lifecycle import LifeCycle
from nvme_mdev.controller.memory_map import Scratch
from nvme_mdev.controller.registers import Registers
from nvme_mdev.controller.settings import ControllerSettings
from nvme_mdev.controller.transitions import Event, State
from nvme_mdev.spec.nvme_registers import Cc, Csts, Register, Shst

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

RAM = 0x10_0000
SETTINGS = ControllerSettings("S1")


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test within an event loop of its own."""

    @functools.wraps(test)
    def run(**parameters: Any) -> None:
        asyncio.run(test(**parameters))

    return run


class Memory:
    """RAM, and a page of ROM above it."""

    def covers(self, iova: int, size: int, *, writable: bool) -> bool:
        return iova + size <= (RAM if writable else RAM + 0x1000)


class Queues:
    """Remembers what is asked of it; `busy` commands are in flight."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.busy = 0
        self.calls: list[str] = []

    def inflight(self, qid: int | None = None) -> int:
        return self.busy

    def enable(self, **_: Any) -> None:
        self.calls.append("enable")

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class Cache:
    name = "cache"

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self.error: OSError | None = None

    def flush(self) -> None:
        self.queues.calls.append("flush")
        if self.error is not None:
            raise self.error


class Bench:
    def __init__(self) -> None:
        self.queues: Any = Queues()
        self.state: Any = type("S", (), {"scratch": memoryview(array("I", bytes(4096)))})()
        self.registers = Registers(memoryview(bytearray(4096)))
        self.registers.reset(SETTINGS, alone=True)
        self.caches: list[Any] = []
        self.cleared = 0
        self.cycle = LifeCycle(
            self.state,
            self.registers,
            self.queues,
            on_clear=self.clear,
            on_stop=lambda: None,
            volatile=lambda: self.caches,
        )
        self.configure()

    def clear(self) -> None:
        self.cleared += 1

    def configure(
        self, *, cc: Cc | None = None, aqa: int = 0x001F_001F, asq: int = 0x1000, acq: int = 0x2000
    ) -> None:
        self.registers[Register.CC] = (cc or Cc(en=True, iosqes=6, iocqes=4)).pack()
        self.registers[Register.AQA] = aqa
        self.registers[Register.ASQ] = asq
        self.registers[Register.ACQ] = acq

    @property
    def csts(self) -> Csts:
        return Csts.unpack(self.registers[Register.CSTS])

    @property
    def where(self) -> State:
        return self.cycle.state


def ready() -> Bench:
    bench = Bench()
    bench.cycle.fire(Event.ENABLE)
    assert bench.csts.rdy
    bench.queues.calls.clear()
    return bench


def test_enabling_is_done_within_the_write() -> None:
    assert ready().where is State.READY


def test_an_idle_controller_is_reset_within_the_write() -> None:
    bench = ready()
    bench.cycle.fire(Event.DISABLE)
    assert not bench.csts.rdy
    assert bench.where is State.DISABLED
    assert bench.queues.calls == ["stop", "disable"]
    assert bench.cleared == 1


def test_an_idle_controller_without_caches_is_shut_down_within_the_write() -> None:
    bench = ready()
    bench.cycle.fire(Event.SHUTDOWN)
    assert bench.csts.shst == Shst.COMPLETE
    assert bench.csts.rdy


@on_loop
async def test_ready_falls_when_the_last_command_is_done() -> None:
    bench = ready()
    bench.queues.busy = 1
    bench.cycle.fire(Event.DISABLE)
    await asyncio.sleep(0.01)
    assert bench.csts.rdy
    assert "disable" not in bench.queues.calls
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert not bench.csts.rdy
    assert bench.where is State.DISABLED


@on_loop
async def test_enabling_while_a_reset_drains_takes_effect_after_it() -> None:
    bench = ready()
    bench.queues.busy = 1
    bench.cycle.fire(Event.DISABLE)
    bench.cycle.fire(Event.ENABLE)
    assert "enable" not in bench.queues.calls
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert bench.queues.calls == ["stop", "disable", "enable"]
    assert bench.csts.rdy
    assert bench.where is State.READY


@on_loop
async def test_changing_ones_mind_while_a_reset_drains_leaves_it_disabled() -> None:
    bench = ready()
    bench.queues.busy = 1
    for event in (Event.DISABLE, Event.ENABLE, Event.DISABLE):
        bench.cycle.fire(event)
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert bench.where is State.DISABLED
    assert not bench.csts.rdy


@on_loop
@pytest.mark.parametrize("before", [(Event.DISABLE,), (Event.DISABLE, Event.ENABLE)])
async def test_a_shutdown_while_a_reset_drains_takes_place_after_it(
    before: tuple[Event, ...],
) -> None:
    bench = ready()
    bench.queues.busy = 1
    bench.caches = [Cache(bench.queues)]
    for event in (*before, Event.SHUTDOWN, Event.SHUTDOWN):
        bench.cycle.fire(event)
    await asyncio.sleep(0.01)
    assert bench.csts == Csts(rdy=True)
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert bench.queues.calls == ["stop", "disable", "hold", "end_throttled", "flush", "stop"]
    assert bench.csts == Csts(shst=Shst.COMPLETE)
    assert bench.where is State.SHUT_DOWN
    bench.cycle.fire(Event.ENABLE)
    assert bench.csts == Csts(rdy=True)


@on_loop
async def test_enabling_after_such_a_shutdown_is_all_that_counts() -> None:
    bench = ready()
    bench.queues.busy = 1
    for event in (Event.DISABLE, Event.SHUTDOWN, Event.ENABLE):
        bench.cycle.fire(event)
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert bench.csts == Csts(rdy=True)
    assert bench.where is State.READY


@on_loop
async def test_a_process_that_is_killed_in_such_a_shutdown_leaves_it_to_the_next() -> None:
    bench = ready()
    bench.queues.busy = 1
    for event in (Event.DISABLE, Event.SHUTDOWN):
        bench.cycle.fire(event)
    bench.cycle._cancel_wait()
    bench.queues.busy = 0
    bench.cycle.resume()
    await bench.cycle.settled()
    assert bench.csts == Csts(shst=Shst.COMPLETE)


@on_loop
async def test_a_shutdown_completes_commands_then_flushes_then_says_so() -> None:
    bench = ready()
    bench.queues.busy = 1
    bench.caches = [Cache(bench.queues)]
    bench.cycle.fire(Event.SHUTDOWN)
    await asyncio.sleep(0.01)
    assert bench.csts.shst == Shst.OCCURRING
    assert bench.queues.calls == ["hold", "end_throttled"]
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert bench.queues.calls == ["hold", "end_throttled", "flush", "stop"]
    assert bench.csts.shst == Shst.COMPLETE


@on_loop
async def test_a_flush_that_fails_does_not_keep_the_guest_waiting() -> None:
    bench = ready()
    cache = Cache(bench.queues)
    cache.error = OSError(5, "I/O error")
    bench.caches = [cache]
    bench.cycle.fire(Event.SHUTDOWN)
    await bench.cycle.settled()
    assert bench.csts.shst == Shst.COMPLETE


@on_loop
async def test_a_reset_ends_a_shutdown() -> None:
    bench = ready()
    bench.queues.busy = 1
    bench.cycle.fire(Event.SHUTDOWN)
    bench.cycle.fire(Event.DISABLE)
    bench.queues.busy = 0
    await bench.cycle.settled()
    assert bench.where is State.DISABLED
    assert bench.csts.shst == Shst.NORMAL


def test_a_controller_that_was_shut_down_works_again_after_a_reset() -> None:
    bench = ready()
    for event in (Event.SHUTDOWN, Event.DISABLE, Event.ENABLE):
        bench.cycle.fire(event)
    assert bench.where is State.READY
    assert bench.csts.shst == Shst.NORMAL


def test_a_disabled_controller_can_be_shut_down_and_enabled() -> None:
    bench = Bench()
    bench.cycle.fire(Event.SHUTDOWN)
    assert bench.csts.shst == Shst.COMPLETE
    assert not bench.csts.rdy
    bench.cycle.fire(Event.ENABLE)
    assert bench.csts == Csts(rdy=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cc": Cc(en=True, mps=5)},
        {"cc": Cc(en=True, css=1)},
        {"cc": Cc(en=True, css=7)},
        {"cc": Cc(en=True, ams=2)},
        {"cc": Cc(en=True, ams=7)},
        {"cc": Cc(en=True, mps=4), "asq": 0x8000},
        {"cc": Cc(en=True, mps=1), "acq": 0x5000},
        {"cc": Cc(en=True, iosqes=7, iocqes=4)},
        {"cc": Cc(en=True, iosqes=6, iocqes=5)},
        {"aqa": 0x001F_0000},
        {"aqa": 0x0000_001F},
        {"asq": RAM - 0x1000 + 0x4000},
        {"asq": RAM + 0x1000},
        {"asq": 0xFFFF_FFFF_FFFF_F000},
        {"acq": RAM},
        {"acq": 0x4000_0000},
        {"aqa": 0x0FFF_0FFF, "asq": RAM - 0x3000},
    ],
)
def test_a_configuration_that_cannot_be_enabled_is_a_fatal_status(wrong: dict[str, Any]) -> None:
    bench = Bench()
    bench.configure(**wrong)
    bench.cycle.fire(Event.ENABLE)
    assert bench.csts.cfs
    assert not bench.csts.rdy
    assert "enable" not in bench.queues.calls


def test_a_reset_clears_the_fatal_status() -> None:
    bench = ready()
    bench.cycle.fire(Event.FAIL)
    assert bench.csts.cfs
    bench.cycle.fire(Event.DISABLE)
    assert bench.csts == Csts()
    bench.cycle.fire(Event.ENABLE)
    assert bench.csts == Csts(rdy=True)


@pytest.mark.parametrize("iosqes", [0, 6])
def test_entry_sizes_may_be_set_later(iosqes: int) -> None:
    bench = Bench()
    bench.configure(cc=Cc(en=True, iosqes=iosqes))
    bench.cycle.fire(Event.ENABLE)
    assert bench.csts.rdy


def test_a_guest_without_bus_master_is_enabled_with_held_queues() -> None:
    bench = Bench()
    bench.state.scratch[Scratch.DMA_BLOCKED] = 1
    bench.cycle.fire(Event.ENABLE)
    assert bench.queues.calls == ["enable", "hold"]
