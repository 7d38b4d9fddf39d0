"""Parents in a made-up sysfs: which block device a namespace or partition of a controller is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service.parents import Part


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """nvme0 at 0000:44:00.0: NSID 1 is nvme0n1 with partitions 1 and 3, NSID 5 is nvme0n2, seen
    through multipathing. 0000:45:00.0 is bound to vfio-pci."""
    controller = tmp_path / "devices/pci0000:00/0000:44:00.0/nvme/nvme0"
    for name, nsid in (("nvme0n1", 1), ("nvme0c0n2", 5)):
        (controller / name).mkdir(parents=True)
        (controller / name / "nsid").write_text(f"{nsid}\n")
    (controller / "ng0n1").mkdir()
    block = tmp_path / "class/block"
    for name in ("nvme0n1/nvme0n1p1", "nvme0n1/nvme0n1p3", "nvme0n2", "nvme0n1p1", "nvme0n1p3"):
        (block / name).mkdir(parents=True)
        (block / name / "partition").write_text("")
    (tmp_path / "class/nvme").mkdir()
    (tmp_path / "class/nvme/nvme0").symlink_to(controller)
    devices = tmp_path / "bus/pci/devices"
    devices.mkdir(parents=True)
    (devices / "0000:44:00.0").symlink_to(controller.parent.parent)
    (devices / "0000:45:00.0").mkdir()
    (tmp_path / "bus/pci/drivers/vfio-pci").mkdir(parents=True)
    (devices / "0000:45:00.0/driver").symlink_to(tmp_path / "bus/pci/drivers/vfio-pci")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/nvme0/n1", "/dev/nvme0n1"),
        ("/dev/nvme0/n1p3", "/dev/nvme0n1p3"),
        ("0000:44:00.0/n1p1", "/dev/nvme0n1p1"),
        ("/dev/nvme0/n5", "/dev/nvme0n2"),
    ],
)
def test_a_part_is_found_by_its_nsid(sysfs: Path, text: str, device: str) -> None:
    part = Part.parse(text)
    assert part is not None
    assert part.block_device(sysfs) == Path(device)


@pytest.mark.parametrize(
    "text",
    [
        "/dev/nvme0",
        "/dev/nvme0n1",
        "/dev/nvme0/p1",
        "/dev/nvme0/n0",
        "nvme0/n1",
        "44:00.0/n1",
        "n1",
    ],
)
def test_what_is_no_part_of_a_parent(text: str) -> None:
    assert Part.parse(text) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("/dev/nvme7/n1", "no such NVMe controller"),
        ("0000:46:00.0/n1", "no such PCI function"),
        ("0000:45:00.0/n1", "its driver is vfio-pci"),
        ("/dev/nvme0/n2", "has no namespace n2: there are n1, n5"),
        ("/dev/nvme0/n1p2", "has no partition p2: there are p1, p3"),
        ("/dev/nvme0/n5p1", "has no partition p1: there are none"),
    ],
)
def test_a_part_that_is_not_there(sysfs: Path, text: str, what: str) -> None:
    part = Part.parse(text)
    assert part is not None
    with pytest.raises(UserError, match=re.escape(what)):
        part.block_device(sysfs)
