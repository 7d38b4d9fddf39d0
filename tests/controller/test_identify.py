"""Identify: the structures, and that they say what the backends can do."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.controller.settings import ControllerSettings
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_identify import Cns, Nidt
from nvme_mdev.spec.nvme_identify_controller import (
    CntrlType,
    IdentifyControllerNvm,
    Oacs,
    Oncs,
    Vwc,
)
from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespaceIndependent, Nsattr
from nvme_mdev.spec.nvme_registers import Register
from nvme_mdev.spec.nvme_status import GenericStatus

from .assembly import SERIAL, SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.controller.conftest import Served


def test_the_controller_is_who_the_settings_say(host: NvmeHost) -> None:
    data = host.identify_controller()
    assert data.sn == SERIAL.ljust(20).encode()
    assert data.mn == b"nvme-mdev".ljust(40)
    assert data.subnqn.decode() == ControllerSettings(SERIAL).nqn
    assert data.cntrltype == CntrlType.IO


def test_the_version_is_that_of_the_register(host: NvmeHost) -> None:
    assert host.identify_controller().ver == host.read_register(Register.VS)


def test_limits_are_those_of_the_settings(serve: Callable[..., Served]) -> None:
    with NvmeHost(serve(max_transfer=128 << 10, queue_entries=64).path) as host:
        assert host.identify_controller().mdts == 5
        assert host.max_entries == 64


def test_the_smallest_maximum_transfer_is_two_pages(serve: Callable[..., Served]) -> None:
    with NvmeHost(serve(max_transfer=8192).path) as host:
        assert host.identify_controller().mdts == 1


def test_queue_entries_have_64_and_16_bytes(host: NvmeHost) -> None:
    assert (host.identify_controller().sqes, host.identify_controller().cqes) == (0x66, 0x44)


def test_doorbell_buffer_config_is_offered(host: NvmeHost) -> None:
    assert host.identify_controller().oacs & Oacs.DBCS


def test_memory_has_no_volatile_cache(host: NvmeHost) -> None:
    assert not host.identify_controller().vwc & Vwc.VWCP


def test_an_image_has_a_volatile_cache(serve: Callable[..., Served], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    backend = UringBackend(str(image))
    with NvmeHost(serve(backend).path) as host:
        assert host.identify_controller().vwc & Vwc.VWCP
        queue = host.create_queue_pair()
        queue.write(1, 0, b"k" * 4096, block_size=backend.block_size)
        host.shutdown()
    assert image.read_bytes()[:4096] == b"k" * 4096


def test_optional_commands_are_what_every_backend_can(serve: Callable[..., Served]) -> None:
    backends = [MemoryBackend(SIZE), NullBackend(SIZE)]
    with NvmeHost(serve(*backends).path) as host:
        oncs = Oncs(host.identify_controller().oncs)
    zeroes = all(backend.can_write_zeroes for backend in backends)
    assert bool(oncs & Oncs.NVMWZSV) == zeroes
    assert oncs & Oncs.SSFS
    assert oncs & Oncs.NVMCMPS


@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_namespace_has_its_backends_size_and_blocks(
    serve: Callable[..., Served], block_size: int
) -> None:
    with NvmeHost(serve(MemoryBackend(SIZE, block_size)).path) as host:
        data = host.identify_namespace(1)
        assert data.nsze == data.ncap == data.nuse == SIZE // block_size
        assert 1 << data.lbaf[0].lbads == block_size
        assert (data.nlbaf, data.flbas) == (0, 0)
        assert int.from_bytes(bytes(data.nvmcap), "little") == SIZE


def test_a_read_only_namespace_is_write_protected(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with NvmeHost(serve(UringBackend(str(image), read_only=True)).path) as host:
        assert host.identify_namespace(1).nsattr == Nsattr.CWP
        data = host.identify(Cns.IOCS_INDEPENDENT_NAMESPACE, 1)
        assert IdentifyNamespaceIndependent.from_buffer_copy(data).nsattr == Nsattr.CWP


def test_an_inactive_namespace_is_all_zero(host: NvmeHost) -> None:
    for cns in (Cns.NAMESPACE, Cns.IOCS_NAMESPACE, Cns.IOCS_INDEPENDENT_NAMESPACE):
        assert host.identify(cns, 256) == bytes(4096)


@pytest.mark.parametrize("nsid", [0, 257, 0xFFFF_FFFE, 0xFFFF_FFFF])
@pytest.mark.parametrize("cns", [Cns.NAMESPACE, Cns.NS_ID_DESCRIPTORS, Cns.IOCS_NAMESPACE])
def test_an_invalid_nsid_is_an_invalid_namespace(host: NvmeHost, cns: int, nsid: int) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.identify(cns, nsid)
    assert error_log(host)[0].peloc == 4
    assert error_log(host)[0].nsid == nsid


def test_active_namespaces_are_listed_from_the_one_after_nsid(
    serve: Callable[..., Served],
) -> None:
    with NvmeHost(serve(*(NullBackend(SIZE) for _ in range(3))).path) as host:
        assert host.active_namespaces() == [1, 2, 3]
        assert host.identify(Cns.ACTIVE_NSID_LIST, 1)[:12] == bytes([2, 0, 0, 0, 3, *bytes(7)])
        assert host.identify(Cns.ACTIVE_NSID_LIST, 3) == bytes(4096)
        assert host.identify(Cns.IOCS_ACTIVE_NSID_LIST, 0) == host.identify(Cns.ACTIVE_NSID_LIST, 0)


@pytest.mark.parametrize("nsid", [0xFFFF_FFFE, 0xFFFF_FFFF])
def test_there_are_no_namespaces_above_the_highest(host: NvmeHost, nsid: int) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.identify(Cns.ACTIVE_NSID_LIST, nsid)


def test_a_namespace_has_uuid_nguid_and_command_set(host: NvmeHost) -> None:
    found = host.namespace_descriptors(1)
    assert set(found) == {Nidt.NGUID, Nidt.UUID, Nidt.CSI}
    assert uuid.UUID(bytes=found[Nidt.UUID]).version == 5
    assert found[Nidt.NGUID] == bytes(host.identify_namespace(1).nguid)
    assert found[Nidt.CSI] == b"\0"


def test_identifiers_are_the_same_at_the_next_start(serve: Callable[..., Served]) -> None:
    found = []
    for _ in range(2):
        with NvmeHost(serve().path) as host:
            found.append(host.namespace_descriptors(1))
    assert found[0] == found[1]


def test_descriptors_of_an_inactive_namespace_are_an_invalid_field(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(Cns.NS_ID_DESCRIPTORS, 2)


def test_a_namespace_is_ready(host: NvmeHost) -> None:
    data = IdentifyNamespaceIndependent.from_buffer_copy(
        host.identify(Cns.IOCS_INDEPENDENT_NAMESPACE, 1)
    )
    assert data.nstat == 1


def test_the_nvm_command_set_has_no_limits_of_its_own(host: NvmeHost) -> None:
    data = IdentifyControllerNvm.from_buffer_copy(host.identify(Cns.IOCS_CONTROLLER))
    assert bytes(data) == bytes(4096)


@pytest.mark.parametrize("cns", [0x04, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1D, 0x7F, 0xFF])
def test_other_structures_are_an_invalid_field(host: NvmeHost, cns: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(cns, 1)
    assert error_log(host)[0].peloc == 40


@pytest.mark.parametrize(
    "cns", [Cns.IOCS_NAMESPACE, Cns.IOCS_CONTROLLER, Cns.IOCS_ACTIVE_NSID_LIST]
)
def test_other_command_sets_are_an_invalid_field(host: NvmeHost, cns: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(cns, 1, csi=2)
