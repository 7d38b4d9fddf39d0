"""Get Log Page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.controller.admin.dispatch import COMMANDS
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode, NvmOpcode
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_identify_controller import Lpa
from nvme_mdev.spec.nvme_logs import (
    CommandEffect,
    CommandsEffectsLog,
    FeatureEffectsLog,
    FirmwareSlotLog,
    LogPage,
    SmartLog,
    SupportedLogPages,
)
from nvme_mdev.spec.nvme_registers import Css
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus
from nvme_mdev.spec.vendor import PATH_COUNTERS_LID, PATH_COUNTERS_MAGIC, PathCountersLog

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from nvme_mdev.host.driver import NvmeHost
    from tests.controller.conftest import Served


def smart(host: NvmeHost) -> SmartLog:
    return SmartLog.from_buffer_copy(host.get_log_page(LogPage.SMART, 512))


def test_the_supported_pages_are_those_that_can_be_read(host: NvmeHost) -> None:
    page = host.get_log_page(LogPage.SUPPORTED_LOG_PAGES, 1024)
    supported = SupportedLogPages.from_buffer_copy(page).lids
    for lid in range(256):
        if supported[lid]:
            host.get_log_page(lid, 64)
        else:
            with refused(CommandStatus.INVALID_LOG_PAGE):
                host.get_log_page(lid, 64)


def test_the_attributes_say_what_log_pages_can_do(host: NvmeHost) -> None:
    assert host.identify_controller().lpa == Lpa.CSES | Lpa.LPEDS | Lpa.MLPS


def test_a_page_is_read_from_an_offset(host: NvmeHost) -> None:
    whole = host.get_log_page(LogPage.COMMANDS_EFFECTS, 4096)
    assert host.get_log_page(LogPage.COMMANDS_EFFECTS, 2048, offset=1024) == whole[1024:3072]


def test_beyond_the_page_is_nothing(host: NvmeHost) -> None:
    assert host.get_log_page(LogPage.SMART, 16, offset=512) == bytes(16)
    with refused(GenericStatus.INVALID_FIELD):
        host.get_log_page(LogPage.SMART, 16, offset=516)
    assert error_log(host)[0].peloc == 48


def test_an_offset_is_a_multiple_of_four(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.get_log_page(LogPage.SMART, 16, offset=2)


def test_more_than_the_maximum_transfer_is_an_invalid_field(host: NvmeHost) -> None:
    sqe = commands.get_log_page(LogPage.SMART, (1 << 20) + 4)
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(sqe)


def test_the_smart_log_counts_data_and_commands(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    for _ in range(5):
        queue.write(1, 0, bytes(512 * 300), block_size=512)
    queue.read(1, 0, 1, block_size=512)
    log = smart(host)
    assert log.duw[0] == 2
    assert log.dur[0] == 1
    assert (log.hwc[0], log.hrc[0]) == (5, 1)
    assert log.cw == 0
    assert log.ctemp > 0


def test_the_smart_log_counts_errors(host: NvmeHost) -> None:
    before = smart(host).neile[0]
    host.admin(SQE(opc=0xC0), check=False)
    assert smart(host).neile[0] == before + 1


@pytest.mark.parametrize("threshold", [290, 1 << 20 | 310])
def test_a_temperature_beyond_a_threshold_is_a_critical_warning(
    host: NvmeHost, threshold: int
) -> None:
    host.set_features(Fid.TEMPERATURE_THRESHOLD, threshold)
    assert smart(host).cw == 2


def test_the_smart_log_is_of_the_controller(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.get_log_page(LogPage.SMART, 512, nsid=1)


def test_there_is_one_firmware_slot(host: NvmeHost) -> None:
    data = FirmwareSlotLog.from_buffer_copy(host.get_log_page(LogPage.FIRMWARE_SLOT, 512))
    assert data.afi == 1
    assert data.frs[0].revision == host.identify_controller().fr
    assert data.frs[1].revision == b""


def test_effects_are_those_of_the_commands_that_there_are(host: NvmeHost) -> None:
    data = CommandsEffectsLog.from_buffer_copy(host.get_log_page(LogPage.COMMANDS_EFFECTS, 4096))
    assert {opcode for opcode in range(256) if data.acs[opcode]} == set(COMMANDS) - {
        AdminOpcode.FORMAT_NVM,
        AdminOpcode.SANITIZE,
    }
    assert data.acs[AdminOpcode.IDENTIFY] == CommandEffect.CSUPP
    assert data.iocs[NvmOpcode.WRITE] == CommandEffect.CSUPP | CommandEffect.LBCC
    assert data.iocs[NvmOpcode.READ] == CommandEffect.CSUPP
    assert data.iocs[NvmOpcode.COPY] == CommandEffect.CSUPP | CommandEffect.LBCC
    assert data.iocs[NvmOpcode.RESERVATION_REPORT] == CommandEffect.CSUPP
    assert data.iocs[NvmOpcode.CANCEL] == 0


def test_every_feature_of_the_effects_log_can_be_read(host: NvmeHost) -> None:
    data = FeatureEffectsLog.from_buffer_copy(host.get_log_page(LogPage.FEATURE_EFFECTS, 1024))
    for fid in range(256):
        if data.fids[fid] & 1:
            host.admin(commands.get_features(fid, nsid=1), receive=512)
            assert data.fids[fid] >> 20 & 3 in (1, 2)
        else:
            with refused(GenericStatus.INVALID_FIELD):
                host.get_features(fid, nsid=1)


def test_effects_of_another_command_set_are_an_invalid_field(host: NvmeHost) -> None:
    sqe = commands.get_log_page(LogPage.COMMANDS_EFFECTS, 4096)
    sqe.cdw14 = 2 << 24
    host.admin(sqe, receive=4096)
    host.enable(css=Css.IOCS)
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(sqe, receive=4096)
    assert error_log(host)[0].peloc == 59
    assert host.create_queue_pair().read(1, 0, 1, block_size=512) == bytes(512)


def test_the_vendors_page_has_the_data_paths_counters(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    for _ in range(7):
        queue.flush(1)
    page = host.get_log_page(PATH_COUNTERS_LID, 512)
    data = PathCountersLog.from_buffer_copy(page)
    assert (data.magic, data.version) == (PATH_COUNTERS_MAGIC, 2)
    assert data.translated.count == data.completed.count == 7
    assert data.tsc_hz > 0


def test_reading_the_changed_namespaces_clears_the_list(served: Served, host: NvmeHost) -> None:
    backend = NullBackend(SIZE)
    served.backends.append(backend)
    served.call(served.controller.add_namespace, 9, backend)
    page = host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096, rae=True)
    assert page[:8] == bytes([9, *bytes(7)])
    assert host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096) == page
    assert host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096) == bytes(4096)
