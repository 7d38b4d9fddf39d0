"""What the controller knows of the guest, and of its own life, in the next process."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.cli.deaths import kill
from tests.controller.statuses import error_log, refused

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_features import Fid, Select, Timestamp
from nvme_mdev.spec.nvme_logs import LogPage, SmartLog
from nvme_mdev.spec.nvme_maintenance import (
    SANITIZE_GDE,
    SANITIZE_NDAS,
    SANITIZE_OWPASS_SHIFT,
    SANITIZE_PASSES_SHIFT,
    SanitizeAction,
    SanitizeLog,
    SanitizeState,
    SelfTestCode,
    SelfTestLog,
)
from nvme_mdev.spec.nvme_status import GenericStatus
from nvme_mdev.spec.vfio_user import DmaMapFlags, IrqSetFlags, PciIrq
from nvme_mdev.vfio_user.client import Client
from nvme_mdev.vfio_user.device import DmaMap, SetIrqs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import RunCommand, Serve


def test_features_are_as_they_were_set_and_saved(serve: Serve, tmp_path: Path) -> None:
    daemon = serve("memory:4M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.set_features(Fid.ARBITRATION, 3, save=True)
        host.set_features(Fid.ARBITRATION, 2)
        host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, 1, nsid=1)
        host.set_features(Fid.ERROR_RECOVERY, 7, nsid=1)
        host.admin(commands.set_features(Fid.HOST_IDENTIFIER, 1), send=bytes(range(16)))
        now = (1_700_000_000_000).to_bytes(6, "little") + bytes(2)
        host.admin(commands.set_features(Fid.TIMESTAMP, 0), send=now)
        queue = host.create_queue_pair()
        kill(daemon)
        assert host.get_features(Fid.ARBITRATION) == 2
        assert host.get_features(Fid.ARBITRATION, select=Select.SAVED) == 3
        assert host.get_features(Fid.ERROR_RECOVERY, nsid=1) == 7
        identifier = host.admin(commands.get_features(Fid.HOST_IDENTIFIER, value=1), receive=16)
        assert identifier.data == bytes(range(16))
        data = host.admin(commands.get_features(Fid.TIMESTAMP), receive=8).data
        clock = bytes(Timestamp.from_buffer_copy(data).timestamp)
        assert 0 < int.from_bytes(clock, "little") - 1_700_000_000_000 < 3_600_000
        with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
            queue.execute(commands.write(1, 0, 1), send=bytes(512))


def test_a_silent_host_is_taken_for_dead_by_the_next_process_too(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.set_features(Fid.KEEP_ALIVE_TIMER, 1000)
        kill(daemon)
        while not host.csts().cfs:
            time.sleep(0.01)
        host.reset()
        assert error_log(host)[0].sts >> 1 == GenericStatus.KEEP_ALIVE_EXPIRED


def test_a_kill_is_neither_a_power_cycle_nor_an_unsafe_shutdown(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve("null:1G", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair().write(1, 0, bytes(512), block_size=512)
        host.admin(commands.identify(0xF0), check=False)
        kill(daemon)
        log = SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))
        assert (log.pwrc[0], log.upl[0], log.hwc[0], log.neile[0]) == (1, 0, 1, 1)
    host = NvmeHost(tmp_path / "s")
    kill(daemon)
    host.transport.close()
    with NvmeHost(tmp_path / "s") as host:
        log = SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))
        assert (log.pwrc[0], log.upl[0]) == (3, 1)


def test_a_format_and_a_self_test_go_on_in_the_next_process(serve: Serve, tmp_path: Path) -> None:
    size = 128 << 20
    options = ["--allow-erase", "--size", str(size)]
    daemon = serve(tmp_path / "image", *options, "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        queue.write(1, size // 512 - 8, b"x" * 4096, block_size=512)
        host.admin(SQE(opc=AdminOpcode.DEVICE_SELF_TEST, nsid=1, cdw10=SelfTestCode.EXTENDED))
        kill(daemon)
        wait_for(lambda: self_test_log(host).current == 0)
        assert self_test_log(host).results[0].status == SelfTestCode.EXTENDED << 4
        cid = host.admin_queue.start(SQE(opc=AdminOpcode.FORMAT_NVM, nsid=1, cdw10=1 | 1 << 9))
        wait_for(lambda: host.identify_namespace(1).fpi & 0x7F)
        kill(daemon)
        assert host.admin_queue.finish(cid, 60).ok
        kill(daemon)
        assert host.namespace(1).block_size == 4096
        assert queue.read(1, size // 4096 - 1, 1, block_size=4096) == bytes(4096)


def test_a_sanitize_operation_goes_on_in_the_next_process(serve: Serve, tmp_path: Path) -> None:
    size = 64 << 20
    options = ["--allow-erase", "--size", str(size)]
    daemon = serve(tmp_path / "image", *options, "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        host.request_events()
        cdw10 = SanitizeAction.OVERWRITE | 8 << SANITIZE_OWPASS_SHIFT | SANITIZE_NDAS
        host.admin(SQE(opc=AdminOpcode.SANITIZE, cdw10=cdw10, cdw11=0x1234_5678))
        for _ in range(3):
            kill(daemon)
            before = sanitize_log(host).sprog
            with refused(GenericStatus.SANITIZE_IN_PROGRESS, dnr=False):
                queue.read(1, 0, 1, block_size=512)
            wait_for(lambda: sanitize_log(host).sprog > before)  # noqa: B023
        assert [event.log_page for event in host.events(60)] == [LogPage.SANITIZE_STATUS]
        passes = 8 << SANITIZE_PASSES_SHIFT
        assert sanitize_log(host).sstat == SanitizeState.COMPLETED | passes | SANITIZE_GDE
        for slba in (0, size // 512 - 1):
            pattern = (0x1234_5678).to_bytes(4, "little") * 128
            assert queue.read(1, slba, 1, block_size=512) == pattern


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def self_test_log(host: NvmeHost) -> SelfTestLog:
    return SelfTestLog.from_buffer_copy(host.get_log_page(LogPage.DEVICE_SELF_TEST, 564))


def sanitize_log(host: NvmeHost) -> SanitizeLog:
    return SanitizeLog.from_buffer_copy(host.get_log_page(LogPage.SANITIZE_STATUS, 512))


def test_a_command_that_was_aborted_while_it_waited_is_not_executed_by_the_next_process(
    serve: Serve, nvme_mdev: RunCommand, tmp_path: Path
) -> None:
    daemon = serve("memory:4M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair(16)
        assert nvme_mdev("pause", tmp_path / "s").status == 0
        buffer = host.memory.allocate(512)
        buffer.view[:] = b"x" * 512
        sqe = commands.write(1, 0, 1)
        sqe.prp1 = buffer.iova
        aborted, kept = queue.start(sqe), queue.start(commands.flush(1))
        assert host.abort(1, aborted)
        assert queue.finish(aborted).status.code == GenericStatus.ABORT_REQUESTED
        kill(daemon)
        host.csts()
        assert nvme_mdev("resume", tmp_path / "s").status == 0
        assert queue.finish(kept).ok
        assert queue.read(1, 0, 1, block_size=512) == bytes(512)
        queue.collect()
        assert queue.take(aborted) is None


def test_the_next_namespace_with_the_number_of_one_whose_image_has_gone_is_another_one(
    serve: Serve, nvme_mdev: RunCommand, tmp_path: Path
) -> None:
    daemon = serve("null:1M", tmp_path / "a", "--size", "1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        queue.write_uncorrectable(2, 0, 8)
        host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, 1, nsid=2)
        host.set_features(Fid.ERROR_RECOVERY, 7, nsid=2)
        (tmp_path / "a").unlink()
        kill(daemon)
        assert host.active_namespaces() == [1]
        added = nvme_mdev("namespace", "add", tmp_path / "s", "memory:2M", "--nsid", "2")
        assert added.status == 0
        assert host.get_features(Fid.NAMESPACE_WRITE_PROTECTION, nsid=2) == 0
        assert host.get_features(Fid.ERROR_RECOVERY, nsid=2) == 0
        assert queue.read(2, 0, 8, block_size=512) == bytes(4096)
        queue.write(2, 0, b"x" * 512, block_size=512)


def truncate_memory(client: Client) -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 1 << 20)
    client.dma_map(DmaMap(0, 1 << 20, 0, DmaMapFlags.READ | DmaMapFlags.WRITE), fd)
    os.ftruncate(fd, 0)
    os.close(fd)


def mask_by_memory(client: Client) -> None:
    give_refused(client, PciIrq.INTX, IrqSetFlags.ACTION_MASK, os.memfd_create("no eventfd"))


def trigger_by_path(client: Client) -> None:
    give_refused(client, PciIrq.MSIX, IrqSetFlags.ACTION_TRIGGER, os.open("/", os.O_PATH))


def give_refused(client: Client, index: int, action: IrqSetFlags, fd: int) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's choice
        client.set_irqs(SetIrqs(index, 0, 1, IrqSetFlags.DATA_EVENTFD, action), [fd])
    os.close(fd)


@pytest.mark.parametrize("spoil", [truncate_memory, mask_by_memory, trigger_by_path])
def test_what_a_client_has_spoilt_does_not_keep_the_next_process_from_starting(
    serve: Serve, tmp_path: Path, spoil: Callable[[Client], None]
) -> None:
    daemon = serve("memory:4M", "--socket", tmp_path / "s")
    with Client(tmp_path / "s") as client:
        spoil(client)
        client.device_info()  # the request before is forgotten with this one
        kill(daemon)
        assert client.device_info().num_regions == 9
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        queue.write(1, 0, b"x" * 512, block_size=512)
        assert queue.read(1, 0, 1, block_size=512) == b"x" * 512
    assert daemon.stop().status == 0


DIES_WITH_ITS_FIRST_REPLY_TO_A_FILE = """
import sys
if "serve" in sys.orig_argv:
    import pathlib, time
    from nvme_mdev.vfio_user.journal import Journal
    def finish(journal, finish=Journal.finish, once=pathlib.Path({once!r})):
        if journal.answered and journal.fd_count and not once.exists():
            once.touch()
            time.sleep(3600)  # until it is killed
        finish(journal)
    Journal.finish = finish
"""


def test_memory_that_is_spoilt_when_the_process_dies_with_the_reply_does_not_keep_the_next_from_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    code = DIES_WITH_ITS_FIRST_REPLY_TO_A_FILE.format(once=str(tmp_path / "once"))
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    daemon = serve("memory:4M", "--socket", tmp_path / "s")
    with Client(tmp_path / "s") as client:
        truncate_memory(client)
        wait_for((tmp_path / "once").exists)
        kill(daemon)
        assert client.device_info().num_regions == 9
