"""Namespaces that come, go and change size under a driver: data, events, identify, in order."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host import commands
from nvme_mdev.host.admin_commands import AsyncEvent
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_identify_controller import Vwc
from nvme_mdev.spec.nvme_identify_namespace import Nsattr
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_status import GenericStatus
from tests.datapath.test_block_devices import loop_device

from .assembly import SIZE
from .statuses import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.datapath.backends.base import Backend
    from tests.controller.conftest import Served

NS_CHANGED = AsyncEvent(2, 0, LogPage.CHANGED_NAMESPACES)
BLOCKS = SIZE // 512
DATA = b"z" * 4096
#: Longer than the time after which a controller looks at its files again.
PATIENCE = 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vm.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


def changed(host: NvmeHost) -> list[int]:
    """Wait for the event; the Changed Namespace List, which is read and so cleared."""
    assert host.events(PATIENCE) == [NS_CHANGED]
    host.request_events()
    page = host.get_log_page(LogPage.CHANGED_NAMESPACES, 16)
    return [nsid for nsid in memoryview(page).cast("I") if nsid]


def attach(served: Served, nsid: int, backend: Backend) -> None:
    served.backends.append(backend)
    served.call(served.controller.add_namespace, nsid, backend)


def resize(served: Served, nsid: int, size: int) -> None:
    served.run(served.controller.resize_namespace(nsid, size))


# -- coming ------------------------------------------------------------------------------------


def test_a_file_joins_a_controller_that_had_only_memory(
    served: Served, host: NvmeHost, image: Path
) -> None:
    host.watch_namespaces()
    attach(served, 7, UringBackend(str(image)))
    assert changed(host) == [7]
    queue = host.create_queue_pair()
    queue.write(7, 8, DATA)
    queue.flush(7)
    assert image.read_bytes()[4096:8192] == DATA


def test_a_driver_hears_of_each_change_once(served: Served, host: NvmeHost) -> None:
    host.watch_namespaces()
    assert not host.namespaces_changed()
    for nsid in (2, 3):
        attach(served, nsid, NullBackend(SIZE))
        deadline = time.monotonic() + PATIENCE
        while not host.namespaces_changed():
            assert time.monotonic() < deadline
        assert not host.namespaces_changed()


def test_a_controller_without_notices_is_not_asked_for_them(
    served: Served, host: NvmeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = host.identify_controller()
    silent.oaes = 0
    monkeypatch.setattr(host, "identify_controller", lambda: silent)
    monkeypatch.setattr(host, "set_features", pytest.fail)
    host.watch_namespaces()
    attach(served, 2, NullBackend(SIZE))
    assert not host.namespaces_changed()


def test_a_cache_that_the_guest_was_not_told_of_is_off_until_it_identifies_again(
    served: Served, host: NvmeHost, image: Path
) -> None:
    assert not host.identify_controller().vwc & Vwc.VWCP
    attach(served, 2, UringBackend(str(image)))
    assert host.get_features(Fid.VOLATILE_WRITE_CACHE) == 0
    host.reset()
    assert host.get_features(Fid.VOLATILE_WRITE_CACHE) == 1


@pytest.mark.parametrize("nsid", [0, 1, 257])
def test_an_nsid_that_cannot_be_had_changes_nothing(
    served: Served, host: NvmeHost, nsid: int
) -> None:
    backend = NullBackend(SIZE)
    served.backends.append(backend)
    with pytest.raises(ValueError, match=f"namespace {nsid}"):
        served.call(served.controller.add_namespace, nsid, backend)
    assert host.active_namespaces() == [1]


def test_as_many_namespaces_as_nsids_come_and_go(served: Served, host: NvmeHost) -> None:
    for nsid in range(2, 257):
        attach(served, nsid, NullBackend(SIZE))
    assert host.active_namespaces() == list(range(1, 257))
    queue = host.create_queue_pair()
    queue.flush(256)
    for nsid in range(1, 257):
        served.run(served.controller.remove_namespace(nsid))
    assert host.active_namespaces() == []


# -- going -------------------------------------------------------------------------------------


def test_removal_under_load_ends_every_command_with_success_or_invalid_field(
    served: Served, host: NvmeHost, image: Path
) -> None:
    attach(served, 2, UringBackend(str(image)))
    queue = host.create_queue_pair(64)
    buffer = host.memory.allocate(4096)
    started, statuses = [], []

    def submit() -> None:
        sqe = commands.read(2, 0, 8)
        sqe.prp1 = buffer.iova
        started.append(queue.start(sqe))

    for _ in range(32):
        submit()
    served.run(served.controller.remove_namespace(2))
    for _ in range(16):
        submit()
    for cid in started:
        statuses.append(queue.finish(cid).status.code)  # noqa: PERF401
    assert set(statuses[:32]) <= {GenericStatus.SUCCESS, GenericStatus.INVALID_FIELD}
    assert set(statuses[32:]) == {GenericStatus.INVALID_FIELD}
    queue.write(1, 0, DATA)


def test_a_namespace_can_be_replaced_under_its_number(served: Served, host: NvmeHost) -> None:
    host.watch_namespaces()
    uuid = host.namespace_descriptors(1)
    served.run(served.controller.remove_namespace(1))
    attach(served, 1, NullBackend(2 * SIZE, 4096))
    assert changed(host) == [1]
    assert host.identify_namespace(1).nsze == 2 * SIZE // 4096
    assert host.namespace_descriptors(1).keys() == uuid.keys()


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["null", "memory", "file"])
def test_a_namespace_grows_and_shrinks_with_events_and_the_right_end(
    serve: Callable[..., Served], image: Path, kind: str
) -> None:
    backend = {
        "null": lambda: NullBackend(SIZE),
        "memory": lambda: MemoryBackend(SIZE),
        "file": lambda: UringBackend(str(image)),
    }[kind]()
    served = serve(backend)
    with NvmeHost(served.path) as host:
        host.watch_namespaces()
        queue = host.create_queue_pair()
        queue.write(1, 0, DATA, block_size=512)
        with refused(GenericStatus.LBA_OUT_OF_RANGE):
            queue.write(1, BLOCKS, DATA, block_size=512)
        for size in (2 * SIZE, SIZE // 2):
            resize(served, 1, size)
            assert changed(host) == [1]
            assert host.identify_namespace(1).nsze == size // 512
            queue.write(1, size // 512 - 8, DATA, block_size=512)
            with refused(GenericStatus.LBA_OUT_OF_RANGE):
                queue.write(1, size // 512 - 7, DATA, block_size=512)
        if kind != "null":
            assert queue.read(1, 0, 8, block_size=512) == DATA
    if kind == "file":
        assert image.stat().st_size == SIZE // 2


def test_the_same_size_is_no_event(served: Served, host: NvmeHost) -> None:
    host.watch_namespaces()
    resize(served, 1, SIZE)
    assert host.events(0.05) == []


def test_a_file_is_cut_only_when_no_command_beyond_the_new_end_is_in_flight(
    serve: Callable[..., Served], image: Path
) -> None:
    served = serve(UringBackend(str(image)))
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair(64)
        buffer = host.memory.allocate(4096)
        for _ in range(3):
            cids = []
            for _ in range(48):
                sqe = commands.write(1, BLOCKS - 8, 8)
                sqe.prp1 = buffer.iova
                cids.append(queue.start(sqe))
            resize(served, 1, SIZE // 2)
            codes = {queue.finish(cid).status.code for cid in cids}
            assert codes <= {GenericStatus.SUCCESS, GenericStatus.LBA_OUT_OF_RANGE}
            # A write that came after the cut would have made the file longer again.
            assert image.stat().st_size == SIZE // 2
            resize(served, 1, SIZE)


def test_a_size_that_the_medium_cannot_have_leaves_everything_as_it_was(
    serve: Callable[..., Served], image: Path
) -> None:
    served = serve(UringBackend(str(image)))
    with NvmeHost(served.path) as host:
        host.watch_namespaces()
        with pytest.raises(OSError):  # noqa: PT011  # EFBIG or EINVAL, as the file system says
            resize(served, 1, 2**63 - 512)
        assert host.identify_namespace(1).nsze == BLOCKS
        assert host.events(0.05) == []
        host.create_queue_pair().write(1, BLOCKS - 8, DATA)


@pytest.mark.parametrize("size", [2 * SIZE, SIZE // 2])
def test_the_size_that_others_give_a_file_is_followed(
    serve: Callable[..., Served], image: Path, size: int
) -> None:
    served = serve(UringBackend(str(image)))
    with NvmeHost(served.path) as host:
        host.watch_namespaces()
        queue = host.create_queue_pair()
        os.truncate(image, size)
        assert changed(host) == [1]
        assert host.identify_namespace(1).nsze == size // 512
        with refused(GenericStatus.LBA_OUT_OF_RANGE):
            queue.read(1, size // 512, 8, block_size=512)


def test_the_size_of_the_rest_of_a_file_is_followed_and_that_of_a_part_is_not(
    serve: Callable[..., Served], image: Path
) -> None:
    part = UringBackend(str(image), length=SIZE // 2)
    rest = UringBackend(str(image), offset=SIZE // 2)
    served = serve(part, rest)
    with NvmeHost(served.path) as host:
        host.watch_namespaces()
        os.truncate(image, 2 * SIZE)
        assert changed(host) == [2]
        assert host.identify_namespace(1).nsze == BLOCKS // 2
        assert host.identify_namespace(2).nsze == BLOCKS * 3 // 2
        with pytest.raises(OSError, match="length of its own"):
            resize(served, 1, SIZE // 4)
        resize(served, 2, SIZE)
        assert image.stat().st_size == SIZE + SIZE // 2


def test_an_emptied_file_is_a_namespace_lost_until_the_file_has_data_again(
    serve: Callable[..., Served], image: Path
) -> None:
    served = serve(UringBackend(str(image)), MemoryBackend(SIZE))
    with NvmeHost(served.path) as host:
        host.watch_namespaces()
        queue = host.create_queue_pair()
        os.truncate(image, 0)
        assert changed(host) == [1]
        assert host.active_namespaces() == [2]
        with refused(GenericStatus.INVALID_FIELD):
            queue.read(1, 0, 8, block_size=512)
        os.truncate(image, 2 * SIZE)
        assert changed(host) == [1]
        assert host.active_namespaces() == [1, 2]
        assert host.identify_namespace(1).nsze == 2 * BLOCKS
        assert queue.read(1, 0, 8, block_size=512) == bytes(4096)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_a_device_that_becomes_read_only_is_a_write_protected_namespace(
    serve: Callable[..., Served], image: Path
) -> None:
    with loop_device(image) as device:
        served = serve(UringBackend(device))
        with NvmeHost(served.path) as host:
            host.watch_namespaces()
            queue = host.create_queue_pair()
            queue.write(1, 0, DATA)
            for option, protected in (("--setro", True), ("--setrw", False)):
                subprocess.run(["blockdev", option, device], check=True)
                assert changed(host) == [1]
                assert bool(host.identify_namespace(1).nsattr & Nsattr.CWP) is protected
                if protected:
                    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
                        queue.write(1, 0, DATA)
            queue.write(1, 0, DATA)
            served.run(served.controller.remove_namespace(1))
        served.backends[0].close()


def test_a_lost_namespace_can_be_removed_and_its_number_used_again(
    serve: Callable[..., Served], image: Path
) -> None:
    served = serve(UringBackend(str(image)))
    with NvmeHost(served.path) as host:
        host.watch_namespaces()
        os.truncate(image, 0)
        assert changed(host) == [1]
        with pytest.raises(ValueError, match="namespace 1 exists"):
            attach(served, 1, NullBackend(SIZE))
        served.run(served.controller.remove_namespace(1))
        attach(served, 1, NullBackend(SIZE))
        assert changed(host) == [1]
        host.create_queue_pair().read(1, 0, 8)


def test_counters_of_a_namespace_are_its_own(served: Served, host: NvmeHost) -> None:
    attach(served, 2, NullBackend(SIZE))
    queue = host.create_queue_pair()
    queue.write(1, 0, DATA)
    queue.read(2, 0, 16)
    counters = served.controller.queues.namespaces.counters
    assert served.call(counters, 1) == (0, 1, 0, 4096)
    assert served.call(counters, 2) == (1, 0, 8192, 0)


# -- pause -------------------------------------------------------------------------------------


def test_a_paused_controller_takes_no_io_and_goes_on_with_admin_commands(
    served: Served, host: NvmeHost
) -> None:
    queue = host.create_queue_pair()
    served.run(served.controller.pause())
    cid = queue.start(commands.flush(1))
    time.sleep(0.05)
    assert queue.take(cid) is None
    assert host.active_namespaces() == [1]
    served.call(served.controller.resume)
    assert queue.finish(cid).ok


def is_held(host: NvmeHost) -> bool:
    """Whether a command on a new queue is left alone."""
    queue = host.create_queue_pair()
    cid = queue.start(commands.flush(1))
    time.sleep(0.02)
    return queue.take(cid) is None


def test_a_pause_outlives_resets_new_queues_and_the_client(served: Served) -> None:
    served.run(served.controller.pause())
    with NvmeHost(served.path) as host:
        assert is_held(host)
        host.reset()
        assert is_held(host)
        host.device_reset()
        host.transport.enable_pci()
        host.enable()
        assert is_held(host)
    with NvmeHost(served.path) as host:
        assert is_held(host)
        served.call(served.controller.resume)
        assert not is_held(host)


def test_a_paused_queue_can_be_deleted_and_the_controller_shut_down(
    served: Served, host: NvmeHost
) -> None:
    queue = host.create_queue_pair()
    served.run(served.controller.pause())
    host.delete_queue_pair(queue)
    host.create_queue_pair()
    host.shutdown()


# -- settings ----------------------------------------------------------------------------------


def test_shadow_doorbells_are_taken_back_at_the_next_reset(served: Served, host: NvmeHost) -> None:
    served.call(setattr, served.controller, "shadow_doorbell", False)
    host.configure_doorbell_buffers()
    host.reset()
    with refused(GenericStatus.INVALID_OPCODE):
        host.configure_doorbell_buffers()
