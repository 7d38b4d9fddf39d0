"""Set and Get Features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_features import (
    Fid,
    NumberOfQueues,
    Select,
    TemperatureThreshold,
)
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

from .statuses import error_log, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.controller.conftest import Served

ALL = 0xFFFF_FFFF

SIMPLE = [
    (Fid.ARBITRATION, 0x0302_0105, 0x0302_0105),
    (Fid.ARBITRATION, 0xFFFF_FFFF, 0xFFFF_FF07),
    (Fid.POWER_MANAGEMENT, 0x20, 0x20),
    (Fid.TEMPERATURE_THRESHOLD, 400, 400),
    (Fid.INTERRUPT_COALESCING, 0x1_0A0B, 0x0A0B),
    (Fid.WRITE_ATOMICITY, 1, 1),
    (Fid.ASYNC_EVENT_CONFIGURATION, 0xFFFF_FFFF, 0x11F),
    (Fid.KEEP_ALIVE_TIMER, 60_001, 60_100),
    (Fid.KEEP_ALIVE_TIMER, 0xFFFF_FFFF, 0xFFFF_FFFF),
    (Fid.SOFTWARE_PROGRESS_MARKER, 0x1FE, 0xFE),
]
SAVEABLE = [
    (Fid.ARBITRATION, 0x0302_0105),
    (Fid.POWER_MANAGEMENT, 0x20),
    (Fid.TEMPERATURE_THRESHOLD, 400),
    (Fid.INTERRUPT_COALESCING, 0x0A0B),
    (Fid.WRITE_ATOMICITY, 1),
    (Fid.SOFTWARE_PROGRESS_MARKER, 3),
]


@pytest.mark.parametrize(("fid", "value", "kept"), SIMPLE)
def test_a_value_is_kept(host: NvmeHost, fid: Fid, value: int, kept: int) -> None:
    default = host.get_features(fid)
    host.set_features(fid, value)
    assert host.get_features(fid) == kept
    assert host.get_features(fid, select=Select.DEFAULT) == default
    assert host.get_features(fid, select=Select.SAVED) == default


@pytest.mark.parametrize(
    "fid",
    [
        Fid.NUMBER_OF_QUEUES,
        Fid.ASYNC_EVENT_CONFIGURATION,
        Fid.KEEP_ALIVE_TIMER,
        Fid.TIMESTAMP,
        Fid.HOST_IDENTIFIER,
        Fid.HOST_BEHAVIOR_SUPPORT,
    ],
)
def test_what_belongs_to_one_host_is_not_saveable(host: NvmeHost, fid: Fid) -> None:
    assert host.get_features(fid, select=Select.SUPPORTED_CAPABILITIES) == 0b100
    with refused(CommandStatus.FEATURE_NOT_SAVEABLE):
        host.set_features(fid, 0, save=True)


@pytest.mark.parametrize(("fid", "value"), SAVEABLE)
def test_a_value_that_is_saved_outlives_resets_and_the_client(
    served: Served, fid: Fid, value: int
) -> None:
    with NvmeHost(served.path) as host:
        assert host.get_features(fid, select=Select.SUPPORTED_CAPABILITIES) == 0b101
        default = host.get_features(fid)
        host.set_features(fid, value, save=True)
        assert host.get_features(fid, select=Select.SAVED) == value
        assert host.get_features(fid, select=Select.DEFAULT) == default
        host.set_features(fid, default)
        assert host.get_features(fid) == default
        host.reset()
        assert host.get_features(fid) == value
    with NvmeHost(served.path) as host:
        assert host.get_features(fid) == value


def test_a_value_that_is_refused_is_not_saved(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(Fid.POWER_MANAGEMENT, 1, save=True)
    assert host.get_features(Fid.POWER_MANAGEMENT, select=Select.SAVED) == 0


@pytest.mark.parametrize("select", [4, 5, 6, 7])
def test_other_selections_are_an_invalid_field(host: NvmeHost, select: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.get_features(Fid.ARBITRATION, select=select)


@pytest.mark.parametrize(
    "fid", [0x00, 0x03, 0x06, 0x0C, 0x0D, 0x10, 0x12, 0x13, 0x18, 0x1A, 0xC0, 0xFF]
)
def test_features_that_are_not_there_are_an_invalid_field(host: NvmeHost, fid: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.get_features(fid)
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(fid, 0)
    assert error_log(host)[0].peloc == 40


def test_a_feature_of_the_controller_is_not_set_for_a_namespace(host: NvmeHost) -> None:
    with refused(CommandStatus.FEATURE_NOT_NAMESPACE_SPECIFIC):
        host.set_features(Fid.ARBITRATION, 0, nsid=1)
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.set_features(Fid.ARBITRATION, 0, nsid=257)
    host.set_features(Fid.ARBITRATION, 0, nsid=ALL)


def test_there_is_one_power_state(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(Fid.POWER_MANAGEMENT, 1)


def test_there_are_an_over_and_an_under_threshold(host: NvmeHost) -> None:
    under = TemperatureThreshold(tmpth=250, thsel=1).pack()
    over = TemperatureThreshold(tmpth=360).pack()
    host.set_features(Fid.TEMPERATURE_THRESHOLD, under)
    host.set_features(Fid.TEMPERATURE_THRESHOLD, over)
    assert host.get_features(Fid.TEMPERATURE_THRESHOLD, value=1 << 20) == 250
    assert host.get_features(Fid.TEMPERATURE_THRESHOLD) == 360


@pytest.mark.parametrize("value", [1 << 16, 8 << 16, 2 << 20])
def test_a_sensor_that_is_not_there_has_no_threshold(host: NvmeHost, value: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(Fid.TEMPERATURE_THRESHOLD, value | 300)
    with refused(GenericStatus.INVALID_FIELD):
        host.get_features(Fid.TEMPERATURE_THRESHOLD, value=value)


def test_error_recovery_is_kept_per_namespace(host: NvmeHost) -> None:
    host.set_features(Fid.ERROR_RECOVERY, 77, nsid=1)
    assert host.get_features(Fid.ERROR_RECOVERY, nsid=1) == 77
    host.set_features(Fid.ERROR_RECOVERY, 5, nsid=ALL)
    assert host.get_features(Fid.ERROR_RECOVERY, nsid=1) == 5
    assert (
        host.get_features(Fid.ERROR_RECOVERY, nsid=1, select=Select.SUPPORTED_CAPABILITIES) == 0b110
    )


def test_error_recovery_needs_a_namespace(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_NAMESPACE_OR_FORMAT):
        host.set_features(Fid.ERROR_RECOVERY, 0)
    with refused(GenericStatus.INVALID_FIELD):
        host.get_features(Fid.ERROR_RECOVERY, nsid=2)
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(Fid.ERROR_RECOVERY, 1 << 16, nsid=1)


def test_every_queue_is_given_whatever_is_asked_for(host: NvmeHost) -> None:
    assert host.request_queues(1) == (63, 63)
    assert host.get_features(Fid.NUMBER_OF_QUEUES) == NumberOfQueues(62, 62).pack()


@pytest.mark.parametrize("value", [0xFFFF, 0xFFFF_0000])
def test_65536_queues_are_an_invalid_field(host: NvmeHost, value: int) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(Fid.NUMBER_OF_QUEUES, value)


def test_the_number_of_queues_is_set_before_they_are_made(host: NvmeHost) -> None:
    host.create_queue_pair()
    with refused(GenericStatus.COMMAND_SEQUENCE_ERROR):
        host.request_queues(2)


def test_each_vector_has_its_configuration(host: NvmeHost) -> None:
    host.set_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, 1 << 16 | 5)
    fid = Fid.INTERRUPT_VECTOR_CONFIGURATION
    assert host.get_features(fid, value=5) == 1 << 16 | 5
    assert host.get_features(fid, value=6) == 6


def test_a_vector_that_is_not_there_is_an_invalid_field(host: NvmeHost) -> None:
    with refused(GenericStatus.INVALID_FIELD):
        host.set_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, 65)
    with refused(GenericStatus.INVALID_FIELD):
        host.get_features(Fid.INTERRUPT_VECTOR_CONFIGURATION, value=65)


def test_a_volatile_cache_can_be_switched_off(serve: Callable[..., Served], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with NvmeHost(serve(UringBackend(str(image))).path) as host:
        assert host.get_features(Fid.VOLATILE_WRITE_CACHE) == 1
        host.set_features(Fid.VOLATILE_WRITE_CACHE, 0)
        assert host.get_features(Fid.VOLATILE_WRITE_CACHE) == 0
        assert host.get_features(Fid.VOLATILE_WRITE_CACHE, select=Select.DEFAULT) == 1
