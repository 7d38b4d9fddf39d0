"""A vfio-user server with a small device behind it, and a raw peer that can say anything to it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nvme_mdev.spec.vfio_user import (
    Command,
    DeviceFlags,
    HeaderFlags,
    IrqInfoFlags,
    PciIrq,
    PciRegion,
    RegionInfoFlags,
)
from nvme_mdev.vfio_user.client import Client
from nvme_mdev.vfio_user.device import (
    DeviceInfo,
    DmaMap,
    IrqInfo,
    RegionInfo,
    SetIrqs,
    SparseArea,
)
from nvme_mdev.vfio_user.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path
    from typing import Any, Self

    from nvme_mdev.vfio_user.client_memory import ClientMemory

T = TypeVar("T")
TIMEOUT = 10.0
RW = RegionInfoFlags.READ | RegionInfoFlags.WRITE
MSIX_VECTORS = 40
QEMU_JSON = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
    b'"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, '
    b'"pgsize": 4096}, "write_multiple": true}}\0'
)
HEADER = struct.Struct("<HHIII")
ERRNO_BIT = HeaderFlags.ERROR
REPLY = 1


def open_fds() -> dict[str, str]:
    """What this process has open: fd → what it is."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir would do a stat each
        with contextlib.suppress(OSError):
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115 - not a file
    return found


class FakeDevice:
    """Remembers what it is told; its regions are plain memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fd_names: list[str] = []
        """What the fds were that came with calls, e.g. ``/memfd:ram (deleted)``."""
        self.fails: dict[str, BaseException] = {}
        """Method name → what it raises."""
        self.heard: set[int] = set()
        """Sockets that it may poll."""
        self.gate: threading.Event | None = None
        """Where :meth:`reset` waits if set."""
        self.doorbells = os.memfd_create("doorbells")
        os.ftruncate(self.doorbells, 0x2000)
        self.memory = {index: bytearray(size) for index, size in REGION_SIZES.items()}
        self.flags = DeviceFlags.RESET | DeviceFlags.PCI

    def close(self) -> None:
        os.close(self.doorbells)

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.fails:
            raise self.fails[name]

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def info(self) -> DeviceInfo:
        return DeviceInfo(self.flags, 9, 5)

    def region_info(self, index: int) -> RegionInfo:
        size = REGION_SIZES.get(index, 0)
        if index == PciRegion.BAR0:
            area = SparseArea(0x1000, 0x1000)
            return RegionInfo(size, RW | RegionInfoFlags.MMAP, (area,), self.doorbells)
        if index == PciRegion.BAR2:
            return RegionInfo(size, RW | RegionInfoFlags.MMAP, (), self.doorbells, 0x1000)
        if index == PciRegion.BAR4:
            return RegionInfo(size, RegionInfoFlags.READ)
        if index == PciRegion.BAR5:
            return RegionInfo(size, RegionInfoFlags.WRITE)
        return RegionInfo(size, RW if size else RegionInfoFlags(0))

    def irq_info(self, index: int) -> IrqInfo:
        count = {PciIrq.INTX: 1, PciIrq.MSIX: MSIX_VECTORS, PciIrq.ERR: 1, PciIrq.REQ: 1}
        return IrqInfo(count.get(PciIrq(index), 0), IrqInfoFlags.EVENTFD)

    def region_read(self, index: int, offset: int, size: int) -> bytes:
        self._note("region_read", index, offset, size)
        return bytes(self.memory[index][offset : offset + size])

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        self._note("region_write", index, offset, data)
        self.memory[index][offset : offset + len(data)] = data

    def _note_fds(self, fds: Sequence[int]) -> None:
        self.fd_names += [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]  # noqa: PTH115

    async def set_irqs(self, request: SetIrqs, fds: Sequence[int]) -> None:
        self._note_fds(fds)
        self._note("set_irqs", request, len(fds))

    async def dma_map(self, mapping: DmaMap, fd: int | None) -> None:
        self._note_fds([] if fd is None else [fd])
        self._note("dma_map", mapping, fd is not None)

    async def dma_unmap(self, iova: int, size: int) -> int:
        self._note("dma_unmap", iova, size)
        return 0

    async def dma_unmap_all(self) -> int:
        self._note("dma_unmap_all")
        return 0

    async def reset(self) -> None:
        if self.gate is not None:
            await asyncio.to_thread(self.gate.wait, TIMEOUT)
        self._note("reset")

    def use_client_memory(self, memory: ClientMemory) -> None:
        self.client_memory = memory

    def listen(self, fd: int) -> None:
        self.heard.add(fd)

    def ignore(self, fd: int) -> None:
        self.heard.remove(fd)

    async def attached(self) -> None:
        self._note("attached")

    async def detached(self) -> None:
        self._note("detached")


REGION_SIZES: dict[int, int] = {
    PciRegion.BAR0: 0x2000,
    PciRegion.BAR1: 2 << 20,
    PciRegion.BAR2: 0x1000,
    PciRegion.BAR4: 0x10,
    PciRegion.BAR5: 0x10,
    PciRegion.CONFIG: 0x1000,
}


class Running:
    """A server whose event loop runs in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = FakeDevice()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = Server(self.device, path)
        try:
            self.run(self.server.start())
        except BaseException:
            self.stop()
            raise

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it in the server's loop and wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    def stop(self) -> None:
        """Close the server and end its loop; nothing is left behind."""
        self.run(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(TIMEOUT)
        self.loop.close()
        self.device.close()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until something is so that the server does without telling the client."""

        async def poll() -> None:
            async with asyncio.timeout(TIMEOUT):
                while not condition():  # noqa: ASYNC110 - there is no event for a test's condition
                    await asyncio.sleep(0.002)

        self.run(poll())

    def wait_until_idle(self) -> None:
        """Until the last client's session is over."""
        self.wait_until(lambda: not self.server.connected)

    def peer(self) -> Peer:
        """Connected, and nothing said yet."""
        return Peer(self.path)

    def negotiated(self) -> Peer:
        """Connected, and a version agreed on as QEMU does it."""
        peer = Peer(self.path)
        reply = peer.call(Command.VERSION, struct.pack("<HH", 0, 0) + QEMU_JSON)
        assert reply.error == 0
        return peer

    def client(self) -> Client:
        """The product's own client."""
        return Client(self.path, timeout=TIMEOUT)


@dataclass
class Reply:
    """A message from the server, as it came."""

    message_id: int
    command: int
    size: int
    flags: int
    error: int
    body: bytes
    fds: list[int]

    @property
    def failed(self) -> bool:
        return bool(self.flags & ERRNO_BIT)


class Peer:
    """The other end of the socket, without any knowledge of what is right."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(path))
        self._fds: list[int] = []
        self._message_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes as they are."""
        if fds:
            rights = array.array("i", fds)
            self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            self.sock.sendall(data)

    def send(
        self, command: int, body: bytes = b"", fds: Sequence[int] = (), *, flags: int = 0
    ) -> int:
        """A well-formed message; returns its id."""
        self._message_id = (self._message_id + 1) & 0xFFFF
        header = HEADER.pack(self._message_id, command, HEADER.size + len(body), flags, 0)
        self.send_raw(header + body, fds)
        return self._message_id

    def _receive_exactly(self, size: int) -> tuple[bytes, list[int]]:
        data = b""
        fds: list[int] = []
        while len(data) < size:
            piece, ancillary, _, _ = self.sock.recvmsg(size - len(data), 1024)
            for _, _, payload in ancillary:
                fds += array.array("i", payload)
            if not piece:
                raise EOFError
            data += piece
        return data, fds

    def receive(self) -> Reply:
        """The next message; EOFError when the server has closed."""
        try:
            head, fds = self._receive_exactly(HEADER.size)
        except ConnectionResetError:
            raise EOFError from None
        message_id, command, size, flags, error = HEADER.unpack(head)
        body, more = self._receive_exactly(size - HEADER.size)
        self._fds += fds + more
        return Reply(message_id, command, size, flags, error, body, fds + more)

    def call(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> Reply:
        """Send and wait; checks what is true of every reply."""
        message_id = self.send(command, body, fds)
        reply = self.receive()
        assert reply.message_id == message_id
        assert reply.command == command
        assert reply.flags & 0xF == REPLY
        assert reply.failed == (reply.error != 0)
        if reply.failed:
            assert reply.body == b""
            assert reply.fds == []
        return reply

    def closed(self) -> bool:
        """Whether the server has closed; what it said before is thrown away."""
        try:
            while True:
                self.receive()
        except EOFError:
            return True
        except TimeoutError:
            return False


def dma_map_body(
    address: int,
    size: int,
    *,
    flags: int = 3,
    offset: int = 0,
    argsz: int = 32,
) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap_body(address: int, size: int, *, flags: int = 0, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, size)


def region_info_body(index: int, *, argsz: int = 32) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def four_words(argsz: int, flags: int = 0, index: int = 0, count: int = 0) -> bytes:
    """DEVICE_GET_INFO, GET_REGION_IO_FDS and GET_IRQ_INFO."""
    return struct.pack("<IIII", argsz, flags, index, count)


def set_irqs_body(
    flags: int, index: int, start: int, count: int, data: bytes = b"", *, argsz: int | None = None
) -> bytes:
    size = 20 + len(data) if argsz is None else argsz
    return struct.pack("<IIIII", size, flags, index, start, count) + data


def access_body(offset: int, region: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QII", offset, region, count) + data
