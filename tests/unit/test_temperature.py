"""A medium's sensor in sysfs: of disks, partitions, volumes, NVMe with and without multipath."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.temperature import temperature

if TYPE_CHECKING:
    from pathlib import Path


class Sysfs:
    """A sysfs in which a file of ours lies on some device."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "sys"
        self.file = tmp_path / "image"
        self.file.write_bytes(b"")
        device = self.file.stat().st_dev
        self.number = f"{os.major(device)}:{os.minor(device)}"

    def disk(self, name: str) -> Path:
        path = self.root / "devices" / name
        path.mkdir(parents=True)
        return path

    def lies_on(self, device: Path) -> None:
        link = self.root / "dev/block" / self.number
        link.parent.mkdir(parents=True)
        link.symlink_to(device)

    def sensor(self, directory: Path, text: str) -> None:
        directory.mkdir(parents=True)
        (directory / "temp1_input").write_text(text)

    def temperature(self) -> int | None:
        return temperature(str(self.file), self.root)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


@pytest.mark.parametrize("where", ["device/hwmon1", "device/hwmon/hwmon2", "device/nvme0/hwmon3"])
def test_a_disk_has_a_sensor(sysfs: Sysfs, where: str) -> None:
    disk = sysfs.disk("sda")
    sysfs.lies_on(disk)
    sysfs.sensor(disk / where, "41850\n")
    assert sysfs.temperature() == 315


def test_a_partition_has_its_disks(sysfs: Sysfs) -> None:
    disk = sysfs.disk("sda")
    partition = sysfs.disk("sda/sda1")
    (partition / "partition").write_text("1")
    sysfs.lies_on(partition)
    sysfs.sensor(disk / "device/hwmon0", "20000")
    assert sysfs.temperature() == 293


def test_a_volume_is_as_warm_as_the_warmest_of_its_disks(sysfs: Sysfs) -> None:
    volume = sysfs.disk("dm-0")
    (volume / "slaves").mkdir()
    for name, text in (("sda", "30000"), ("sdb", "50000"), ("sdc", "40000")):
        sysfs.sensor(sysfs.disk(name) / "device/hwmon0", text)
        (volume / "slaves" / name).symlink_to(sysfs.root / "devices" / name)
    sysfs.lies_on(volume)
    assert sysfs.temperature() == 323


@pytest.mark.parametrize("text", ["", "warm"])
def test_a_sensor_that_tells_nothing_is_none(sysfs: Sysfs, text: str) -> None:
    disk = sysfs.disk("sda")
    sysfs.lies_on(disk)
    sysfs.sensor(disk / "device/hwmon0", text)
    assert sysfs.temperature() is None


def test_without_a_sensor_or_a_device_there_is_none(sysfs: Sysfs) -> None:
    assert sysfs.temperature() is None
    sysfs.lies_on(sysfs.disk("sda"))
    assert sysfs.temperature() is None
    sysfs.file.unlink()
    assert sysfs.temperature() is None


def test_a_volume_of_itself_ends(sysfs: Sysfs) -> None:
    volume = sysfs.disk("dm-0")
    (volume / "slaves").mkdir()
    (volume / "slaves/dm-0").symlink_to(volume)
    sysfs.lies_on(volume)
    assert sysfs.temperature() is None
