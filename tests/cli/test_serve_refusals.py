"""What `serve` refuses: one line that says what and what to do, exit status 2, nothing left."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.controller.places import PLACES
from nvme_mdev.controller.settings import DEFAULT_MAX_NSID
from nvme_mdev.datapath.state import MAX_IO_QUEUES
from nvme_mdev.service import definition
from nvme_mdev.spec.nvme_commands import MAX_NSID

if TYPE_CHECKING:
    from tests.cli.conftest import RunCommand, Serve

MIB = 1 << 20
#: "Demo and sample use" in the kernel's list of device numbers: never a driver behind it.
UNUSED_MAJOR = 42
Refuse = Callable[..., str]


@pytest.fixture
def refuse(nvme_mdev: RunCommand) -> Refuse:
    """Run `serve` in the working directory, check that it is refused properly; its line."""

    def check(*arguments: str | Path) -> str:
        before = sorted(Path().iterdir())
        if "--socket" not in arguments:
            arguments = (*arguments, "--socket", "s")
        result = nvme_mdev("serve", *arguments)
        assert result.status == 2, result
        assert result.out == ""
        assert result.err.count("\n") == 1, result.err
        assert result.err.startswith("nvme-mdev: ")
        assert sorted(Path().iterdir()) == before, "something was left behind"
        return result.err

    return check


@pytest.fixture
def image(here: Path) -> Path:
    """An image of 1 MiB."""
    path = here / "vm1.img"
    path.touch()
    os.truncate(path, MIB)
    return path


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["", "x", "-1G", "1Z", "1e3"])
@pytest.mark.parametrize("kind", ["null", "memory"])
def test_a_size_that_is_none(here: Path, refuse: Refuse, kind: str, size: str) -> None:
    line = refuse(f"{kind}:{size}")
    assert f"{kind}:{size}: " in line
    assert "is not a size" in line


@pytest.mark.parametrize("size", ["0", "8E"])
def test_a_size_out_of_range(here: Path, refuse: Refuse, size: str) -> None:
    assert "out of range" in refuse(f"null:{size}")
    assert "out of range" in refuse("new.img", "--size", size)


def test_a_size_option_that_is_none(here: Path, refuse: Refuse) -> None:
    line = refuse("new.img", "--size", "big")
    assert "--size" in line
    assert "'big' is not a size" in line


def test_a_size_that_is_no_multiple_of_the_block_size(here: Path, refuse: Refuse) -> None:
    assert "multiple of 512 bytes" in refuse("null:1000")
    assert "multiple of 4096 bytes" in refuse("memory:1536", "--block-size", "4096")
    assert "multiple of the block size, 512" in refuse("new.img", "--size", "1000")
    assert "multiple of the block size, 4096" in refuse(
        "new.img", "--size", "512", "--block-size", "4096"
    )


def test_more_memory_than_there_is(here: Path, refuse: Refuse) -> None:
    assert "not that much memory: give a smaller size" in refuse("memory:4P")


def test_an_image_larger_than_its_file_system_allows(here: Path, refuse: Refuse) -> None:
    line = refuse("new.img", "--size", "7E")
    assert "new.img" in line
    assert "smaller --size" in line


def test_a_size_without_an_image(here: Path, refuse: Refuse) -> None:
    assert "--size makes image files, and null:1M is none" in refuse("null:1M", "--size", "1M")


# -- images ------------------------------------------------------------------------------------


def test_an_image_that_is_not_there(here: Path, refuse: Refuse) -> None:
    assert "new.img does not exist: give --size to create it" in refuse("new.img")


def test_an_image_that_is_not_there_and_must_not_be_written(here: Path, refuse: Refuse) -> None:
    assert "--read-only cannot create it" in refuse("new.img", "--size", "1M", "--read-only")


def test_an_image_in_a_directory_that_is_not_there(here: Path, refuse: Refuse) -> None:
    assert "no does not exist: create that directory" in refuse("no/new.img", "--size", "1M")


def test_a_path_through_a_file(image: Path, refuse: Refuse) -> None:
    assert "not a directory" in refuse("vm1.img/vm2.img").lower()


def test_an_image_with_another_size_is_not_changed(image: Path, refuse: Refuse) -> None:
    line = refuse(image, "--size", "2M")
    assert f"exists with {MIB} bytes, not {2 * MIB}: leave --size out" in line
    assert image.stat().st_size == MIB


@pytest.mark.parametrize(("size", "block_size"), [(0, "512"), (511, "512"), (4095, "4096")])
def test_an_image_smaller_than_a_block(
    image: Path, refuse: Refuse, size: int, block_size: str
) -> None:
    os.truncate(image, size)
    line = refuse(image, "--block-size", block_size)
    assert f"too small: {size} bytes are less than one block of {block_size}" in line


def test_a_directory(here: Path, refuse: Refuse) -> None:
    assert "is a directory: give an image file or a block device" in refuse(here)


def test_a_character_device(here: Path, refuse: Refuse) -> None:
    assert "/dev/null is a character device" in refuse("/dev/null")


def test_a_pipe(here: Path, refuse: Refuse) -> None:
    os.mkfifo("pipe")
    assert "pipe is neither a file nor a block device" in refuse("pipe")


def test_an_empty_target(here: Path, refuse: Refuse) -> None:
    assert "target is empty" in refuse("")


def test_a_path_with_a_nul(here: Path, refuse: Refuse) -> None:
    assert "null byte" in refuse("a\0b")


def test_the_same_file_twice(image: Path, refuse: Refuse) -> None:
    assert "vm1.img: the same file or device twice" in refuse("vm1.img", "vm1.img")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_same_file_under_two_names(
    image: Path, refuse: Refuse, link: Callable[[Path, str], None]
) -> None:
    link(image, "other.img")
    assert "vm1.img and other.img: the same file" in refuse("vm1.img", "other.img")


def test_a_new_image_named_twice_is_removed_again(here: Path, refuse: Refuse) -> None:
    assert "the same file" in refuse("new.img", "new.img", "--size", "1M")


def test_new_images_are_removed_again_when_a_later_target_is_refused(
    here: Path, refuse: Refuse
) -> None:
    refuse("a.img", "b.img", "/dev/null", "--size", "1M")


def test_a_file_that_is_not_writable(
    ordinary_user: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse
) -> None:
    monkeypatch.chdir(ordinary_user)
    image = Path("vm1.img")
    image.touch(mode=0o400)
    image.chmod(0o600)
    os.truncate(image, MIB)
    image.chmod(0o400)
    assert "vm1.img is not writable: change its mode, or serve it with --read-only" in refuse(image)


def test_a_file_that_is_not_readable(
    ordinary_user: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse
) -> None:
    monkeypatch.chdir(ordinary_user)
    image = Path("vm1.img")
    image.touch()
    os.truncate(image, MIB)
    image.chmod(0)
    line = refuse(image, "--read-only")
    assert "vm1.img: Permission denied: check its owner and mode" in line


def test_a_directory_that_is_not_writable(
    ordinary_user: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse
) -> None:
    monkeypatch.chdir(ordinary_user)
    Path("locked").mkdir(mode=0o500)
    line = refuse("locked/new.img", "--size", "1M")
    assert "cannot create locked/new.img: Permission denied" in line
    assert "locked/s: Permission denied" in refuse("null:1M", "--socket", "locked/s")


def test_an_image_that_another_daemon_serves(image: Path, refuse: Refuse, serve: Serve) -> None:
    serve(image, "--socket", "first")
    assert "vm1.img is in use, by a namespace here, by another nvme-mdev" in refuse(image)
    assert "vm1.img is in use" in refuse(image, "--read-only")


# -- parts of a file or device -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("offset=1M", "offset and length do not lie within"),
        ("offset=512K,length=1M", "offset and length do not lie within"),
        ("offset=1000", "offset must be a multiple of 512 bytes"),
        ("offset=512,block-size=4096", "offset must be a multiple of 4096 bytes"),
        ("length=1000", "length must be a multiple of 512 bytes"),
        ("offset=x", "is not a size"),
        ("block-size=1K", "use 512 or 4096"),
    ],
)
def test_a_part_that_cannot_be(image: Path, refuse: Refuse, options: str, what: str) -> None:
    assert what in refuse(f"{image},{options}")


def test_parts_that_overlap(image: Path, refuse: Refuse) -> None:
    line = refuse("vm1.img,length=512K", "./vm1.img,offset=256K")
    assert "vm1.img,length=512K and ./vm1.img,offset=256K overlap" in line


def test_an_option_with_a_slip_is_no_new_image(here: Path, refuse: Refuse) -> None:
    line = refuse("vm1.img,ofset=1M", "--size", "1M")
    assert "ofset is no option of a target" in line


def test_a_part_of_an_image_that_is_not_there(here: Path, refuse: Refuse) -> None:
    assert "--size makes whole image files" in refuse("vm1.img,offset=1M", "--size", "1M")


def test_a_part_of_a_parent_that_is_not_there(here: Path, refuse: Refuse) -> None:
    assert "no such NVMe controller" in refuse("/dev/nvme4242/n1p3")
    assert "no such PCI function" in refuse("ffff:ff:1f.7/n1")


# -- block devices -----------------------------------------------------------------------------


@pytest.fixture
def loop_device(image: Path) -> Iterator[Path]:
    """A loop device on the image."""
    losetup = shutil.which("losetup", path="/usr/sbin:/sbin")
    if losetup is None:
        pytest.skip("no losetup to be had")
    made = subprocess.run(
        [losetup, "--find", "--show", image], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run([losetup, "--detach", device], check=True)


def test_a_block_device_that_is_held(loop_device: Path, refuse: Refuse) -> None:
    holder = os.open(loop_device, os.O_RDWR | os.O_EXCL)
    try:
        assert f"{loop_device} is in use: unmount it" in refuse(loop_device)
    finally:
        os.close(holder)


def test_a_size_for_a_block_device(loop_device: Path, refuse: Refuse) -> None:
    assert "is a block device, its size is given" in refuse(loop_device, "--size", "1M")


def test_a_block_device_under_two_names(loop_device: Path, refuse: Refuse) -> None:
    Path("link").symlink_to(loop_device)
    assert "the same file or device twice" in refuse(loop_device, "link")


def test_a_device_node_without_a_device(here: Path, refuse: Refuse) -> None:
    try:
        os.mknod("dead", 0o60600, os.makedev(UNUSED_MAJOR, 0))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    assert "there is no device behind this node" in refuse("dead")


# -- sockets -----------------------------------------------------------------------------------


def test_a_socket_that_another_daemon_holds(here: Path, refuse: Refuse, serve: Serve) -> None:
    serve("null:1M", "--socket", "s")
    line = refuse("null:1M", "--socket", "s")
    assert "s is in use: somebody listens there" in line


def test_a_socket_in_a_directory_that_is_not_there(here: Path, refuse: Refuse) -> None:
    assert "no is not a directory: create it first" in refuse("null:1M", "--socket", "no/s")
    assert "no is not a directory: create it first" in refuse("null:1M", "--socket", "no/")


def test_a_socket_path_that_is_too_long(here: Path, refuse: Refuse) -> None:
    line = refuse("null:1M", "--socket", "s" * 108)
    assert "108 bytes are too long for a Unix socket (at most 107)" in line


def test_a_socket_path_that_is_a_file(image: Path, refuse: Refuse) -> None:
    assert "vm1.img exists and is no socket" in refuse("null:1M", "--socket", "vm1.img")


def test_no_socket(here: Path, nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("serve", "null:1M")
    assert result.status == 2
    assert "Missing option '--socket'" in result.err


def test_a_new_image_is_removed_again_when_the_socket_is_taken(here: Path, refuse: Refuse) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("s")
        other.listen()
        assert "in use" in refuse("new.img", "--size", "1M", "--socket", "s")


# -- settings ----------------------------------------------------------------------------------


def test_a_cpu_that_is_not_there(here: Path, refuse: Refuse) -> None:
    line = refuse("new.img", "--size", "1M", "--iothread-cpu", "8191")
    assert "--iothread-cpu 8191: there is no such CPU here" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--block-size", "1024"),
        ("--iothread-cpu", "-1"),
        ("--iothread-cpu", "99999999999"),
        ("--iothread-cpu", "one"),
        ("--poll-timeout-ms", "-1"),
        ("--poll-timeout-ms", "86400001"),
        ("--io-timeout-ms", "0"),
        ("--queues", "0"),
        ("--queues", str(MAX_IO_QUEUES + 1)),
    ],
)
def test_a_value_that_an_option_does_not_take(
    here: Path, refuse: Refuse, option: str, value: str
) -> None:
    line = refuse("null:1M", option, value)
    assert f"Invalid value for '{option}'" in line
    assert "(see nvme-mdev serve --help)" in line


@pytest.mark.parametrize("serial", ["", "x" * 21, " x", "x ", "a\nb", "\u00e4"])
def test_a_serial_that_the_specification_does_not_allow(
    here: Path, refuse: Refuse, serial: str
) -> None:
    assert "--serial" in refuse("null:1M", "--serial", serial)


def test_read_only_for_what_cannot_be_protected(here: Path, refuse: Refuse) -> None:
    assert "--read-only is for image files" in refuse("memory:1M", "--read-only")


def test_io_uring_that_the_kernel_refuses(
    here: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no io_uring")

    monkeypatch.setattr("nvme_mdev.service.assembly.Controller", refused)
    assert "io_uring is not to be had here" in refuse("new.img", "--size", "1M")


def test_more_namespaces_than_a_controller_has(here: Path, refuse: Refuse) -> None:
    assert "NSIDs end at 256: give --max-nsid 257" in refuse(*["null:1M"] * 257)
    assert "513 targets: give at most 512" in refuse(*["null:1M"] * 513)


@pytest.mark.parametrize("highest", ["0", "4294967295", "all"])
def test_a_highest_nsid_that_cannot_be(here: Path, refuse: Refuse, highest: str) -> None:
    assert "--max-nsid" in refuse("null:1M", "--max-nsid", highest)


def test_the_limits_are_those_of_the_layers_below() -> None:
    assert definition.MAX_QUEUES == MAX_IO_QUEUES
    assert definition.MAX_NAMESPACES == PLACES
    assert (definition.DEFAULT_MAX_NSID, definition.MAX_NSID) == (DEFAULT_MAX_NSID, MAX_NSID)
