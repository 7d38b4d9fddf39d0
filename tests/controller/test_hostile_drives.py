"""A controller below, or one that a tool attaches to, that lies: the harm is its own namespaces'.

It is a controller of ours, of which the test changes what it says.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.datapath.shared_mapping import SharedMapping
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import AttachError
from nvme_mdev.host.parent import Parent
from nvme_mdev.host.transport import MOST_DOORBELLS, Transport
from nvme_mdev.spec.vfio_user import PciRegion
from nvme_mdev.vfio_user.device import RegionInfo, SparseArea

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.controller.conftest import Served

PATIENCE = 15
DATA = bytes(range(256)) * 16


@pytest.fixture
def parent(served: Served) -> Iterator[Parent]:
    """A daemon's hold on the controller ``served``; a test may have closed it."""
    parent = Parent(str(served.path), patience_s=0.5)
    yield parent
    parent.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- its doorbells ---------------------------------------------------------------------------------


def say_of_bar0(served: Served, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    device = served.assembly.device
    told = device.region_info

    def region_info(index: int) -> RegionInfo:
        info = told(index)
        return replace(info, **changes) if index == PciRegion.BAR0 else info

    monkeypatch.setattr(device, "region_info", region_info)


@pytest.mark.parametrize(
    "lie",
    [
        {"fd_offset": (1 << 64) - 4096},
        {"fd_offset": (1 << 63) - 4096},
        {"fd_offset": 8},
        {"areas": (SparseArea(0, (1 << 64) - 1),), "fd_offset": (1 << 63) - 8192},
    ],
)
def test_doorbells_that_no_file_has_cannot_be_mapped(
    served: Served, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]
) -> None:
    say_of_bar0(served, monkeypatch, **lie)
    before = open_files()
    with pytest.raises(AttachError, match="the doorbells cannot be mapped: Invalid argument"):
        NvmeHost(served.path)
    until(lambda: open_files() == before)


def test_no_more_is_mapped_than_doorbells_can_be(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_of_bar0(served, monkeypatch, size=1 << 60, areas=())
    transport = Transport(served.path)
    try:
        mapping, start = transport.map_doorbells()
        assert (len(mapping or b""), start) == (MOST_DOORBELLS, 0x1000)
    finally:
        transport.close()


def test_a_file_that_may_keep_us_waiting_is_not_mapped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.eventfd(0)
    say_of_bar0(served, monkeypatch, fd=fd)
    with pytest.raises(AttachError, match="its doorbells is a file of a mount that is not to be"):
        NvmeHost(served.path)
    os.close(fd)


def test_doorbells_that_are_cut_off_are_found_out_and_mapped_again(
    serve: Callable[..., Served], parent: Parent
) -> None:
    above = serve(parent.open("part", 1))
    with NvmeHost(above.path) as host:
        queue = host.create_queue_pair()
        queue.write(1, 0, DATA)
        first = parent.host
        fd = os.memfd_create("doorbells")
        os.ftruncate(fd, 4096)
        cut = SharedMapping(fd, 4096, 0)
        os.ftruncate(fd, 0)
        os.close(fd)
        memoryview(cut)[0] = 1
        first._doorbells = cut
        until(lambda: parent._host not in {None, first})
        assert queue.read(1, 0, 8) == DATA


# -- coming and going ------------------------------------------------------------------------------


def test_a_drive_that_comes_and_goes_leaves_nothing_behind(
    serve: Callable[..., Served],
    served: Served,
    parent: Parent,
    caplog: pytest.LogCaptureFixture,
) -> None:
    above = serve(parent.open("part", 1))
    with NvmeHost(above.path) as host:
        queue = host.create_queue_pair()
        queue.write(1, 0, DATA)
        before = open_files()
        for _ in range(3):
            first = parent.host
            served.run(served.server.close())
            served.run(served.server.start())
            until(lambda first=first: parent._host not in {None, first})
            assert queue.read(1, 0, 8) == DATA
        assert open_files() == before
    assert "Exception" not in caplog.text
