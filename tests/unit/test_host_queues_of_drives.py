"""Host queues of the kernel's drives, in a made-up sysfs: how many there are, and who has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends import host_queues
from nvme_mdev.datapath.backends.host_queues import (
    controller_of,
    give_queue,
    polled_queues,
    take_queue,
    taken_queues,
)
from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """nvme0 with 5 queues in all, whose disk is nvme0n1; nvme1n1 is a multipath disk of nvme2."""
    controllers = tmp_path / "devices/nvme"
    for name in ("nvme0", "nvme2"):
        (controllers / name).mkdir(parents=True)
        (controllers / name / "queue_count").write_text("5\n")
    subsystem = tmp_path / "devices/nvme-subsys1"
    (subsystem / "nvme1n1").mkdir(parents=True)
    (subsystem / "nvme2").symlink_to(controllers / "nvme2")
    (tmp_path / "class").mkdir()
    (tmp_path / "class/nvme").symlink_to(controllers)
    for disk, device in (("nvme0n1", controllers / "nvme0"), ("nvme1n1", subsystem)):
        (tmp_path / "block" / disk).mkdir(parents=True)
        (tmp_path / "block" / disk / "device").symlink_to(device)
    (tmp_path / "module/nvme/parameters").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """Files in the place of device nodes: locks are the same on both."""
    (tmp_path / "nvme0").touch()
    (tmp_path / "nvme1").touch()
    return tmp_path


def test_a_disk_belongs_to_its_controller_and_a_multipath_disk_to_one_of_several(
    sysfs: Path,
) -> None:
    assert controller_of("nvme0n1", sysfs) == "nvme0"
    assert controller_of("nvme1n1", sysfs) == "nvme2"
    assert controller_of("sda", sysfs) is None


@pytest.mark.parametrize(
    ("poll_queues", "polled"), [("0\n", 0), ("2\n", 2), ("3\n", 3), ("4\n", 3), ("junk", 0)]
)
def test_as_many_queues_are_polled_as_the_driver_was_told_and_the_drive_has(
    sysfs: Path, poll_queues: str, polled: int
) -> None:
    """Besides the admin queue and one that is not polled."""
    (sysfs / "module/nvme/parameters/poll_queues").write_text(poll_queues)
    assert polled_queues("nvme0", sysfs) == polled


def test_each_owner_takes_a_queue_of_each_drive_until_its_last_use(dev: Path) -> None:
    first, second = object(), object()
    take_queue("nvme0", first, 2, dev)
    take_queue("nvme0", first, 2, dev)
    take_queue("nvme1", first, 2, dev)
    assert (taken_queues("nvme0", 2, dev), taken_queues("nvme1", 2, dev)) == (1, 1)
    take_queue("nvme0", second, 2, dev)
    assert taken_queues("nvme0", 2, dev) == 2
    give_queue("nvme0", first)
    assert taken_queues("nvme0", 2, dev) == 2
    give_queue("nvme0", first)
    assert taken_queues("nvme0", 2, dev) == 1
    give_queue("nvme0", second)
    give_queue("nvme1", first)
    assert (taken_queues("nvme0", 2, dev), taken_queues("nvme1", 2, dev)) == (0, 0)


def test_whoever_comes_when_none_is_left_is_told_what_to_do(dev: Path) -> None:
    first, second = object(), object()
    take_queue("nvme0", first, 1, dev)
    with pytest.raises(UserError, match=r"no queue of .*nvme0 is left: all 1 .*poll_queues"):
        take_queue("nvme0", second, 1, dev)
    give_queue("nvme0", first)
    take_queue("nvme0", second, 1, dev)
    give_queue("nvme0", second)


def test_a_user_who_may_not_open_the_controller_is_not_counted(tmp_path: Path) -> None:
    owner = object()
    take_queue("nvme7", owner, 1, tmp_path)
    give_queue("nvme7", owner)
    assert not host_queues._claims
