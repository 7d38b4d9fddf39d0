"""Enable, reset and shutdown, as a driver sees them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import ControllerFatalError
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_registers import NSSR_NSSRC, Cap, CapBit, Cc, Csts, Register, Shst

from .assembly import SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.controller.conftest import Served


def csts_after(host: NvmeHost, cc: Cc) -> Csts:
    host.write_register(Register.CC, cc.pack())
    return host.csts()


def test_io_works_after_enabling(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    queue.write(1, 8, b"\xa5" * 4096, block_size=512)
    assert queue.read(1, 8, 8, block_size=512) == b"\xa5" * 4096


def test_a_reset_forgets_queues_and_features(host: NvmeHost) -> None:
    host.create_queue_pair()
    host.set_features(Fid.INTERRUPT_COALESCING, 0x0102)
    host.reset()
    assert host.get_features(Fid.INTERRUPT_COALESCING) == 0
    assert host.create_queue_pair(qid=1).read(1, 0, 8, block_size=512) == bytes(4096)


def test_a_reset_keeps_the_admin_queue_registers(host: NvmeHost) -> None:
    before = [host.read_register(r) for r in (Register.AQA, Register.ASQ, Register.ACQ)]
    host.disable()
    assert [host.read_register(r) for r in (Register.AQA, Register.ASQ, Register.ACQ)] == before


def test_the_admin_queue_registers_do_not_change_while_enabled(host: NvmeHost) -> None:
    before = host.read_register(Register.ASQ)
    host.write_register(Register.ASQ, 0x1234_5000)
    assert host.read_register(Register.ASQ) == before


def test_an_idle_controller_is_ready_with_the_write(host: NvmeHost) -> None:
    host.disable()
    assert csts_after(host, Cc(en=True, iosqes=6, iocqes=4)).rdy
    assert not csts_after(host, Cc()).rdy


def test_a_shutdown_completes_and_a_reset_follows(host: NvmeHost) -> None:
    host.create_queue_pair().write(1, 0, b"x" * 4096, block_size=512)
    host.shutdown()
    assert host.csts().shst == Shst.COMPLETE
    host.reset()
    assert host.csts() == Csts(rdy=True)
    assert host.create_queue_pair().read(1, 0, 8, block_size=512) == b"x" * 4096


def test_an_abrupt_shutdown_completes(host: NvmeHost) -> None:
    host.shutdown(abrupt=True)
    assert host.csts().shst == Shst.COMPLETE


@pytest.mark.parametrize("again", [False, True])
def test_a_shutdown_during_a_reset_completes(serve: Callable[..., Served], *, again: bool) -> None:
    served = serve(NullBackend(SIZE, latency_ns=300_000_000))
    with NvmeHost(served.path) as host:
        queue = host.create_queue_pair()
        sqe = commands.read(1, 0, 8)
        sqe.prp1 = host.memory.allocate(4096).iova
        queue.start(sqe)
        deadline = time.monotonic() + 30
        while not served.call(served.controller.queues.inflight):
            assert time.monotonic() < deadline
        cc = host.read_register(Register.CC)
        host.write_register(Register.CC, cc & ~1)
        if again:
            host.write_register(Register.CC, cc)
        host.shutdown()
        host.enable()
        assert host.active_namespaces() == [1]


def test_an_impossible_admin_queue_is_a_fatal_status(served: Served) -> None:
    with NvmeHost(served.path, enable=False) as host:
        host.write_register(Register.AQA, 0x001F_001F)
        host.write_register(Register.ASQ, 0x7777_0000_0000)
        csts = csts_after(host, Cc(en=True, iosqes=6, iocqes=4))
        assert (csts.cfs, csts.rdy) == (True, False)
        assert csts_after(host, Cc()) == Csts()
        host.enable()
        assert host.active_namespaces() == [1]


@pytest.mark.parametrize("late", [Register.AQA, Register.ASQ, Register.ACQ])
def test_an_admin_queue_register_that_is_set_just_after_enable_still_counts(
    host: NvmeHost, late: Register
) -> None:
    """QEMU 11.1's user-space driver, as Debian compiles it, sets ACQ after CC.EN."""
    values = {r: host.read_register(r) for r in (Register.AQA, Register.ASQ, Register.ACQ)}
    value = values.pop(late)
    host.device_reset()
    for register, before in values.items():
        host.write_register(register, before)
    assert not csts_after(host, Cc(en=True, iosqes=6, iocqes=4)).rdy
    host.write_register(late, value)
    assert host.csts() == Csts(rdy=True)
    host.enable()
    assert host.active_namespaces() == [1]


def test_a_subsystem_reset_resets_all_registers_and_says_that_it_happened(host: NvmeHost) -> None:
    host.write_register(Register.NSSR, NSSR_NSSRC)
    assert host.csts() == Csts(nssro=True)
    assert host.read_register(Register.CC) == 0
    assert host.read_register(Register.ASQ) == 0
    host.write_register(Register.CSTS, 1 << 4)
    assert host.csts() == Csts()
    host._forget_queues()
    host.enable()
    assert host.active_namespaces() == [1]


def test_there_is_no_subsystem_reset_while_the_subsystem_has_several_controllers(
    serve: Callable[..., Served],
) -> None:
    first = serve()
    with NvmeHost(first.path) as early:
        second = serve(peer=first)
        with NvmeHost(second.path) as late:
            assert not late.cap.bits & CapBit.NSSRS
            late.write_register(Register.NSSR, NSSR_NSSRC)
            assert late.csts() == Csts(rdy=True)
            assert early.csts().rdy
            # It was told that it can, and does it to itself.
            early.write_register(Register.NSSR, NSSR_NSSRC)
            assert early.csts() == Csts(nssro=True)
            assert late.csts().rdy
            assert not Cap.unpack(early.read_register(Register.CAP)).bits & CapBit.NSSRS
            early._forget_queues()
            early.enable()
            early.write_register(Register.NSSR, NSSR_NSSRC)
            assert early.csts().rdy
    second.call(second.controller.stop)
    with NvmeHost(first.path) as alone:
        alone.device_reset()
        assert Cap.unpack(alone.read_register(Register.CAP)).bits & CapBit.NSSRS


def test_another_value_in_nssr_does_nothing(host: NvmeHost) -> None:
    host.write_register(Register.NSSR, NSSR_NSSRC + 1)
    assert host.csts().rdy


def test_a_device_reset_is_followed_by_a_controller_that_works(host: NvmeHost) -> None:
    host.create_queue_pair()
    host.device_reset()
    assert host.read_register(Register.CC) == 0
    host.enable()
    host.create_queue_pair().flush(1)


def test_a_function_level_reset_resets_controller_and_configuration(host: NvmeHost) -> None:
    config = host.transport.client
    config.region_write(7, 0x10, (0xFEB0_0000).to_bytes(4, "little"))
    control = config.region_read(7, 0x68, 2)
    config.region_write(7, 0x68, bytes([control[0], control[1] | 0x80]))
    assert config.region_read(7, 0x68, 2) == control
    assert int.from_bytes(config.region_read(7, 0x10, 4), "little") == 4
    assert host.csts() == Csts()
    host._forget_queues()
    host.transport.enable_pci()
    host.enable()
    assert host.active_namespaces() == [1]


def test_intms_and_intmc_are_one_mask(host: NvmeHost) -> None:
    host.write_register(Register.INTMS, 0x0F)
    host.write_register(Register.INTMC, 0x05)
    assert host.read_register(Register.INTMS) == 0x0A
    assert host.read_register(Register.INTMC) == 0x0A


def test_an_invalid_configuration_is_named_by_the_driver(served: Served) -> None:
    with NvmeHost(served.path, enable=False) as host:
        host.cap = Cap(mqes=host.cap.mqes, to=host.cap.to, mpsmin=5)
        with pytest.raises(ControllerFatalError):
            host.enable()


def test_the_next_client_finds_a_controller_as_new(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.create_queue_pair().write(1, 0, b"1" * 4096, block_size=512)
        host.set_features(Fid.INTERRUPT_COALESCING, 0x0102)
        host.request_events(1)
    with NvmeHost(served.path, enable=False) as host:
        assert host.csts() == Csts()
        assert host.read_register(Register.ASQ) == 0
        host.enable()
        assert host.get_features(Fid.INTERRUPT_COALESCING) == 0
        assert host.create_queue_pair().read(1, 0, 8, block_size=512) == b"1" * 4096


def test_a_client_that_vanishes_leaves_the_controller_ready(served: Served) -> None:
    for _ in range(5):
        host = NvmeHost(served.path)
        queue = host.create_queue_pair(256)
        queue.write(1, 0, b"x" * 4096, block_size=512)
        host._release()
    deadline = time.monotonic() + 5
    while served.controller.queues.memory.ranges():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with NvmeHost(served.path) as host:
        assert host.active_namespaces() == [1]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("shadow", [False, True])
def test_doorbells_are_seen_wherever_they_are(
    serve: Callable[..., Served], mapped: bool, shadow: bool
) -> None:
    served = serve(mapped_doorbells=mapped, shadow_doorbell=shadow)
    with NvmeHost(served.path, shadow_doorbells=shadow) as host:
        assert host.doorbells_mapped == mapped
        queue = host.create_queue_pair(16)
        for block in range(0, 400, 8):
            queue.write(1, block, block.to_bytes(2, "little") * 2048, block_size=512)
        assert queue.read(1, 392, 8, block_size=512) == (392).to_bytes(2, "little") * 2048


def test_taking_bus_master_away_stops_the_queues_until_it_is_back(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    config = host.transport.client
    config.region_write(7, 4, (0x0402).to_bytes(2, "little"))
    cid = queue.start(commands.flush(1))
    time.sleep(0.05)
    queue.collect()
    assert queue.take(cid) is None
    config.region_write(7, 4, (0x0406).to_bytes(2, "little"))
    assert queue.finish(cid).ok


def test_a_driver_that_is_closed_has_the_doorbells_mapped_no_more(served: Served) -> None:
    """Whoever still has a queue of it: a drive behind VFIO would still be held."""
    own = mapped_doorbells()
    with NvmeHost(served.path) as host:
        kept = host.create_queue_pair(), host.admin_queue, host.create_queue_pair()
        host.delete_queue_pair(kept[2])
        assert mapped_doorbells() == own + 1
    assert mapped_doorbells() == own
    with pytest.raises(ValueError, match="is closed"):
        kept[0].ring()


def mapped_doorbells() -> int:
    """Mappings in this process, which has the controller, too."""
    return Path("/proc/self/maps").read_text().count("/memfd:nvme-mdev-doorbells")
