"""The client: against our server, and against servers that do not follow the rules."""

from __future__ import annotations

import array
import errno
import mmap
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness import HEADER, MSIX_VECTORS, RW

from nvme_mdev.spec.vfio_user import (
    Command,
    DeviceFlags,
    DmaMapFlags,
    IrqSetFlags,
    PciIrq,
    PciRegion,
    RegionInfoFlags,
)
from nvme_mdev.vfio_user.client import Client
from nvme_mdev.vfio_user.device import (
    DeviceError,
    DeviceInfo,
    DmaMap,
    IrqInfo,
    SetIrqs,
    SparseArea,
)
from nvme_mdev.vfio_user.framing import LocalProtocolError, RemoteProtocolError
from nvme_mdev.vfio_user.messages import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from harness import Running

DMA_RW = DmaMapFlags.READ | DmaMapFlags.WRITE


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with running.client() as client:
        yield client


def test_it_agrees_on_a_version(client: Client) -> None:
    assert (client.version.major, client.version.minor) == (0, 1)
    assert client.max_msg_fds == 16
    assert client.max_data_xfer_size == 1 << 20


def test_it_assumes_the_least_of_a_server_that_says_nothing(running: Running) -> None:
    with Client(running.path, capabilities=None) as client:
        assert client.version.capabilities is None
        assert client.max_msg_fds == 1


def test_it_finds_the_device(client: Client) -> None:
    assert client.device_info() == DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5)
    assert client.irq_info(PciIrq.MSIX) == IrqInfo(MSIX_VECTORS, client.irq_info(0).flags)
    assert client.region_io_fds(0) == 0


def test_it_maps_the_doorbells(running: Running, client: Client) -> None:
    info = client.region_info(PciRegion.BAR0)
    assert (info.size, info.flags) == (0x2000, RW | RegionInfoFlags.MMAP)
    assert info.areas == (SparseArea(0x1000, 0x1000),)
    assert info.fd is not None
    with mmap.mmap(info.fd, 0x1000, offset=info.fd_offset + info.areas[0].offset) as page:
        os.close(info.fd)
        page[:4] = b"ring"
    assert os.pread(running.device.doorbells, 4, 0x1000) == b"ring"


def test_it_reads_and_writes_regions(running: Running, client: Client) -> None:
    client.region_write(PciRegion.BAR1, 1, b"hello")
    assert client.region_read(PciRegion.BAR1, 0, 7) == b"\0hello\0"
    megabyte = os.urandom(1 << 20)
    client.region_write(PciRegion.BAR1, 0, megabyte)
    assert client.region_read(PciRegion.BAR1, 0, 1 << 20) == megabyte


@pytest.mark.parametrize("size", [0, (1 << 20) + 1])
def test_it_does_not_send_an_access_of_an_impossible_size(client: Client, size: int) -> None:
    with pytest.raises(LocalProtocolError):
        client.region_read(PciRegion.BAR1, 0, size)
    with pytest.raises(LocalProtocolError):
        client.region_write(PciRegion.BAR1, 0, bytes(size))


def test_it_maps_and_unmaps_memory(running: Running, client: Client, memfd: int) -> None:
    mapping = DmaMap(0x10000, 0x2000, 0x1000, DMA_RW)
    client.dma_map(mapping, memfd)
    client.dma_map(DmaMap(1 << 40, 0x1000, 0, DmaMapFlags.READ))
    client.dma_unmap(0x10000, 0x2000)
    client.dma_unmap_all()
    assert [call[0] for call in running.device.calls[1:]] == [
        "dma_map",
        "dma_map",
        "dma_unmap",
        "dma_unmap_all",
    ]
    assert running.device.named("dma_map")[0] == (mapping, True)


def test_it_splits_many_eventfds_over_messages(running: Running, client: Client) -> None:
    fds = [os.eventfd(0) for _ in range(MSIX_VECTORS)]
    client.enable_irqs(PciIrq.MSIX, fds)
    for fd in fds:
        os.close(fd)
    client.disable_irqs(PciIrq.MSIX)
    calls = running.device.named("set_irqs")
    assert [(r.start, r.count, n) for r, n in calls] == [
        (0, 16, 16),
        (16, 16, 16),
        (32, 8, 8),
        (0, 0, 0),
    ]


def test_it_masks_some_interrupts(running: Running, client: Client) -> None:
    request = SetIrqs(
        PciIrq.MSIX, 2, 2, IrqSetFlags.DATA_BOOL, IrqSetFlags.ACTION_MASK, (True, False)
    )
    client.set_irqs(request)
    assert running.device.named("set_irqs") == [(request, 0)]


def test_it_does_not_send_fewer_eventfds_than_interrupts(client: Client) -> None:
    request = SetIrqs(PciIrq.MSIX, 0, 2, IrqSetFlags.DATA_EVENTFD, IrqSetFlags.ACTION_TRIGGER)
    with pytest.raises(LocalProtocolError):
        client.set_irqs(request, [0])


def test_it_resets(running: Running, client: Client) -> None:
    client.reset()
    assert running.device.named("reset") == [()]


def test_an_error_reply_is_an_os_error(running: Running, client: Client) -> None:
    running.device.fails["reset"] = DeviceError(errno.EBUSY)
    with pytest.raises(OSError, match="busy") as caught:
        client.reset()
    assert caught.value.errno == errno.EBUSY
    assert client.device_info().num_regions == 9


def test_a_server_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client(tmp_path / "s")


def test_a_server_that_refuses_a_second_client_is_a_connection_error(
    running: Running, client: Client
) -> None:
    with pytest.raises(ConnectionError):
        Client(running.path)


# --- servers that do not follow the rules ---


class Request:
    """A request as the scripted server got it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        head = sock.recv(16, socket.MSG_WAITALL)
        if not head:
            raise EOFError
        self.message_id, self.command, size, _, _ = HEADER.unpack(head)
        self.body = sock.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""

    def reply(
        self,
        body: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = 1,
        error: int = 0,
        message_id: int | None = None,
    ) -> None:
        number = self.message_id if message_id is None else message_id
        head = HEADER.pack(number, self.command, 16 + len(body), flags, error)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([head + body], rights)


@contextmanager
def scripted(
    path: Path, script: Callable[[Request], None], *, timeout: float = 10
) -> Iterator[Client]:
    """A client of a server that agrees on a version and then does what the script says."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            Request(sock).reply(b"\0\0\1\0")
            try:
                while True:
                    script(Request(sock))
            except (EOFError, ConnectionError):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(path, timeout=timeout) as client:
            yield client
    finally:
        thread.join()
        listener.close()


def test_a_request_of_the_server_is_refused_and_the_reply_still_found(tmp_path: Path) -> None:
    refusals = []

    def script(request: Request) -> None:
        head = HEADER.pack(77, Command.DMA_READ, 32, 0, 0)
        request.sock.sendall(head + struct.pack("<QQ", 0, 4096))
        refusals.append(HEADER.unpack(request.sock.recv(16, socket.MSG_WAITALL)))
        request.reply(struct.pack("<IIII", 16, 2, 9, 5))

    with scripted(tmp_path / "s", script) as client:
        assert client.device_info().num_regions == 9
    assert refusals == [(77, Command.DMA_READ, 16, 0x21, errno.ENOTSUP)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<IIIIQQ", 31, 0, 0, 0, 0, 0),
        struct.pack("<IIIIQQ", 32, 0, 1, 0, 0, 0),
        struct.pack("<IIIIQQ", 1 << 30, 0, 0, 0, 0, 0),
        struct.pack("<IIIIQQ", 64, 8, 0, 8, 0, 0),
        struct.pack("<IIIIQQ", 64, 8, 0, 32, 0, 0),
        struct.pack("<IIIIQQHHI", 64, 8, 0, 32, 0, 0, 9, 1, 32),
        struct.pack("<IIIIQQHHIII", 64, 8, 0, 32, 0, 0, 1, 1, 0, 0xFFFFFFFF, 0),
    ],
)
def test_region_info_that_makes_no_sense_is_the_servers_fault(tmp_path: Path, body: bytes) -> None:
    with (
        scripted(tmp_path / "s", lambda request: request.reply(body, [0])) as client,
        pytest.raises(RemoteProtocolError),
    ):
        client.region_info(0)


def test_region_info_that_needs_a_larger_argsz_is_asked_for_again(tmp_path: Path) -> None:
    asked = []

    def script(request: Request) -> None:
        (argsz,) = struct.unpack("<I", request.body[:4])
        asked.append(argsz)
        request.reply(struct.pack("<IIIIQQ", 5000, 3, 0, 0, 4096, 0))

    with scripted(tmp_path / "s", script) as client:
        assert client.region_info(0).size == 4096
    assert asked == [4096, 5000]


def test_capabilities_of_other_kinds_are_skipped(tmp_path: Path) -> None:
    body = struct.pack("<IIIIQQ", 72, 0xF, 0, 32, 0x2000, 0)
    body += struct.pack("<HHI", 3, 1, 40)
    body += struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, 0x1000, 0x1000)
    with scripted(tmp_path / "s", lambda request: request.reply(body)) as client:
        assert client.region_info(0).areas == (SparseArea(0x1000, 0x1000),)


@pytest.mark.parametrize(
    "script",
    [
        lambda request: request.reply(bytes(16), message_id=request.message_id + 1),
        lambda request: request.reply(bytes(15)),
        lambda request: request.reply(struct.pack("<IIII", 16, 0, 9, 5), [0]),
        lambda request: request.sock.sendall(HEADER.pack(1, 4, 15, 1, 0)),
        lambda request: request.sock.sendall(HEADER.pack(1, 4, 1 << 31, 1, 0)),
    ],
)
def test_a_reply_that_makes_no_sense_is_the_servers_fault(
    tmp_path: Path, script: Callable[[Request], None]
) -> None:
    with scripted(tmp_path / "s", script) as client, pytest.raises(RemoteProtocolError):
        client.device_info()


def test_a_read_of_another_size_than_asked_for_is_the_servers_fault(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        request.reply(struct.pack("<QII", 0, 0, 3) + b"abc")

    with scripted(tmp_path / "s", script) as client, pytest.raises(RemoteProtocolError):
        client.region_read(0, 0, 4)


def test_an_error_reply_without_errno_is_an_io_error(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "s", lambda request: request.reply(flags=0x21)) as client,
        pytest.raises(OSError, match="Input/output") as caught,
    ):
        client.reset()
    assert caught.value.errno == errno.EIO


def test_a_server_that_does_not_answer_is_a_timeout(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "s", lambda request: None, timeout=0.05) as client,
        pytest.raises(TimeoutError),
    ):
        client.reset()


def test_after_a_timeout_a_late_reply_is_not_taken_for_another_ones(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        time.sleep(0.15)
        request.reply()

    with scripted(tmp_path / "s", script, timeout=0.1) as client:
        with pytest.raises(TimeoutError):
            client.reset()
        time.sleep(0.1)
        with pytest.raises(ConnectionAbortedError, match="over: no reply from the server"):
            client.dma_unmap_all()


def test_a_server_that_asks_and_asks_and_never_answers_is_a_timeout(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        head = HEADER.pack(77, Command.DMA_READ, 32, 0x10, 0)
        while True:
            request.sock.sendall(head + struct.pack("<QQ", 0, 4096))

    with (
        scripted(tmp_path / "s", script, timeout=0.2) as client,
        pytest.raises(TimeoutError),
    ):
        client.reset()


def test_a_server_that_answers_a_byte_at_a_time_is_a_timeout(tmp_path: Path) -> None:
    def script(request: Request) -> None:
        head = HEADER.pack(request.message_id, request.command, 1 << 20, 1, 0)
        for byte in head + bytes(1 << 20):
            request.sock.sendall(bytes([byte]))
            time.sleep(0.02)

    with (
        scripted(tmp_path / "s", script, timeout=0.2) as client,
        pytest.raises(TimeoutError),
    ):
        client.reset()


def test_region_info_that_gets_longer_and_longer_is_the_servers_fault(tmp_path: Path) -> None:
    asked = []

    def script(request: Request) -> None:
        (argsz,) = struct.unpack("<I", request.body[:4])
        asked.append(argsz)
        request.reply(struct.pack("<IIIIQQ", argsz + 1, 3, 0, 0, 4096, 0))

    with scripted(tmp_path / "s", script) as client, pytest.raises(RemoteProtocolError):
        client.region_info(0)
    assert asked == [4096, 4097]


@pytest.mark.parametrize("number", [4096, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_error_reply_with_no_errno_of_this_world_is_an_io_error(
    tmp_path: Path, number: int
) -> None:
    with (
        scripted(tmp_path / "s", lambda request: request.reply(flags=0x21, error=number)) as client,
        pytest.raises(OSError, match="Input/output"),
    ):
        client.reset()


def test_a_server_that_goes_is_a_connection_error(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "s", lambda request: request.sock.shutdown(2)) as client,
        pytest.raises(ConnectionError),
    ):
        client.reset()


def test_another_major_version_is_the_servers_fault(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                Request(sock).reply(b"\1\0\0\0")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RemoteProtocolError, match=r"1\.0"):
            Client(tmp_path / "s", capabilities=Capabilities())
        thread.join()
