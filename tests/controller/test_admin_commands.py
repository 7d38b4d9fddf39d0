"""What every admin command has in common: opcodes, flags, data pointers, error log."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host import commands
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_identify_controller import Oacs
from nvme_mdev.spec.nvme_status import STATUS_DNR, STATUS_MORE, GenericStatus

from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.host.driver import NvmeHost
    from tests.controller.conftest import Served

KNOWN = {0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x14, 0x18, 0x7C}


def test_every_other_opcode_is_invalid(host: NvmeHost) -> None:
    for opcode in set(range(256)) - KNOWN:
        with refused(GenericStatus.INVALID_OPCODE):
            host.admin(SQE(opc=opcode))


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x40, 0x80, 0xC0, 0x04])
def test_fused_and_sgl_commands_are_refused(host: NvmeHost, flags: int) -> None:
    sqe = commands.identify(Cns.CONTROLLER)
    sqe.flags = flags
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(sqe)
    assert error_log(host)[0].peloc == 1


def test_data_that_points_nowhere_is_a_data_transfer_error(host: NvmeHost) -> None:
    sqe = commands.identify(Cns.CONTROLLER)
    sqe.prp1 = 0x7777_0000_0000
    completion = host.admin(sqe, check=False).completion
    assert not completion.ok
    assert error_log(host)[0].peloc == 24


def test_a_misaligned_second_page_is_an_invalid_offset(host: NvmeHost) -> None:
    sqe = commands.identify(Cns.CONTROLLER)
    page = host.memory.allocate(3 * 4096)
    sqe.prp1, sqe.prp2 = page.iova + 512, page.iova + 4096 + 8
    with refused(GenericStatus.INVALID_PRP_OFFSET):
        host.admin(sqe)


def test_data_may_begin_within_a_page(host: NvmeHost) -> None:
    whole = host.identify(Cns.CONTROLLER)
    sqe = commands.identify(Cns.CONTROLLER)
    pages = host.memory.allocate(2 * 4096)
    sqe.prp1, sqe.prp2 = pages.iova + 512, pages.iova + 4096
    host.admin(sqe)
    assert pages.read(512, 4096) == whole


def test_errors_are_logged_newest_first(host: NvmeHost) -> None:
    for cns in (0xF0, 0xF1):
        host.admin(commands.identify(cns), check=False)
    host.admin(SQE(opc=0xC0), check=False)
    newest, older, *_ = error_log(host)
    assert newest.errcnt == older.errcnt + 1
    assert (newest.sqid, newest.peloc) == (0, 0)
    assert newest.sts >> 1 == GenericStatus.INVALID_OPCODE | STATUS_DNR | STATUS_MORE
    assert older.peloc == 40


def test_more_commands_than_the_completion_queue_holds_are_all_completed(host: NvmeHost) -> None:
    queue = host.admin_queue
    cids = [queue.start(commands.get_features(7)) for _ in range(queue.rings.sq_entries - 1)]
    assert all(queue.finish(cid).ok for cid in cids)


def test_doorbell_buffer_config_is_not_there_when_switched_off(
    serve: Callable[..., Served],
) -> None:
    from nvme_mdev.host.driver import NvmeHost

    with NvmeHost(serve(shadow_doorbell=False).path) as host:
        assert not host.identify_controller().oacs & Oacs.DBCS
        page = host.memory.allocate(2 * 4096)
        with refused(GenericStatus.INVALID_OPCODE):
            host.admin(commands.doorbell_buffer_config(page.iova, page.iova + 4096))


@pytest.mark.parametrize(("first", "second"), [(8, 0), (0, 8)])
def test_doorbell_buffers_begin_at_a_page(host: NvmeHost, first: int, second: int) -> None:
    page = host.memory.allocate(2 * 4096)
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(commands.doorbell_buffer_config(page.iova + first, page.iova + 4096 + second))
    assert error_log(host)[0].peloc == (24 if first else 32)


def test_doorbell_buffers_are_in_guest_memory(host: NvmeHost) -> None:
    page = host.memory.allocate(4096)
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(commands.doorbell_buffer_config(page.iova, 0x7777_0000_0000))


@pytest.mark.parametrize("seed", range(5))
def test_random_commands_are_all_completed(host: NvmeHost, seed: int) -> None:
    source = random.Random(seed)
    words = [0, 1, 2, 0x10001, 0x1F0001, 0xFFFF_FFFF, host.memory.iova & 0xFFFF_FFFF, 1 << 16]
    opcodes = sorted(KNOWN - {AdminOpcode.ASYNC_EVENT_REQUEST})
    for _ in range(400):
        fields = {f"cdw{n}": source.choice([*words, source.getrandbits(32)]) for n in range(10, 16)}
        address = host.memory.iova + (8 << 20) + source.randrange(1 << 20)
        sqe = SQE(
            opc=source.choice(opcodes),
            nsid=source.choice([0, 1, 2, 256, 257, 0xFFFF_FFFF]),
            prp1=source.choice([address & ~0xFFF, address, source.getrandbits(64)]),
            prp2=source.choice([0, address & ~0xFFF, source.getrandbits(64)]),
            **fields,
        )
        host.admin(sqe, check=False)
    assert not host.csts().cfs
    assert host.active_namespaces() == [1]


def test_a_command_of_zeroes_is_said_to_be_private_guest_memory_once(
    host: NvmeHost, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        host.admin_queue._next_cid = 0
        assert not host.admin(SQE(), check=False).completion.ok
    host.identify_controller()
    assert [record.message.count("share=on") for record in caplog.records] == [1]
