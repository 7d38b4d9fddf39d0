"""Identify: lists of namespaces, controllers and command sets."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_status import GenericStatus
from nvme_mdev.spec.nvme_virtualization import (
    PrimaryControllerCapabilities,
    SecondaryControllerList,
)

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.host.driver import NvmeHost as Host
    from tests.controller.conftest import Served

ALL = 0xFFFF_FFFF


def controllers(data: bytes) -> list[int]:
    (count,) = struct.unpack_from("<H", data)
    assert not any(data[2 + 2 * count :])
    return list(struct.unpack_from(f"<{count}H", data, 2))


@pytest.mark.parametrize("cns", [Cns.ALLOCATED_NSID_LIST, Cns.IOCS_ALLOCATED_NSID_LIST])
def test_every_namespace_that_is_allocated_is_attached(
    serve: Callable[..., Served], cns: int
) -> None:
    with NvmeHost(serve(*(NullBackend(SIZE) for _ in range(3))).path) as host:
        for above in (0, 1, 3):
            assert host.identify(cns, above) == host.identify(Cns.ACTIVE_NSID_LIST, above)
        with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
            host.identify(cns, ALL)


def test_an_allocated_namespace_is_described_as_the_attached_one(host: Host) -> None:
    assert host.identify(Cns.ALLOCATED_NAMESPACE, 1) == host.identify(Cns.NAMESPACE, 1)
    assert host.identify(Cns.IOCS_ALLOCATED_NAMESPACE, 1) == host.identify(Cns.IOCS_NAMESPACE, 1)


@pytest.mark.parametrize("cns", [Cns.ALLOCATED_NAMESPACE, Cns.IOCS_ALLOCATED_NAMESPACE])
def test_a_namespace_that_is_not_allocated_is_all_zero(host: Host, cns: int) -> None:
    assert host.identify(cns, 2) == bytes(4096)
    for nsid in (0, 257, ALL):
        with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
            host.identify(cns, nsid)


def test_the_controllers_of_the_subsystem_are_listed_from_cntid_on(
    serve: Callable[..., Served],
) -> None:
    with NvmeHost(serve(cntlid=7).path) as host:
        assert host.identify_controller().cntlid == 7
        assert controllers(host.identify(Cns.CONTROLLER_LIST)) == [7]
        assert controllers(host.identify(Cns.CONTROLLER_LIST, cntid=7)) == [7]
        assert controllers(host.identify(Cns.CONTROLLER_LIST, cntid=8)) == []


def test_a_namespace_has_the_controllers_that_it_is_attached_to(host: Host) -> None:
    cntlid = host.identify_controller().cntlid
    assert controllers(host.identify(Cns.NS_CONTROLLER_LIST, 1)) == [cntlid]
    assert controllers(host.identify(Cns.NS_CONTROLLER_LIST, 1, cntid=cntlid + 1)) == []
    assert controllers(host.identify(Cns.NS_CONTROLLER_LIST, 2)) == []


def test_the_controllers_of_no_namespace_are_not_to_be_had(host: Host) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.identify(Cns.NS_CONTROLLER_LIST, 0)
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(Cns.NS_CONTROLLER_LIST, ALL)


def test_a_primary_controller_has_no_flexible_resources_and_no_secondary_one(host: Host) -> None:
    data = host.identify(Cns.PRIMARY_CONTROLLER_CAPS)
    capabilities = PrimaryControllerCapabilities.from_buffer_copy(data)
    assert capabilities.cntlid == host.identify_controller().cntlid
    assert capabilities.crt == 0
    secondary = host.identify(Cns.SECONDARY_CONTROLLER_LIST)
    assert SecondaryControllerList.from_buffer_copy(secondary).numids == 0
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(Cns.PRIMARY_CONTROLLER_CAPS, cntid=9)
    assert error_log(host)[0].peloc == 42


@pytest.mark.parametrize("cntid", [0xFFFF, 1])
def test_the_only_combination_of_command_sets_is_the_nvm_command_set(
    host: Host, cntid: int
) -> None:
    data = host.identify(Cns.IO_COMMAND_SETS, cntid=cntid)
    assert data == b"\x01".ljust(4096, b"\0")


def test_the_command_sets_of_another_controller_are_not_known(host: Host) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(Cns.IO_COMMAND_SETS, cntid=9)
    assert error_log(host)[0].peloc == 42


@pytest.mark.parametrize("cns", [Cns.IOCS_ALLOCATED_NAMESPACE, Cns.IOCS_ALLOCATED_NSID_LIST])
def test_other_command_sets_have_no_namespaces(host: Host, cns: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.identify(cns, 1, csi=2)
    assert error_log(host)[0].peloc == 47
