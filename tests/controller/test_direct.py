"""Direct mode on virtual controllers: commands on the queues of another controller of ours.

"Below" is the controller that plays the drive, "above" the one that a guest would have; the host
driver plays the guest. Both are in this process, each with its own threads and event loop.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host import commands, parent
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import HostError, NvmeStatusError
from nvme_mdev.host.memory import Prps, build_prps, prps_for
from nvme_mdev.host.parent import Parent
from nvme_mdev.spec.nvme_commands import Psdt, SglDescriptor, SglType
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_identify_controller import IdentifyControllerNvm, Oncs, Sgls, Vwc
from nvme_mdev.spec.nvme_identify_namespace import Nsattr
from nvme_mdev.spec.nvme_logs import CriticalWarning, LogPage, SmartLog
from nvme_mdev.spec.nvme_status import GenericStatus, MediaStatus
from nvme_mdev.spec.vfio_user import PciIrq

from .assembly import SIZE
from .statuses import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.backends.nvme import NvmeBackend
    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.spec.nvme_commands import SQE
    from tests.controller.conftest import Served

BLOCKS = SIZE // 512
PATIENCE = 15
DATA = bytes(range(256)) * 16


class Nest:
    """A controller below, and parents and controllers on top of it."""

    def __init__(self, serve: Callable[..., Served], *backends: Backend, **settings: Any) -> None:
        self._serve = serve
        self.below = serve(*backends, **settings)
        self.parent = Parent(str(self.below.path), patience_s=0.5)
        self.opened: list[NvmeBackend] = []

    def above(self, *parts: dict[str, Any], **settings: Any) -> Served:
        """A controller whose namespaces are these parts of namespace 1 below."""
        opened = [self.parent.open(f"part{i}", 1, **part) for i, part in enumerate(parts or ({},))]
        self.opened += opened
        return self._serve(*opened, **settings)


@pytest.fixture
def nest(serve: Callable[..., Served]) -> Callable[..., Nest]:
    def make(*backends: Backend, **settings: Any) -> Nest:
        return Nest(serve, *backends, **settings)

    return make


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "drive.img"
    path.write_bytes(b"\xff" * SIZE)
    return path


def translated(served: Served) -> int:
    """I/O commands that a controller has taken."""
    count: int = served.call(lambda: served.controller.queues.statistics().translated.count)
    return count


# -- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 4096, 8192, 12288, 131072, 1 << 20])
@pytest.mark.parametrize("offset", [0, 1536])
def test_data_goes_through_both_controllers_and_back(
    nest: Callable[..., Nest], size: int, offset: int
) -> None:
    with NvmeHost(nest().above().path) as host:
        queue = host.create_queue_pair()
        buffer = host.memory.allocate(size + 4096)
        data = random.Random(size).randbytes(size)
        for opcode in (commands.write, commands.read):
            sqe = opcode(1, 8, size // 512)
            prps = prps_at(host, buffer.iova + offset, size)
            sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
            if opcode is commands.write:
                buffer.write(data, offset)
            else:
                buffer.fill(0)
            assert queue.finish(queue.start(sqe)).ok
            assert buffer.read(offset, size) == data
        assert buffer.read(0, offset) == bytes(offset)


def sgl_command(opcode: Callable[..., SQE], host: NvmeHost, entries: list[bytes]) -> SQE:
    """A command of 8 KiB whose data these descriptors are."""
    sqe = opcode(1, 8, 16)
    sqe.flags = Psdt.SGL << 6
    descriptor = entries[0]
    if len(entries) > 1:
        segment = host.memory.allocate(len(entries) * 16)
        segment.write(b"".join(entries))
        descriptor = sgl_entry(SglType.LAST_SEGMENT, segment.iova, len(entries) * 16)
    sqe.prp1 = int.from_bytes(descriptor[:8], "little")
    sqe.prp2 = int.from_bytes(descriptor[8:], "little")
    return sqe


def sgl_entry(kind: SglType, address: int, length: int) -> bytes:
    return bytes(SglDescriptor(address=address, length=length, identifier=kind << 4))


@pytest.mark.parametrize("pieces", [1, 2, 3, 255, 256])
def test_an_sgl_is_passed_on_piece_by_piece(nest: Callable[..., Nest], pieces: int) -> None:
    data = random.Random(pieces).randbytes(8192)
    with NvmeHost(nest().above().path) as host:
        queue = host.create_queue_pair()
        # Pieces of odd length at odd addresses, none of which are neighbours.
        buffer = host.memory.allocate(8192 + 3 * pieces)
        edges = [8192 * i // pieces for i in range(pieces + 1)]
        places = [(a + 3 * i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
        for at, start, end in places:
            buffer.write(data[start:end], at)
        entries = [
            sgl_entry(SglType.DATA_BLOCK, buffer.iova + at, end - start)
            for at, start, end in places
        ]
        assert queue.finish(queue.start(sgl_command(commands.write, host, entries))).ok
        assert bytes(queue.read(1, 8, 16, block_size=512)) == data
        buffer.fill(0)
        assert queue.finish(queue.start(sgl_command(commands.read, host, entries))).ok
        assert b"".join(buffer.read(at, end - start) for at, start, end in places) == data


def test_an_sgl_of_more_pieces_than_a_page_has_room_for_is_refused(
    nest: Callable[..., Nest],
) -> None:
    with NvmeHost(nest().above().path) as host:
        queue = host.create_queue_pair()
        buffer = host.memory.allocate(8192 + 257)
        entries = [sgl_entry(SglType.DATA_BLOCK, buffer.iova + 33 * i, 31) for i in range(256)]
        entries.append(sgl_entry(SglType.DATA_BLOCK, buffer.iova, 8192 - 31 * 256))
        with refused(GenericStatus.INVALID_SGL_COUNT):
            queue.execute(sgl_command(commands.read, host, entries))


@pytest.fixture
def drive_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have drives say something else of themselves; ours say what they are."""

    def say(**changes: Any) -> None:
        told = parent.describe
        monkeypatch.setattr(parent, "describe", lambda *a, **k: replace(told(*a, **k), **changes))

    return say


def test_limits_of_commands_without_data_are_the_drives(
    nest: Callable[..., Nest], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"vsl": 3, "wzsl": 5, "wzdsl": 4, "wusl": 6, "dmrl": 16, "dmrsl": 1000, "dmsl": 9000}
    with monkeypatch.context() as below:
        below.setattr(
            NvmeHost, "identify_controller_nvm", lambda _: IdentifyControllerNvm(**limits)
        )
        above = nest().above()
    with NvmeHost(above.path) as host:
        told = host.identify_controller_nvm()
        assert told is not None
        assert {name: getattr(told, name) for name in limits} == limits


def test_a_drive_that_is_older_than_such_limits_has_none(
    nest: Callable[..., Nest], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as below:
        below.setattr(NvmeHost, "identify_controller_nvm", lambda _: None)
        above = nest().above()
    with NvmeHost(above.path) as host:
        assert bytes(host.identify_controller_nvm() or b"") == bytes(4096)


def test_a_drive_without_dataset_management_gets_none(
    nest: Callable[..., Nest], drive_with: Callable[..., None], serve: Callable[..., Served]
) -> None:
    """Alone it is no command; beside a namespace that has it, the drive's is not told of a hint."""
    drive_with(can_deallocate=False)
    tree = nest()
    with NvmeHost(tree.above({"length": SIZE // 2}).path) as host:
        assert not host.identify_controller().oncs & Oncs.NVMDSMSV
        with refused(GenericStatus.INVALID_OPCODE):
            host.create_queue_pair().deallocate(1, [(0, 8)])
    part = tree.parent.open("second", 1, offset=SIZE // 2)
    with NvmeHost(serve(part, NullBackend(SIZE)).path) as host:
        assert host.identify_controller().oncs & Oncs.NVMDSMSV
        queue = host.create_queue_pair()
        before = translated(tree.below)
        queue.deallocate(1, [(0, 8)])
        assert translated(tree.below) == before


def test_a_drive_that_takes_no_sgl_gets_none(
    nest: Callable[..., Nest], drive_with: Callable[..., None]
) -> None:
    drive_with(sgls=Sgls(0))
    with NvmeHost(nest().above().path) as host:
        assert host.identify_controller().sgls == 0
        queue = host.create_queue_pair()
        entry = sgl_entry(SglType.DATA_BLOCK, host.memory.allocate(8192).iova, 8192)
        with refused(GenericStatus.INVALID_FIELD):
            queue.execute(sgl_command(commands.read, host, [entry]))


def test_a_drive_without_bit_buckets_gets_none(
    nest: Callable[..., Nest], drive_with: Callable[..., None]
) -> None:
    drive_with(sgls=Sgls.DWORD_ALIGNED)
    with NvmeHost(nest().above().path) as host:
        assert host.identify_controller().sgls == Sgls.DWORD_ALIGNED | Sgls.LONGER
        queue = host.create_queue_pair()
        entry = sgl_entry(SglType.DATA_BLOCK, host.memory.allocate(8192).iova, 8192)
        queue.execute(sgl_command(commands.read, host, [entry]))
        with refused(GenericStatus.SGL_TYPE_INVALID):
            queue.execute(
                sgl_command(commands.read, host, [sgl_entry(SglType.BIT_BUCKET, 0, 8192)])
            )


def prps_at(host: NvmeHost, iova: int, size: int) -> Prps:
    return prps_for(host.memory, iova, size)


def test_scattered_pages_arrive_in_their_order(nest: Callable[..., Nest]) -> None:
    with NvmeHost(nest().above().path) as host:
        queue = host.create_queue_pair()
        pages = [host.memory.allocate(4096) for _ in range(64)]
        random.Random(1).shuffle(pages)
        for number, page in enumerate(pages):
            page.fill(number)
        prps = build_prps(host.memory, [page.iova for page in pages])
        sqe = commands.write(1, 0, 512)
        sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
        assert queue.finish(queue.start(sqe)).ok
        for number in range(64):
            assert queue.read(1, 8 * number, 8) == bytes([number]) * 4096


def test_every_command_reaches_only_its_part_of_the_drive(
    nest: Callable[..., Nest], image: Path
) -> None:
    part = {"offset": 1 << 20, "length": 1 << 20}
    served = nest(UringBackend(str(image))).above(part)
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        assert host.namespace(1).blocks == 2048
        queue.write(1, 0, DATA)
        queue.write(1, 2040, DATA, fua=True)
        queue.write_zeroes(1, 8, 8)
        queue.write_zeroes(1, 16, 8, deallocate=True)
        queue.deallocate(1, [(24, 8), (2032, 8)])
        queue.flush(1)
        assert queue.compare(1, 0, DATA)
        assert not queue.compare(1, 8, DATA)
        for slba in (2041, 2048, 1 << 40):
            with refused(GenericStatus.LBA_OUT_OF_RANGE):
                queue.write(1, slba, DATA, block_size=512)
    expected = bytearray(b"\xff" * SIZE)
    expected[1 << 20 : (1 << 20) + 16384] = DATA + bytes(12288)
    expected[(2 << 20) - 8192 : 2 << 20] = bytes(4096) + DATA
    assert image.read_bytes() == bytes(expected)


def test_verify_and_copy_are_done_below_within_the_part(
    nest: Callable[..., Nest], image: Path
) -> None:
    served = nest(UringBackend(str(image))).above({"offset": 1 << 20, "length": 1 << 20})
    with NvmeHost(served.path) as host:
        assert host.identify_controller().oncs & (Oncs.NVMVFYS | Oncs.NVMCPYS) == (
            Oncs.NVMVFYS | Oncs.NVMCPYS
        )
        queue = host.create_queue_pair()
        queue.write(1, 0, DATA)
        queue.verify(1, 0, 16)
        queue.copy(1, 24, [(0, 4), (6, 2)], fua=True)
        for ranges, slba in (([(2045, 8)], 0), ([(0, 8)], 2041), ([(1 << 40, 8)], 0)):
            with refused(GenericStatus.LBA_OUT_OF_RANGE):
                queue.copy(1, slba, ranges)
        with refused(GenericStatus.LBA_OUT_OF_RANGE):
            queue.verify(1, 2045, 8)
    expected = bytearray(b"\xff" * SIZE)
    expected[1 << 20 : (1 << 20) + 4096] = DATA
    expected[(1 << 20) + 24 * 512 : (1 << 20) + 30 * 512] = DATA[:2048] + DATA[3072:4096]
    assert image.read_bytes() == bytes(expected)


def unreadable(queue: IoQueue, blocks: range, nsid: int = 1) -> list[int]:
    """The blocks of a namespace that cannot be read."""
    found = []
    for lba in blocks:
        read = queue.execute(commands.read(nsid, lba, 1), receive=512, check=False).completion
        if not read.ok:
            assert read.status.code == MediaStatus.UNRECOVERED_READ
            found.append(lba)
    return found


def test_a_block_that_is_made_unreadable_is_so_for_all_users_of_the_drive(
    nest: Callable[..., Nest], image: Path
) -> None:
    """The mark is the drive's: another controller finds it where it is in another part."""
    tree = nest(UringBackend(str(image)))
    above = tree.above({"offset": 1 << 20, "length": 1 << 20})
    with NvmeHost(above.path) as host:
        assert host.identify_controller().oncs & Oncs.NVMWUSV
        queue = host.create_queue_pair()
        queue.write_uncorrectable(1, 16, 4)
        assert unreadable(queue, range(14, 22)) == [16, 17, 18, 19]
        with refused(MediaStatus.UNRECOVERED_READ):
            queue.verify(1, 8, 16)
        queue.write(1, 17, DATA[:512])
        assert unreadable(queue, range(14, 22)) == [16, 18, 19]
    above.run(above.controller.remove_namespace(1))
    tree.opened[0].close()
    tree.parent = Parent(str(tree.below.path))
    with NvmeHost(tree.above({"offset": (1 << 20) - 4096}).path) as host:
        assert unreadable(host.create_queue_pair(), range(22, 30)) == [24, 26, 27]


def test_no_block_outside_the_part_can_be_made_unreadable(
    nest: Callable[..., Nest], image: Path
) -> None:
    tree = nest(UringBackend(str(image)))
    parts = [{"offset": start << 20, "length": 1 << 20} for start in range(3)]
    with NvmeHost(tree.above(*parts).path) as host:
        queue = host.create_queue_pair()
        for slba, blocks in ((2048, 1), (2047, 2), (0, 2049), (1 << 40, 1), ((1 << 64) - 1, 2)):
            with refused(GenericStatus.LBA_OUT_OF_RANGE):
                queue.write_uncorrectable(2, slba, blocks)
        queue.write_uncorrectable(2, 0, 2048)
        assert unreadable(queue, range(2040, 2048), 1) == []
        assert unreadable(queue, range(0, 2048, 89), 2) == list(range(0, 2048, 89))
        assert unreadable(queue, range(8), 3) == []


def test_a_drive_that_makes_no_block_unreadable_is_not_asked_to(
    nest: Callable[..., Nest], drive_with: Callable[..., None]
) -> None:
    """Nor do we keep marks for it; another namespace of the controller is not offered it either."""
    drive_with(can_write_uncorrectable=False)
    tree = nest()
    above = tree.above()
    above.call(above.controller.add_namespace, 2, own := MemoryBackend(SIZE))
    with NvmeHost(above.path) as host:
        assert not host.identify_controller().oncs & Oncs.NVMWUSV
        queue = host.create_queue_pair()
        before = translated(tree.below)
        with refused(GenericStatus.INVALID_OPCODE):
            queue.write_uncorrectable(1, 0, 8)
        assert translated(tree.below) == before
        queue.read(1, 0, 8)
    above.run(above.controller.remove_namespace(2))
    own.close()


def test_a_drive_that_is_write_protected_keeps_its_blocks_readable(
    nest: Callable[..., Nest], drive_with: Callable[..., None]
) -> None:
    drive_with(read_only=True)
    with NvmeHost(nest().above().path) as host:
        queue = host.create_queue_pair()
        with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
            queue.write_uncorrectable(1, 0, 8)


def test_the_drives_health_is_the_guests(nest: Callable[..., Nest]) -> None:
    made = nest()
    served = made.above()
    state = made.below.controller.state
    state.lifetime[Lifetime.WARNINGS] = int(CriticalWarning.RELIABILITY)
    state.lifetime[Lifetime.TEMPERATURE] = 333
    state.lifetime[Lifetime.HOT_MS] = 60_000
    with NvmeHost(served.path) as host:
        host.set_features(Fid.ASYNC_EVENT_CONFIGURATION, CriticalWarning.RELIABILITY)
        host.request_events()
        made.parent._look_at = made.parent._health_at = 0.0
        made.parent.look()
        served.controller.health._measured = None
        served.call(served.controller.health.tick)
        assert host.events(PATIENCE) == [AsyncEvent(1, 0, LogPage.SMART)]
        log = SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))
        assert (log.cw, log.ctemp, log.cctt) == (CriticalWarning.RELIABILITY, 333, 1)
        assert (log.avsp, log.avspt) == (100, 10)


@pytest.mark.parametrize("seed", range(3))
def test_no_stream_of_commands_touches_a_block_outside(
    nest: Callable[..., Nest], image: Path, seed: int
) -> None:
    """Random opcodes, blocks, counts and addresses; the drive is compared byte for byte."""
    rng = random.Random(seed)
    served = nest(UringBackend(str(image))).above({"offset": 1 << 20, "length": 1 << 20})
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair(64)
        buffer = host.memory.allocate(1 << 20)
        buffer.fill(0xAA)
        for _ in range(50):
            cids = []
            for _ in range(32):
                sqe = commands.write(
                    rng.choice([0, 1, 1, 1, 2, 0xFFFFFFFF]),
                    rng.choice([rng.randrange(4096), rng.getrandbits(64), 2048 - rng.randrange(9)]),
                    rng.choice([1, 8, rng.randrange(1, 65536)]),
                )
                sqe.opc = rng.choice([0, 1, 1, 1, 2, 4, 5, 8, 9, 12, 25, rng.randrange(256)])
                sqe.prp1 = rng.choice([buffer.iova, buffer.iova + 2048, rng.getrandbits(64)])
                sqe.prp2 = rng.choice([0, buffer.iova + 4096, rng.getrandbits(64)])
                cids.append(queue.start(sqe))
            for cid in cids:
                queue.finish(cid)
    data = image.read_bytes()
    assert data[: 1 << 20] == b"\xff" * (1 << 20)
    assert data[2 << 20 :] == b"\xff" * (SIZE - (2 << 20))
    assert data[1 << 20 : 2 << 20] != b"\xff" * (1 << 20)


def test_an_address_outside_the_guests_window_never_reaches_the_drive(
    nest: Callable[..., Nest],
) -> None:
    tree = nest()
    first, second = (tree.above({"offset": i * SIZE // 2, "length": SIZE // 2}) for i in range(2))
    with NvmeHost(first.path) as host, NvmeHost(second.path, iova=1 << 42) as other:
        queue, secret = host.create_queue_pair(), other.memory.allocate(4096)
        secret.fill(0x5E)
        before = translated(tree.below)
        for prp1, prp2, blocks in (
            (0xDEAD000, 0, 8),
            (host.memory.iova, 0xDEAD000, 16),
            (host.memory.iova, host.memory.allocate(4096).iova, 64),
            (secret.iova, 0, 8),
        ):
            sqe = commands.write(1, 0, blocks)
            sqe.prp1, sqe.prp2 = prp1, prp2
            assert queue.finish(queue.start(sqe)).status.code == GenericStatus.DATA_TRANSFER_ERROR
        assert translated(tree.below) == before


def test_a_list_that_changes_after_it_was_checked_leads_nowhere_else(
    nest: Callable[..., Nest],
) -> None:
    """The drive gets a list of its own, in memory that no guest has."""
    tree = nest()
    served = tree.above()
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        tree.below.run(tree.below.controller.pause())
        buffer = host.memory.allocate(65536)
        prps = prps_at(host, buffer.iova, 65536)
        sqe = commands.read(1, 0, 128)
        sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
        cid = queue.start(sqe)
        while not translated(served):
            time.sleep(0.001)
        prps.lists[0].fill(0xEE)
        tree.below.call(tree.below.controller.resume)
        assert queue.finish(cid).ok


# -- what the guest is told ------------------------------------------------------------------------


def test_the_guest_is_told_what_the_drive_can_do(nest: Callable[..., Nest]) -> None:
    tree = nest(MemoryBackend(SIZE, 4096), max_transfer=65536)
    with NvmeHost(tree.above(max_transfer=65536).path) as host:
        namespace = host.namespace(1)
        assert (namespace.block_size, namespace.blocks) == (4096, SIZE // 4096)
        assert host.max_transfer == 65536
        assert not host.identify_controller().vwc & Vwc.VWCP
        assert host.identify_controller().oncs & Oncs.NVMWZSV
        assert tree.opened[0].transfer_limit == 65536


def test_the_status_of_the_drive_is_the_guests(nest: Callable[..., Nest], image: Path) -> None:
    tree = nest(UringBackend(str(image)))
    with NvmeHost(tree.above().path) as host:
        queue = host.create_queue_pair()
        sqe = commands.compare(1, 0, 8)
        sqe.prp1 = host.memory.allocate(4096).iova
        status = queue.finish(queue.start(sqe)).status
        assert (status.code, status.dnr) == (MediaStatus.COMPARE_FAILURE, True)
        tree.below.call(tree.below.controller.namespaces.remove, 1)
        tree.below.call(tree.below.controller.queues.namespaces.retire, 1)
        with refused(GenericStatus.INVALID_FIELD):
            queue.read(1, 0, 8, block_size=512)
        log = host.get_log_page(LogPage.ERROR, 64)
        assert struct.unpack_from("<Q", log)[0] > 0


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"offset": SIZE}, "do not lie within"),
        ({"length": 2 * SIZE}, "do not lie within"),
        ({"offset": 100}, "multiples of 512"),
        ({"partition": 1}, "there is no partition p1: there are none"),
        ({"nsid": 2}, "there is no namespace 2: the controller has 1"),
    ],
)
def test_parts_that_are_not_there(
    nest: Callable[..., Nest], part: dict[str, Any], what: str
) -> None:
    parent = nest().parent
    with pytest.raises((ValueError, HostError), match=what):
        parent.open("x", **{"nsid": 1, **part})
    parent.close()


def test_parts_that_overlap_are_refused(nest: Callable[..., Nest]) -> None:
    parent = nest().parent
    first = parent.open("x", 1, offset=4096, length=8192)
    for part in ({}, {"offset": 8192}, {"length": 4608}, {"offset": 4096, "length": 512}):
        with pytest.raises(OSError, match="being served already"):
            parent.open("x", 1, **part)
    second = parent.open("x", 1, offset=12288)
    first.close()
    second.close()
    with pytest.raises(HostError, match="is away"):
        _ = parent.host


# -- load ------------------------------------------------------------------------------------------


def test_more_commands_than_the_drives_queue_holds_wait_their_turn(
    nest: Callable[..., Nest],
) -> None:
    tree = nest(NullBackend(SIZE, latency_ns=2_000_000))
    with NvmeHost(tree.above().path, memory_size=64 << 20) as host:
        queues = [host.create_queue_pair(1024) for _ in range(2)]
        buffer = host.memory.allocate(4096)
        started = []
        for _ in range(900):
            for queue in queues:
                sqe = commands.read(1, 0, 8)
                sqe.prp1 = buffer.iova
                started.append((queue, queue.start(sqe)))
        for queue, cid in started:
            assert queue.finish(cid).ok
    assert translated(tree.below) == 1800


def test_two_guests_share_the_drive_and_each_has_its_part(
    nest: Callable[..., Nest], image: Path
) -> None:
    tree = nest(UringBackend(str(image)))
    halves = [tree.above({"offset": i * SIZE // 2, "length": SIZE // 2}) for i in range(2)]
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(NvmeHost(half.path)) for half in halves]
        queues = [host.create_queue_pair() for host in hosts]
        for number, queue in enumerate(queues):
            for slba in range(0, BLOCKS // 2, 2048):
                queue.write(1, slba, bytes([number]) * 65536)
    data = image.read_bytes()
    for number in range(2):
        for at in range(number * SIZE // 2, (number + 1) * SIZE // 2, 1 << 20):
            assert data[at : at + 65536] == bytes([number]) * 65536


# -- memory ----------------------------------------------------------------------------------------


def test_guest_memory_is_the_drives_only_while_the_guest_has_it(nest: Callable[..., Nest]) -> None:
    tree = nest(MemoryBackend(SIZE), MemoryBackend(SIZE))

    def windows() -> int:
        ranges: list[object] = tree.below.call(tree.below.controller.queues.memory.ranges)
        return len(ranges)

    served = tree.above()
    before = windows()
    with NvmeHost(served.path) as host:
        assert windows() == before + 1
        window = host.map_memory(1 << 20)
        assert windows() == before + 2
        host.unmap_memory(window)
        assert windows() == before + 1
        served.call(served.controller.add_namespace, 2, added := tree.parent.open("y", 2))
        assert windows() == before + 1
        served.run(served.controller.remove_namespace(2))
        added.close()
        assert windows() == before + 1
    end = time.monotonic() + PATIENCE
    while windows() != before:
        assert time.monotonic() < end, "the drive still has the memory of a guest that is gone"
        time.sleep(0.01)


# -- when the drive changes ------------------------------------------------------------------------


def wait_changed(host: NvmeHost) -> None:
    assert host.events(PATIENCE) == [AsyncEvent(2, 0, LogPage.CHANGED_NAMESPACES)]
    host.request_events()
    host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096)


def test_another_size_of_the_drives_namespace_is_followed(nest: Callable[..., Nest]) -> None:
    tree = nest()
    with NvmeHost(tree.above().path) as host:
        host.watch_namespaces()
        for size in (2 * SIZE, SIZE // 2):
            tree.below.run(tree.below.controller.resize_namespace(1, size))
            wait_changed(host)
            assert host.identify_namespace(1).nsze == size // 512


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a drive that becomes read-only")
def test_write_protection_of_the_drive_is_followed(nest: Callable[..., Nest]) -> None:
    tree = nest()
    with NvmeHost(tree.above().path) as host:
        host.watch_namespaces()
        below = tree.below
        for protected in (True, False):
            below.call(below.controller.queues.namespaces.protect, 1, protected)
            below.call(below.controller.events.namespace_changed, 1)
            wait_changed(host)
            assert bool(host.identify_namespace(1).nsattr & Nsattr.CWP) is protected


def test_a_namespace_that_the_drive_loses_is_lost_and_found(nest: Callable[..., Nest]) -> None:
    tree = nest()
    below = tree.below
    with NvmeHost(tree.above().path) as host:
        host.watch_namespaces()
        backend = below.run(below.controller.remove_namespace(1))
        wait_changed(host)
        assert host.active_namespaces() == []
        below.call(below.controller.add_namespace, 1, backend)
        wait_changed(host)
        assert host.active_namespaces() == [1]
        host.create_queue_pair().write(1, 0, DATA)


def test_a_drive_that_fails_is_reset_and_every_command_is_executed(
    nest: Callable[..., Nest],
) -> None:
    tree = nest(NullBackend(SIZE, latency_ns=300_000_000))
    with NvmeHost(tree.above().path) as host:
        queue = host.create_queue_pair(256)
        buffer = host.memory.allocate(4096)

        def submit() -> int:
            sqe = commands.read(1, 0, 8)
            sqe.prp1 = buffer.iova
            return queue.start(sqe)

        cids = [submit() for _ in range(100)]
        tree.below.call(tree.below.controller.fail)
        cids += [submit() for _ in range(100)]
        assert all(queue.finish(cid).ok for cid in cids)


def test_a_command_that_the_drive_does_not_answer_is_aborted(nest: Callable[..., Nest]) -> None:
    tree = nest()
    with NvmeHost(tree.above(io_timeout_ms=200).path) as host:
        queue = host.create_queue_pair()
        tree.below.run(tree.below.controller.pause())
        sqe = commands.read(1, 0, 8)
        sqe.prp1 = host.memory.allocate(4096).iova
        status = queue.finish(queue.start(sqe), PATIENCE).status
        assert (status.code, status.dnr) == (GenericStatus.ABORT_REQUESTED, False)
        tree.below.call(tree.below.controller.resume)
        queue.write(1, 0, DATA)


def test_a_drive_that_goes_away_takes_its_namespace_and_brings_it_back(
    nest: Callable[..., Nest],
) -> None:
    tree = nest(NullBackend(SIZE, latency_ns=900_000_000))
    below = tree.below
    with NvmeHost(tree.above().path) as host:
        host.watch_namespaces()
        queue = host.create_queue_pair()
        sqe = commands.read(1, 0, 8)
        sqe.prp1 = host.memory.allocate(4096).iova
        until_looked_at(tree.parent)
        cid = queue.start(sqe)
        below.run(below.server.close())
        assert queue.finish(cid, PATIENCE).status.code == GenericStatus.INTERNAL_ERROR
        wait_changed(host)
        assert host.active_namespaces() == []
        with pytest.raises(NvmeStatusError):
            queue.read(1, 0, 8, block_size=512)
        below.run(below.server.start())
        wait_changed(host)
        assert host.active_namespaces() == [1]
        queue.read(1, 0, 8)


def until_looked_at(parent: Parent) -> None:
    """Wait until the parent knows what its namespaces are like: it does not ask each time."""
    end = time.monotonic() + PATIENCE
    while not parent._namespaces:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_drive_that_is_asked_for_back_is_let_go_of_and_taken_again_later(
    nest: Callable[..., Nest],
) -> None:
    tree = nest(NullBackend(SIZE, latency_ns=600_000_000))
    below = tree.below
    with NvmeHost(tree.above().path) as host:
        host.watch_namespaces()
        queue = host.create_queue_pair()
        sqe = commands.read(1, 0, 8)
        sqe.prp1 = host.memory.allocate(4096).iova
        cid = queue.start(sqe)
        until_looked_at(tree.parent)
        assert below.call(below.assembly.device.signal, PciIrq.REQ)
        # It is finished first, or can be retried.
        assert not queue.finish(cid, PATIENCE).status.dnr
        wait_changed(host)
        assert host.active_namespaces() == []
        with pytest.raises(NvmeStatusError):
            queue.read(1, 0, 8, block_size=512)
        wait_changed(host)
        assert host.active_namespaces() == [1]
        # It was shut down in order.
        assert below.controller.state.lifetime[Lifetime.UNSAFE_SHUTDOWNS] == 0
        queue.read(1, 0, 8)


def test_a_drive_that_is_away_for_a_moment_only_takes_its_time(nest: Callable[..., Nest]) -> None:
    tree = nest()
    tree.parent._patience_s = PATIENCE
    below = tree.below
    with NvmeHost(tree.above().path) as host:
        queue = host.create_queue_pair()
        queue.write(1, 0, DATA)
        below.run(below.server.close())
        sqe = commands.read(1, 0, 8)
        sqe.prp1 = host.memory.allocate(4096).iova
        cid = queue.start(sqe)
        below.run(below.server.start())
        assert queue.finish(cid, PATIENCE).ok
        assert queue.read(1, 0, 8) == DATA
