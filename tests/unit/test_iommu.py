"""Which of the kernel's two ways to a function behind VFIO is taken, and what is asked of it.

No kernel of Debian's has iommufd, so its requests are compared with what <linux/iommufd.h> and
<linux/vfio.h> say; where a kernel has it, tests/vm/test_hardware.py goes that way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from nvme_mdev.host.errors import AttachError
from nvme_mdev.host.iommu import Place, open_function

ADDRESS = "0000:44:00.0"
IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP = 0x3B81, 0x3B85, 0x3B86
BIND, ATTACH = 0x3B76, 0x3B77
GET_API_VERSION, GROUP_GET_STATUS = 0x3B64, 0x3B67
GET_DEVICE_FD = 0x3B6A
MAP_DMA, UNMAP_DMA = 0x3B71, 0x3B72


def file_of(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name


class Kernel:
    """Answers the requests, and remembers them: the file's name, the number, the bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, int, bytes]] = []
        self.refuses: dict[int, int] = {}
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, argument: object = 0) -> int:
        data = b"" if isinstance(argument, int) else bytes(argument)  # type: ignore[call-overload]
        self.asked.append((file_of(fd), request, data))
        if request in self.refuses:
            raise OSError(self.refuses[request], "as the test says")
        if request == IOAS_ALLOC:
            assert isinstance(argument, bytearray)
            argument[8:12] = struct.pack("@I", 5)
        if request == GROUP_GET_STATUS:
            assert isinstance(argument, bytearray)
            argument[4:8] = struct.pack("@I", 1)
        if request == GET_DEVICE_FD:
            return os.open(os.devnull, os.O_RDWR)
        return request == 0x3B65  # the extension is there

    def sent(self, request: int) -> list[tuple[str, bytes]]:
        return [(name, data) for name, number, data in self.asked if number == request]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A function whose kernel has both ways."""
    sysfs, dev = tmp_path / "sys", tmp_path / "dev"
    (sysfs / "bus/pci/devices" / ADDRESS / "vfio-dev/vfio3").mkdir(parents=True)
    for neighbour in (ADDRESS, "0000:44:00.1"):
        (sysfs / "kernel/iommu_groups/7/devices" / neighbour).mkdir(parents=True)
    (dev / "vfio/devices").mkdir(parents=True)
    for name in ("iommu", "vfio/vfio", "vfio/7", "vfio/devices/vfio3"):
        (dev / name).touch()
    return Place("drive", ADDRESS, "7", sysfs, dev)


def open_files() -> list[str]:
    return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists())


def test_a_function_is_attached_to_an_address_space_of_its_own(
    kernel: Kernel, place: Place
) -> None:
    before = open_files()
    function = open_function(place)
    assert [(name, number) for name, number, _ in kernel.asked] == [
        ("vfio3", BIND),
        ("iommu", IOAS_ALLOC),
        ("vfio3", ATTACH),
    ]
    argsz, flags, iommufd, _ = struct.unpack("@IIiI", kernel.sent(BIND)[0][1])
    assert (argsz, flags) == (16, 0)
    assert file_of(iommufd) == "iommu"
    assert kernel.sent(ATTACH) == [("vfio3", struct.pack("@III", 12, 0, 5))]
    assert file_of(function.fd) == "vfio3"
    function.close()
    assert open_files() == before


@pytest.mark.parametrize(("writable", "flags"), [(True, 0b111), (False, 0b101)])
def test_memory_is_mapped_at_its_iova_and_taken_away(
    kernel: Kernel, place: Place, writable: bool, flags: int
) -> None:
    function = open_function(place)
    function.map(0x7000, 0x10000, 8192, writable=writable)
    function.unmap(0x10000, 8192)
    mapping = struct.pack("@IIIIQQQ", 40, flags, 5, 0, 0x7000, 8192, 0x10000)
    assert kernel.sent(IOAS_MAP) == [("iommu", mapping)]
    assert kernel.sent(IOAS_UNMAP) == [("iommu", struct.pack("@IIQQ", 24, 5, 0x10000, 8192))]
    function.close()


def test_to_unmap_what_is_not_mapped_is_no_error_but_others_are(
    kernel: Kernel, place: Place
) -> None:
    """As with a type 1 container."""
    function = open_function(place)
    kernel.refuses[IOAS_UNMAP] = errno.ENOENT
    function.unmap(0, 4096)
    kernel.refuses[IOAS_UNMAP] = errno.EBUSY
    with pytest.raises(OSError, match="as the test says"):
        function.unmap(0, 4096)
    function.close()


@pytest.mark.parametrize("missing", ["iommu", "vfio/devices/vfio3"])
def test_a_kernel_without_iommufd_has_a_container(
    kernel: Kernel, place: Place, missing: str
) -> None:
    (place.dev / missing).unlink()
    before = open_files()
    function = open_function(place)
    function.map(0x7000, 0x10000, 8192, writable=False)
    function.unmap(0x10000, 8192)
    assert kernel.sent(MAP_DMA) == [("vfio", struct.pack("@IIQQQ", 32, 1, 0x7000, 0x10000, 8192))]
    assert kernel.sent(UNMAP_DMA) == [("vfio", struct.pack("@IIQQ", 24, 0, 0x10000, 8192))]
    assert not kernel.sent(BIND)
    function.close()
    assert open_files() == before


@pytest.mark.parametrize(
    ("missing", "what"),
    [("iommu", "there is no .*/dev/iommu"), ("vfio/devices/vfio3", "there is no .*/vfio3")],
)
def test_a_kernel_that_has_only_iommufd_is_told_what_is_missing(
    kernel: Kernel, place: Place, missing: str, what: str
) -> None:
    (place.dev / missing).unlink()
    (place.dev / "vfio/7").unlink()
    with pytest.raises(AttachError, match=f"^drive: {what}"):
        open_function(place)
    assert not kernel.asked


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.EBUSY, "another program holds it (.*/vfio3): stop that one first"),
        (errno.EINVAL, "another program holds it"),
        (errno.EPERM, r"group 7 is not viable: .* \(0000:44:00.0, 0000:44:00.1\)"),
    ],
)
def test_a_function_that_cannot_be_had_says_why_and_leaves_no_file_open(
    kernel: Kernel, place: Place, number: int, what: str
) -> None:
    before = open_files()
    kernel.refuses[BIND] = number
    with pytest.raises(AttachError, match=what.replace(" (.*/vfio3)", r" \(.*/vfio3\)")):
        open_function(place)
    assert open_files() == before


@pytest.mark.parametrize("request_number", [BIND, IOAS_ALLOC, ATTACH])
def test_another_error_of_the_kernel_leaves_no_file_open(
    kernel: Kernel, place: Place, request_number: int
) -> None:
    before = open_files()
    kernel.refuses[request_number] = errno.ENOMEM
    with pytest.raises(OSError, match="as the test says"):
        open_function(place)
    assert open_files() == before
