"""Namespace write protection: the states, and that the data path refuses to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_features import Fid, WriteProtectionState
from nvme_mdev.spec.nvme_identify import Nsattr, Nwpc
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

from .assembly import SIZE
from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.host.io import IoQueue
    from tests.controller.conftest import Served

FID = Fid.NAMESPACE_WRITE_PROTECTION
ALL = 0xFFFF_FFFF
NONE, PROTECTED, UNTIL_POWER_CYCLE, PERMANENT = WriteProtectionState


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(MemoryBackend(SIZE), MemoryBackend(SIZE))


def cannot_write(queue: IoQueue, nsid: int) -> None:
    for sqe in (commands.write(nsid, 0, 1), commands.write_zeroes(nsid, 0, 1)):
        with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
            queue.execute(sqe, send=bytes(512))
    with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
        sqe = commands.dataset_management(nsid, 1, 4)
        queue.execute(sqe, send=commands.pack_ranges([(0, 1)]))
    queue.execute(commands.read(nsid, 0, 1), receive=512)


def test_what_is_offered_is_told(host: NvmeHost) -> None:
    assert host.identify_controller().nwpc == Nwpc.NWPS | Nwpc.WPUPC
    assert host.get_features(FID, nsid=1) == NONE
    assert host.get_features(FID, nsid=1, select=3) == 0b110


@pytest.mark.parametrize("state", [PROTECTED, UNTIL_POWER_CYCLE])
def test_a_protected_namespace_is_only_read(host: NvmeHost, state: WriteProtectionState) -> None:
    queue = host.create_queue_pair()
    host.set_features(FID, state, nsid=1)
    assert host.get_features(FID, nsid=1) == state
    cannot_write(queue, 1)
    queue.write(2, 0, bytes(512), block_size=512)
    assert host.identify_namespace(1).nsattr == Nsattr.CWP
    assert host.identify_namespace(2).nsattr == 0


def test_protection_can_be_taken_away(host: NvmeHost) -> None:
    queue = host.create_queue_pair()
    host.set_features(FID, PROTECTED, nsid=ALL)
    cannot_write(queue, 1)
    cannot_write(queue, 2)
    host.set_features(FID, NONE, nsid=2)
    cannot_write(queue, 1)
    queue.write(2, 0, bytes(512), block_size=512)


def test_protection_outlives_resets_and_the_client(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.set_features(FID, PROTECTED, nsid=1)
        host.reset()
        cannot_write(host.create_queue_pair(), 1)
    with NvmeHost(served.path) as host:
        cannot_write(host.create_queue_pair(), 1)


def test_protection_until_the_power_cycle_is_not_taken_away_before(served: Served) -> None:
    with NvmeHost(served.path) as host:
        host.set_features(FID, UNTIL_POWER_CYCLE, nsid=1)
        for state in (NONE, PROTECTED):
            with refused(CommandStatus.FEATURE_NOT_CHANGEABLE):
                host.set_features(FID, state, nsid=1)
        with refused(CommandStatus.FEATURE_NOT_CHANGEABLE):
            host.set_features(FID, PROTECTED, nsid=ALL)
        assert host.get_features(FID, nsid=2) == NONE
        host.set_features(FID, UNTIL_POWER_CYCLE, nsid=1)
        host.reset()
        cannot_write(host.create_queue_pair(), 1)
    with NvmeHost(served.path) as host:
        assert host.get_features(FID, nsid=1) == NONE
        host.create_queue_pair().write(1, 0, bytes(512), block_size=512)


@pytest.mark.parametrize("value", [PERMANENT, 4, 7])
def test_other_states_are_an_invalid_field(host: NvmeHost, value: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(FID, value, nsid=1)
    assert error_log(host)[0].peloc == 44


def test_a_namespace_is_needed(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.set_features(FID, PROTECTED)
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(FID, PROTECTED, nsid=3)
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.get_features(FID, nsid=ALL)


def test_another_namespace_with_the_nsid_begins_unprotected(served: Served, host: NvmeHost) -> None:
    host.set_features(FID, PROTECTED, nsid=2)
    backend = served.run(served.controller.remove_namespace(2))
    served.call(served.controller.add_namespace, 2, backend)
    assert host.get_features(FID, nsid=2) == NONE
    host.create_queue_pair().write(2, 0, bytes(512), block_size=512)
