"""What the controller knows of the guest, and of its own life, in the next process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.cli.deaths import kill
from tests.controller.statuses import error_log, refused

from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_features import Fid, Select, Timestamp
from nvme_mdev.spec.nvme_logs import LogPage, SmartLog
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Serve


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
