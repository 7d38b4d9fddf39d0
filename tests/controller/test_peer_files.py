"""Guest memory that the daemon maps must not be of a file that answers when the client likes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvme_mdev.vfio_user.device import DeviceError
from nvme_mdev.vfio_user.peer_files import check_memory

from .fuse import FuseFileSystem


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_in_fuse_is_refused_without_asking_it(tmp_path: Path) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("no FUSE")
    file_system = FuseFileSystem(tmp_path / "fuse")
    try:
        fd = os.open(file_system.mount_point / "memory", os.O_RDWR)
        asked = len(file_system.asked)
        assert asked > 0
        with pytest.raises(DeviceError, match="a file of fuse: use a memfd"):
            check_memory(fd)
        assert len(file_system.asked) == asked
        os.fstat(fd)
        assert len(file_system.asked) > asked  # that is what would wait
        os.close(fd)
    finally:
        file_system.close()


def test_memfds_and_files_of_other_file_systems_are_taken(tmp_path: Path) -> None:
    memfd = os.memfd_create("ram")
    file = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
    device = os.open("/dev/null", os.O_RDWR)
    for fd in (memfd, file, device):
        check_memory(fd)
        os.close(fd)


def test_a_file_whose_mount_is_not_to_be_seen_is_refused() -> None:
    """As one of another mount namespace, which anyone can have a FUSE mounted in."""
    fd = os.eventfd(0)
    with pytest.raises(DeviceError, match="not to be seen"):
        check_memory(fd)
    os.close(fd)
