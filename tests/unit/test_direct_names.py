"""Direct targets as they are written, and what a drive has to be for them, in a made-up sysfs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.kernel_drive import (
    NoCharacterDeviceError,
    character_device,
    check_blocks,
    locate,
    queue_limit,
    transfer_limit,
)
from nvme_mdev.errors import UserError
from nvme_mdev.host.errors import AttachError
from nvme_mdev.host.vfio import group_of
from nvme_mdev.service.direct import DirectName
from nvme_mdev.service.targets import Target

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "0000:44:00.0"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("direct:vfio-user:/run/d.sock", DirectName("vfio-user:", "/run/d.sock")),
        ("direct:vfio-user:/run/d.sock/n2", DirectName("vfio-user:", "/run/d.sock", 2)),
        ("direct:vfio-user:d/n2p13", DirectName("vfio-user:", "d", 2, 13)),
        ("direct:vfio:0000:44:00.0/n1p3", DirectName("vfio:", ADDRESS, 1, 3)),
        ("direct:/dev/nvme0n1p3", DirectName("", "/dev/nvme0n1p3")),
        ("direct:/dev/nvme0/n1p3", DirectName("", "/dev/nvme0/n1p3")),
        ("direct:0000:44:00.0/n1p3", DirectName("", "0000:44:00.0/n1p3")),
    ],
)
def test_a_direct_target_names_a_controller_and_a_part_of_it(text: str, name: DirectName) -> None:
    assert DirectName.parse(text) == name
    assert DirectName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["direct:", "direct:vfio:", "direct:vfio-user:"])
def test_a_direct_target_without_a_controller(text: str) -> None:
    with pytest.raises(UserError, match=r"write direct:/dev/nvme0n1p1, direct:vfio-user:SOCKET/n1"):
        Target.parse(text)


@pytest.mark.parametrize("prefix", ["", "direct:"])
@pytest.mark.parametrize("name", ["/dev/nvme0", ADDRESS])
def test_of_a_controller_a_namespace_has_to_be_named(prefix: str, name: str) -> None:
    what = f"{prefix}{name} is an NVMe controller: name a namespace of it ({prefix}{name}/n1)"
    with pytest.raises(UserError, match=re.escape(what)):
        Target.parse(f"{prefix}{name},read-only")
    assert Target.parse(f"./{name}").kind == "path"


@pytest.mark.parametrize("name", ["vfio:0000:00:1f.7", "vfio:0000:44:00.0/n1", "vfio-user:d/n2"])
def test_what_we_drive_ourselves_is_written_with_direct(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"write direct:{name}")):
        Target.parse(name)
    assert Target.parse(f"./{name}").kind == "path"


def test_the_absolute_form_of_direct_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, absolute in {
        "direct:vfio-user:d/n1p2,read-only": f"direct:vfio-user:{tmp_path}/d/n1p2,read-only",
        "direct:vfio:0000:44:00.0/n2": "direct:vfio:0000:44:00.0/n2",
        "direct:/dev/nvme0/n1p3,offset=1M": "direct:/dev/nvme0/n1p3,offset=1M",
        "direct:dev": f"direct:{tmp_path}/dev",
    }.items():
        assert Target.parse(text).absolute.text == absolute
        assert Target.parse(text).identity == absolute.partition(",")[0] + (
            "@1048576" if "offset" in absolute else ""
        )


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A drive on the kernel's driver, one on vfio-pci with a neighbour, one without an IOMMU."""
    block = tmp_path / "devices/nvme0/nvme0n1"
    (block / "nvme0n1p3").mkdir(parents=True)
    (block / "nvme0n1p3/partition").write_text("3\n")
    (block / "nvme0n1p3/start").write_text("2048\n")
    numbers = tmp_path / "dev/block"
    numbers.mkdir(parents=True)
    (numbers / "259:0").symlink_to(block)
    (numbers / "259:3").symlink_to(block / "nvme0n1p3")
    (tmp_path / "block/nvme0n1/queue").mkdir(parents=True)
    (tmp_path / "block/nvme0n1/queue/io_poll").write_text("1\n")
    for address, driver, group in (
        (ADDRESS, "vfio-pci", "7"),
        ("0000:45:00.0", "nvme", "8"),
        ("0000:46:00.0", None, "9"),
        ("0000:47:00.0", "vfio-pci", None),
    ):
        function = tmp_path / "bus/pci/devices" / address
        function.mkdir(parents=True)
        if driver:
            (tmp_path / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (function / "driver").symlink_to(tmp_path / "bus/pci/drivers" / driver)
        if group:
            (tmp_path / "kernel/iommu_groups" / group).mkdir(parents=True)
            (function / "iommu_group").symlink_to(tmp_path / "kernel/iommu_groups" / group)
    return tmp_path


def test_where_a_partition_begins_on_its_disk(sysfs: Path) -> None:
    assert locate(259, 0, sysfs) == ("nvme0n1", 0)
    assert locate(259, 3, sysfs) == ("nvme0n1", 1 << 20)
    assert queue_limit("nvme0n1", "io_poll", sysfs) == 1
    assert queue_limit("nvme0n1", "other", sysfs) == 0


@pytest.mark.parametrize(
    ("kilobytes", "segments", "limit"),
    [
        ("512", "127", 256 << 10),  # 126 pages, and one that two ends share
        ("128", "127", 128 << 10),
        ("8192", "129", 512 << 10),
        ("8192", "2", 0),
        ("8192", "", 0),
        ("", "127", 0),
    ],
)
def test_what_the_kernel_takes_in_one_command(
    tmp_path: Path, kilobytes: str, segments: str, limit: int
) -> None:
    queue = tmp_path / "block/nvme0n1/queue"
    queue.mkdir(parents=True)
    (queue / "max_hw_sectors_kb").write_text(f"{kilobytes}\n")
    (queue / "max_segments").write_text(f"{segments}\n")
    assert transfer_limit("nvme0n1", tmp_path) == limit


def test_a_drive_that_was_formatted_with_other_blocks_is_not_what_it_was(sysfs: Path) -> None:
    blocks = sysfs / "block/nvme0n1/queue/logical_block_size"
    blocks.write_text("512\n")
    check_blocks("nvme0n1", 512, sysfs)
    blocks.write_text("4096\n")
    with pytest.raises(OSError, match="formatted with other blocks"):
        check_blocks("nvme0n1", 512, sysfs)
    # A drive that has gone is found out by its size.
    blocks.unlink()
    check_blocks("nvme0n1", 512, sysfs)


def test_the_character_device_beside_a_disk(tmp_path: Path) -> None:
    (tmp_path / "ng0n1").touch()
    assert character_device("nvme0n1", "x", tmp_path) == tmp_path / "ng0n1"
    with pytest.raises(NoCharacterDeviceError, match="has no character device"):
        character_device("nvme0n2", "x", tmp_path)
    with pytest.raises(NoCharacterDeviceError, match="sda is no NVMe namespace"):
        character_device("sda", "x", tmp_path)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("44:00.0", "write a PCI address as lspci -D does"),
        ("0000:48:00.0", "there is no such PCI function"),
        ("0000:45:00.0", "its driver is nvme: bind it to vfio-pci"),
        ("0000:46:00.0", "it has no driver: bind it to vfio-pci"),
        ("0000:47:00.0", "it is behind no IOMMU"),
    ],
)
def test_a_function_that_is_not_ours_to_hold(sysfs: Path, address: str, what: str) -> None:
    with pytest.raises(AttachError, match=re.escape(what)):
        group_of(address, sysfs)


def test_the_group_of_a_function_that_is(sysfs: Path) -> None:
    assert group_of(ADDRESS, sysfs) == "7"
