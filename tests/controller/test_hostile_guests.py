"""What a guest can do to its own controller, and what it cannot do to another one.

Two controllers share an IOThread. A guest does its worst to the first, or just crashes; the second
moves verified data all the while. Afterwards the first can be reset and used, too.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import HostError
from nvme_mdev.spec import pci
from nvme_mdev.spec.nvme_registers import NSSR_NSSRC, Cc, Register, Shn
from nvme_mdev.spec.vfio_user import DmaMapFlags, PciRegion
from nvme_mdev.vfio_user.device import DmaMap

from .conftest import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.host.memory import DmaMemory

SIZE = 4 << 20
MEMORY = 2 << 20
BLOCK = 512
ROUNDS = 3
RW = DmaMapFlags.READ | DmaMapFlags.WRITE


class Neighbour:
    """Another guest, on another controller of the same IOThread: writes, reads, compares."""

    def __init__(self, path: Path) -> None:
        self.host = NvmeHost(path, memory_size=MEMORY)
        self.queue = self.host.create_queue_pair(32)
        self.transfers = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        chance = random.Random(1)
        try:
            while not self._stop.is_set():
                slba, blocks = chance.randrange(4000), chance.randint(1, 32)
                data = chance.randbytes(blocks * BLOCK)
                self.queue.write(1, slba, data)
                assert self.queue.read(1, slba, blocks) == data
                self.transfers += 1
        except BaseException as error:  # shown by the test
            self.error = error

    def goes_on(self) -> None:
        """It makes progress, and everything it has read was what it had written."""
        before = self.transfers
        while self.transfers < before + 3:
            assert self.error is None, self.error
            time.sleep(0.001)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.host.close()


@pytest.fixture
def iothread() -> Iterator[IOThread]:
    thread = IOThread("shared", poll_timeout_ms=20)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def served(tmp_path: Path, iothread: IOThread) -> Iterator[Served]:
    backend = MemoryBackend(SIZE)
    served = Served(tmp_path / "hostile.sock", [backend], iothread=iothread)
    yield served
    served.close()
    backend.close()


@pytest.fixture
def neighbour(tmp_path: Path, iothread: IOThread) -> Iterator[Neighbour]:
    backend = MemoryBackend(SIZE)
    served = Served(tmp_path / "neighbour.sock", [backend], iothread=iothread)
    neighbour = Neighbour(served.path)
    yield neighbour
    neighbour.close()
    served.close()
    backend.close()
    assert neighbour.error is None, neighbour.error


@pytest.fixture
def host(served: Served) -> Iterator[NvmeHost]:
    driver = NvmeHost(served.path, memory_size=MEMORY, timeout=10)
    yield driver
    with suppress(HostError):
        driver.close()


def load(
    host: NvmeHost, queue: IoQueue, count: int = 31, *, window: DmaMemory | None = None
) -> None:
    """Reads and writes of several pages, outstanding; nobody waits for them."""
    memory = window or host.memory
    buffer = memory.allocate(16 * 4096)
    entries = [buffer.iova + at for at in range(0, 16 * 4096, 4096)]
    prp_list = memory.allocate(4096)
    prp_list.write(b"".join(entry.to_bytes(8, "little") for entry in entries[1:]))
    for number in range(min(count, queue.room())):
        make = commands.read if number % 2 else commands.write
        sqe = make(1, number * 128, 128)
        sqe.prp1, sqe.prp2 = entries[0], prp_list.iova
        queue.start(sqe)


def works(host: NvmeHost) -> None:
    """Reset and enabled, it serves a guest that means well."""
    host.enable()
    queue = host.create_queue_pair(16)
    data = random.Random(2).randbytes(8 * BLOCK)
    queue.write(1, 100, data)
    assert queue.read(1, 100, 8) == data


# -- crashes ----------------------------------------------------------------------------------


def test_a_new_kernel_takes_over_from_one_that_crashed(
    host: NvmeHost, neighbour: Neighbour
) -> None:
    for _ in range(ROUNDS):
        load(host, host.create_queue_pair(32))
        works(host)
        neighbour.goes_on()


def test_a_crash_kernel_finds_its_memory_as_it_was(host: NvmeHost, neighbour: Neighbour) -> None:
    # kdump: the old kernel's queues stay in memory that the new one must not see change.
    old = host.create_queue_pair(32)
    load(host, old)
    host.request_events(2)
    host.write_register(Register.CC, 0)
    host._wait_ready(ready=False)
    rings = [host.admin_queue.rings.cq, old.rings.cq]
    before = [ring.read() for ring in rings]
    neighbour.goes_on()
    window = host.map_memory(MEMORY)
    host.memory, first = window, host.memory
    works(host)
    assert [ring.read() for ring in rings] == before
    host.memory = first


def test_queue_memory_is_gone_under_running_queues(host: NvmeHost, neighbour: Neighbour) -> None:
    for _ in range(ROUNDS):
        window = host.map_memory(MEMORY)
        kept, host.memory = host.memory, window
        queue = host.create_queue_pair(32)
        host.memory = kept
        load(host, queue, window=window)
        with host._lock:
            host.transport.dma_unmap(window)
        neighbour.goes_on()
        host.write_doorbell(queue.qid, 5)
        host.write_register(Register.CC, 0)
        host._wait_ready(ready=False)
        host.queues.clear()
        host._windows.remove(window)
        window.close()
        works(host)


def test_even_the_admin_queue_is_gone(host: NvmeHost, neighbour: Neighbour) -> None:
    load(host, host.create_queue_pair(32))
    with host._lock:
        host.transport.dma_unmap(host.memory)
    host.write_doorbell(0, 9)
    neighbour.goes_on()
    host.write_register(Register.CC, 0)
    host._wait_ready(ready=False)
    with host._lock:
        host.transport.dma_map(host.memory)
    works(host)


def test_the_guests_memory_is_cut_under_io(host: NvmeHost, neighbour: Neighbour) -> None:
    window = host.map_memory(MEMORY)
    queue = host.create_queue_pair(32)
    load(host, queue, window=window)
    os.truncate(window.fd, 0)
    for number in range(8):
        sqe = commands.write(1, number, 1)
        sqe.prp1 = window.iova
        queue.start(sqe)
    neighbour.goes_on()
    host.unmap_memory(window)
    works(host)


def test_the_client_is_killed_under_load(served: Served, neighbour: Neighbour) -> None:
    for _ in range(ROUNDS):
        driver = NvmeHost(served.path, memory_size=MEMORY)
        load(driver, driver.create_queue_pair(32))
        driver.enabled = False  # no shutdown: the process is gone
        driver.close()
        neighbour.goes_on()
    with NvmeHost(served.path, memory_size=MEMORY) as driver:
        works(driver)


# -- resets -----------------------------------------------------------------------------------


def _config(host: NvmeHost, offset: int, size: int) -> int:
    client = host.transport.client
    return int.from_bytes(client.region_read(PciRegion.CONFIG, offset, size), "little")


def _function_level_reset(host: NvmeHost) -> None:
    at = _config(host, pci.ConfigOffset.CAPABILITIES, 1)
    while _config(host, at, 1) != 0x10:
        at = _config(host, at + 1, 1)
    control = _config(host, at + 8, 2) | 1 << 15
    host.transport.client.region_write(PciRegion.CONFIG, at + 8, control.to_bytes(2, "little"))
    _bus_master(host, on=True)


def _bus_master(host: NvmeHost, *, on: bool) -> None:
    value = pci.Command.MEMORY | (pci.Command.BUS_MASTER if on else 0)
    host.transport.client.region_write(
        PciRegion.CONFIG, pci.ConfigOffset.COMMAND, int(value).to_bytes(2, "little")
    )


def _fail(host: NvmeHost) -> None:
    """CSTS.CFS: an I/O command set that is not there."""
    host.disable()
    host.write_register(Register.CC, Cc(en=True, css=5, iosqes=6, iocqes=4).pack())
    assert host.csts().cfs


RESETS: dict[str, Callable[[NvmeHost], None]] = {
    "CC.EN": lambda host: host.write_register(Register.CC, 0),
    "NSSR": lambda host: host.write_register(Register.NSSR, NSSR_NSSRC),
    "DEVICE_RESET": lambda host: host.device_reset(),
    "FLR": _function_level_reset,
}

STATES: dict[str, Callable[[NvmeHost], None]] = {
    "disabled": lambda host: host.disable(),
    "ready": lambda host: None,
    "under load": lambda host: load(host, host.create_queue_pair(32)),
    "with events outstanding": lambda host: host.request_events(3),
    "shutting down": lambda host: host.write_register(
        Register.CC, Cc(en=True, shn=Shn.NORMAL, iosqes=6, iocqes=4).pack()
    ),
    "shut down": lambda host: host.shutdown(),
    "failed": _fail,
    "without bus mastering": lambda host: _bus_master(host, on=False),
}


@pytest.mark.parametrize("state", STATES)
def test_every_reset_works_in_every_state(host: NvmeHost, neighbour: Neighbour, state: str) -> None:
    for reset in RESETS.values():
        STATES[state](host)
        reset(host)
        host._wait_ready(ready=False)
        assert not host.csts().cfs
        _bus_master(host, on=True)
        works(host)
    neighbour.goes_on()


def test_bus_mastering_comes_and_goes_under_load(host: NvmeHost, neighbour: Neighbour) -> None:
    queue = host.create_queue_pair(32)
    for _ in range(10):
        cids = [queue.start(commands.flush(1)) for _ in range(20)]
        _bus_master(host, on=False)
        neighbour.goes_on()
        _bus_master(host, on=True)
        for cid in cids:
            assert queue.finish(cid).ok


# -- memory that moves ------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [4096, 64 << 10, MEMORY // 2])
def test_memory_is_remapped_in_pieces_under_running_queues(
    host: NvmeHost, neighbour: Neighbour, piece: int
) -> None:
    client, window = host.transport.client, host.memory
    queue = host.create_queue_pair(32)
    data = random.Random(3).randbytes(16 * BLOCK)
    queue.write(1, 0, data)
    pieces: list[tuple[int, int]] = [(0, window.size)]
    for size in (piece, window.size) * ROUNDS:
        cids = [queue.start(commands.flush(1)) for _ in range(20)]
        for offset, length in pieces:
            client.dma_unmap(window.iova + offset, length)
        pieces = [(offset, size) for offset in range(0, window.size, size)]
        for offset, length in pieces:
            client.dma_map(DmaMap(window.iova + offset, length, offset, RW), window.fd)
        for cid in cids:
            assert queue.finish(cid).ok
        assert queue.read(1, 0, 16) == data
    neighbour.goes_on()


# -- malice -----------------------------------------------------------------------------------


def test_random_entries(host: NvmeHost, neighbour: Neighbour) -> None:
    chance = random.Random(4)
    for _ in range(ROUNDS):
        queue = host.create_queue_pair(32)
        for _ in range(300):
            # Opcodes and flags that get further than the first check, everything else random.
            opcode = chance.choice([0, 1, 2, 4, 5, 8, 9, 12, 13, 14, 17, 21, 25, 0x7E])
            flags = chance.choice([0, 0, 0, 0x40, 0x41, 0x42, 1, 2, 3, 0xC0])
            nsid = chance.choice([1, 1, 1, 0, 2, 0xFFFF_FFFF])
            entry = bytearray(chance.randbytes(64))
            entry[0], entry[1] = opcode, flags
            entry[4:8] = nsid.to_bytes(4, "little")
            if chance.random() < 0.7:
                inside = host.memory.iova + chance.randrange(host.memory.size)
                entry[24:32] = inside.to_bytes(8, "little")
            queue.reap()
            queue.post(bytes(entry), force=True)
            queue.ring()
        neighbour.goes_on()
        works_in_other_memory(host)


def works_in_other_memory(host: NvmeHost) -> None:
    """As `works`; what was written at random may be anywhere in the memory so far."""
    kept = host.memory
    host.memory = host.map_memory(MEMORY)
    try:
        works(host)
        host.disable()
    finally:
        host.unmap_memory(host.memory)
        host.memory = kept
    host.enable()


def test_random_admin_commands(host: NvmeHost, neighbour: Neighbour) -> None:
    chance = random.Random(5)
    admin = host.admin_queue
    for _ in range(500):
        entry = bytearray(chance.randbytes(64))
        entry[0] = chance.choice([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 20, 24, 0x7C, 0x80, 0x84])
        entry[1] = chance.choice([0, 0, 0, 1, 0x40])
        entry[4:8] = chance.choice([0, 1, 2, 0xFFFF_FFFF]).to_bytes(4, "little")
        if chance.random() < 0.5:
            entry[40:44] = chance.randrange(32).to_bytes(4, "little")
        admin.reap()
        admin.post(bytes(entry), force=True)
        admin.ring()
    neighbour.goes_on()
    works_in_other_memory(host)


def test_random_doorbells(host: NvmeHost, neighbour: Neighbour) -> None:
    chance = random.Random(6)
    host.create_queue_pair(32)
    host.create_queue_pair(2)
    for _ in range(300):
        value = chance.choice([0, 1, 31, 32, 0xFFFF, 0x10000, 0xFFFF_FFFF, chance.getrandbits(32)])
        host.write_doorbell(chance.randrange(70), value, completion=chance.random() < 0.5)
    neighbour.goes_on()
    works_in_other_memory(host)


def test_rings_that_lie_on_each_other(host: NvmeHost, neighbour: Neighbour) -> None:
    page = host.memory.allocate(4096)
    _ = host.queue_counts
    for qid in (1, 2):
        host.admin(commands.create_io_cq(qid, 64, page.iova))
        host.admin(commands.create_io_sq(qid, 32, page.iova, qid))
    for number in range(200):
        for qid in (1, 2):
            host.write_doorbell(qid, number % 32)
            host.write_doorbell(qid, number % 64, completion=True)
    neighbour.goes_on()
    works(host)


def test_the_admin_queue_as_data(host: NvmeHost, neighbour: Neighbour) -> None:
    queue = host.create_queue_pair(32)
    for ring in (host.admin_queue.rings.sq, host.admin_queue.rings.cq, queue.rings.sq):
        sqe = commands.read(1, 0, 2)
        sqe.prp1 = ring.iova
        queue.start(sqe)
    neighbour.goes_on()
    works(host)


def test_completions_that_nobody_takes(host: NvmeHost, neighbour: Neighbour) -> None:
    queue = host.create_queue_pair(32, cq_entries=2)
    for _ in range(31):
        queue.submit(bytes(commands.flush(1)))
    neighbour.goes_on()
    works(host)


def test_shadow_doorbells_are_gone(host: NvmeHost, neighbour: Neighbour) -> None:
    window = host.map_memory(1 << 20)
    shadow, event_idx = window.allocate(4096), window.allocate(4096)
    host.admin(commands.doorbell_buffer_config(shadow.iova, event_idx.iova))
    host.create_queue_pair(32)
    shadow.write(b"\xff" * 4096)
    neighbour.goes_on()
    host.unmap_memory(window)
    neighbour.goes_on()
    works(host)


def test_resets_without_end(host: NvmeHost, neighbour: Neighbour) -> None:
    value = Cc(en=True, iosqes=6, iocqes=4).pack()
    for number in range(200):
        host.write_register(Register.CC, value if number % 2 else number % 5 << 14)
    neighbour.goes_on()
    works(host)
