"""The I/O commands over a real socket, by our host driver, and what Identify says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.spec.nvme_commands import NSID_ALL, AdminOpcode, NvmOpcode
from nvme_mdev.spec.nvme_identify_controller import Fuses, Oncs, Sgls, Vwc
from nvme_mdev.spec.nvme_identify_namespace import Dlfeat
from nvme_mdev.spec.nvme_logs import CommandEffect, CommandsEffectsLog, LogPage
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.host.io import IoQueue
    from tests.controller.conftest import Served


@pytest.fixture
def queue(host: NvmeHost) -> IoQueue:
    return host.create_queue_pair()


def test_identify_offers_the_commands(host: NvmeHost) -> None:
    data = host.identify_controller()
    offered = Oncs.NVMCMPS | Oncs.NVMWUSV | Oncs.NVMDSMSV | Oncs.NVMWZSV
    offered |= Oncs.NVMVFYS | Oncs.NVMCPYS
    assert Oncs(data.oncs) & offered == offered
    assert data.fuses == Fuses.FCWS
    assert data.acwu == 255
    assert data.cdfs == 1
    assert data.sgls == Sgls.BYTE_ALIGNED | Sgls.BIT_BUCKET | Sgls.LONGER
    assert Vwc(data.vwc) & Vwc.FB_ALL == Vwc.FB_ALL


@pytest.mark.parametrize(("block", "limits"), [(512, (2048, 8192)), (4096, (256, 1024))])
def test_identify_tells_the_limits_of_copy(
    serve: Callable[..., Served], block: int, limits: tuple[int, int]
) -> None:
    with NvmeHost(serve(MemoryBackend(SIZE, block_size=block)).path) as host:
        data = host.identify_namespace(1)
        assert (data.mssrl, data.mcl, data.msrc) == (*limits, 127)
        assert data.dlfeat == Dlfeat.READS_ZEROES | Dlfeat.DEALLOCATE_WRITE_ZEROES


def test_a_copy_within_and_beyond_the_limits(queue: IoQueue) -> None:
    queue.write(1, 0, b"\x11" * 512 + b"\x22" * 512)
    queue.copy(1, 100, [(1, 1), (0, 1)])
    assert queue.read(1, 100, 2) == b"\x22" * 512 + b"\x11" * 512
    with refused(CommandStatus.COMMAND_SIZE_LIMIT_EXCEEDED):
        queue.copy(1, 100, [(0, 2049)])
    with refused(CommandStatus.COMMAND_SIZE_LIMIT_EXCEEDED):
        queue.copy(1, 100, [(0, 1)] * 129)


def test_an_uncorrectable_block_outlives_reset_and_client(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.create_queue_pair().write_uncorrectable(1, 7, 2)
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        queue.verify(1, 0, 7)
        with refused(MediaStatus.UNRECOVERED_READ):
            queue.verify(1, 0, 9)
        entry = error_log(host)[0]
        assert (entry.sqid, entry.lba, entry.nsid) == (1, 7, 1)
        queue.write(1, 7, bytes(1024))
        queue.verify(1, 0, 9)


def test_a_namespace_that_was_removed_takes_its_uncorrectable_blocks_along(
    served: Served,
) -> None:
    with NvmeHost(served.path) as host:
        host.create_queue_pair().write_uncorrectable(1, 7, 1)
        backend = served.run(served.controller.remove_namespace(1))
        served.call(lambda: served.controller.add_namespace(1, backend))
        host.create_queue_pair().verify(1, 0, 100)


def test_compare_and_write(queue: IoQueue) -> None:
    queue.write(1, 5, b"a" * 512)
    assert not queue.compare_and_write(1, 5, b"b" * 512, b"c" * 512)
    assert queue.compare_and_write(1, 5, b"a" * 512, b"c" * 512)
    assert queue.read(1, 5, 1) == b"c" * 512
    with pytest.raises(NvmeStatusError):
        queue.compare_and_write(1, SIZE // 512, b"a" * 512, b"c" * 512)


def test_flush_of_all_namespaces(queue: IoQueue) -> None:
    queue.flush(NSID_ALL)


def test_the_effects_log_has_the_commands(host: NvmeHost) -> None:
    log = CommandsEffectsLog.from_buffer_copy(host.get_log_page(LogPage.COMMANDS_EFFECTS, 4096))
    changes = CommandEffect.CSUPP | CommandEffect.LBCC
    assert log.iocs[NvmOpcode.VERIFY] == CommandEffect.CSUPP
    assert log.iocs[NvmOpcode.COPY] == log.iocs[NvmOpcode.WRITE_UNCORRECTABLE] == changes


@pytest.mark.parametrize("flags", [0x40, 0x80, 0x01, 0x02])
def test_admin_commands_take_neither_sgls_nor_fusing(host: NvmeHost, flags: int) -> None:
    """Admin commands use PRPs over PCIe (Base 4.1.1, PSDT)."""
    sqe = commands.identify(1)
    assert sqe.opc == AdminOpcode.IDENTIFY
    sqe.flags = flags
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(sqe, receive=4096)
