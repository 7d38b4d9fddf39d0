"""A controller below, or one that a tool attaches to, that lies: the harm is its own namespaces'.

It is a controller of ours, of which the test changes what it says.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.datapath.shared_mapping import SharedMapping
from nvme_mdev.host import commands
from nvme_mdev.host.block_device import BlockDevice
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import AttachError, HostError, TransportError
from nvme_mdev.host.parent import QUEUE_ENTRIES, Parent
from nvme_mdev.host.transport import MOST_DOORBELLS, Transport
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_registers import Cap, Register
from nvme_mdev.spec.nvme_status import GenericStatus
from nvme_mdev.spec.vfio_user import PciRegion
from nvme_mdev.vfio_user.device import RegionInfo, SparseArea

from .assembly import SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.spec.nvme_identify_controller import IdentifyController
    from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace
    from tests.controller.conftest import Served

PATIENCE = 15
DATA = bytes(range(256)) * 16


@pytest.fixture
def parent(served: Served) -> Iterator[Parent]:
    """A daemon's hold on the controller ``served``; a test may have closed it."""
    parent = Parent(str(served.path), patience_s=0.5)
    yield parent
    parent.close()


@pytest.fixture
def above(serve: Callable[..., Served], parent: Parent) -> Served:
    """A guest's controller, whose namespace is the one of ``served``."""
    return serve(parent.open("part", 1))


@pytest.fixture
def guest(above: Served) -> Iterator[NvmeHost]:
    """The driver of ``above``."""
    with NvmeHost(above.path) as driver:
        yield driver


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- its doorbells ---------------------------------------------------------------------------------


def say_of_bar0(served: Served, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    device = served.assembly.device
    told = device.region_info

    def region_info(index: int) -> RegionInfo:
        info = told(index)
        return replace(info, **changes) if index == PciRegion.BAR0 else info

    monkeypatch.setattr(device, "region_info", region_info)


@pytest.mark.parametrize(
    "lie",
    [
        {"fd_offset": (1 << 64) - 4096},
        {"fd_offset": (1 << 63) - 4096},
        {"fd_offset": 8},
        {"areas": (SparseArea(0, (1 << 64) - 1),), "fd_offset": (1 << 63) - 8192},
    ],
)
def test_doorbells_that_no_file_has_cannot_be_mapped(
    served: Served, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]
) -> None:
    say_of_bar0(served, monkeypatch, **lie)
    before = open_files()
    with pytest.raises(AttachError, match="the doorbells cannot be mapped: Invalid argument"):
        NvmeHost(served.path)
    until(lambda: open_files() == before)


def test_no_more_is_mapped_than_doorbells_can_be(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_of_bar0(served, monkeypatch, size=1 << 60, areas=())
    transport = Transport(served.path)
    try:
        mapping, start = transport.map_doorbells()
        assert (len(mapping or b""), start) == (MOST_DOORBELLS, 0x1000)
    finally:
        transport.close()


def test_a_file_that_may_keep_us_waiting_is_not_mapped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.eventfd(0)
    say_of_bar0(served, monkeypatch, fd=fd)
    with pytest.raises(AttachError, match="its doorbells is a file of a mount that is not to be"):
        NvmeHost(served.path)
    os.close(fd)


def test_doorbells_that_are_cut_off_are_found_out_and_mapped_again(
    guest: NvmeHost, parent: Parent
) -> None:
    queue = guest.create_queue_pair()
    queue.write(1, 0, DATA)
    first = parent.host
    fd = os.memfd_create("doorbells")
    os.ftruncate(fd, 4096)
    cut = SharedMapping(fd, 4096, 0)
    os.ftruncate(fd, 0)
    os.close(fd)
    memoryview(cut)[0] = 1
    first._doorbells = cut
    until(lambda: parent._host not in {None, first})
    assert queue.read(1, 0, 8) == DATA


# -- what it says of itself ------------------------------------------------------------------------


def say_of_registers(
    served: Served, monkeypatch: pytest.MonkeyPatch, lie: Callable[[int, bytes], bytes]
) -> None:
    """Have a controller's registers read as something else: ``lie(offset, value)``."""
    device = served.assembly.device
    told = device.region_read

    def region_read(index: int, offset: int, size: int) -> bytes:
        data = told(index, offset, size)
        return lie(offset, data)[:size] if index == PciRegion.BAR0 else data

    monkeypatch.setattr(device, "region_read", region_read)


def capabilities(**changes: int) -> Callable[[int, bytes], bytes]:
    def lie(offset: int, data: bytes) -> bytes:
        if offset != Register.CAP:
            return data
        cap = replace(Cap.unpack(int.from_bytes(data, "little")), **changes)
        return cap.pack().to_bytes(8, "little")

    return lie


def say_of_namespace(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    told = NvmeHost.identify_namespace

    def identify(host: NvmeHost, nsid: int) -> IdentifyNamespace:
        data = told(host, nsid)
        data.nsze = changes.get("nsze", data.nsze)
        data.lbaf[data.format_index].lbads = changes.get("lbads", data.lbaf[0].lbads)
        data.nguid[0] ^= changes.get("nguid", 0)
        return data

    monkeypatch.setattr(NvmeHost, "identify_namespace", identify)


def test_pages_that_are_larger_than_the_guests_are_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry of a guest's list would be 8 KiB of whatever is behind it."""
    say_of_registers(served, monkeypatch, capabilities(mpsmin=1))
    with pytest.raises(AttachError, match=r"8192 bytes at least \(CAP\.MPSMIN\)"):
        Parent(str(served.path))
    with (
        NvmeHost(served.path) as host,
        pytest.raises(AttachError, match=r"8192 bytes at least \(CAP\.MPSMIN\)"),
    ):
        BlockDevice(host, 1)


def test_queues_that_hold_no_command_are_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_of_registers(served, monkeypatch, capabilities(mqes=0))
    with pytest.raises(AttachError, match=r"CAP\.MQES is 0"):
        NvmeHost(served.path)


def test_a_device_that_is_gone_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NvmeHost(served.path) as host:
        say_of_registers(served, monkeypatch, lambda _, data: b"\xff" * len(data))
        for touch in (host.reset, host.check_alive, host.shutdown):
            with pytest.raises(TransportError, match="it has gone"):
                touch()
        monkeypatch.undo()


@pytest.mark.parametrize("nsze", [1 << 54, 1 << 56, (1 << 64) - 1])
def test_a_namespace_that_no_medium_has_is_not_served(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, nsze: int
) -> None:
    say_of_namespace(monkeypatch, nsze=nsze)
    for part in ({}, {"offset": 4096, "length": 8192}, {"partition": 1}):
        with pytest.raises((HostError, ValueError), match=f"{nsze} blocks"):
            parent.open("part", 1, **part)


@pytest.mark.parametrize("lbads", [0, 8, 32, 255])
def test_blocks_of_an_absurd_size_are_a_short_line(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, lbads: int
) -> None:
    say_of_namespace(monkeypatch, lbads=lbads)
    with pytest.raises(HostError, match=rf"namespace 1 makes no sense: .* of 2\^{lbads} bytes"):
        parent.open("part", 1)


def test_a_namespace_that_grows_beyond_all_media_is_lost(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = parent.open("part", 1)
    assert backend.medium_size() == SIZE
    say_of_namespace(monkeypatch, nsze=(1 << 64) - 1)
    parent._namespaces.clear()
    with pytest.raises(OSError, match="no medium is as large"):
        backend.medium_size()
    backend.close()


@pytest.mark.parametrize(
    "page",
    [
        [1] * 1024,
        [*range(1, 1024), 1],
        [*range(1023, 0, -1), 5000],
        [0, 7] * 512,
    ],
)
def test_a_list_of_namespaces_has_an_end(
    served: Served, monkeypatch: pytest.MonkeyPatch, page: list[int]
) -> None:
    with NvmeHost(served.path) as host, monkeypatch.context() as lying:
        lying.setattr(host, "identify", lambda *_: struct.pack("<1024I", *page))
        with pytest.raises(HostError, match=r"not ascending|more than 65536 namespaces"):
            host.active_namespaces()


def test_completions_of_no_command_do_not_use_up_identifiers(host: NvmeHost) -> None:
    admin = host.admin_queue
    entry = admin.rings.cq.view
    for cid in (0, 1, 0xFFFE, 0xFFFF, admin._next_cid):
        at = admin.head * 16 + 12
        # What a controller would write next: any identifier, success, the phase tag.
        phase = 1 - entry[at + 2] & 1
        entry[at : at + 4] = (cid | phase << 16).to_bytes(4, "little")
        admin.collect()
    assert admin.strays == 5
    assert not admin._completed


# -- coming and going ------------------------------------------------------------------------------


def test_a_drive_that_comes_and_goes_leaves_nothing_behind(
    guest: NvmeHost,
    served: Served,
    parent: Parent,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = guest.create_queue_pair()
    queue.write(1, 0, DATA)
    before = open_files()
    for _ in range(3):
        first = parent.host
        served.run(served.server.close())
        served.run(served.server.start())
        until(lambda first=first: parent._host not in {None, first})
        assert queue.read(1, 0, 8) == DATA
    assert open_files() == before
    guest.close()
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("change", [{"lbads": 12}, {"nguid": 1}], ids=["format", "namespace"])
def test_nothing_is_executed_again_on_what_a_namespace_has_become(
    guest: NvmeHost, served: Served, monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    """A write that was outstanding when the drive went away would be in another place."""
    guest.watch_namespaces()
    queue = guest.create_queue_pair()
    queue.write(1, 0, DATA)
    below = served.controller.queues
    served.run(served.controller.pause())
    buffer = guest.memory.allocate(4096)
    sqe = commands.write(1, 0, 8)
    sqe.prp1 = buffer.iova
    cid = queue.start(sqe)
    say_of_namespace(monkeypatch, **change)
    served.run(served.server.close())
    served.call(served.controller.resume)
    before = served.call(lambda: below.statistics().translated.count)
    served.run(served.server.start())
    assert queue.finish(cid, PATIENCE).status.code == GenericStatus.INTERNAL_ERROR
    until(lambda: not guest.active_namespaces())
    assert served.call(lambda: below.statistics().translated.count) == before
    monkeypatch.undo()
    served.call(served.controller.events.namespace_changed, 1)
    until(lambda: guest.active_namespaces() == [1])
    assert queue.read(1, 0, 8) == DATA


def test_another_drive_in_the_place_of_one_is_not_taken_for_it(
    guest: NvmeHost,
    served: Served,
    parent: Parent,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = guest.create_queue_pair()
    queue.write(1, 0, DATA)
    told = NvmeHost.identify_controller

    def identify(host: NvmeHost) -> IdentifyController:
        data = told(host)
        data.sn = b"another"
        return data

    with monkeypatch.context() as other:
        other.setattr(NvmeHost, "identify_controller", identify)
        served.run(served.server.close())
        served.run(served.server.start())
        until(lambda: "another controller is there now, with serial number" in caplog.text)
        until(lambda: not guest.active_namespaces())
    until(lambda: guest.active_namespaces() == [1])
    assert queue.read(1, 0, 8) == DATA


def test_a_drive_that_is_never_ready_delays_nobody(
    guest: NvmeHost,
    served: Served,
    parent: Parent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Attaching to it takes two minutes (CAP.TO), again and again."""
    guest.watch_namespaces()

    def lie(offset: int, data: bytes) -> bytes:
        data = capabilities(to=255)(offset, data)
        # Ready, and failed.
        return b"\3\0\0\0" if offset == Register.CSTS else data

    say_of_registers(served, monkeypatch, lie)
    until(lambda: parent._attempt is not None)
    attempt = parent._attempt
    for _ in range(100):
        guest.identify(Cns.CONTROLLER)
    until(lambda: not guest.active_namespaces())
    assert parent._attempt is attempt
    monkeypatch.undo()
    until(guest.active_namespaces)


def test_a_drive_that_comes_back_with_less_is_given_up_and_tried_again(
    guest: NvmeHost,
    served: Served,
    parent: Parent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = guest.create_queue_pair()
    queue.write(1, 0, DATA)
    created = NvmeHost.create_queue_pair

    def create(self: NvmeHost, entries: int = 128, **kwargs: Any) -> IoQueue:
        if entries == QUEUE_ENTRIES:
            raise HostError("no queue is left")
        return created(self, entries, **kwargs)

    monkeypatch.setattr(NvmeHost, "create_queue_pair", create)
    served.run(served.server.close())
    served.run(served.server.start())
    sqe = commands.read(1, 0, 8)
    sqe.prp1 = guest.memory.allocate(4096).iova
    until(lambda: parent._host is None)
    cid = queue.start(sqe)
    assert not queue.finish(cid, PATIENCE).ok
    monkeypatch.undo()
    until(lambda: guest.active_namespaces() == [1])
    assert queue.read(1, 0, 8) == DATA


def test_a_drive_that_always_answers_slowly_is_let_go_of_for_a_while(
    above: Served, guest: NvmeHost, parent: Parent
) -> None:
    queue = guest.create_queue_pair()
    queue.write(1, 0, DATA)
    # As if a look had taken so long.
    above.call(parent._charge, time.monotonic() - 6)
    assert parent._host is not None
    above.call(parent._charge, time.monotonic() - 6)
    assert parent._host is None
    until(lambda: guest.active_namespaces() == [])
    assert parent._attempt is None
    parent._attach_at = parent._owed_until = 0.0
    until(lambda: guest.active_namespaces() == [1])
    assert queue.read(1, 0, 8) == DATA


def test_opening_a_part_of_a_slow_drive_does_not_hold_up_the_others(parent: Parent) -> None:
    backend = parent.open("part", 1)
    held, done = threading.Event(), threading.Event()

    def open_slowly() -> None:
        with parent._lock:
            held.set()
            done.wait(PATIENCE)

    opening = threading.Thread(target=open_slowly)
    opening.start()
    assert held.wait(PATIENCE)
    assert backend.medium_size() == SIZE
    assert backend.medium_read_only() is False
    assert opening.is_alive()
    done.set()
    opening.join()
    backend.close()
