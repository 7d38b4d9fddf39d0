"""What the host's block layer is told of a namespace that it is given (host/block_device.py)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host import block_device
from nvme_mdev.host.block_device import BlockDevice, parameters
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.ublk import Attribute, Params, ParamType

from .test_namespace_changes import PATIENCE, attach, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvme_mdev.datapath.backends.base import Backend
    from tests.controller.conftest import Served

MIB = 1 << 20


def told(serve: Callable[..., Served], backend: Backend, *, read_only: bool = False) -> Params:
    served = serve(backend)
    with NvmeHost(served.path) as host:
        return parameters(host, host.namespace(1), 128 << 10, read_only=read_only)


def test_sizes_are_in_sectors_whatever_the_blocks_are(serve: Callable[..., Served]) -> None:
    params = told(serve, MemoryBackend(4 * MIB, 4096))
    assert params.dev_sectors == 4 * MIB // 512
    assert params.max_sectors == 256
    assert (params.logical_bs_shift, params.physical_bs_shift) == (12, 12)
    assert params.types == ParamType.BASIC | ParamType.DISCARD
    assert params.discard_granularity == 4096
    assert params.max_discard_sectors % 8 == 0
    assert params.max_write_zeroes_sectors == MIB // 512


def test_a_volatile_cache_is_flushed_and_one_that_is_not_there_is_not(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    cached = told(serve, UringBackend(str(image)))
    assert cached.attrs == Attribute.VOLATILE_CACHE | Attribute.FUA
    assert told(serve, MemoryBackend(MIB, 512)).attrs == 0


def test_what_is_write_protected_or_wanted_so_is_a_read_only_disk(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    protected = told(serve, UringBackend(str(image), read_only=True))
    assert protected.attrs & Attribute.READ_ONLY
    assert told(serve, MemoryBackend(MIB, 512), read_only=True).attrs & Attribute.READ_ONLY


# -- a namespace that changes ----------------------------------------------------------------------


@pytest.fixture
def device(
    served: Served, host: NvmeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BlockDevice]:
    """Not known to any kernel: namespace 2, of 1 MiB."""
    (tmp_path / "ublk-control").touch()
    monkeypatch.setattr(block_device, "CONTROL", tmp_path / "ublk-control")
    monkeypatch.setattr(block_device, "_attribute", lambda *_: str(MIB // 512))
    attach(served, 2, NullBackend(MIB))
    made = BlockDevice(host, 2)
    yield made
    made.leave()


def followed(device: BlockDevice) -> str:
    deadline = time.monotonic() + PATIENCE
    while (line := device.follow()) is None:
        assert time.monotonic() < deadline
    return line


def test_a_change_is_followed_with_one_look_at_the_namespaces(
    served: Served, device: BlockDevice, host: NvmeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    identify = host.identify

    def counted(cns: int, nsid: int = 0, **more: int) -> bytes:
        asked.append(cns)
        return identify(cns, nsid, **more)

    assert device.follow() is None
    monkeypatch.setattr(host, "identify", counted)
    resize(served, 2, 2 * MIB)
    assert "its namespace has 2 MiB now, which this kernel's ublk cannot follow" in followed(device)
    assert asked == [Cns.ACTIVE_NSID_LIST, Cns.NAMESPACE]
    served.run(served.controller.remove_namespace(2))
    assert "its namespace is gone: every request fails" in followed(device)
    attach(served, 2, NullBackend(MIB, 4096))
    assert "its namespace has blocks of 4096 bytes now" in followed(device)
